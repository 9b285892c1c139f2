"""How the losses of several tasks become one step: a file a rule, chosen by name."""

from training.rules.base import Rule
from training.rules.tinting import Tinting
from training.rules.weighted_sum import WeightedSum

__all__ = ["RULES", "Rule"]

RULES: dict[str, type[Rule]] = {"weighted_sum": WeightedSum, "tinting": Tinting}
