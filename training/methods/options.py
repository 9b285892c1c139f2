"""Options of methods, checked where they are made."""

from dataclasses import dataclass
from typing import Literal

from training.backbones.base import Backbone
from training.errors import ConfigError

__all__ = [
    "ExtraOptions",
    "LowRankOptions",
    "NoOptions",
    "all_shared",
    "check_ranks",
    "one_of",
    "ranks_of",
    "whole_number",
]

# MTLoRA's, as released: constant factors, not alpha / rank.
SCALE = 4.0
DROPOUT = 0.05


@dataclass(frozen=True)
class NoOptions:
    """Of methods that leave nothing to choose."""


@dataclass(frozen=True)
class ExtraOptions:
    """What of the backbone is trained beside what a method adds.

    merge: of the layers that merge patches: train them, give them adapters of the stage's rank, or leave them frozen.
    norms, tables: of layer norms and position tables: trained as one for all groups, trained for each group, or frozen.
    patch: whether the patch embedding is trained.
    """

    merge: Literal["train", "lora", "frozen"] = "train"
    norms: Literal["shared", "per_group", "frozen"] = "shared"
    tables: Literal["shared", "per_group", "frozen"] = "shared"
    patch: Literal["train", "frozen"] = "train"

    def __post_init__(self) -> None:
        one_of("merge", self.merge, ("train", "lora", "frozen"))
        one_of("norms", self.norms, ("shared", "per_group", "frozen"))
        one_of("tables", self.tables, ("shared", "per_group", "frozen"))
        one_of("patch", self.patch, ("train", "frozen"))


@dataclass(frozen=True)
class LowRankOptions(ExtraOptions):
    """Of methods that add low-rank adapters to every linear layer of a block.

    rank: of the adapters, one for all stages or one for each; 0 = none there. scale: of what they add. dropout: on
    their input.
    """

    rank: int | list[int] = 16
    scale: float = SCALE
    dropout: float = DROPOUT

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranks(self.rank)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; allowed are 0 up to, but not, 1")


def all_shared(options: ExtraOptions) -> None:
    """Raise ConfigError for tensors of the backbone's own that groups have of their own: there is one trunk."""
    one_of("norms", options.norms, ("shared", "frozen"))
    one_of("tables", options.tables, ("shared", "frozen"))


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ConfigError for a value that is not allowed."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed are {', '.join(map(str, allowed))}")


def check_ranks(rank: int | list[int]) -> None:
    """Raise ConfigError for what no rank is."""
    ranks = rank if isinstance(rank, list) else [rank]
    if not ranks or not all(isinstance(one, int) and 0 <= one <= 1024 for one in ranks):
        raise ConfigError(f"rank is {rank}; allowed are 0 (no adapters) to 1024, one or a list of one a stage")


def whole_number(name: str, value: object, *, most: int = 1024) -> None:
    """Raise ConfigError for what is no whole number from 1 to `most`."""
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigError(f"{name} is {value!r}; allowed are whole numbers from 1 to {most}")


def ranks_of(rank: int | list[int], backbone: Backbone) -> list[int]:
    """One rank a stage. Raises ConfigError for a list of another length."""
    stages = len(backbone.widths)
    ranks = rank if isinstance(rank, list) else [rank] * stages
    if len(ranks) != stages:
        raise ConfigError(f"rank is {ranks}; {backbone.name} has {stages} stages: give one rank, or {stages}")
    return ranks
