"""Low-rank adapters that lose the ranks they do not need: FAAR's rule (arXiv 2603.20403), for any that there are.

Published: in each pass an adapter uses its first ranks alone, up to a random one; the score of a rank is a moving
average of (|<a, dL/da>| + |<b, dL/db>|) / 2, a its row of `down` and b its column of `up`; at times the smallest set of
ranks stays whose scores cover 0.95 of their sum, and no rank comes back. Ours: first are those that are left, in their
order; each adapter draws for itself; a pass in which a rank took no part leaves its score as it was; the average keeps
0.9 of itself; ranks go 50 times in a run (there, once an epoch); one always stays. What is gone is 0 in both factors,
in the checkpoint and in the graph, whose nodes stay what they are. MTLoRA's adapters of two inputs keep their ranks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from training.errors import ConfigError
from training.network.changes import LowRank
from training.phases import Phase
from training.rules.base import Turn

__all__ = ["RankShrink", "covering"]

COVER = 0.95
KEEP = 0.9
TIMES = 50


def covering(scores: Tensor, share: float) -> Tensor:
    """The smallest set of ranks whose scores (r,), 0 or more, cover this share of their sum, as booleans (r,).

    At least one; all of them while nothing is known, which is when all scores are 0.
    """
    total = scores.sum()
    if not total > 0:
        return torch.ones_like(scores, dtype=torch.bool)
    order = scores.argsort(descending=True, stable=True)
    before = scores[order].cumsum(0) - scores[order]
    kept = torch.empty_like(scores, dtype=torch.bool)
    kept[order] = before < share * total
    return kept


class RankShrink:
    """The weighted sum's gradients, on fewer and fewer ranks."""

    needs_task_grads = False
    needs_labels = True

    def __init__(self) -> None:
        self.alive: dict[str, Tensor] = {}  # by the name of an adapter: booleans (r,)
        self.scores: dict[str, Tensor] = {}
        self._every = 1

    def phases(self, steps: int) -> Sequence[Phase]:
        self._every = math.ceil(steps / TIMES)
        return [Phase("train", steps)]

    def bind(self, model: nn.Module, owners: Mapping[str, frozenset[str]]) -> None:
        names = [
            (f"{name}.{{}}.{number}", pair)
            for name, module in model.named_modules()
            if isinstance(module, LowRank)
            for number, pair in enumerate(zip(module.down, module.up, strict=True))
        ]
        if not names:
            raise ConfigError(
                "--rule rank_shrink takes ranks from low-rank adapters, and this method has none whose factors are of "
                "one group alone; choose ptsa, lora, lora_per_task, mtlora or dora"
            )
        self.alive = {name: torch.ones(len(down), dtype=torch.bool, device=down.device) for name, (down, _) in names}
        self.scores = {name: torch.zeros(len(down), device=down.device) for name, (down, _) in names}

    def step(self, turn: Turn) -> dict[str, float]:
        for number, batch in enumerate(turn.batches):
            draw = torch.Generator().manual_seed(turn.step * 1_000 + number)
            used = {name: _first(alive, draw) for name, alive in self.alive.items()}
            with self._only(turn.model, used):
                losses = turn.losses(batch)
                turn.backward(torch.stack([turn.weights[task] * loss for task, loss in losses.items()]).sum())
        self._score(turn.model)
        turn.clip_and_step()
        self.finalize(turn.model)  # the optimiser's momentum moves what is gone
        if (turn.step + 1) % self._every == 0:
            self._shrink()
            self.finalize(turn.model)
        ranks = torch.stack([alive.sum() for alive in self.alive.values()])
        return {**turn.values, "rank/mean": ranks.double().mean().item()}

    def finalize(self, model: nn.Module) -> None:
        with torch.no_grad():
            for name, alive in self.alive.items():
                down, up = _pair(model, name)
                down[~alive.to(down.device)] = 0
                up[:, ~alive.to(up.device)] = 0

    def report(self) -> dict[str, Any]:
        """Ranks that are left, by the name of their adapter."""
        return {"ranks": {name.replace(".{}", ""): int(alive.sum()) for name, alive in self.alive.items()}}

    def files(self) -> Mapping[str, str]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"alive": self.alive, "scores": self.scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for own, stored in ((self.alive, state["alive"]), (self.scores, state["scores"])):
            own |= {name: stored[name].to(tensor.device) for name, tensor in own.items()}

    def _shrink(self) -> None:
        for name, alive in self.alive.items():
            self.alive[name] = alive & covering(self.scores[name] * alive, COVER)

    @contextmanager
    def _only(self, model: nn.Module, used: Mapping[str, Tensor]) -> Iterator[None]:
        """With nothing but the ranks `used`: without the others the gradients of these are what they would be."""
        kept = []
        with torch.no_grad():
            for name, ranks in used.items():
                for factor, mask in zip(_pair(model, name), (ranks[:, None], ranks), strict=True):
                    kept.append((factor, factor.clone()))
                    factor.mul_(mask.to(factor.device))
        try:
            yield
        finally:
            with torch.no_grad():
                for factor, before in kept:
                    factor.copy_(before)

    def _score(self, model: nn.Module) -> None:
        """Learn from the gradients that lie in the model; in fp16 they are scaled, as all of a step are."""
        with torch.no_grad():
            for name, scores in self.scores.items():
                down, up = _pair(model, name)
                if down.grad is None or up.grad is None:
                    continue
                seen = ((down * down.grad).sum(1).abs() + (up * up.grad).sum(0).abs()) / 2
                took_part = (up.grad.any(0) | down.grad.any(1)) & seen.isfinite()
                moved = KEEP * scores + (1 - KEEP) * seen.to(scores)
                self.scores[name] = torch.where(took_part.to(scores.device), moved, scores)


def _first(alive: Tensor, draw: torch.Generator) -> Tensor:
    """Of the ranks that are alive the first ones, up to a random one."""
    number = int(torch.randint(1, int(alive.sum()) + 1, (), generator=draw))
    return alive & (alive.cumsum(0) <= number)


def _pair(model: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    return model.get_parameter(name.format("down")), model.get_parameter(name.format("up"))
