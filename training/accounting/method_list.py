"""`python -m training methods`: what there is to choose from."""

import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ptsa_serve.task_tree import TaskTree
from training.accounting.account import costs_and_graph
from training.backbones import known_backbones
from training.errors import ConfigError
from training.methods import METHODS, method_options
from training.network.model import ModelConfig
from training.rules import RULES

__all__ = ["MethodsConfig", "list_methods", "methods_in_lines", "methods_table"]

_TASKS = ("segmentation", "depth", "normals", "saliency")
_COUNTS = (1, 1, 2, 4)  # groups a stage, for methods that may have any tree
_SIDE = 448


@dataclass(frozen=True)
class MethodsConfig:
    """What `python -m training methods` takes.

    Args:
        backbone: say of each method too what it trains and what is deployed on this one, for four tasks, 448 x 448
            pixels and the tree 1-1-2-4, with its default options; takes a minute.
    """

    backbone: str = ""

    def __post_init__(self) -> None:
        if self.backbone not in ("", *known_backbones()):
            raise ConfigError(f"--backbone {self.backbone!r} is unknown; known are {', '.join(known_backbones())}")


def list_methods(config: MethodsConfig) -> dict[str, Any]:
    """Every method by name: kind, source, tree, trains, options with their defaults, folds; with a backbone, costs.

    `rules` are those that any of them may be trained by, each with the first line of its file.
    """
    methods = {
        name: {
            "kind": spec.kind,
            "source": spec.source,
            "tree": spec.tree,
            "trains": spec.trains,
            "options": method_options(name, {}),
            "folds": spec.folds,
            "settings": list(spec.settings),
            **(_costs(name, config.backbone) if config.backbone else {}),
        }
        for name, spec in METHODS.items()
    }
    files = {name: sys.modules[rule.__module__].__doc__ or "" for name, rule in RULES.items()}
    return {"methods": methods, "rules": {name: text.partition("\n")[0] for name, text in files.items()}}


def _costs(name: str, backbone: str) -> dict[str, Any]:
    """Empty, but for a reason, where the method does not fit the backbone."""
    try:
        config = ModelConfig(backbone, TaskTree.of_counts(_TASKS, _COUNTS), name)
        costs, graph = costs_and_graph(config, (_SIDE, _SIDE))
    except ConfigError as error:
        return {"refused": str(error)}
    return {
        "trainable": costs.trainable,
        "deployed": {"folded": costs.folded, "low_rank": costs.low_rank},
        "multiply_adds": costs.multiply_adds,
        "graph": {"copies": list(graph.copies), "teeth": graph.teeth, "kept": list(graph.kept)},
    }


def methods_in_lines() -> str:
    """Each method in a few lines: what it trains, what its graph is like, and its source."""
    indent = dict.fromkeys(("initial_indent", "subsequent_indent"), "      ")
    lines = [
        f"  {name} ({spec.source})\n{textwrap.fill(f'trains {spec.trains}; folds {spec.folds}', 110, **indent)}"
        for name, spec in METHODS.items()
    ]
    return "\n".join(["methods; `python -m training methods --backbone NAME` says what each costs:", *lines])


def methods_table(found: Mapping[str, Any]) -> str:
    """What `list_methods` returns, for people."""
    methods = "\n".join(_lines(name, row) for name, row in found["methods"].items())
    rules = "\n".join(f"  {name:<20} {text}" for name, text in found["rules"].items())
    return f"{methods}\n\nrules (fit --rule), for any of them unless they say otherwise\n{rules}"


def _lines(name: str, row: Mapping[str, Any]) -> str:
    trees = {"shared": "one network", "independent": "a network a task", "any": "any tree"}
    options = ", ".join(f"{option}={value}" for option, value in row["options"].items())
    lines = [
        f"{name}: {row['kind']}, {trees[row['tree']]} ({row['source']})",
        f"  trains   {row['trains']}",
        f"  folds    {row['folds']}",
        *([f"  options  {options}"] if options else []),
        *([f"  settings {', '.join(row['settings'])}: may be set in a trained model"] if row["settings"] else []),
        *([f"  costs    {_costs_in_words(row)}"] if "trainable" in row else []),
        *([f"  costs    none: {row['refused']}"] if "refused" in row else []),
    ]
    return "\n".join(lines)


def _costs_in_words(row: Mapping[str, Any]) -> str:
    deployed, graph = row["deployed"]["folded"], row["graph"]
    copies = "-".join(map(str, graph["copies"]))
    teeth = f", {graph['teeth']} teeth at their ends" if graph["teeth"] else ""
    kept = f"; {', '.join(graph['kept'])} stay" if graph["kept"] else ""
    return (
        f"{row['trainable'] / 1e6:.2f} M trained, {deployed / 1e6:.2f} M deployed, "
        f"{row['multiply_adds'] / 1e9:.2f} G multiply-adds; stages computed {copies} times{teeth}{kept}"
    )
