"""One step as the loop lends it to a rule: losses that are checked, gradients in whichever precision."""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from training.errors import DivergedError
from training.rules.base import Batch, TaskGradients
from training.running.stepping import Optimisation, remedy

__all__ = ["LossFunction", "StepTurn"]

# From a batch's content, and the tasks that are wanted where not all are.
LossFunction = Callable[..., dict[str, Tensor]]


class StepTurn:
    """See `training.rules.base.Turn`."""

    def __init__(
        self,
        run: Optimisation,
        batches: Sequence[Batch],
        losses: LossFunction,
        weights: Mapping[str, float],
        phase: str,
    ) -> None:
        self.batches = batches
        self.weights = weights
        self.phase = phase
        self.values: dict[str, float] = {}
        self._run = run
        self._losses = losses

    @property
    def model(self) -> nn.Module:
        return self._run.module

    @property
    def optimizer(self) -> Optimizer:
        return self._run.optimizer

    @property
    def step(self) -> int:
        return self._run.step

    def losses(self, batch: Batch, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        losses = self._losses(batch.content) if tasks is None else self._losses(batch.content, tasks)
        values = {task: loss.item() for task, loss in losses.items()}
        if bad := [f"{task} is {value}" for task, value in values.items() if not math.isfinite(value)]:
            raise DivergedError(f"the loss of {', '.join(bad)} for {batch.photos}; {remedy()}")
        for task, value in values.items():
            self.values[task] = self.values.get(task, 0.0) + batch.share * value
        return {task: batch.share * loss for task, loss in losses.items()}

    def task_grads(self, losses: Mapping[str, Tensor]) -> TaskGradients:
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        before = {name: p.grad for name, p in trained.items()}
        found: TaskGradients = {}
        for task, loss in losses.items():
            for parameter in trained.values():
                parameter.grad = None
            # Not torch.autograd.grad: Fabric wants to know of every backward pass, and scales the loss in fp16.
            self._run.fabric.backward(loss, retain_graph=True, inputs=list(trained.values()))
            found[task] = {n: None if p.grad is None else p.grad / self._run.scale for n, p in trained.items()}
        for name, parameter in trained.items():
            parameter.grad = before[name]
        return found

    def backward(self, total: Tensor) -> None:
        self._run.fabric.backward(total)

    def write(self, gradients: Mapping[str, Tensor | None]) -> None:
        for name, parameter in self.model.named_parameters():
            gradient = gradients.get(name)
            # Scaled as `backward` leaves them: clipping takes the scale off again.
            parameter.grad = None if gradient is None else gradient * self._run.scale

    def clip_and_step(self, before: Callable[[float], None] | None = None) -> None:
        self._run.clip_and_step("; ".join(batch.photos for batch in self.batches), before)
