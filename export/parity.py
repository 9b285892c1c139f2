"""The gate before every artifact: training form, plain network and engine must agree, output by output, on photos.

Each output is compared under its own name; the tolerances stand here and nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from export.errors import ParityError
from export.fold import FoldedNetwork
from ptsa_serve.difference import difference
from ptsa_serve.tasks import Kind, Task
from training.network.heads import finish
from training.network.model import PTSAModel

__all__ = ["TOLERANCES", "Comparison", "check", "measure"]

# Largest difference that is let through: share of pixels with another class; metres, unit vectors and probabilities
# absolute. fp32 kernels that add in another order differ by 1e-6 to 1e-5.
TOLERANCES: dict[Kind, float] = {
    "classes": 1e-3,
    "metres": 1e-4,
    "unit_vectors": 1e-4,
    "probability": 1e-4,
    "boundary": 1e-4,
}

Maps = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference of one task's maps between two forms of the model, worst over the photos of one size."""

    task: Task
    forms: tuple[str, str]
    size: tuple[int, int]
    difference: float

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.task.kind]

    def __str__(self) -> str:
        what = "share of pixels with another class" if self.task.kind == "classes" else "largest difference"
        height, width = self.size
        return (
            f"{self.task.name} at {height} x {width}, {' against '.join(self.forms)}: {what} {self.difference:.2g}, "
            f"allowed {self.tolerance:g}"
        )


def measure(
    model: PTSAModel, network: FoldedNetwork, run: Callable[[np.ndarray], Maps], photos: Sequence[np.ndarray]
) -> list[Comparison]:
    """Run every photo, uint8 (H, W, 3), all of one size, through all three forms.

    run: the engine, uint8 (N, H, W, 3) to maps by task. Two photos at a time, so that a batch axis that is not
    dynamic, or mixed up, is seen.
    """
    worst: dict[tuple[str, tuple[str, str]], float] = {}
    own = network.branches
    for start in range(0, len(photos), 2):
        batch = np.stack(photos[start : start + 2])
        forms = {"training form": _training(model, batch), own: _plain(network, batch), "engine": run(batch)}
        for pair in combinations(forms, 2):
            for name, task in network.tasks.items():
                one, other = (forms[form].get(name, np.empty(0)) for form in pair)
                worst[name, pair] = max(worst.get((name, pair), 0.0), difference(task.kind, one, other).worst)
    size = photos[0].shape[:2] if photos else (0, 0)
    return [Comparison(network.tasks[name], pair, size, difference) for (name, pair), difference in worst.items()]


def check(comparisons: Sequence[Comparison]) -> dict[str, dict]:
    """The `parity` of a manifest: by task the tolerance and the worst difference of any two forms.

    Raises ParityError with every comparison that is over its tolerance.
    """
    # `not <=`: whatever is not a number fails too.
    failed = [comparison for comparison in comparisons if not comparison.difference <= comparison.tolerance]
    if failed or not comparisons:
        raise ParityError("; ".join(map(str, failed)) or "no photo was compared: give at least one")
    parity: dict[str, dict] = {}
    for comparison in comparisons:
        entry = parity.setdefault(comparison.task.name, {"tolerance": comparison.tolerance, "worst": 0.0})
        entry["worst"] = max(entry["worst"], comparison.difference)
        entry["measure"] = "share of other classes" if comparison.task.kind == "classes" else "absolute"
    return parity


def _training(model: PTSAModel, batch: np.ndarray) -> dict[str, np.ndarray]:
    images = torch.from_numpy(batch).permute(0, 3, 1, 2)
    with torch.no_grad():
        raw = model(images)
        return {name: finish(model.tasks[name], planes, batch.shape[1:3]).numpy() for name, planes in raw.items()}


def _plain(network: FoldedNetwork, batch: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: values.numpy() for name, values in network(torch.from_numpy(batch)).items()}
