"""Delta m: how much better a model is than one network a task, over all tasks.

(100 / T) * sum over tasks of (-1)^l (M - B) / B, l = 1 where lower is better. Source: Maninis et al., arXiv 1904.08918,
section 4; used by MTLoRA and PTSA.
"""

from collections.abc import Mapping

from ptsa_serve.tasks import Kind

__all__ = ["FIGURES", "delta_m"]

# The figure that stands for a task, by its kind, and whether more of it is better.
FIGURES: dict[Kind, tuple[str, bool]] = {
    "classes": ("mIoU_percent", True),
    "metres": ("RMSE_m", False),
    "unit_vectors": ("mean_angle_degrees", False),
    "probability": ("IoU_percent", True),
}


def delta_m(kinds: Mapping[str, Kind], found: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Per cent. kinds: of the tasks. found, single: the figure of each task, of the model and of its own network."""
    gains = []
    for task, kind in kinds.items():
        better = 1 if FIGURES[kind][1] else -1
        gains.append(better * (found[task] - single[task]) / single[task])
    return 100 * sum(gains) / len(gains)
