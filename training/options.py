"""What the options of the commands may be: ranges of numbers, and which of them change nothing of the result."""

from collections.abc import Mapping
from typing import Any

from training.errors import ConfigError

__all__ = ["MAY_CHANGE", "RANGES", "number_faults", "refuse"]

# Options with which a run may be continued though they had other values when it began: the weights do not depend on
# them. Everything else decides what is learnt; `steps` too, because the learning rate follows them.
MAY_CHANGE = ("out", "workers", "save_every")

# The smallest and the largest value of an option, by its name, of whichever command has it.
RANGES: dict[str, tuple[float, float]] = {
    "width": (1, 4096),
    "views": (1, 1000),
    "members": (1, 100),
    "blocks": (1, 100),
    "steps": (1, 10**9),
    "epochs": (0, 10**6),
    "warmup_epochs": (0, 10**6),
    "validate_every": (0, 10**9),
    "validate_epochs": (0, 10**6),
    "accumulate": (1, 10**4),
    "ema": (0, 0.999999),
    "hold_out": (0, 0.5),
    "clip": (1e-6, 10**6),
    "batch_each": (0, 10**6),
    "side": (0, 4096),
    "confident": (0, 1),
    "familiar": (0, 1),
    "limit": (0, 10**9),
    "rate_batch": (0, 10**6),
    "batch": (1, 10**6),
    "size": (32, 4096),
    "rate": (1e-9, 10),
    "backbone_rate": (1e-9, 10),
    "warmup": (0, 10**9),
    "weight_decay": (0, 1),
    "drop_path": (0, 0.9),
    "scale": (0.05, 8),
    # Steps and samples are counted on from a multiple of it, in 64 bits.
    "seed": (0, 10**9),
    "workers": (0, 1024),
    "save_every": (1, 10**9),
}


def number_faults(options: Mapping[str, Any]) -> list[str]:
    """A sentence for each option that is outside its range, or not a number."""
    return [
        f"--{name} is {value}; it must be from {RANGES[name][0]} to {RANGES[name][1]}"
        for name, value in options.items()
        if name in RANGES and value is not None and not RANGES[name][0] <= value <= RANGES[name][1]
    ]


def refuse(faults: list[str]) -> None:
    """Raise ConfigError with all `faults`, if there are any."""
    if faults:
        raise ConfigError("; ".join(faults))
