"""Decoders alone, on a frozen backbone."""

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.methods.base import Method, MethodSpec
from training.methods.options import NoOptions
from training.network.layout import Layout

__all__ = ["DECODERS_ALONE"]


def build(backbone: Backbone, tree: TaskTree, options: NoOptions, tap: Tap) -> Method:
    return Method(backbone, Layout(tree, tap=tap))


DECODERS_ALONE = MethodSpec(
    build=build,
    options=NoOptions,
    tree="shared",
    kind="partial",
    source="frozen features",
    trains="decoders",
    folds="nothing to fold",
)
