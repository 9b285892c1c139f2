"""PTSA (arXiv 2509.19602): adapters that all tasks share in early stages and ever fewer tasks later, by a tree."""

from training.methods.base import MethodSpec
from training.methods.grouped import grouped
from training.methods.options import LowRankOptions

__all__ = ["PTSA"]

PTSA = MethodSpec(
    build=grouped,
    options=LowRankOptions,
    tree="any",
    kind="low rank",
    source="arXiv 2509.19602",
    trains="adapters for each group of tasks; by default patch embedding, merging, norms and position tables too",
    folds="wholly: a copy of the stage for each group",
)
