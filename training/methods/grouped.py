"""Low-rank adapters for groups of tasks at every linear layer of a block: what LoRA, LoRA a task and PTSA share."""

from collections.abc import Callable, Sequence

from torch import Tensor

from ptsa_serve.task_tree import Group, TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.base import Change, Method
from training.methods.options import ExtraOptions, LowRankOptions, ranks_of
from training.network.changes import Copies, LowRank
from training.network.layout import Layout
from training.network.slots import ADAPTED, NORMS, Slot

__all__ = ["adapted", "extras", "grouped", "grouped_by"]

# From the weight (out, in) of a frozen layer, the groups of its stage and the rank there.
Make = Callable[[Tensor, Sequence[Group], int], Change]


def grouped(backbone: Backbone, tree: TaskTree, options: LowRankOptions, tap: Tap) -> Method:
    """LoRA for each group of a slot's stage. Raises ConfigError for options that the backbone cannot have."""

    def lora(weight: Tensor, groups: Sequence[Group], rank: int) -> Change:
        return LowRank(weight, groups, rank=rank, scale=options.scale, dropout=options.dropout)

    return grouped_by(lora, backbone, tree, options, tap)


def grouped_by(make: Make, backbone: Backbone, tree: TaskTree, options: LowRankOptions, tap: Tap) -> Method:
    """The same with what `make` makes in place of LoRA."""
    ranks = ranks_of(options.rank, backbone)
    changes: dict[str, Change] = {}
    for slot in backbone.slots:
        base, groups = backbone.tensors(slot), tree.groups(slot.stage)
        if adapted(slot, options) and ranks[slot.stage]:
            changes[slot.name] = make(base["weight"], groups, ranks[slot.stage])
        elif _policy(slot, options) == "per_group":
            changes[slot.name] = Copies(base, groups)
    return Method(backbone, Layout(tree, tap=tap), changes, lambda slot, role: extras(slot, options))


def adapted(slot: Slot, options: ExtraOptions) -> bool:
    """Whether low-rank adapters belong at a slot. Raises ConfigError where patches are merged by a convolution."""
    if slot.kind != "reduction" or options.merge != "lora":
        return slot.kind in ADAPTED
    if slot.op != "linear":
        raise ConfigError("merge is lora, but this backbone merges patches by a convolution; choose train or frozen")
    return True


def extras(slot: Slot, options: ExtraOptions) -> bool:
    """Whether the backbone's own tensors of a slot are trained beside the adapters."""
    match slot.kind:
        case "patch":
            return options.patch == "train"
        case "reduction":
            return options.merge == "train"
        case _:
            return _policy(slot, options) == "shared"


def _policy(slot: Slot, options: ExtraOptions) -> str:
    if slot.kind == "table":
        return options.tables
    return options.norms if slot.kind in NORMS else "frozen"
