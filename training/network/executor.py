"""The wide way through a backbone: all nodes of a plan stacked on the batch axis, forked wherever the plan says.

With g nodes the activations are (g * N, ...), node by node: one large product with each frozen weight serves all of
them. Models train so, with a node for each stream; so does a graph run that keeps the low-rank factors of its groups.
`planned` is the slow way, one node after another with folded weights.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from training.backbones.base import Tap, dropped
from training.network.plan import Node, Plan, node_of
from training.network.slots import Slot

__all__ = ["Fork", "Stacked"]

# From the stacked values of the slot before to those of this one's nodes.
Fork = Callable[[Tensor], Tensor]
# (slot, its stacked input before the fork, its nodes in their order, the fork) -> its stacked output.
RunAll = Callable[[Slot, Tensor, Sequence[Node], Fork], Tensor]


class Stacked:
    """One pass; a `Flow`. After the walk `taps` has the maps (N, h, w, C) of each task's stages."""

    def __init__(self, plan: Plan, tasks: Sequence[str], place: Tap, run: RunAll, *, training: bool = False) -> None:
        self.taps: dict[str, list[Tensor]] = {task: [] for task in tasks}
        self._plan = plan
        self._place = place
        self._run = run
        self._count = 1
        self._here: Sequence[Node] = ()
        self._training = training

    def slot(self, slot: Slot, *values: Any) -> Any:
        nodes = self._plan[slot.name]
        order = [node.parent for node in nodes]
        if order == list(range(self._count)):
            y, rest = self._run(slot, values[0], nodes, _same), values[1:]
        else:
            moved = {id(v): self._repeat(v, order) for v in values[1:]}
            fork = partial(self._repeat, order=order)
            y, rest = self._run(slot, values[0], nodes, fork), tuple(moved[id(v)] for v in values[1:])
        self._slot, self._here, self._count = slot, nodes, len(nodes)
        return [y, *rest] if rest else y

    def again(self, value: Any) -> Any:
        return self._run(self._slot, value, self._here, _same)

    def each(self, function: Callable[..., Tensor], *values: Any) -> Any:
        return function(*values)

    def residual(self, x: Any, update: Any, drop_path: float) -> Any:
        return x + (dropped(update, drop_path, self._count) if self._training else update)

    def tap(self, place: Tap, stage: int, x: Any) -> None:
        if place == self._place:
            parts = x.unflatten(0, (self._count, -1))
            for task, maps in self.taps.items():
                maps.append(parts[node_of(task, self._here)])

    def _repeat(self, x: Tensor, order: list[int]) -> Tensor:
        """The nodes with these numbers, (len(order) * N, ...), of (self._count * N, ...)."""
        parts = x.unflatten(0, (self._count, -1))
        return parts.index_select(0, torch.tensor(order, device=x.device)).flatten(0, 1)


def _same(x: Tensor) -> Tensor:
    return x
