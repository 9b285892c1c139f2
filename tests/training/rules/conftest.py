"""A model of a few numbers, and steps of a rule on it as the loop takes them."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from training.rules import Rule
from training.rules.base import Batch
from training.running.stepping import Optimisation
from training.running.turn import StepTurn

Losses = Callable[[Any], Mapping[str, Tensor]]


class Numbers(nn.Module):
    """Vectors by name, all of stage 0."""

    def __init__(self, values: Mapping[str, list[float]]) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))

    def places(self) -> dict[str, Any]:
        return {name: SimpleNamespace(stage=0) for name, _ in self.named_parameters()}


class Steps:
    """Steps of `rule` on a model; `losses` of the module, by task."""

    def __init__(self, rule: Rule, model: nn.Module, losses: Losses, *, max_norm: float = 1e9, **options: Any) -> None:
        optimizer = options.pop("optimizer", torch.optim.AdamW)(model.parameters(), **options)
        self.run = Optimisation(Fabric(accelerator="cpu"), model, optimizer, max_norm=max_norm)
        self.rule = rule
        self._losses = losses

    def take(self, steps: int, weights: Mapping[str, float] | None = None) -> dict[str, float]:
        """So many steps, of one batch each; what the last one returned."""
        values: dict[str, float] = {}
        for _ in range(steps):
            torch.manual_seed(self.run.step)
            batch = Batch("photo", None)
            asked = weights or dict.fromkeys(self._losses(self.run.module), 1.0)
            values = self.rule.step(StepTurn(self.run, [batch], self._asked, asked, "train"))
            self.run.count()
        return values

    def _asked(self, _: Any, tasks: list[str] | None = None) -> dict[str, Tensor]:
        return {task: loss for task, loss in self._losses(self.run.module).items() if tasks is None or task in tasks}


@pytest.fixture
def numbers() -> type[Numbers]:
    return Numbers


@pytest.fixture
def steps() -> type[Steps]:
    return Steps
