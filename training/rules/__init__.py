"""How the losses of several tasks become one step: a file a rule, chosen by name."""

import inspect
from typing import Any

from training.errors import ConfigError
from training.rules.adatask import AdaTask
from training.rules.base import Rule
from training.rules.connection_strength import ConnectionStrength
from training.rules.cross_learning import CrossLearning
from training.rules.pareto import Pareto
from training.rules.rank_shrink import RankShrink
from training.rules.tinting import Tinting
from training.rules.weighted_sum import WeightedSum

__all__ = ["RULES", "Rule", "build_rule", "rule_options"]

RULES: dict[str, type[Rule]] = {
    "weighted_sum": WeightedSum,
    "adatask": AdaTask,
    "connection_strength": ConnectionStrength,
    "cross_learning": CrossLearning,
    "pareto": Pareto,
    "rank_shrink": RankShrink,
    "tinting": Tinting,
}


def build_rule(name: str, options: dict[str, Any]) -> Rule:
    """A rule before its first step. Raises ConfigError for a name or options that do not exist, or wrong values."""
    if name not in RULES:
        raise ConfigError(f"{name!r} is unknown; known are {', '.join(RULES)}")
    known = inspect.signature(RULES[name]).parameters
    if unknown := [option for option in options if option not in known]:
        raise ConfigError(f"{name} has no option {unknown[0]!r}; it has {', '.join(known) if known else 'none'}")
    try:
        return RULES[name](**options)
    except TypeError:
        raise ConfigError(f"{name}: the options {options} hold a value of a wrong type; see the rule's file") from None


def rule_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a rule as JSON, defaults filled in. Raises as `build_rule`."""
    build_rule(name, options)
    return {option: known.default for option, known in inspect.signature(RULES[name]).parameters.items()} | options
