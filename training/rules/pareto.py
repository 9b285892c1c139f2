"""Pareto Manifold Learning (arXiv 2210.09759; PaLoRA, arXiv 2407.08056): every preference is trained at once.

In each step K preferences a_k are drawn from a Dirichlet distribution, all of whose parameters are `concentration`, and
every batch passes once with each, the members of all slots mixed accordingly:

    J = 1 / K sum_k sum_t a_kt L_t(a_k) + coefficient * sum_t R_t

R_t wants the loss of t to fall as t is preferred more: with the passes in order of rising a_kt,

    R_t = log mean_k exp(max(0, L_t(a_k+1) - L_t(a_k)))

It is left out where it is larger than the rest of J (released code). Defaults are the released ones for Cityscapes.
Ours: the mean over passes, not the sum; losses are those of one batch with their weights; passes that are preferred
alike are not compared; gradients are not balanced.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet

from training.errors import ConfigError
from training.network.model import PTSAModel
from training.network.simplex import Simplex
from training.rules.base import Batch, Turn
from training.rules.weighted_sum import WeightedSum

__all__ = ["Pareto", "disorder"]


class Pareto(WeightedSum):
    """window: passes in a step (K). No state: what is drawn depends on the step."""

    needs_task_grads = True  # the passes of a step are judged together
    needs_labels = True

    def __init__(self, concentration: float = 7.0, window: int = 3, coefficient: float = 1.0) -> None:
        self._concentration, self._window, self._coefficient = concentration, window, coefficient
        if not 0 < concentration <= 1e6 or window not in range(1, 65) or not 0 <= coefficient <= 1e6:
            raise ConfigError(
                f"pareto: concentration is {concentration}, window {window}, coefficient {coefficient}; allowed are "
                "more than 0, 1 to 64 passes, and 0 and more"
            )

    def bind(self, model: nn.Module, owners: Mapping[str, frozenset[str]]) -> None:
        if cast(PTSAModel, model).method.simplex is None:
            raise ConfigError(
                "--rule pareto mixes the members of a method, one a task, by preference, and this one has none; "
                "take --method palora or pareto, or another rule"
            )

    def step(self, turn: Turn) -> dict[str, float]:
        simplex = cast(PTSAModel, turn.model).method.simplex
        assert simplex is not None
        parameters = torch.full((len(simplex.tasks),), self._concentration, device="cpu", dtype=torch.float64)
        points = Dirichlet(parameters).sample((self._window,)).tolist()
        for batch in turn.batches:
            turn.backward(self._objective(turn, batch, simplex, points))
        turn.clip_and_step()
        return {task: value / self._window for task, value in turn.values.items()}

    def _objective(self, turn: Turn, batch: Batch, simplex: Simplex, points: Sequence[Sequence[float]]) -> Tensor:
        passes: list[dict[str, Tensor]] = []
        for point in points:
            with simplex.at(point):
                passes.append({task: turn.weights[task] * loss for task, loss in turn.losses(batch).items()})
        found = []
        for task in passes[0]:
            place = simplex.tasks.index(task)
            found.append((torch.stack([losses[task] for losses in passes]), [point[place] for point in points]))
        total = torch.stack([(losses * losses.new_tensor(parts)).mean() for losses, parts in found]).sum()
        penalty = self._coefficient * torch.stack([disorder(losses, parts) for losses, parts in found]).sum()
        return total + penalty if penalty <= total else total


def disorder(losses: Tensor, parts: Sequence[float]) -> Tensor:
    """R_t for a task's losses (K,) of passes that prefer it by `parts`: 0 where they never rise with them."""
    order = sorted(range(len(parts)), key=parts.__getitem__)
    pairs = [(i, j) for i, j in pairwise(order) if parts[i] < parts[j]]
    if not pairs:
        return losses.new_zeros(())
    rises = torch.stack([losses[j] - losses[i] for i, j in pairs])
    return rises.relu().exp().mean().log()
