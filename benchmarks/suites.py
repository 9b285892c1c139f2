"""What `python -m benchmarks methods` compares: one schedule, start and set of photos; methods, trees and seeds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ptsa_serve.task_tree import TaskTree
from training.fit import FitConfig
from training.methods import METHODS
from training.similarity.config import SimilarityConfig

__all__ = ["SUITES", "Arm", "Suite", "trees_of_shape"]


@dataclass(frozen=True)
class Arm:
    """One row: a method with its options and a rule with its own, run once for each seed.

    experts: begins with the networks of single tasks.
    """

    name: str
    method: str
    tree: TaskTree
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    rule: str = "weighted_sum"
    rule_options: Mapping[str, Any] = field(default_factory=dict)
    experts: bool = False


@dataclass(frozen=True)
class Suite:
    """rank: of PTSA's adapters, the largest with which it trains no more than MTLoRA of rank 16. fit: all that the
    runs have in common, as options of `training fit`. measuring: how long similarity is measured. only: names of the
    arms that are run, one seed each; none = all.
    """

    tasks: tuple[str, ...]
    counts: tuple[int, ...]
    rank: int
    fit: Mapping[str, Any]
    measuring: Mapping[str, Any]
    only: tuple[str, ...] = ()

    def arms(self, found: TaskTree) -> list[Arm]:
        """found: the tree that similarity gives. LoRA and LoRA a task are the trees 1-1-1-1 and 4-4-4-4.

        The tree 1-1-2-4, with the groups of `found` in its third stage, stands between those two.
        """
        shared, independent = TaskTree.shared(self.tasks), TaskTree.independent(self.tasks)
        late = TaskTree(self.tasks, (*shared.stages[:2], found.stages[2], independent.stages[3]))
        three, rank = (0, 1, 2), {"rank": self.rank}
        arms = [
            Arm("single_task", "single_task", independent, seeds=three),
            Arm("multi_task", "multi_task", shared, seeds=three),
            Arm("mtlora", "mtlora", shared, {"rank": 16}, three),
            Arm("ptsa", "ptsa", found, rank, three),
            Arm("lora", "lora", shared, rank),
            Arm("lora_per_task", "lora_per_task", independent, rank),
            Arm("decoders", "decoders", shared),
            Arm("bitfit", "bitfit", shared),
            Arm("ptsa, 1-1-2-4", "ptsa", late, rank),
        ]
        others = [tree for tree in trees_of_shape(self.tasks, self.counts) if tree != found]
        arms += [Arm(f"ptsa, tree {number}", "ptsa", tree, rank) for number, tree in enumerate(others, 1)]
        arms += self._family(late, independent)
        return [replace(arm, seeds=(0,)) for arm in arms if arm.name in self.only] if self.only else arms

    def _family(self, late: TaskTree, independent: TaskTree) -> Iterator[Arm]:
        """Every other method with the options that it has by default, and every rule."""
        known = ("single_task", "multi_task", "mtlora", "ptsa", "lora", "lora_per_task", "decoders", "bitfit")
        rules = {"palora": "pareto", "pareto": "pareto", "tinting": "tinting"}
        for name in (name for name in METHODS if name not in known):
            yield Arm(name, name, late, rule=rules.get(name, "weighted_sum"), experts=METHODS[name].experts)
        yield Arm("ct_moa, by photo", "ct_moa", late, {"gate": "dynamic"})
        rank = {"rank": self.rank}
        for rule in ("adatask", "connection_strength", "rank_shrink"):
            yield Arm(f"ptsa, 1-1-2-4, {rule}", "ptsa", late, rank, rule=rule)
        # What the shares of the tasks are without it.
        yield Arm("ptsa, 1-1-2-4, adam", "ptsa", late, rank, rule="adatask", rule_options={"separate": False})
        yield Arm("lora_per_task, cross_learning", "lora_per_task", independent, rank, rule="cross_learning")

    def search(self, data: Mapping[str, Path], start: Path, out: Path) -> SimilarityConfig:
        """The search for the tree, on the photos and at the size of the runs."""
        return SimilarityConfig(
            data=dict(data), start=start, out=out, backbone=self.fit["backbone"], tasks=list(self.tasks),
            counts=list(self.counts), batches=dict(self.fit["batches"]), scale=self.fit["scale"], rank=self.rank,
            training_steps=self.fit["steps"], training_photos=sum(self.fit["batches"].values()),
            **self.measuring,
        )  # fmt: skip

    def config(
        self,
        arm: Arm,
        seed: int,
        data: Mapping[str, Path],
        start: Path,
        out: Path,
        experts: Mapping[str, Path] | None = None,
    ) -> FitConfig:
        options = dict(arm.options)
        return FitConfig(
            **self.fit, data=dict(data), start=start, out=out, method=arm.method, options=options, tree=str(arm.tree),
            seed=seed, rule=arm.rule, rule_options=dict(arm.rule_options), experts=dict(experts or {}),
        )  # fmt: skip


def trees_of_shape(tasks: tuple[str, ...], counts: tuple[int, ...]) -> Iterator[TaskTree]:
    """Every tree over `tasks` with these numbers of groups, for counts of 1, 2 and as many as there are tasks.

    Raises ValueError for other counts: there are too many trees of them to train.
    """
    if not set(counts) <= {1, 2, len(tasks)}:
        raise ValueError(f"counts {counts}: only 1, 2 and {len(tasks)} are enumerated")
    first, *rest = tasks
    for size in range(len(rest)):
        for others in combinations(rest, size):
            one = (first, *others)
            halves = (one, tuple(task for task in tasks if task not in one))
            by_count = {1: (tasks,), 2: halves, len(tasks): tuple((task,) for task in tasks)}
            yield TaskTree(tasks, tuple(by_count[count] for count in counts))


# A pass and a half over NYU's 795 training photos at half size.
_NYU_NANO = Suite(
    tasks=("segmentation", "depth", "normals", "saliency"),
    counts=(1, 2, 2, 4),
    rank=7,
    fit={
        "backbone": "swin_nano", "scale": 0.5, "batches": {"nyu": 8, "ccp": 2}, "steps": 150, "warmup": 15,
        "rate": 1e-3, "backbone_rate": 5e-4, "save_every": 50,
    },
    measuring={"warm_up": 60, "observations": 24},
)  # fmt: skip

SUITES: dict[str, Suite] = {
    "nyu-nano": _NYU_NANO,
    # Is what has few weights to learn ahead only because the others have not learnt theirs yet?
    "nyu-nano-300": replace(_NYU_NANO, fit={**_NYU_NANO.fit, "steps": 300}, only=("ptsa", "decoders")),
}
