"""Pareto Manifold Learning (Dimitriadis, Frossard and Fleuret, arXiv 2210.09759): a front of models in weight space.

A copy of the backbone for each task, and for a preference a (a_t >= 0, 1 in all) one network of the interpolated
weights, W(a) = sum_t a_t W_t: linear layers, convolutions, norms and position tables alike. Trained by `--rule pareto`,
any a is a model for that preference; which one is chosen at export (`--set preference={...}`). Published: members start
independently, and decoders are interpolated too. Ours: members start as one backbone, which keeps what it learnt
before, and decoders are one a task. T times the backbone, 110.08 M for four tasks on Swin-T.
"""

from dataclasses import dataclass

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.methods.base import Change, Method, MethodSpec
from training.network.layout import Layout
from training.network.members import CopyMembers
from training.network.simplex import Simplex

__all__ = ["PARETO"]


@dataclass(frozen=True)
class Options:
    """preference: parts of the tasks by name, whose ratios count, 0 for others; left out: all alike."""

    preference: dict[str, float] | None = None


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    simplex = Simplex(tree.tasks, options.preference)
    changes: dict[str, Change] = {
        slot.name: CopyMembers(backbone.tensors(slot), simplex) for slot in backbone.slots if slot.tensors
    }
    return Method(backbone, Layout(tree, tap=tap), changes, simplex=simplex)


PARETO = MethodSpec(
    build=build,
    options=Options,
    tree="shared",
    kind="full",
    source="arXiv 2210.09759",
    trains="everything, a copy for each task, mixed by preference into one network (--rule pareto)",
    folds="wholly, at the preference that export is given",
    settings=("preference",),
)
