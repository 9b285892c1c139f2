"""Which method is best? Every arm of a suite trained from one start with one schedule, and held against single tasks.

A run is a training and its figures on the whole validation sets; its figures are kept as one small JSON file, so that
the suite can be stopped and continued run by run, on another machine or another day too. Delta m takes the mean of the
single-task runs for its baseline. Figures are those of the last step: nothing is selected on the validation sets.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tqdm import tqdm

from benchmarks.delta import FIGURES, delta_m
from benchmarks.measurement import Measurement
from benchmarks.parameters import costs
from benchmarks.suites import Arm, Suite
from export.fold import fold
from ptsa_serve.files import replace_file
from ptsa_serve.task_tree import TaskTree
from ptsa_serve.tasks import TASKS, Kind
from training.evaluate import EvaluateConfig, evaluate
from training.fit import fit
from training.network.checkpoint import load_checkpoint, read_info
from training.network.model import ModelConfig, PTSAModel
from training.similarity.search import find_tree, read_tree

__all__ = ["SIZE", "Run", "claims", "comparison", "measure_methods", "rows", "summary", "with_costs"]

# Claims of Delta m: an arm, and the one that it must exceed. Of trained parameters: the arm that PTSA must not.
BETTER = {
    "PTSA is above multi-task full fine-tuning": ("ptsa", "multi_task"),
    "PTSA is above MTLoRA": ("ptsa", "mtlora"),
    "similarity's tree is above the best other tree of its shape": ("ptsa", "best other tree"),
    "similarity's tree is above the mean of the other trees of its shape": ("ptsa", "mean other tree"),
    "PTSA is above one adapter for all tasks": ("ptsa", "lora"),
    "PTSA is above an adapter for each task": ("ptsa", "lora_per_task"),
    "1-1-2-4 is above all shared": ("ptsa, 1-1-2-4", "lora"),
    "1-1-2-4 is above all split": ("ptsa, 1-1-2-4", "lora_per_task"),
}
SMALLER = {
    "PTSA trains no more parameters than MTLoRA": "mtlora",
    "PTSA trains a fifth of the parameters of full fine-tuning, or fewer": "fifth",
}


SIZE = (384, 512)  # of the photo whose costs are counted


@dataclass(frozen=True)
class Run:
    """One training of an arm. figures: of each task the one of `FIGURES`. seconds: of the training; None if it was
    continued after a stop. folded: the tasks that share each stage once it is folded, written as a tree; what branches
    off and is read at a stage's end counts. report: what the rule says of the run. proposed: the tree that it proposes.
    """

    arm: str
    method: str
    tree: str
    seed: int
    trainable: int
    figures: Mapping[str, float]
    seconds: float | None
    folded: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)
    proposed: str = ""


def measure_methods(
    suite: Suite,
    *,
    data: Mapping[str, Path],
    start: Path,
    runs: Path,
    results: Path,
    only: Sequence[str] = (),
) -> list[Run]:
    """Train and evaluate what has no result yet. runs: a folder for trainings, results: one for their JSON files.

    only: names of the arms that are trained, none = all; of the others the results that there are count.

    Raises ValueError for an unknown arm, and what `fit` and `evaluate` raise.
    """
    tree = results / "tree.json"
    if not tree.exists():
        find_tree(suite.search(data, start, runs / "similarity"))
        results.mkdir(parents=True, exist_ok=True)
        for name in ("similarity.json", "similarity.png", "tree.txt", "tree.json"):  # the tree last: all of it is there
            replace_file(results / name, (runs / "similarity" / name).read_bytes())
    arms = suite.arms(read_tree(tree))
    if unknown := set(only) - {arm.name for arm in arms}:
        known = "; ".join(arm.name for arm in arms)
        raise ValueError(f"--only names {'; '.join(sorted(unknown))}, which this suite has not; it has {known}")
    jobs = [(arm, seed) for arm in arms for seed in arm.seeds]
    # One seed of everything before the second of anything: a suite that is stopped has all its rows.
    jobs.sort(key=lambda job: job[1])
    done = []
    for arm, seed in tqdm(jobs, desc="runs", unit="run"):
        name = f"{arm.name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
        path = results / f"{name}.json"
        if not path.exists() and only and arm.name not in only:
            continue
        if not path.exists():
            run = _train(suite, arm, seed, data, start, runs / name)
            replace_file(path, json.dumps(vars(run), indent=1).encode() + b"\n")
        done.append(Run(**json.loads(path.read_text())))
    return done


def _train(suite: Suite, arm: Arm, seed: int, data: Mapping[str, Path], start: Path, out: Path) -> Run:
    experts = _experts(suite, data, start, out.parent) if arm.experts else {}
    config = suite.config(arm, seed, data, start, out, experts)
    begun = not out.exists()
    before = time.monotonic()
    checkpoint = fit(config)
    seconds = time.monotonic() - before if begun else None
    scores = evaluate(EvaluateConfig(checkpoint, dict(data), scale=config.scale, precision=config.precision))
    figures = {}
    for by_task in scores.values():
        for task, values in by_task.items():
            value = values[FIGURES[TASKS[task].kind][0]]
            assert value is not None
            figures[task] = round(value, 4)
    model = load_checkpoint(checkpoint)
    trainable = sum(model.get_parameter(name).numel() for name in model.owners())
    tree = out / "tree.json"
    return Run(
        arm.name, arm.method, str(arm.tree), seed, trainable, figures, seconds,
        folded=_folded(model),
        report=read_info(checkpoint).get("rule_report", {}),
        proposed=str(read_tree(tree)) if tree.exists() else "",
    )  # fmt: skip


def _experts(suite: Suite, data: Mapping[str, Path], start: Path, runs: Path) -> dict[str, Path]:
    """One checkpoint of single tasks holds a network for each."""
    single = Arm("single_task", "single_task", TaskTree.independent(suite.tasks))
    return dict.fromkeys(suite.tasks, fit(suite.config(single, 0, data, start, runs / "single_task-seed0")))


def _folded(model: PTSAModel) -> str:
    """Groups of tasks a stage, by the nodes at its end: streams whose tensors became equal, or stayed so, are one."""
    plan, layers = fold(model).network.plan, model.backbone.slots
    stages = []
    for stage in range(len(model.backbone.widths)):
        nodes = plan[[slot.name for slot in layers if slot.stage == stage and slot.block is not None][-1]]
        groups = [sorted({task for stream in node.streams for task in stream.tasks}) for node in nodes]
        stages.append(" | ".join(",".join(group) for group in groups))
    return " / ".join(stages)


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row an arm: tree, trainable parameters, mean figures, Delta m a seed, their mean and standard deviation.

    Against single tasks, or in a suite without them against its first arm.
    """
    kinds: dict[str, Kind] = {task: TASKS[task].kind for task in runs[0].figures}
    single = _means(
        [run for run in runs if run.arm == "single_task"] or [run for run in runs if run.arm == runs[0].arm]
    )
    found = []
    for arm in dict.fromkeys(run.arm for run in runs):
        own = [run for run in runs if run.arm == arm]
        gains = [delta_m(kinds, run.figures, single) for run in own]
        found.append(
            {
                "arm": arm,
                "tree": own[0].tree,
                "trainable": own[0].trainable,
                **_means(own),
                "seeds": len(own),
                "delta_m_by_seed": {run.seed: gain for run, gain in zip(own, gains, strict=True)},
                "delta_m_percent": fmean(gains),
                "delta_m_sd": stdev(gains) if len(gains) > 1 else None,
                "seconds": max((run.seconds for run in own if run.seconds), default=None),
            }
        )
    return found


def with_costs(
    table: Sequence[Mapping[str, Any]], suite: Suite, found: TaskTree, graphs: Path | None, *, threads: int, rounds: int
) -> list[dict[str, Any]]:
    """The rows of a suite whose tree is `found`, with their costs for photos of the models' own size.

    Those are deployed parameters, multiply-adds and, with a folder for graphs, milliseconds. What a training makes
    equal, or shuts, costs what it would without.
    """
    arms = {arm.name: arm for arm in suite.arms(found)}
    models = {
        name: ModelConfig(suite.fit["backbone"], arms[name].tree, arms[name].method, dict(arms[name].options))
        for name in (row["arm"] for row in table)
    }
    own = costs(models, SIZE, graphs, threads=threads, rounds=rounds)
    return [
        {**row, "deployed": cost.folded, "giga_multiply_adds": cost.giga_multiply_adds, "ms": cost.ms}
        for row, cost in zip(table, own.values(), strict=True)
    ]


def claims(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the paper claims, each with whether it holds here and its two figures; those whose arms have run.

    Two arms are compared by the seeds that both have: the first photos and the order of all are the same then.
    """
    gains: dict[str, Mapping[int, float]] = {entry["arm"]: entry["delta_m_by_seed"] for entry in table}
    trained = {entry["arm"]: entry["trainable"] for entry in table}
    if others := [by_seed for arm, by_seed in gains.items() if arm.startswith("ptsa, tree")]:
        seeds = set.intersection(*map(set, others))
        gains["best other tree"] = {seed: max(other[seed] for other in others) for seed in seeds}
        gains["mean other tree"] = {seed: fmean(other[seed] for other in others) for seed in seeds}
    if "multi_task" in trained:
        trained["fifth"] = trained["multi_task"] / 5
    found = []
    for claim, (ours, theirs) in BETTER.items():
        if both := gains.get(ours, {}).keys() & gains.get(theirs, {}).keys():
            one, other = (fmean(gains[arm][seed] for seed in both) for arm in (ours, theirs))
            found.append({"claim": claim, "holds": one > other, "ours": one, "theirs": other})
    found += [
        {"claim": claim, "holds": trained["ptsa"] <= trained[arm], "ours": trained["ptsa"], "theirs": trained[arm]}
        for claim, arm in SMALLER.items()
        if {"ptsa", arm} <= trained.keys()
    ]
    return found


def comparison(table: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> str:
    """The rows, with their costs, and the claims, for people."""
    heads = ["arm", "trained, M", "deployed, M", "G multiply-adds", "ms", *tasks, "delta m, %", "seeds"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in table:
        cells = [
            row["arm"],
            f"{row['trainable'] / 1e6:.2f}",
            f"{row['deployed'] / 1e6:.2f}",
            f"{row['giga_multiply_adds']:.2f}",
            "–" if row["ms"] is None else f"{row['ms']:.0f}",
            *(f"{row[task]:.3f}" for task in tasks),
            f"{row['delta_m_percent']:+.2f}" + ("" if row["delta_m_sd"] is None else f" ± {row['delta_m_sd']:.2f}"),
            str(row["seeds"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for claim in claims(table):
        answer = "yes" if claim["holds"] else "no"
        lines.append(f"{answer}: {claim['claim']} ({claim['ours']:,.4g} against {claim['theirs']:,.4g})")
    return "\n".join(lines)


def summary(suite: str, runs: Sequence[Run]) -> Measurement:
    """Delta m of every arm, and of each claim 1 or 0."""
    table = rows(runs)
    figures = {f"{row['arm']}_delta_m_percent": row["delta_m_percent"] for row in table}
    figures |= {claim["claim"]: float(claim["holds"]) for claim in claims(table)}
    return Measurement(f"Which method is best on {suite}?", figures, {"suite": suite, "runs": len(runs)})


def _means(runs: Sequence[Run]) -> dict[str, float]:
    return {task: fmean(run.figures[task] for run in runs) for task in runs[0].figures}
