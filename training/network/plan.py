"""Which computations are one: a trie over (slot, stream), whose common prefixes run once.

Streams that have had the same tensors in every slot up to here are one node. A tree of groups, a subset of tasks,
groups that learnt nothing: all of it is only which keys are equal.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from training.network.layout import Layout, Stream, parent, reader
from training.network.slots import Slot

__all__ = ["Node", "Plan", "make_plan", "node_of"]


@dataclass(frozen=True)
class Node:
    """One computation of a slot.

    streams: those that it serves; they agree so far. parent: index of the node, at the slot before, that it continues.
    key: equal for nodes of this slot that have the same tensors, whatever came before.
    """

    streams: tuple[Stream, ...]
    parent: int
    key: Hashable

    @property
    def stream(self) -> Stream:
        """One that stands for all of them."""
        return self.streams[0]


Plan = Mapping[str, tuple[Node, ...]]


def make_plan(
    slots: Sequence[Slot],
    layout: Layout,
    key: Callable[[Slot, Stream], Hashable],
    *,
    tasks: Sequence[str] | None = None,
) -> Plan:
    """The nodes of every slot, for `tasks` or for all.

    `key(slot, stream)` tells tensors apart. Raises ValueError for a task that the layout's tree does not know.
    """
    unknown = sorted(set(tasks or ()) - set(layout.tree.tasks))
    if unknown or (tasks is not None and not tasks):
        raise ValueError(
            f"tasks {unknown or list(tasks or ())}: this tree has {', '.join(layout.tree.tasks)}; name some of them"
        )
    streams = layout.streams(slots, tasks)
    plan: dict[str, tuple[Node, ...]] = {}
    before: tuple[Stream, ...] = (Stream(layout.tree.tasks),)
    places = {before[0]: 0}
    for slot in slots:
        found: dict[tuple[int, Hashable], list[Stream]] = {}
        for stream in streams[slot.name]:
            came_from = places[before[parent(stream, before)]]
            found.setdefault((came_from, key(slot, stream)), []).append(stream)
        nodes = tuple(Node(tuple(members), at, own) for (at, own), members in found.items())
        before = streams[slot.name]
        places = {stream: index for index, node in enumerate(nodes) for stream in node.streams}
        plan[slot.name] = nodes
    return plan


def node_of(task: str, nodes: Sequence[Node]) -> int:
    """Index, among the nodes of a slot, of the one that the decoder of `task` reads behind it."""
    streams = [stream for node in nodes for stream in node.streams]
    chosen = streams[reader(task, streams)]
    return next(index for index, node in enumerate(nodes) if chosen in node.streams)
