"""Low-rank adapters for groups of tasks at every linear layer of a block: what LoRA, LoRA a task and PTSA share."""

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.base import Change, Method
from training.methods.options import LowRankOptions, ranks_of
from training.network.changes import Copies, LowRank
from training.network.layout import Layout
from training.network.slots import ADAPTED, NORMS, Slot

__all__ = ["adapted", "extras", "grouped"]


def grouped(backbone: Backbone, tree: TaskTree, options: LowRankOptions, tap: Tap) -> Method:
    """An adapter for each group of a slot's stage. Raises ConfigError for options that the backbone cannot have."""
    ranks = ranks_of(options.rank, backbone)
    changes: dict[str, Change] = {}
    for slot in backbone.slots:
        base, groups = backbone.tensors(slot), tree.groups(slot.stage)
        if adapted(slot, options) and ranks[slot.stage]:
            changes[slot.name] = LowRank(
                base["weight"], groups, rank=ranks[slot.stage], scale=options.scale, dropout=options.dropout
            )
        elif _policy(slot, options) == "per_group":
            changes[slot.name] = Copies(base, groups)
    return Method(backbone, Layout(tree, tap=tap), changes, lambda slot, role: extras(slot, options))


def adapted(slot: Slot, options: LowRankOptions) -> bool:
    """Whether low-rank adapters belong at a slot. Raises ConfigError where patches are merged by a convolution."""
    if slot.kind != "reduction" or options.merge != "lora":
        return slot.kind in ADAPTED
    if slot.op != "linear":
        raise ConfigError("merge is lora, but this backbone merges patches by a convolution; choose train or frozen")
    return True


def extras(slot: Slot, options: LowRankOptions) -> bool:
    """Whether the backbone's own tensors of a slot are trained beside the adapters."""
    match slot.kind:
        case "patch":
            return options.patch == "train"
        case "reduction":
            return options.merge == "train"
        case _:
            return _policy(slot, options) == "shared"


def _policy(slot: Slot, options: LowRankOptions) -> str:
    if slot.kind == "table":
        return options.tables
    return options.norms if slot.kind in NORMS else "frozen"
