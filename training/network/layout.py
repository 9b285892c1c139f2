"""Which streams of activations there are at each slot of a backbone, and where one comes from."""

from collections.abc import Sequence
from dataclasses import dataclass

from ptsa_serve.task_tree import Group, TaskTree
from training.backbones.base import Tap
from training.network.slots import MERGING, Slot, SlotKind

__all__ = ["Layout", "Stream", "parent", "reader"]


@dataclass(frozen=True)
class Stream:
    """The activations of some tasks. A tooth leaves the others in the last block of a stage, is read at the stage's
    end and goes no further (MTLoRA's task features)."""

    tasks: Group
    tooth: bool = False


@dataclass(frozen=True)
class Layout:
    """The streams of every slot.

    tree: groups a stage; their streams flow on from stage to stage. teeth: the kind of slot, in the last block of
    every stage, at which one tooth a task leaves; None = none do. tap: where decoders read, and teeth end.
    """

    tree: TaskTree
    teeth: SlotKind | None = None
    tap: Tap = "stage"

    def streams(self, slots: Sequence[Slot], tasks: Sequence[str] | None = None) -> dict[str, tuple[Stream, ...]]:
        """The streams of each slot by its name, in the order of `slots`; only those that serve one of `tasks`."""
        wanted = set(self.tree.tasks if tasks is None else tasks)
        found: dict[str, tuple[Stream, ...]] = {}
        forked = -1  # the stage whose teeth have left
        for slot in slots:
            if slot.last and slot.kind == self.teeth:
                forked = slot.stage
            flow = [Stream(group) for group in self.tree.groups(slot.stage) if wanted & set(group)]
            here = forked == slot.stage and (slot.kind not in MERGING or self.tap == "merged")
            teeth = [Stream((task,), tooth=True) for task in self.tree.tasks if here and task in wanted]
            found[slot.name] = (*flow, *teeth)
        return found


def parent(stream: Stream, before: Sequence[Stream]) -> int:
    """Index, among the streams before a slot, of the one that `stream` continues or leaves."""
    if stream in before:
        return before.index(stream)
    return next(i for i, other in enumerate(before) if not other.tooth and set(stream.tasks) <= set(other.tasks))


def reader(task: str, streams: Sequence[Stream]) -> int:
    """Index of the stream that the decoder of `task` reads: its tooth if there is one."""
    return max((i for i, stream in enumerate(streams) if task in stream.tasks), key=lambda i: streams[i].tooth)
