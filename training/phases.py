"""The parts of a run in which different parameters train: named by a method, by a rule, or by both side by side."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Phase"]


def _all(_: str) -> bool:
    return True


def _nothing(_: int) -> None:
    pass


@dataclass(frozen=True)
class Phase:
    """`steps` steps in which the parameters train whose names `trains` takes, of those that train at all.

    A part of the model (backbone, method, decoders) in which it leaves nothing to train is in eval mode. rate: of the
    run's learning rates, their schedule going on. begin: called before each of them with its number in the phase, from
    0; what it changes must lie in the model's state, and follow from that number and the state alone.
    """

    name: str
    steps: int
    trains: Callable[[str], bool] = _all
    begin: Callable[[int], None] = _nothing
    rate: float = 1.0
