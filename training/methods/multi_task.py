"""Full fine-tuning of one network for all tasks."""

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.methods.base import Method, MethodSpec
from training.methods.options import NoOptions
from training.network.layout import Layout

__all__ = ["MULTI_TASK"]


def build(backbone: Backbone, tree: TaskTree, options: NoOptions, tap: Tap) -> Method:
    return Method(backbone, Layout(tree, tap=tap), trained=lambda slot, role: True)


MULTI_TASK = MethodSpec(
    build=build,
    options=NoOptions,
    tree="shared",
    kind="full",
    source="full fine-tuning",
    trains="everything, one network for all tasks",
    folds="nothing to fold",
)
