"""What every task wants of every parameter in a step: for rules that weigh one task's wish against another's."""

from torch import Tensor

from training.rules.base import Turn

__all__ = ["wishes"]


def wishes(turn: Turn) -> dict[str, dict[str, Tensor]]:
    """Parameter -> task -> gradient of the task's weighted loss over all batches; only of tasks that reach it."""
    found: dict[str, dict[str, Tensor]] = {}
    for batch in turn.batches:
        losses = {task: turn.weights[task] * loss for task, loss in turn.losses(batch).items()}
        for task, gradients in turn.task_grads(losses).items():
            for name, gradient in gradients.items():
                if gradient is not None:
                    own = found.setdefault(name, {})
                    own[task] = own[task] + gradient if task in own else gradient
    return found
