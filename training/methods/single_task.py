"""Full fine-tuning of a network for each task, side by side: what every other method is measured against."""

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.methods.base import Change, Method, MethodSpec
from training.methods.options import NoOptions
from training.network.changes import Copies
from training.network.layout import Layout

__all__ = ["SINGLE_TASK"]


def build(backbone: Backbone, tree: TaskTree, options: NoOptions, tap: Tap) -> Method:
    changes: dict[str, Change] = {
        slot.name: Copies(backbone.tensors(slot), tree.groups(slot.stage)) for slot in backbone.slots if slot.tensors
    }
    return Method(backbone, Layout(tree, tap=tap), changes)


SINGLE_TASK = MethodSpec(
    build=build,
    options=NoOptions,
    tree="independent",
    kind="full",
    source="full fine-tuning",
    trains="everything, a network for each task",
    folds="nothing to fold: a network for each task",
)
