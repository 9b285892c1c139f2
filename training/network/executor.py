"""The fast way through a backbone: all streams stacked on the batch axis, forked wherever the layout says.

With g streams the activations are (g * N, ...), stream by stream: one large product with each frozen weight serves
all of them. `planned` is the slow way, one stream after another with folded weights: what a graph does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from training.backbones.base import Tap, dropped
from training.methods.base import Method
from training.network.layout import Stream, parent, reader
from training.network.slots import Slot

__all__ = ["Stacked"]


class Stacked:
    """One pass; a `Flow`. After the walk `taps` has the maps (N, h, w, C) of each task's stages."""

    def __init__(self, method: Method, tasks: Sequence[str], *, training: bool) -> None:
        self.taps: dict[str, list[Tensor]] = {task: [] for task in tasks}
        self._method = method
        self._streams: Mapping[str, tuple[Stream, ...]] = method.streams(tuple(tasks))
        self._here: tuple[Stream, ...] = (Stream(method.layout.tree.tasks),)
        self._training = training

    def slot(self, slot: Slot, *values: Any) -> Any:
        streams = self._streams[slot.name]
        if streams != self._here:
            order = [parent(stream, self._here) for stream in streams]
            moved = {id(v): self._repeat(v, order) for v in values}
            values = tuple(moved[id(v)] for v in values)
            self._here = streams
        y = self._method(slot, values[0], streams)
        return [y, *values[1:]] if len(values) > 1 else y

    def each(self, function: Callable[..., Tensor], *values: Any) -> Any:
        return function(*values)

    def residual(self, x: Any, update: Any, drop_path: float) -> Any:
        return x + (dropped(update, drop_path, len(self._here)) if self._training else update)

    def tap(self, place: Tap, stage: int, x: Any) -> None:
        if place == self._method.layout.tap:
            streams = x.unflatten(0, (len(self._here), -1))
            for task, maps in self.taps.items():
                maps.append(streams[reader(task, self._here)])

    def _repeat(self, x: Tensor, order: list[int]) -> Tensor:
        """The streams with these numbers, (len(order) * N, ...), of (len(self._here) * N, ...)."""
        if order == list(range(len(self._here))):
            return x
        return x.unflatten(0, (len(self._here), -1))[order].flatten(0, 1)
