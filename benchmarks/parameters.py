"""What does each method cost? Parameters to train and to deploy, multiply-adds, and milliseconds on the engine at hand.

Every method of the registry, and PTSA with trees from all shared to all split, for PASCAL's four tasks, which published
tables count (MTLoRA, arXiv 2403.20320). The weights are random: costs depend on shapes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.measurement import Measurement
from benchmarks.parameters_graphs import Size, graph_key, latencies
from benchmarks.published import Result, aligned, results_table
from export.latency import compiled
from training.accounting.account import account
from training.accounting.count import parse_tasks, parse_tree
from training.errors import ConfigError
from training.methods import METHODS
from training.network.model import ModelConfig

__all__ = ["Row", "beside_published", "cases", "costs", "measure_parameters", "parameters_table"]

TASKS = "segmentation:21,human_parts:7,saliency,normals"
TREES = ("1-1-1-1", "1-1-2-4", "1-2-2-4", "4-4-4-4")


@dataclass(frozen=True)
class Row:
    """A model's costs. trainable, folded, low_rank: parameters, as in `Account`. folded_MB: 10^6 bytes of the folded
    network in fp32, as the engine holds it. graph: the first model that has the same graph. ms: of it.
    """

    trainable: int
    folded: int
    low_rank: int
    folded_MB: float
    giga_multiply_adds: float
    graph: str | None = None
    ms: float | None = None


def cases(backbone: str, methods: Sequence[str], *, decoder: str, rank: int) -> dict[str, ModelConfig]:
    """The models to count, by method and, where there is a choice, tree. Raises ConfigError for an unknown method."""
    if unknown := [method for method in methods if method not in METHODS]:
        raise ConfigError(f"method {unknown[0]!r} is unknown; known are {', '.join(METHODS)}")
    tasks = parse_tasks(TASKS)
    found = {}
    for method in methods:
        options = {"rank": rank} if "rank" in METHODS[method].options.__dataclass_fields__ else {}
        any_tree = METHODS[method].tree == "any"
        for text in TREES if any_tree else TREES[:1]:
            tree = parse_tree(text, [task.name for task in tasks])
            label = f"{method} {text}" if any_tree else method
            found[label] = ModelConfig(backbone, tree, method, options, decoder, tasks=tasks)
    return found


def measure_parameters(
    backbones: Sequence[str],
    methods: Sequence[str],
    *,
    size: Size,
    decoder: str,
    rank: int,
    threads: int,
    rounds: int,
    graphs: Path | None,
) -> Measurement:
    """Rows by backbone and model. graphs: folder where graphs are kept between runs; None = nothing is timed."""
    figures: dict[str, Any] = {}
    for backbone in backbones:
        models = cases(backbone, methods, decoder=decoder, rank=rank)
        rows = costs(models, size, graphs, threads=threads, rounds=rounds)
        figures[backbone] = {label: asdict(row) for label, row in rows.items()}
    conditions: dict[str, str | int | float] = {
        "size": f"{size[1]}x{size[0]}",
        "tasks": TASKS,
        "decoder": decoder,
        "rank": rank,
        "weights": "random",
    }
    if graphs is not None:
        conditions |= {
            "engine": "onnxruntime",
            "threads": threads,
            "rounds": rounds,
            "batch": 1,
            "options": "as served",
        }
    return Measurement("What does each method cost?", figures, conditions)


def costs(
    models: Mapping[str, ModelConfig], size: Size, graphs: Path | None, *, threads: int, rounds: int
) -> dict[str, Row]:
    """Of each model for photos of `size` (H, W). graphs: folder where graphs are kept; None = nothing is timed."""
    rows = {label: _row(config, size) for label, config in models.items()}
    return rows if graphs is None else _timed(rows, models, size, graphs, threads=threads, rounds=rounds)


def _row(config: ModelConfig, size: Size) -> Row:
    found = account(config, size)
    return Row(
        trainable=found.trainable,
        folded=found.folded,
        low_rank=found.low_rank,
        folded_MB=4 * found.folded / 1e6,
        giga_multiply_adds=found.multiply_adds / 1e9,
    )


def _timed(
    rows: Mapping[str, Row], models: Mapping[str, ModelConfig], size: Size, folder: Path, *, threads: int, rounds: int
) -> dict[str, Row]:
    """The rows with the times of their graphs, each of which is made and timed once."""
    keys = {label: graph_key(config, size) for label, config in models.items()}
    first = {key: label for label, key in reversed(keys.items())}
    artifacts = {
        key: compiled(models[label], size, folder / f"{models[label].backbone}-{key}")
        for key, label in tqdm(first.items(), desc="graphs", unit="graph")
    }
    ms = latencies(artifacts, size, threads=threads, rounds=rounds)
    return {label: replace(row, graph=first[keys[label]], ms=ms[keys[label]]) for label, row in rows.items()}


def parameters_table(measurement: Measurement) -> str:
    """The rows of each backbone, and the conditions."""
    heads = ["", "trainable M", "deployed M", "low rank M", "MB fp32", "G multiply-adds", "ms", "graph"]
    lines = [measurement.question]
    for backbone, rows in measurement.figures.items():
        cells = [[backbone, *heads[1:]], *(_cells(label, row) for label, row in rows.items())]
        lines += ["", aligned(cells)]
    conditions = {**measurement.conditions, **measurement.machine}
    return "\n".join([*lines, "", ", ".join(f"{name} {value}" for name, value in conditions.items())])


def _cells(label: str, row: Mapping[str, Any]) -> list[str]:
    return [
        label,
        *(f"{row[name] / 1e6:.2f}" for name in ("trainable", "folded", "low_rank")),
        f"{row['folded_MB']:.0f}",
        f"{row['giga_multiply_adds']:.2f}",
        "-" if row["ms"] is None else f"{row['ms']:.0f}",
        f"that of {row['graph']}" if row["graph"] not in (None, label) else "",
    ]


def beside_published(measurement: Measurement) -> str:
    """Our counts on Swin-T beside PASCAL's published ones; "" where Swin-T was not counted."""
    rows = measurement.figures.get("swin_tiny", {})
    rank = measurement.conditions["rank"]
    ours = [Result(f"{label} r{rank}", trainable=row["trainable"] / 1e6) for label, row in rows.items()]
    return results_table("pascal", ours) if ours else ""
