"""Multi-task cross-learning (Cervino et al., arXiv 2010.12993): a model for each task, none far from their centre.

    minimise sum_t L_t(W_t)  such that  |W_t - C| <= eps for all tasks t, where C is their mean

Every task's weights follow its own gradients; then those outside are drawn to the centre:

    W_t <- C + min(1, eps / |W_t - C|) (W_t - C)

until all are within eps of the mean of what they have become: one round is exact for two tasks. eps = 0 is one network
that takes the mean of the steps, eps = null a network for each task. The constraint is published, the rest is ours: it
is held after every `every` steps, in each stage of the backbone by itself (|.| is the norm of all that a stage's layers
have learnt, eps may be a list), and for low-rank adapters on their products, which go back to their rank; their factors
start alike, as the paper's weights do. A stage of eps 0 has one set of tensors in the end, and streams that agree so
far run once in the compiled graph: this is a tree that gives way. AdamW's momentum is left alone.

When the run is over, tasks that have stayed alike propose a tree (ours): in a stage, groups whose members are at most
`likeness` times as far from each other as changes that have nothing in common, |dW_t - dW_u|² = |dW_t|² + |dW_u|², by
complete linkage within the groups of the stage before. It is written beside the checkpoint, for `fit --tree tree.json`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor, nn

from ptsa_serve.task_tree import Group, TaskTree
from training.errors import ConfigError
from training.methods.base import Change
from training.network.mixing import begin_together, inner_products, is_apart, mix
from training.network.model import PTSAModel
from training.network.slots import Slot
from training.rules.base import Turn
from training.rules.weighted_sum import WeightedSum

__all__ = ["CrossLearning", "drawn"]

ROUNDS = 100
CLOSE = 1 + 1e-6


class CrossLearning(WeightedSum):
    """eps: how far a task's weights may be from the centre, for all stages or for each; None = as far as they like.

    every: steps between two projections. likeness: of tasks that the proposed tree groups.
    """

    def __init__(self, eps: float | list[float | None] | None = 1.0, every: int = 10, likeness: float = 0.5) -> None:
        self._eps = eps
        self._every = every
        self._likeness = likeness
        self._tree: TaskTree | None = None
        self._distances: dict[str, dict[str, float]] = {}
        faults = [value for value in (eps if isinstance(eps, list) else [eps]) if value is not None and not value >= 0]
        if faults or eps == []:
            raise ConfigError(f"cross_learning: eps is {eps}; allowed are 0 and more, null, or a list of one a stage")
        if every < 1 or not 0 <= likeness <= 1:
            raise ConfigError(
                f"cross_learning: every is {every}, likeness {likeness}; allowed are 1 step and more, and 0 to 1"
            )

    def bind(self, model: nn.Module, owners: Mapping[str, frozenset[str]]) -> None:
        model = cast(PTSAModel, model)
        apart = _apart(model)
        if not apart:
            raise ConfigError(
                "--rule cross_learning draws tasks together that have tensors of their own, and in no stage of this "
                "method has each task adapters or copies; take lora_per_task, single_task, or ptsa with a tree that "
                "ends in single tasks"
            )
        stages = len(model.backbone.widths)
        if isinstance(self._eps, list) and len(self._eps) != stages:
            raise ConfigError(f"cross_learning: eps is {self._eps}; give one number, or {stages}: one a stage")
        for _, change in (pair for changes in apart.values() for pair in changes):
            begin_together(change)

    def step(self, turn: Turn) -> dict[str, float]:
        values = dict(super().step(turn))
        if (turn.step + 1) % self._every == 0:
            values |= {f"apart/stage {stage + 1}": far for stage, far in self._project(turn.model).items()}
        return values

    def finalize(self, model: nn.Module) -> None:
        self._project(model)  # what is stored may be an average
        tasks, matrices = _distances(cast(PTSAModel, model))
        self._tree = proposed(cast(PTSAModel, model).config.tree, tasks, matrices, self._likeness)
        self._distances = {f"stage {s + 1}": _named(tasks, matrix) for s, matrix in matrices.items()}

    def report(self) -> dict[str, Any]:
        return {"tree": str(self._tree), "distances": self._distances}

    def files(self) -> Mapping[str, str]:
        return {"tree.json": json.dumps(self._tree.to_json()) + "\n"} if self._tree else {}

    def _project(self, model: nn.Module) -> dict[int, float]:
        """Hold the constraint; returns how far from the centre of each stage the farthest task was."""
        found = {}
        for stage, changes in _apart(cast(PTSAModel, model)).items():
            eps = self._eps[stage] if isinstance(self._eps, list) else self._eps
            inner = _inner(cast(PTSAModel, model), changes)
            found[stage] = _from_mean(inner).max().item()
            if eps is not None and (eps == 0 or found[stage] > CLOSE * eps):
                parts = drawn(inner, eps)
                for _, change in changes:
                    mix(change, parts)
        return found


def drawn(inner: Tensor, eps: float) -> Tensor:
    """Which mixtures (T, T) of T points are within eps of their mean, for the points' inner products (T, T)."""
    points = torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    mean = torch.full_like(points, 1 / len(inner))
    parts = points if eps else mean
    for _ in range(ROUNDS if eps else 0):
        far = _from_mean(parts @ inner @ parts.T)
        if far.max() <= CLOSE * eps:
            break
        parts = (mean + (eps / far).clamp_max(1)[:, None] * (points - mean)) @ parts
    return parts


def proposed(tree: TaskTree, tasks: Sequence[str], matrices: Mapping[int, Tensor], likeness: float) -> TaskTree:
    """Groups of like tasks for the stages of `matrices`, of `tree` before them.

    matrices: distances of `tasks` in a stage, 1 = nothing in common.
    """
    stages: list[tuple[Group, ...]] = []
    for stage in range(len(tree.stages)):
        before = stages[-1] if stages else (tree.tasks,)
        if stage in matrices:
            groups = [part for group in before for part in _clusters(group, tasks, matrices[stage].numpy(), likeness)]
        else:
            groups = tree.groups(stage) if len(tree.groups(stage)) < len(tree.tasks) else before
        stages.append(tuple(groups))
    return TaskTree(tree.tasks, tuple(stages))


def _clusters(group: Group, tasks: Sequence[str], distances: np.ndarray, likeness: float) -> list[Group]:
    if len(group) == 1:
        return [group]
    own = [tasks.index(task) for task in group]
    numbers = fcluster(linkage(squareform(distances[np.ix_(own, own)], checks=False), "complete"), likeness, "distance")
    return [tuple(t for t, n in zip(group, numbers, strict=True) if n == number) for number in dict.fromkeys(numbers)]


def _apart(model: PTSAModel) -> dict[int, list[tuple[Slot, Change]]]:
    """By stage the changes in which every task has tensors of its own."""
    found: dict[int, list[tuple[Slot, Change]]] = {}
    for slot in model.backbone.slots:
        if (change := model.method.change(slot)) and is_apart(change):
            found.setdefault(slot.stage, []).append((slot, change))
    return found


def _inner(model: PTSAModel, changes: Sequence[tuple[Slot, Change]]) -> Tensor:
    found = [inner_products(change, model.backbone.tensors(slot)) for slot, change in changes]
    return torch.stack(found).sum(0)


def _from_mean(inner: Tensor) -> Tensor:
    """Distance of every point (T,) from their mean, for the points' inner products."""
    off = torch.eye(len(inner), dtype=inner.dtype, device=inner.device) - 1 / len(inner)
    return (off @ inner @ off.T).diagonal().clamp_min(0).sqrt()


def _distances(model: PTSAModel) -> tuple[tuple[str, ...], dict[int, Tensor]]:
    """The tasks in their order, and by stage how far they are from each other; 1 = nothing in common."""
    matrices = {}
    for stage, changes in _apart(model).items():
        inner = _inner(model, changes).cpu()
        squares = inner.diagonal()
        sums = squares[:, None] + squares
        matrices[stage] = ((sums - 2 * inner).clamp_min(0) / sums.clamp_min(torch.finfo(sums.dtype).tiny)).sqrt()
    return model.config.tree.tasks, matrices


def _named(tasks: Sequence[str], matrix: Tensor) -> dict[str, float]:
    pairs = [(i, j) for j in range(len(tasks)) for i in range(j)]
    return {f"{tasks[i]} - {tasks[j]}": round(matrix[i, j].item(), 4) for i, j in pairs}
