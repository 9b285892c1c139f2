"""The gradient of the weighted sum of all losses: plain multi-task training."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from training.phases import Phase
from training.rules.base import Turn

__all__ = ["WeightedSum"]


class WeightedSum:
    """One phase, no state; the batches pass one after the other, so that one graph at a time is in memory."""

    needs_task_grads = False
    needs_labels = True

    def phases(self, steps: int) -> Sequence[Phase]:
        return [Phase("train", steps)]

    def bind(self, model: nn.Module, owners: Mapping[str, frozenset[str]]) -> None:
        pass

    def step(self, turn: Turn) -> dict[str, float]:
        for batch in turn.batches:
            losses = turn.losses(batch)
            turn.backward(torch.stack([turn.weights[task] * loss for task, loss in losses.items()]).sum())
        turn.clip_and_step()
        return turn.values

    def finalize(self, model: nn.Module) -> None:
        pass

    def report(self) -> dict[str, Any]:
        return {}

    def files(self) -> Mapping[str, str]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
