"""The slow way through a backbone: each node of a plan once, one after another, with effective tensors.

What a compiled graph does, and with a plan of one task the oracle of the tests: nothing is stacked.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from training.backbones.base import Tap
from training.network.ops import apply, dense
from training.network.plan import Node, Plan, node_of
from training.network.slots import Op, Slot, Weights, compute

__all__ = ["Effective", "Planned"]

# (slot, index of the node, its input, the inputs of all nodes of the slot) -> its output.
Run = Callable[[Slot, int, Tensor, Sequence[Tensor]], Tensor]


class Planned:
    """One pass; a `Flow` whose values are lists: a tensor for each node of the slot last passed.

    After the walk `taps` has the maps (N, h, w, C) of each task's stages.
    """

    def __init__(self, plan: Plan, tasks: Sequence[str], place: Tap, run: Run) -> None:
        self.taps: dict[str, list[Tensor]] = {task: [] for task in tasks}
        self._plan = plan
        self._place = place
        self._run = run
        self._here: tuple[Node, ...] | None = None

    def slot(self, slot: Slot, *values: Any) -> Any:
        nodes = self._plan[slot.name]
        if self._here is None:  # the images
            values = tuple([value] for value in values)
        moved = {id(v): [v[node.parent] for node in nodes] for v in values}
        values = tuple(moved[id(v)] for v in values)
        self._slot, self._here = slot, nodes
        y = self.again(values[0])
        return [y, *values[1:]] if len(values) > 1 else y

    def again(self, value: Any) -> Any:
        return [self._run(self._slot, index, x, value) for index, x in enumerate(value)]

    def each(self, function: Callable[..., Tensor], *values: Any) -> Any:
        return [function(*parts) for parts in zip(*values, strict=True)]

    def residual(self, x: Any, update: Any, drop_path: float) -> Any:
        return [a + b for a, b in zip(x, update, strict=True)]

    def tap(self, place: Tap, stage: int, x: Any) -> None:
        if place == self._place:
            for task, maps in self.taps.items():
                maps.append(x[node_of(task, self._here or ())])


class Effective:
    """Runs the nodes of a plan with what `effective(slot, index of the node)` says.

    The slot's own operation under a kept one is computed once for all nodes that name its source.
    """

    def __init__(self, plan: Plan, effective: Callable[[Slot, int], Weights | Op]) -> None:
        self._plan = plan
        self._effective = effective
        self._dense: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}  # what was computed of which input

    def __call__(self, slot: Slot, index: int, x: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        found = self._effective(slot, index)
        if isinstance(found, Weights):
            return compute(slot, found.tensors, x)
        if found.source is None:
            return apply(found, dense(slot, found, x), x)
        source = next(i for i, node in enumerate(self._plan[slot.name]) if found.source in node.streams)
        of, y = self._dense.get((slot.name, source), (None, x))
        if of is not inputs[source]:
            y = dense(slot, found, inputs[source])
            self._dense[slot.name, source] = inputs[source], y
        return apply(found, y, x)
