"""What a method is: for each slot a change, or none; what is trained of the backbone; and which streams there are.

Counting, freezing, checkpoints and folding ask these objects and know no method by name. A change is a module of its
own parameters; group numbers come with every call and are never stored.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.network.layout import Layout, Stream
from training.network.plan import Node, Plan, make_plan
from training.network.responses import covariances
from training.network.simplex import Simplex
from training.network.slots import Op, Slot, Weights, compute
from training.phases import Phase

__all__ = ["Base", "Change", "Common", "Method", "MethodSpec"]

Base = Mapping[str, Tensor]  # the backbone's own tensors of a slot, by role


class Change(nn.Module, ABC):
    """Parameters at one slot, for groups of tasks. Subclasses say what they do with them.

    responses: whether it begins with what the slot answers to photos, see `meet`.
    """

    responses: bool = False

    @abstractmethod
    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        """The slot's output for stacked streams (len(streams) * N, ...), in their order."""

    @abstractmethod
    def version(self, stream: Stream) -> Hashable:
        """Equal for streams whose tensors here are the same; None = the backbone's own."""

    @abstractmethod
    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights | Op:
        """What does the same for one stream in eval mode, exactly."""

    def start(self, base: Base) -> None:
        """Begin at the backbone's tensors `base`: for what starts as a copy of them."""

    def meet(self, covariance: Tensor) -> None:
        """Begin with the covariance (C, C), float64, of the slot's outputs over training photos."""

    def adopt(self, task: str, base: Base, expert: Base) -> None:
        """Take over what a network that was trained for one task has here in the backbone's place."""

    def expert(self, task: str) -> dict[str, Tensor]:
        """Values of parameters, by their name here, with which this is what was adopted for a task."""
        return {}

    @abstractmethod
    def owners(self) -> Mapping[str, frozenset[str]]:
        """The tasks that reach each of this change's parameters, by its name here."""


class Common(nn.Module, ABC):
    """Parameters that changes at several slots read: the method's, which a change refers to but does not hold."""

    @abstractmethod
    def owners(self) -> Mapping[str, frozenset[str]]:
        """The tasks that reach each parameter, by its name here."""


class Method(nn.Module):
    """A way to adapt a backbone to several tasks.

    changes: by the name of the slot. trained: the backbone's own parameters that are trained, by name. common: what
    changes share. simplex: the preference that changes with members mix them by, where there are such. tinted: the part
    of each decoder that is trained; empty: all of it.
    """

    def __init__(
        self,
        backbone: Backbone,
        layout: Layout,
        changes: Mapping[str, Change] | None = None,
        trained: Callable[[Slot, str], bool] = lambda slot, role: False,
        *,
        common: Common | None = None,
        simplex: Simplex | None = None,
        tinted: str = "",
    ) -> None:
        super().__init__()
        self.layout = layout
        self.simplex = simplex
        self.tinted = tinted
        self.trained = frozenset(
            name for slot in backbone.slots for role, name in slot.tensors.items() if trained(slot, role)
        )
        # A module's name holds no dots, a slot's does.
        self.changes = nn.ModuleDict({_key(name): change for name, change in (changes or {}).items()})
        self.common = common
        # Not a submodule: the backbone is the model's, beside the method.
        self._backbone = [backbone]

    def plan(self, tasks: Sequence[str] | None = None) -> Plan:
        """Every stream by itself, whether or not another has the same tensors: as a model trains."""
        return make_plan(self._backbone[0].slots, self.layout, lambda slot, stream: stream, tasks=tasks)

    def change(self, slot: Slot) -> Change | None:
        key = _key(slot.name)
        if key not in self.changes:
            return None
        found = self.changes[key]
        assert isinstance(found, Change)
        return found

    def forward(self, slot: Slot, x: Tensor, nodes: Sequence[Node], fork: Callable[[Tensor], Tensor]) -> Tensor:
        """The slot's output for stacked streams, those of `plan`; x is what comes before they fork."""
        base = self._backbone[0].tensors(slot)
        change = self.change(slot)
        if change is None:
            return fork(compute(slot, base, x))
        return change(slot, base, fork(x), [node.stream for node in nodes])

    def version(self, slot: Slot, stream: Stream) -> Hashable:
        """See `Change.version`."""
        change = self.change(slot)
        return None if change is None else change.version(stream)

    def effective(self, slot: Slot, stream: Stream) -> Weights | Op:
        """See `Change.effective`; a slot without a change has the backbone's own tensors."""
        base = {role: tensor.detach() for role, tensor in self._backbone[0].tensors(slot).items()}
        change = self.change(slot)
        return Weights(base) if change is None else change.effective(slot, base, stream)

    def freeze(self) -> None:
        """Leave trainable what this method trains: its own parameters, and of the backbone's those it names."""
        for name, parameter in self._backbone[0].trunk.named_parameters():
            parameter.requires_grad_(name in self.trained)
        self.requires_grad_(True)

    def start(self, photos: Iterable[Tensor] = ()) -> None:
        """Begin at the backbone as it is now: with its weights loaded, the network is the backbone's.

        photos: normalised images (N, 3, H, W), which are looked at if a change begins with what is answered to them.
        """
        backbone = self._backbone[0]
        changes = {slot: change for slot in backbone.slots if (change := self.change(slot))}
        for slot, change in changes.items():
            change.start(backbone.tensors(slot))
        if asking := [slot for slot, change in changes.items() if change.responses]:
            for name, covariance in covariances(backbone, asking, photos).items():
                changes[next(slot for slot in asking if slot.name == name)].meet(covariance)

    def adopt(self, task: str, slot: Slot, expert: Base) -> None:
        """See `Change.adopt`."""
        if change := self.change(slot):
            change.adopt(task, self._backbone[0].tensors(slot), expert)

    def expert(self, task: str) -> dict[str, Tensor]:
        """Values of this method's parameters, by their name here, that make the network the expert of a task."""
        return {
            f"changes.{key}.{name}": value
            for key, change in self.changes.items()
            for name, value in change.expert(task).items()  # pyright: ignore[reportCallIssue]
        }

    def places(self) -> dict[str, Slot]:
        """The slot that each parameter of a change lies in, by its name here."""
        changed = [(slot, change) for slot in self._backbone[0].slots if (change := self.change(slot))]
        return {f"changes.{_key(s.name)}.{name}": s for s, change in changed for name, _ in change.named_parameters()}

    def penalties(self, progress: float) -> dict[str, Tensor]:
        """What a step adds to the loss of a task, whatever the rule; progress: the part of the run that is done."""
        return {}

    def phases(self, steps: int) -> Sequence[Phase]:
        """What a run of `steps` steps consists of, whatever the rule; their steps add up to it."""
        return [Phase("train", steps)]

    def owners(self) -> dict[str, frozenset[str]]:
        """The tasks that reach each of this method's own parameters, by its name here."""
        parts: list[tuple[str, Any]] = [(f"changes.{key}", change) for key, change in self.changes.items()]
        parts += [] if self.common is None else [("common", self.common)]
        return {f"{key}.{name}": tasks for key, part in parts for name, tasks in part.owners().items()}


def _key(name: str) -> str:
    return name.replace(".", "/")


@dataclass(frozen=True)
class MethodSpec:
    """A row of the registry.

    build: from backbone, tree, options and the place of the taps. options: a frozen dataclass; raises ConfigError for
    values that fit nothing. tree: the trees that the method has: one for all tasks, one a task, or any. source: where
    it was published. trains: in words. folds: what is left of it in a compiled graph. settings: options that no trained
    tensor depends on, so that they may be set anew in a finished model. windows: whether a backbone must have windows
    of tokens. neutral: whether the network is the backbone's at its start. experts: whether it begins with a
    trained network of each task.
    """

    build: Callable[[Backbone, TaskTree, Any, Tap], Method]
    options: type
    tree: Literal["shared", "independent", "any"]
    kind: Literal["full", "partial", "low rank", "dense", "adapters"]
    source: str
    trains: str
    folds: str
    settings: Sequence[str] = ()
    windows: bool = False
    neutral: bool = True
    experts: bool = False
