"""The best tree within a budget that may be time on this machine's engine, from a search that is done.

`python -m training similarity` knows parameters and multiply-adds; an engine is below export.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from export.errors import ExportError
from export.latency import compiled, milliseconds
from ptsa_serve.files import replace_file
from ptsa_serve.task_tree import TaskTree
from training.accounting.account import account
from training.allocation.budget import Budget, Choice, from_budget
from training.network.checkpoint import read_config
from training.network.model import ModelConfig
from training.similarity.record import Measure, Scope, read_similarity

__all__ = ["TreeConfig", "choose"]


@dataclass(frozen=True)
class TreeConfig:
    """search: the folder that `python -m training similarity` wrote. The limits: None = none. rank: of the adapters.
    size: (H, W) of the photos. threads: of the engine."""

    search: Path
    max_ms: float | None
    max_multiply_adds: int | None
    max_trainable: int | None
    size: tuple[int, int]
    rank: int = 16
    threads: int = 2
    measure: Measure = "unit"
    scope: Scope = "stage"


def choose(config: TreeConfig, report: Callable[[str], None] = lambda _: None) -> Choice:
    """The best tree, written to the search's tree.json. Graphs are compiled once for trees of equal counts, and what
    was measured is kept in latency.json.

    Raises ExportError without a limit, ConfigError if no tree fits, CheckpointError or OSError without a search.
    """
    similarity = read_similarity(config.search / "similarity.json")
    model = replace(
        read_config(config.search / "decoders" / "model.safetensors"), method="ptsa", options={"rank": config.rank}
    )
    limits = {
        "trainable parameters": (config.max_trainable, lambda tree: _account(model, tree, config).trainable),
        "multiply-adds": (config.max_multiply_adds, lambda tree: _account(model, tree, config).multiply_adds),
        "ms": (config.max_ms, lambda tree: _milliseconds(model, tree, config, report)),
    }
    budgets = [Budget(name, limit, cost) for name, (limit, cost) in limits.items() if limit is not None]
    if not budgets:
        raise ExportError("nothing limits the tree; give --max-ms, --max-multiply-adds or --max-trainable")
    choice = from_budget(similarity.tasks, similarity.stages(config.measure, config.scope), budgets)
    replace_file(config.search / "tree.json", json.dumps(choice.tree.to_json()).encode() + b"\n")
    return choice


def _account(model: ModelConfig, tree: TaskTree, config: TreeConfig):
    return account(replace(model, tree=tree), config.size)


def _milliseconds(model: ModelConfig, tree: TaskTree, config: TreeConfig, report: Callable[[str], None]) -> float:
    """Of a tree with as many groups a stage."""
    store = config.search / "latency.json"
    known = json.loads(store.read_text()) if store.exists() else {}
    counts = "-".join(map(str, tree.counts))
    height, width = config.size
    key = f"{model.backbone} {model.decoder} {counts} at {height} x {width}, {config.threads} threads"
    if key not in known:
        report(f"{counts}: compiling and timing")
        artifact = compiled(replace(model, tree=tree), config.size, config.search / "graphs" / counts)
        known[key] = round(milliseconds(artifact, config.size, threads=config.threads), 2)
        replace_file(store, json.dumps(known, indent=1).encode() + b"\n")
    report(f"{counts}: {known[key]:.1f} ms")
    return known[key]
