"""`python -m training methods`: what there is to choose from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.methods import METHODS, method_options

__all__ = ["MethodsConfig", "list_methods", "methods_table"]


@dataclass(frozen=True)
class MethodsConfig:
    """`python -m training methods` takes nothing but --json."""


def list_methods(config: MethodsConfig) -> dict[str, Any]:
    """Every method by name: kind, source, tree, trains, options with their defaults, settings, folds."""
    return {
        name: {
            "kind": spec.kind,
            "source": spec.source,
            "tree": spec.tree,
            "trains": spec.trains,
            "options": method_options(name, {}),
            "settings": list(spec.settings),
            "folds": spec.folds,
        }
        for name, spec in METHODS.items()
    }


def methods_table(methods: Mapping[str, Any]) -> str:
    """What `list_methods` returns, for people."""
    return "\n".join(_lines(name, row) for name, row in methods.items())


def _lines(name: str, row: Mapping[str, Any]) -> str:
    trees = {"shared": "one network", "independent": "a network a task", "any": "any tree"}
    options = ", ".join(f"{option}={value}" for option, value in row["options"].items())
    lines = [
        f"{name}: {row['kind']}, {trees[row['tree']]} ({row['source']})",
        f"  trains   {row['trains']}",
        f"  folds    {row['folds']}",
        *([f"  options  {options}"] if options else []),
        *([f"  settings {', '.join(row['settings'])}: may be set in a trained model"] if row["settings"] else []),
    ]
    return "\n".join(lines)
