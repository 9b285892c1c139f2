"""Which tasks a parameter serves."""

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["owners"]


def owners(model: Any, tasks: Sequence[str]) -> dict[str, frozenset[str]]:
    """The tasks whose outputs each trained parameter reaches, found by asking the graph: any method, any backbone.

    model: `model(images, tasks)` as PTSAModel. Nothing in it changes, and no random number is drawn.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found: dict[str, set[str]] = {name: set() for name in trained}
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for task in tasks:
            raw = model(torch.zeros(1, 3, 64, 64, device=next(iter(trained.values())).device), [task])[task]
            gradients = torch.autograd.grad(raw.sum(), list(trained.values()), allow_unused=True)
            for name, gradient in zip(trained, gradients, strict=True):
                if gradient is not None:
                    found[name].add(task)
    model.train(was_training)
    return {name: frozenset(tasks) for name, tasks in found.items()}
