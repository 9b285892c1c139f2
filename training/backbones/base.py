"""What every backbone is: timm's parameters, the slots that hold them, and one walk over those slots.

The walk is written once, for any layout of streams: a `Flow` decides whether they are stacked on the batch axis (as in
training) or computed one after another (as in a compiled graph), and forks them at whichever slot the layout says.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from training.network.slots import Slot, SlotKind, compute

__all__ = ["Backbone", "Bare", "Flow", "Tap", "conv_slot", "drop_rates", "linear_slot", "norm_slot", "place_slot"]

# Where decoders read a stage: what leaves its last block, or that after the merging of patches (MTLoRA).
Tap = Literal["stage", "merged"]


class Flow(Protocol):
    """How streams are laid out while a backbone is walked. A value is a tensor for `Stacked`, some for `Planned`."""

    def slot(self, slot: Slot, *values: Any) -> Any:
        """Fork all `values` that are alive here as the slot's streams do, and run the first one through the slot.

        Returns the result, or with several values a list of it and the others.
        """
        ...

    def again(self, value: Any) -> Any:
        """The slot last passed on another value, of the streams as they are now."""
        ...

    def each(self, function: Callable[..., Tensor], *values: Any) -> Any:
        """`function`, which sees nothing but a batch, on the values of every stream."""
        ...

    def residual(self, x: Any, update: Any, drop_path: float) -> Any:
        """x + update, where training leaves the update of some photos out, with this probability."""
        ...

    def tap(self, place: Tap, stage: int, x: Any) -> None:
        """Tokens (N, h, w, C) of a stage, for whoever reads them at this place."""
        ...


class Backbone(nn.Module, ABC):
    """timm's network as `trunk`, and its slots in the order in which `walk` comes to them.

    widths: channels that leave each stage, at strides 4, 8, 16 and so on.
    """

    widths: tuple[int, ...]

    def __init__(self, name: str, trunk: nn.Module, slots: Sequence[Slot]) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk
        self.slots = tuple(slots)
        self._at = {slot.name: slot for slot in slots}
        missing = {n for n, _ in trunk.named_parameters()} - {p for s in slots for p in s.tensors.values()}
        assert not missing, f"no slot holds {sorted(missing)}"

    @abstractmethod
    def walk(self, images: Tensor, flow: Flow) -> None:
        """Normalised images (N, 3, H, W) through every slot; stage outputs go to `flow.tap`."""

    @abstractmethod
    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a published layout under the trunk's names, brought to its sizes where that can be done.

        What belongs to another network is left in, for whoever compares.
        """

    def tensors(self, slot: Slot) -> dict[str, nn.Parameter]:
        """The slot's own tensors by role."""
        return {role: self.trunk.get_parameter(name) for role, name in slot.tensors.items()}

    def tap_widths(self, place: Tap) -> tuple[int, ...]:
        """Channels of each stage's map at a place: merged, it is what enters the next stage; the last stays."""
        return self.widths if place == "stage" else (*self.widths[1:], self.widths[-1])

    def maps(self, images: Tensor) -> list[Tensor]:
        """Stage outputs (N, h, w, C) of the bare backbone, for normalised images (N, 3, H, W)."""
        flow = Bare(self)
        self.walk(images, flow)
        return flow.taps


class Bare:
    """One stream and nothing changed."""

    def __init__(self, backbone: Backbone) -> None:
        self.taps: list[Tensor] = []
        self._backbone = backbone

    def slot(self, slot: Slot, *values: Any) -> Any:
        self._slot = slot
        y = self.again(values[0])
        return [y, *values[1:]] if len(values) > 1 else y

    def again(self, value: Any) -> Any:
        return compute(self._slot, self._backbone.tensors(self._slot), value)

    def each(self, function: Callable[..., Tensor], *values: Any) -> Any:
        return function(*values)

    def residual(self, x: Any, update: Any, drop_path: float) -> Any:
        return x + dropped(update, drop_path, 1) if self._backbone.training else x + update

    def tap(self, place: Tap, stage: int, x: Any) -> None:
        if place == "stage":
            self.taps.append(x)


def dropped(update: Tensor, rate: float, streams: int) -> Tensor:
    """Stochastic depth (arXiv 1603.09382), (streams * N, ...): one draw a photo, the same for all of its streams."""
    if not rate:
        return update
    photos = update.shape[0] // streams
    kept = update.new_empty(photos).bernoulli_(1 - rate).div_(1 - rate)
    return update * kept.repeat(streams).view(-1, *[1] * (update.ndim - 1))


def drop_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Of every stage's blocks: from 0 in the first to `last` in the last one of all, evenly."""
    rates = torch.linspace(0, last, sum(depths), device="cpu").split(list(depths))
    return [stage.tolist() for stage in rates]


def linear_slot(path: str, kind: SlotKind, module: nn.Linear, **where: Any) -> Slot:
    return Slot(path, kind, "linear", tensors=_tensors(path, module), **where)


def norm_slot(path: str, kind: SlotKind, module: nn.LayerNorm, **where: Any) -> Slot:
    return Slot(path, kind, "layer_norm", tensors=_tensors(path, module), attributes={"eps": module.eps}, **where)


def conv_slot(path: str, kind: SlotKind, module: nn.Conv2d, **where: Any) -> Slot:
    attributes = {"stride": module.stride, "padding": module.padding}
    return Slot(path, kind, "conv", tensors=_tensors(path, module), attributes=attributes, **where)


def place_slot(path: str, kind: SlotKind, **where: Any) -> Slot:
    """Where the backbone does nothing and a method may do something."""
    return Slot(path, kind, "identity", tensors={}, **where)


def _tensors(path: str, module: nn.Module) -> dict[str, str]:
    names: Iterable[str] = (name for name, _ in module.named_parameters(recurse=False))
    return {name: f"{path}.{name}" for name in names}
