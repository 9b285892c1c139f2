"""Measure how alike the tasks' gradients are: the mean over batches of the similarity of two gradients.

Not the similarity of mean gradients: PTSA (arXiv 2509.19602) takes the expectation over samples. The gradients are
those of the frozen weights under the adapters, not of the adapters: at the start their second factor is 0, so the
gradient of the first is 0, and that of the second depends on random numbers.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.errors import ConfigError, DivergedError
from training.similarity.measures import MEASURES, compare
from training.similarity.record import Similarity, Skipped, scopes

__all__ = ["FEWEST", "measure"]

# Batches that a pair needs: with fewer, its standard error says little.
FEWEST = 8

# Share of a task's batches whose gradients may be infinite or NaN.
MOST_NOT_FINITE = 0.1

Batch = TypeVar("Batch")


def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    losses: Callable[[Batch], Mapping[str, Tensor | None]],
    weights: Sequence[Sequence[nn.Parameter]],
    *,
    tasks: Sequence[str],
    loss_weights: Mapping[str, float],
) -> Similarity:
    """Similarities of `tasks` by the gradients of their losses with respect to `weights`, each stage's frozen ones.

    losses: the loss of each task for a batch, through `model`, in float32; None, or left out, where the batch has no
    label for it. A batch may hold different photos for different tasks. loss_weights matter to the measure `weighted`.

    The model is in eval mode meanwhile: no dropout, no drop path, batch norms as they are. A batch in which a task's
    gradient is zero or not finite counts nothing for its pairs. Gradients of one batch are held at a time.

    Raises ConfigError for a pair with fewer than `FEWEST` batches in some stage, DivergedError if more than a tenth of
    a task's gradients are not finite, ValueError for weights that are trained or not float32.
    """
    _check(weights)
    began = time.perf_counter()
    observed: list[dict[str, NDArray[np.float64]]] = []
    skips: dict[str, list[str]] = {task: [] for task in tasks}
    with _still(model), _differentiable(weights):
        for batch in batches:
            found, reasons = _observe(losses(batch), weights, tasks, loss_weights)
            observed.append(found)
            for task, reason in reasons.items():
                skips[task].append(reason)
    skipped = {task: Skipped(**Counter(reasons)) for task, reasons in skips.items()}
    _refuse_diverged(skipped, len(observed))
    mean, error, count = _summarise(observed, (len(weights) + 1, len(tasks), len(tasks)))
    _refuse_few(tasks, count, skipped, len(observed))
    return Similarity(tuple(tasks), mean, error, count, skipped, len(observed), time.perf_counter() - began)


def _check(weights: Sequence[Sequence[nn.Parameter]]) -> None:
    if not weights or not all(weights):
        raise ValueError("every stage needs weights to take gradients of")
    parameters = [parameter for stage in weights for parameter in stage]
    if any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            "similarity wants the frozen weights under the adapters; of adapters at their start it is noise"
        )
    if odd := {str(parameter.dtype) for parameter in parameters} - {"torch.float32", "torch.float64"}:
        raise ValueError(f"weights are {', '.join(sorted(odd))}: small gradients would be 0; make them float32")


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _differentiable(weights: Sequence[Sequence[nn.Parameter]]) -> Iterator[None]:
    """Gradients can be asked for frozen `weights`, and afterwards no more."""
    parameters = [parameter for stage in weights for parameter in stage]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _observe(
    losses: Mapping[str, Tensor | None],
    weights: Sequence[Sequence[nn.Parameter]],
    tasks: Sequence[str],
    loss_weights: Mapping[str, float],
) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """The similarities of one batch, and why a task has none: the name of a field of `Skipped`."""
    reasons: dict[str, str] = {}
    columns = []
    flat = [parameter for stage in weights for parameter in stage]
    for task in tasks:
        loss = losses.get(task)
        if loss is None:
            reasons[task] = "unlabelled"
        elif not loss.isfinite():
            reasons[task] = "not_finite"
        columns.append(_gradient(None if loss is None or task in reasons else loss * loss_weights[task], flat))
    rows = iter(zip(*columns, strict=True))
    comparison = compare([[next(rows) for _ in stage] for stage in weights])
    for task, norms in zip(tasks, comparison.squared_norms.T, strict=True):
        if task not in reasons and not bool((norms > 0).all() and norms.isfinite().all()):
            reasons[task] = "zero" if bool(norms.isfinite().all()) else "not_finite"
    return {name: found.cpu().numpy() for name, found in comparison.similarity.items()}, reasons


def _gradient(loss: Tensor | None, weights: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    """The gradient with respect to each of `weights`, None where it is zero for want of a path."""
    if loss is None or not loss.requires_grad:
        return [None] * len(weights)
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    # Apple's GPUs have no float64, which the sums are in.
    return [g.cpu() if g is not None and g.device.type == "mps" else g for g in found]


def _summarise(
    observed: Sequence[Mapping[str, NDArray[np.float64]]], shape: tuple[int, int, int]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """Means, their standard errors, counts; 0 where there is nothing to take a mean of."""
    values = {m: np.reshape([batch[m] for batch in observed], (-1, *shape)) for m in MEASURES}
    valid = np.logical_and.reduce([np.isfinite(v) for v in values.values()])
    count = valid.sum(0)
    mean, error = {}, {}
    for name, all_values in values.items():
        mean[name] = np.where(valid, all_values, 0).sum(0) / np.maximum(count, 1)
        squares = np.where(valid, (all_values - mean[name]) ** 2, 0).sum(0)
        error[name] = np.sqrt(squares / np.maximum(count - 1, 1) / np.maximum(count, 1))
        mean[name][:, np.arange(shape[1]), np.arange(shape[1])] = 1.0
    return mean, error, count


def _refuse_diverged(skipped: Mapping[str, Skipped], batches: int) -> None:
    for task, found in skipped.items():
        labelled = batches - found.unlabelled
        if found.not_finite > MOST_NOT_FINITE * labelled:
            raise DivergedError(
                f"the gradients of {task} are infinite or NaN in {found.not_finite} of {labelled} batches, at most "
                f"{MOST_NOT_FINITE:.0%} may be; look at its labels, or warm the decoders up with a lower --rate"
            )


def _refuse_few(tasks: Sequence[str], count: NDArray[np.int64], skipped: Mapping[str, Skipped], batches: int) -> None:
    for i, j in combinations(range(len(tasks)), 2):
        scope = int(count[:, i, j].argmin())
        if count[scope, i, j] < FEWEST:
            why = "; ".join(
                f"{task}: {s.unlabelled} without a label, {s.zero} with a zero gradient, {s.not_finite} not finite"
                for task, s in ((task, skipped[task]) for task in (tasks[i], tasks[j]))
            )
            raise ConfigError(
                f"{tasks[i]} and {tasks[j]} have gradients in {count[scope, i, j]} of {batches} batches "
                f"({scopes(len(count) - 1)[scope]}); a pair needs {FEWEST}: take more batches, or larger ones ({why})"
            )
