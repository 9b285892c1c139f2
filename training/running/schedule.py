"""The learning rate as a function of the step."""

import math

__all__ = ["warmup_cosine"]


def warmup_cosine(step: int, steps: int, *, peak: float, warmup: int, floor: float = 0.01) -> float:
    """Linear from 0 to `peak` over `warmup` steps, then half a cosine down to `floor * peak` at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
