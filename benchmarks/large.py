"""What does a large model take to export, how much do its weights take, and what does one graph save against four?

Its weights are random, its tasks and decoders those of `parameters`: costs depend on shapes. For each tree and form of
branches the export is the command that a user has, in a process of its own, whose time and memory are measured. Then
all graphs run in turn as they are served: folded, low-rank, and one for each task, cut out of the folded one.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil

from benchmarks.measurement import Measurement, alternate
from benchmarks.parameters import TASKS, TREES, cases
from export.errors import ExportError
from export.latency import random_model
from ptsa_serve.artifact import Artifact, default_artifact
from ptsa_serve.engines import Engine, EngineOptions, load_engine
from ptsa_serve.files import replace_file
from ptsa_serve.variants import Branches
from training.accounting.account import account
from training.network.checkpoint import save_checkpoint
from training.network.model import ModelConfig

__all__ = ["LargeConfig", "large_table", "measure_large"]

Report = Callable[[str], None]


@dataclass(frozen=True)
class LargeConfig:
    """What `measure_large` needs.

    trees: as in "1-1-2-4". size: height and width of the photo. work: folder for the artifacts; those that are there
    are not made again. engine: that times them.
    """

    backbone: str
    trees: Sequence[str]
    size: int
    decoder: str
    rank: int
    engine: str
    threads: int
    rounds: int
    work: Path


def measure_large(config: LargeConfig, report: Report = lambda _: None) -> Measurement:
    """Rows by tree. Raises ExportError for an unknown tree, and with what the export said if it fails."""
    if unknown := [tree for tree in config.trees if tree not in TREES]:
        raise ExportError(f"tree {unknown[0]!r} is unknown; known are {', '.join(TREES)}")
    models = cases(config.backbone, ["single_task", "ptsa"], decoder=config.decoder, rank=config.rank)
    rows = {tree: _row(config, tree, models, report) for tree in config.trees}
    conditions: dict[str, str | int | float] = {
        "backbone": config.backbone,
        "size": f"{config.size}x{config.size}",
        "tasks": TASKS,
        "decoder": config.decoder,
        "rank": config.rank,
        "weights": "random",
        "engine": config.engine,
        "threads": config.threads,
        "rounds": config.rounds,
    }
    return Measurement("What does a large model take, and what does one graph save?", rows, conditions)


def large_table(measurement: Measurement) -> str:
    """A line a figure of each tree, and the conditions."""
    lines = [measurement.question]
    for tree, row in measurement.figures.items():
        lines += [f"  {tree}", *(f"    {name:<34}{value:.4g}" for name, value in row.items())]
    conditions = {**measurement.conditions, **measurement.machine}
    return "\n".join([*lines, "  " + ", ".join(f"{name} {value}" for name, value in conditions.items())])


def _row(config: LargeConfig, tree: str, models: Mapping[str, ModelConfig], report: Report) -> dict[str, float]:
    size, model = (config.size, config.size), models[f"ptsa {tree}"]
    costs, artifacts = {}, {}
    for form in get_args(Branches):
        folder = config.work / f"{config.backbone}-{tree}-{form}"
        report(f"exporting {tree}, {form}")
        costs[form] = _exported(config, model, form, folder)
        artifacts[form] = Artifact.open(folder)
    report(f"timing {tree}")
    ms = _times(config, artifacts)
    tasks = [task for task in ms if task not in artifacts]
    megabytes = {form: artifact.manifest.counts.forms[form].bytes / 1e6 for form, artifact in artifacts.items()}
    shared = 4 * account(models["ptsa 1-1-1-1"], size).folded / 1e6
    adds = [account(each, size).multiply_adds for each in (model, models["single_task"])]
    return {
        **{f"{form}_export_{name}": value for form, cost in costs.items() for name, value in cost.items()},
        **{f"{form}_weights_MB": value for form, value in megabytes.items()},
        "backbone_with_decoders_MB": shared,
        "low_rank_against_backbone_ratio": megabytes["low_rank"] / shared,
        **{f"{name}_ms": value for name, value in ms.items()},
        "low_rank_against_folded_ratio": ms["low_rank"] / ms["folded"],
        "one_graph_against_one_each_ratio": ms["folded"] / sum(ms[task] for task in tasks),
        "multiply_adds_ratio": adds[0] / adds[1],
    }


def _exported(config: LargeConfig, model: ModelConfig, form: Branches, folder: Path) -> dict[str, float]:
    """Seconds and gigabytes that `export compile` of such a model took, now or in an earlier run; into `folder`."""
    known = folder.with_suffix(".json")
    if not known.exists() or not folder.exists():
        sample = default_artifact() / "sample.jpg"
        with tempfile.TemporaryDirectory() as temporary:
            checkpoint = Path(temporary) / "model.safetensors"
            save_checkpoint(random_model(model), checkpoint, info={})
            sizes = f"{config.size}x{config.size}"
            options = ["--branches", form, "--sizes", sizes, "--sample", sample, "--photos", sample, "--photo-count", 1]
            command = [sys.executable, "-m", "export", "compile", checkpoint, folder, *options]
            found = _watched([str(part) for part in command])
        replace_file(known, json.dumps(found).encode())
    return json.loads(known.read_bytes())


def _watched(command: list[str]) -> dict[str, float]:
    """Seconds that `command` takes, and the most memory that it has at a time."""
    began, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said:
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            raise ExportError(f"the export failed: {''.join(said.readlines()[-1:]).strip() or process.returncode}")
    return {"seconds": seconds, "peak_GB": peak / 1e9}


def _times(config: LargeConfig, artifacts: Mapping[Branches, Artifact]) -> dict[str, float]:
    """Milliseconds of a photo by form, and by task on the graph of that task."""
    engines: dict[Branches, Engine] = {
        form: load_engine(config.engine, artifact, EngineOptions(config.threads, branches=form))
        for form, artifact in artifacts.items()
    }
    photo = np.random.default_rng(0).integers(0, 255, (1, config.size, config.size, 3), dtype=np.uint8)
    runs: dict[str, Callable[[], Any]] = {form: partial(engine.run, photo) for form, engine in engines.items()}
    for task in artifacts["folded"].manifest.task_table():
        runs[task] = partial(engines["folded"].run, photo, [task])
    try:
        return alternate(runs, config.rounds)
    finally:
        for engine in engines.values():
            engine.close()
