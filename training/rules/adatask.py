"""AdaTask (Yang et al., arXiv 2211.15055): Adam keeps its accumulators for each task, on what several tasks share.

For a parameter that the tasks of a set O reach, and the gradient g_t of the weighted loss of each of them:

    m_t <- b1 m_t + (1 - b1) g_t            v_t <- b2 v_t + (1 - b2) g_t²
    p   <- p - rate / |O| sum_t m^_t / (sqrt v^_t + eps)

so that no task is drowned by the gradients of a louder one: a loss a thousand times as large moves the weights no more.
What one task alone reaches takes AdamW's own step (published too).

The share of a task, AU, is that of its part in the squared updates of a stage, in the decayed mean over steps
(published: a parameter's). The rule has done something where the shares are nearer to 1 / |O| than with `separate`
false, which is AdamW to the last digit and reports the same shares (there v is of the sum of all gradients).

Ours: the mean over O, not the sum, whose steps are up to |O| times as large; AdamW's decay of weights, once a step and
outside of the mean; gradients are clipped, all by the one factor that clips their sum.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from training.errors import ConfigError
from training.network.model import PTSAModel
from training.rules.base import Turn
from training.rules.gathering import wishes
from training.rules.weighted_sum import WeightedSum

__all__ = ["AdaTask"]


class AdaTask(WeightedSum):
    """separate: accumulators for each task; false: AdamW's, which the shares are measured against.

    decay: of the mean of squared updates.
    """

    needs_task_grads = True
    needs_labels = True

    def __init__(self, separate: bool = True, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"adatask: decay is {decay}; allowed are 0 up to, but not, 1")
        self._separate = separate
        self._decay = decay
        self._shared: dict[str, frozenset[str]] = {}
        self._stages: dict[str, int] = {}
        # Parameter -> task -> step, m and v; stage -> task -> decayed mean of squared updates.
        self._moments: dict[str, dict[str, dict[str, Any]]] = {}
        self._updates: dict[int, dict[str, float]] = {}

    def bind(self, model: nn.Module, owners: Mapping[str, frozenset[str]]) -> None:
        self._shared = {name: tasks for name, tasks in owners.items() if len(tasks) > 1}
        if not self._shared:
            raise ConfigError(
                "--rule adatask balances what several tasks share, and this method shares nothing; "
                "take weighted_sum, or a method that shares (ptsa, lora, multi_task)"
            )
        self._stages = {name: slot.stage for name, slot in cast(PTSAModel, model).places().items()}

    def step(self, turn: Turn) -> dict[str, float]:
        found = wishes(turn)
        turn.write({name: _sum(own) for name, own in found.items()})
        turn.clip_and_step(lambda factor: self._apply(turn, found, factor))
        shares = self._shares().items()
        return turn.values | {
            f"share/stage {stage}/{task}": part for stage, own in shares for task, part in own.items()
        }

    @torch.no_grad()
    def _apply(self, turn: Turn, found: Mapping[str, Mapping[str, Tensor]], factor: float) -> None:
        groups = {id(p): group for group in turn.optimizer.param_groups for p in group["params"]}
        squares: dict[int, dict[str, Tensor]] = {}
        for name, parameter in turn.model.named_parameters():
            if name not in self._shared or name not in found:
                continue
            group = groups[id(parameter)]
            parameter.grad = None
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            for task, step in self._steps(name, {t: factor * g for t, g in found[name].items()}, group).items():
                update = group["lr"] * step / (len(self._shared[name]) if self._separate else 1)
                parameter.sub_(update)
                if name in self._stages:
                    own = squares.setdefault(self._stages[name], {})
                    own[task] = own.get(task, 0) + update.square().sum()
        for stage, own in squares.items():
            means = self._updates.setdefault(stage, {})
            for task, square in own.items():
                means[task] = self._decay * means.get(task, 0.0) + (1 - self._decay) * square.item()

    def _steps(self, name: str, gradients: dict[str, Tensor], group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Adam's step for each task, which the rate multiplies."""
        first, second = group["betas"]
        total = _sum(gradients)
        if not self._separate:  # where a task has no loss, the sum goes on without it
            gradients = {task: gradients.get(task, torch.zeros_like(total)) for task in sorted(self._shared[name])}
        steps = {}
        for task, gradient in gradients.items():
            zero = {"step": 0, "m": torch.zeros_like(total), "v": torch.zeros_like(total)}
            own = self._moments.setdefault(name, {}).setdefault(task, zero)
            measure = gradient if self._separate else total
            own["step"] += 1
            own["m"] = own["m"].to(gradient).lerp_(gradient, 1 - first)  # from a state they come on the CPU
            own["v"] = own["v"].to(gradient).mul_(second).addcmul_(measure, measure, value=1 - second)
            deviation = (own["v"] / (1 - second ** own["step"])).sqrt() + group["eps"]
            steps[task] = own["m"] / (1 - first ** own["step"]) / deviation
        return steps

    def _shares(self) -> dict[int, dict[str, float]]:
        """Of each task in the updates of each stage, counted from 1: they add up to 1."""
        totals = {stage: sum(own.values()) for stage, own in self._updates.items()}
        return {
            stage + 1: {task: own[task] / totals[stage] for task in own}
            for stage, own in sorted(self._updates.items())
            if totals[stage]
        }

    def report(self) -> dict[str, Any]:
        return {"update_share": {f"stage {stage}": own for stage, own in self._shares().items()}}

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self._moments, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._moments, self._updates = state["moments"], state["updates"]


def _sum(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(gradients.values())).sum(0)
