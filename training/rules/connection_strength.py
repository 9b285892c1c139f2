"""Connection strength (Jeong and Yoon, Quantifying Task Priority, arXiv 2406.02996): channels belong to a task.

In step e of E a number P is drawn evenly from 0...1 (published: e counts epochs; the released code draws a batch).

    P >= e / E   phase 1: each task by itself takes a step of the optimiser, one after another
    otherwise    phase 2: one step. The rows of a layer's weight are grouped by the task i that owns them, the one that
                 they are connected to most strongly; where the gradient G_ij of another task j on these rows opposes
                 the owner's, its part along it is taken away,
                     if <G_ii, G_ij> < 0:   G_ij <- G_ij - <G_ii, G_ij> / |G_ii|² G_ii
                 with one product for all rows of an owner. What has no such rows gets the sum of all gradients, as does
                 a layer that one task owns whole (released code).

Owner of p: the task of the largest S_p^t / sum_p' S_p'^t. Published for convolutions before batch norms of each task:
S_p^t = gamma_tp² / (var_tp + eps) sum_q W_pq². Ours, for a trunk without them, which stays one for all: the rows of a
weight are channels of the tokens of a stage, and how strongly a task is connected to one is what the first layer of
its decoder makes of it, S_p^t = sum_k (W_t)_kp², W_t with the gain of the norm before it. Such rows are those of what
is added to the tokens (the attention's projection, a block's last layer, embedding and merging of patches), of adapters
those of `up`. Norms for each group are an option of the method (`norms: per_group`), nothing of the rule.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from training.errors import ConfigError
from training.network.model import PTSAModel
from training.network.slots import Slot
from training.phases import Phase
from training.rules.base import Turn
from training.rules.gathering import wishes
from training.rules.weighted_sum import WeightedSum

__all__ = ["ConnectionStrength", "owned_by", "projected"]


class ConnectionStrength(WeightedSum):
    """No state: what is drawn depends on the step, what is owned on the weights."""

    needs_task_grads = True
    needs_labels = True

    def __init__(self) -> None:
        self._steps = 0
        self._rows: dict[str, int] = {}  # parameter -> stage whose tokens have its rows as channels
        self._owners: Mapping[str, frozenset[str]] = {}

    def phases(self, steps: int) -> Sequence[Phase]:
        self._steps = steps
        return super().phases(steps)

    def bind(self, model: nn.Module, owners: Mapping[str, frozenset[str]]) -> None:
        assert isinstance(model, PTSAModel)
        self._owners = owners
        for name, slot in model.places().items():
            stage, parameter = _written(slot), model.get_parameter(name)
            if stage is None or parameter.ndim < 2 or len(owners.get(name, ())) < 2:
                continue
            rows = len(model.backbone.tensors(slot)["weight"])
            if len(parameter) == rows and _reads(model, next(iter(owners[name])), stage) is not None:
                self._rows[name] = stage
        if not self._rows:
            raise ConfigError(
                "--rule connection_strength shares out the channels of layers that several tasks train, and this "
                "method trains none; take weighted_sum, or a method that shares (ptsa, lora, multi_task)"
            )

    def step(self, turn: Turn) -> dict[str, float]:
        if torch.rand((), device="cpu") >= turn.step / self._steps:
            self._one_by_one(turn)
        else:
            self._together(turn)
        return turn.values

    def _one_by_one(self, turn: Turn) -> None:
        for task in turn.weights:
            labelled = False
            for batch in turn.batches:
                for loss in turn.losses(batch, [task]).values():
                    turn.backward(turn.weights[task] * loss)
                    labelled = True
            if labelled:
                turn.clip_and_step()

    def _together(self, turn: Turn) -> None:
        found = wishes(turn)
        model = cast(PTSAModel, turn.model)
        turn.write({name: self._joined(model, name, own) for name, own in found.items()})
        turn.clip_and_step()

    def _joined(self, model: PTSAModel, name: str, gradients: Mapping[str, Tensor]) -> Tensor:
        stacked = torch.stack(list(gradients.values()))
        if name not in self._rows or len(stacked) == 1:
            return stacked.sum(0)
        strengths = [_reads(model, task, self._rows[name]) for task in gradients]
        return projected(stacked, owned_by(torch.stack([one for one in strengths if one is not None])))


def owned_by(strengths: Tensor) -> Tensor:
    """Of each channel the number of its task, (channels,), for strengths (tasks, channels) of any scale."""
    return (strengths / strengths.sum(1, keepdim=True)).argmax(0)


def projected(gradients: Tensor, owner: Tensor) -> Tensor:
    """The sum (rows, ...) of the tasks' gradients (tasks, rows, ...), none of which opposes the owner of a row."""
    total = gradients.sum(0)
    if len(owner.unique()) == 1:
        return total
    for task in owner.unique().tolist():
        rows = owner == task
        own = gradients[task, rows]
        for other in range(len(gradients)):
            along = (own * gradients[other, rows]).sum()
            if along < 0:
                total[rows] -= along / own.square().sum() * own
    return total


def _written(slot: Slot) -> int | None:
    """The stage whose tokens have the rows of the slot's weight as channels; None for what is not added to them."""
    match slot.kind:
        case "patch":
            return 0
        case "proj" | "fc2":
            return slot.stage
        case "reduction":
            return slot.stage + 1
        case _:
            return None


@torch.no_grad()
def _reads(model: PTSAModel, task: str, stage: int) -> Tensor | None:
    """(channels,): how strongly the decoder of `task` is connected to the tokens of a stage; None where it is not."""
    entries: list[Tensor] = model.decoders[task].entries()  # pyright: ignore
    last = len(entries) - 1
    # Behind the merging, the map of a stage has the next one's channels.
    at = list(range(last + 1)) if model.method.layout.tap == "stage" else [*range(1, last + 1), last]
    read = [entry.square().sum(0) for entry, of in zip(entries, at, strict=True) if of == stage]
    return torch.stack(read).sum(0) if read else None
