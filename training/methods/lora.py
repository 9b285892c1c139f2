"""LoRA (arXiv 2106.09685) at every linear layer of a block: one adapter for all tasks, or one for each."""

from training.methods.base import MethodSpec
from training.methods.grouped import grouped
from training.methods.options import LowRankOptions

__all__ = ["LORA", "LORA_PER_TASK"]

LORA = MethodSpec(
    build=grouped,
    options=LowRankOptions,
    tree="shared",
    kind="low rank",
    source="arXiv 2106.09685",
    trains="adapters that all tasks share; by default patch embedding, merging, norms and position tables too",
    folds="wholly",
)

LORA_PER_TASK = MethodSpec(
    build=grouped,
    options=LowRankOptions,
    tree="independent",
    kind="low rank",
    source="arXiv 2106.09685, a set for each task",
    trains="adapters for each task; by default patch embedding, merging, norms and position tables, shared",
    folds="wholly: a network for each task",
)
