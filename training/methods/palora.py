"""PaLoRA (Dimitriadis, Frossard and Fleuret, arXiv 2407.08056): a front of models, on low-rank adapters.

At every linear layer of a block a member for each task, between which a preference a interpolates (a_t >= 0, 1 in all):

    y = (W + scale * sum_t a_t up_t down_t) x + b

Trained by `--rule pareto`, any a is one network for all tasks, which leans to those that it prefers. Which one is
chosen at export (`--set preference={...}`), where the members become one weight. The published form trains the trunk
too (`trunk: train`); ours leaves it frozen, as every method of adapters here, unless asked. Its rates for adapters,
T times those of the rest, make up for gradients that a_t divides: AdamW needs no such thing. Other rules train it at
the one preference of its options. 16 r S T beside what is trained in full, S = 4,416 on Swin-T.
"""

from dataclasses import dataclass
from typing import Literal

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.methods.base import Change, Method, MethodSpec
from training.methods.grouped import adapted, extras
from training.methods.options import LowRankOptions, one_of, ranks_of
from training.network.layout import Layout
from training.network.members import LowRankMembers
from training.network.simplex import Simplex

__all__ = ["PALORA"]


@dataclass(frozen=True)
class Options(LowRankOptions):
    """preference: parts of the tasks by name, whose ratios count, 0 for others; left out: all alike. trunk: whether
    the backbone is trained as a whole."""

    preference: dict[str, float] | None = None
    trunk: Literal["frozen", "train"] = "frozen"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("norms", self.norms, ("shared", "frozen"))
        one_of("tables", self.tables, ("shared", "frozen"))
        one_of("trunk", self.trunk, ("frozen", "train"))


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    simplex, ranks = Simplex(tree.tasks, options.preference), ranks_of(options.rank, backbone)
    changes: dict[str, Change] = {
        slot.name: LowRankMembers(
            backbone.tensors(slot)["weight"], simplex, rank=ranks[slot.stage], scale=options.scale,
            dropout=options.dropout,
        )
        for slot in backbone.slots
        if adapted(slot, options) and ranks[slot.stage]
    }  # fmt: skip
    trained = (lambda slot, role: True) if options.trunk == "train" else (lambda slot, role: extras(slot, options))
    return Method(backbone, Layout(tree, tap=tap), changes, trained, simplex=simplex)


PALORA = MethodSpec(
    build=build,
    options=Options,
    tree="shared",
    kind="low rank",
    source="arXiv 2407.08056",
    trains="adapters for each task, mixed by preference into one network (--rule pareto); by default patch embedding, "
    "merging, norms and position tables too",
    folds="wholly, at the preference that export is given",
    settings=("preference",),
)
