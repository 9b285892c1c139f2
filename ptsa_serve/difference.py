"""How far two maps of one task lie apart: the one measure of the parity gate, of readiness and of the tests."""

from dataclasses import dataclass

import numpy as np

from ptsa_serve.tasks import Kind

__all__ = ["Difference", "difference"]

_NEAR = np.float32(0.1)  # metres; below it a relative error says nothing


@dataclass(frozen=True, slots=True)
class Difference:
    """classes: `mean` and `worst` are the share of pixels of another class. Else of the absolute differences: the mean
    (metres: relative to the second map) and the largest.

    Infinite where the maps differ in shape or type, or where one holds what is no number.
    """

    mean: float
    worst: float


def difference(kind: Kind, found: np.ndarray, expected: np.ndarray | None) -> Difference:
    """Of two maps of a task of `kind`; None: there is no such map."""
    if expected is None or found.shape != expected.shape or found.dtype != expected.dtype:
        return Difference(float("inf"), float("inf"))
    if kind == "classes":
        share = float(np.mean(found != expected))
        return Difference(share, share)
    apart = np.abs(found.astype(np.float64) - expected)
    if not np.isfinite(apart).all():
        return Difference(float("inf"), float("inf"))
    relative = apart / np.maximum(expected, _NEAR) if kind == "metres" else apart
    return Difference(float(np.mean(relative)), float(np.max(apart, initial=0.0)))
