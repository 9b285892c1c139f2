"""Figures that others published, to stand beside ours; none was measured here.

They were read in notes and tables that repeat the papers (TADFormer, DiTASK, FAAR, Free Sinewich all repeat MTLoRA's
rows), not in the papers themselves. All: Swin-T, ImageNet weights, photos and labels of 448 x 448.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["CAVEATS", "PUBLISHED", "Result", "aligned", "results_table"]

MTLORA = "arXiv 2403.20320"
TADFORMER = "arXiv 2501.04293"
DITASK = "arXiv 2502.06029"
PTSA = "arXiv 2509.19602, second hand"
FAAR = "arXiv 2603.20403"
SINEWICH = "arXiv 2603.21111"

DataSet = Literal["pascal", "nyud"]

# Units of the figures, and what is better.
UNITS: dict[str, str] = {
    "segmentation": "mIoU %, up",
    "human_parts": "mIoU %, up",
    "saliency": "mIoU %, up",
    "normals": "mean angle in degrees, down",
    "depth": "RMSE in metres, down",
}

CAVEATS: dict[DataSet, tuple[str, ...]] = {
    "pascal": (
        "Trainable millions count the decoders (1.95 M here), but for DiTASK: add them before comparing.",
        "Full fine-tuning is published with 0.60 M more than the released code has (29.46 M and 112.02 M); its +2.23 "
        "does not follow from its row, which gives +2.45.",
    ),
    "nyud": (
        "Baselines differ: 42.65 mIoU of a single task here, 40.65 elsewhere. A change in percent means nothing "
        "without its own baseline; adapters are mostly below single tasks on NYUD.",
        "Trainable millions count the decoders.",
    ),
}


@dataclass(frozen=True)
class Result:
    """A row. figures: by task, in `UNITS`. delta: mean change against single tasks in percent, better is positive.
    trainable: in millions. source: where it was published; "" = ours.
    """

    method: str
    figures: Mapping[str, float] = field(default_factory=dict)
    delta: float | None = None
    trainable: float | None = None
    source: str = ""


def _pascal(
    method: str, figures: tuple[float, float, float, float], delta: float, trainable: float, source: str
) -> Result:
    names = ("segmentation", "human_parts", "saliency", "normals")
    return Result(method, dict(zip(names, figures, strict=True)), delta, trainable, source)


def _nyud(method: str, figures: tuple[float, float, float], delta: float, trainable: float) -> Result:
    return Result(method, dict(zip(("segmentation", "depth", "normals"), figures, strict=True)), delta, trainable, FAAR)


PUBLISHED: dict[DataSet, tuple[Result, ...]] = {
    "pascal": (
        _pascal("single task, full", (67.21, 61.93, 62.35, 17.97), 0.0, 112.62, MTLORA),
        _pascal("multi-task, full", (67.56, 60.24, 65.21, 16.64), 2.23, 30.06, MTLORA),
        _pascal("MTLoRA r16", (68.19, 58.99, 64.48, 17.03), 1.35, 4.95, MTLORA),
        _pascal("MTLoRA r32", (67.74, 59.46, 64.90, 16.59), 2.16, 6.08, MTLORA),
        _pascal("MTLoRA r64", (67.90, 59.84, 65.40, 16.60), 2.55, 8.34, MTLORA),
        _pascal("MTLoRA r64, run again", (68.38, 59.58, 63.85, 16.76), 1.77, 8.34, "scale-lab/MTLoRA issue 6"),
        _pascal("TADFormer r16", (69.79, 59.27, 65.04, 16.91), 2.44, 3.56, TADFORMER),
        _pascal("TADFormer r32", (70.20, 60.00, 65.71, 16.57), 3.63, 4.78, TADFORMER),
        _pascal("TADFormer r64", (70.82, 60.45, 65.88, 16.48), 4.24, 7.38, TADFORMER),
        _pascal("DiTASK, multi-task", (69.66, 62.02, 65.00, 17.10), 3.22, 1.61, DITASK),
        _pascal("DiTASK, a model a task", (72.20, 62.33, 65.70, 16.55), 5.33, 1.60, DITASK),
        _pascal("FAAR", (72.02, 61.25, 66.11, 16.35), 5.28, 3.38, FAAR),
        _pascal("Free Sinewich r32", (71.02, 60.75, 65.94, 16.44), 4.51, 4.04, SINEWICH),
        _pascal("Free Sinewich r64", (71.25, 61.38, 66.24, 16.14), 5.39, 6.53, SINEWICH),
        Result("PTSA", delta=4.21, source=PTSA),
    ),
    "nyud": (
        _nyud("single task, full", (42.65, 0.60, 22.83), 0.0, 84.00),
        _nyud("multi-task, full", (38.85, 0.66, 24.33), -8.49, 28.10),
        _nyud("TADFormer r64", (40.85, 0.64, 27.48), -10.42, 8.90),
        _nyud("FAAR", (41.27, 0.63, 26.35), -7.88, 2.85),
        Result("PTSA", {"segmentation": 41.92}, source=PTSA),
    ),
}


def results_table(data: DataSet, ours: Sequence[Result] = ()) -> str:
    """Our results, then the published ones, each marked as what it is; units and caveats below."""
    rows = [*ours, *PUBLISHED[data]]
    tasks = list(dict.fromkeys(task for row in rows for task in row.figures))
    heads = ["method", *tasks, "change %", "trainable M", "where"]
    lines = [
        [
            row.method,
            *(_number(row.figures.get(task)) for task in tasks),
            "-" if row.delta is None else f"{row.delta:+.2f}",
            _number(row.trainable),
            f"published: {row.source}" if row.source else "ours",
        ]
        for row in rows
    ]
    units = "; ".join(f"{task}: {UNITS[task]}" for task in tasks if task in UNITS)
    return "\n".join([aligned([heads, *lines]), units, *CAVEATS[data]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as columns: the first and the last to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in (0, last) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
