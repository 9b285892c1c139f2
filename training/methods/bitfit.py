"""BitFit (Ben Zaken et al., arXiv 2106.10199): the backbone's biases are trained, its weights are frozen."""

from dataclasses import dataclass

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.methods.base import Method, MethodSpec
from training.network.layout import Layout
from training.network.slots import NORMS

__all__ = ["BITFIT"]


@dataclass(frozen=True)
class Options:
    """norms: whether the biases of layer norms are trained too."""

    norms: bool = True


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    return Method(
        backbone,
        Layout(tree, tap=tap),
        trained=lambda slot, role: role == "bias" and (options.norms or slot.kind not in NORMS),
    )


BITFIT = MethodSpec(
    build=build,
    options=Options,
    tree="shared",
    kind="partial",
    source="arXiv 2106.10199",
    trains="biases, shared by all tasks",
    folds="nothing to fold",
)
