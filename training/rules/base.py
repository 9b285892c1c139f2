"""What a rule is, and what the loop lends it for one step.

A rule decides what the losses of the tasks do to the weights. Whatever it draws, counts or remembers must depend on
the step and its `state_dict` alone: a killed run goes on from the last one and must come to the same result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from training.phases import Phase

__all__ = ["Batch", "Rule", "TaskGradients", "Turn"]

# Task -> parameter -> gradient; None where the loss of the task does not reach the parameter: not the same as zero.
TaskGradients = dict[str, dict[str, Tensor | None]]


@dataclass(frozen=True)
class Batch:
    """Samples that pass the network together. photos: whose they are, for messages; share: of the step's losses."""

    photos: str
    content: Any
    share: float = 1.0


class Turn(Protocol):
    """One step. The loss of a task in this step is the sum of what `losses` gives for each of `batches`."""

    batches: Sequence[Batch]
    weights: Mapping[str, float]
    phase: str
    values: dict[str, float]  # the step's loss of each task so far, without its weight

    @property
    def model(self) -> nn.Module: ...
    @property
    def optimizer(self) -> Optimizer:
        """Its groups have the step's learning rates."""
        ...

    @property
    def step(self) -> int: ...
    def losses(self, batch: Batch, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Task -> scalar with a graph; of `tasks` alone, where they are named and the batch has labels of them.

        One forward pass: the tasks share what is drawn. Raises DivergedError.
        """
        ...

    def task_grads(self, losses: Mapping[str, Tensor]) -> TaskGradients:
        """Of each loss alone, unscaled; the graph stays for another call, and nothing is added to the model."""
        ...

    def backward(self, total: Tensor) -> None:
        """Add the gradients of `total` to those that lie in the model, freeing its graph."""
        ...

    def write(self, gradients: Mapping[str, Tensor | None]) -> None:
        """Put unscaled gradients in the place of those that lie in the model; what is not named gets none."""
        ...

    def clip_and_step(self, before: Callable[[float], None] | None = None) -> None:
        """Clip what lies in the model, take the optimiser's step, clear. May be called several times, or never.

        before: called between the two, with the factor that clipping took, unless the gradients are not finite; a
        parameter whose gradient it sets to None is left alone by the optimiser.
        """
        ...


class Rule(Protocol):
    """Its options are the keywords of its constructor, each with a default; it raises ConfigError for wrong values."""

    # Whether it calls `task_grads` or `write`, which see one process alone, or `losses` several times before it goes
    # back: such rules do not run under torchrun.
    needs_task_grads: bool
    # Whether photos must have labels of every task; a rule that makes its own takes photos of any set.
    needs_labels: bool

    def phases(self, steps: int) -> Sequence[Phase]:
        """What a run of `steps` steps consists of; their steps add up to it."""
        ...

    def bind(self, model: nn.Module, owners: Mapping[str, frozenset[str]]) -> None:
        """Called once, before there is an optimiser; may add parameters. owners: the tasks that reach a parameter.

        Raises ConfigError for a model that the rule can do nothing with: what it lacks, and what would do.
        """
        ...

    def step(self, turn: Turn) -> dict[str, float]:
        """Learn from the turn's batches; returns what is worth a curve, by name: losses, others with a / in it."""
        ...

    def finalize(self, model: nn.Module) -> None:
        """Turn a copy of the trained model into what is stored."""
        ...

    def report(self) -> dict[str, Any]:
        """What the run has shown, as JSON: part of what the checkpoint says about itself."""
        ...

    def files(self) -> Mapping[str, str]:
        """Further results, by the name of a file that is written beside the checkpoint, as text."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and texts, in lists and dicts: what `torch.load` reads with `weights_only`."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
