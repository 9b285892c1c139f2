"""One trunk for all tasks, and for each task a tooth at the end of every stage: what MTLoRA's successors share.

In the last block of a stage each task leaves the trunk at the attention's projection, and is read at the stage's end.
The trunk alone goes on. In the last stage nobody reads it behind that fork: what it has there is counted, as it was
published, and never in a compiled graph.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.methods.base import Change, Method
from training.methods.grouped import adapted, extras
from training.methods.options import ExtraOptions, LowRankOptions, ranks_of
from training.network.changes import LowRank
from training.network.layout import Layout, Stream
from training.network.slots import ADAPTED, Slot

__all__ = ["FORK", "comb", "lora"]

FORK = "proj"

# From an adapted slot, its weight (out, in) and its streams, the trunk's first: a change, or None.
Make = Callable[[Slot, Tensor, Sequence[Stream]], Change | None]


def comb(make: Make, backbone: Backbone, tree: TaskTree, options: ExtraOptions, tap: Tap) -> Method:
    """Raises ConfigError for options that the backbone cannot have. Layers that merge patches are the trunk's."""
    layout = Layout(tree, teeth=FORK, tap=tap)
    streams = layout.streams(backbone.slots)
    changes: dict[str, Change] = {}
    for slot in backbone.slots:
        if adapted(slot, options):
            own = streams[slot.name] if slot.kind in ADAPTED else (Stream(tree.tasks),)
            if change := make(slot, backbone.tensors(slot)["weight"], own):
                changes[slot.name] = change
    return Method(backbone, layout, changes, lambda slot, role: extras(slot, options))


def lora(backbone: Backbone, options: LowRankOptions) -> Make:
    """LoRA for every stream, of the stage's rank."""
    ranks = ranks_of(options.rank, backbone)

    def make(slot: Slot, weight: Tensor, streams: Sequence[Stream]) -> Change | None:
        rank = ranks[slot.stage]
        return LowRank(weight, streams, rank=rank, scale=options.scale, dropout=options.dropout) if rank else None

    return make
