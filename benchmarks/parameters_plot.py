"""Picture of what methods cost: trained parameters across, milliseconds up, deployed parameters as areas."""

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw_parameters"]

AREA = 5.0  # square points a million deployed parameters
OURS, OTHERS = "#d1495b", "#30638e"


def draw_parameters(figures: Mapping[str, Mapping[str, Mapping[str, Any]]], conditions: Mapping[str, Any]) -> bytes:
    """A PNG, a panel a backbone; `figures` and `conditions` are those of `measure_parameters`, with times."""
    figure = Figure(figsize=(6.2 * len(figures), 5.4), dpi=160, layout="constrained")
    figure.suptitle(
        f"Cost of methods: four tasks, {conditions['size']}, {conditions['decoder']} decoders, rank {conditions['rank']}",
        fontsize=11,
    )
    for ax, (backbone, rows) in zip(figure.subplots(1, len(figures), squeeze=False)[0], figures.items(), strict=True):
        _panel(ax, rows)
        ax.set_title(backbone, fontsize=10, fontweight="bold")
    file = io.BytesIO()
    # Without the version of the program that drew it: the same figures give the same file.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _panel(ax: Axes, rows: Mapping[str, Mapping[str, Any]]) -> None:
    points: dict[tuple[float, float], list[str]] = {}
    for label, row in rows.items():
        points.setdefault((row["trainable"] / 1e6, row["ms"]), []).append(label)
    for (x, y), labels in points.items():
        row = rows[labels[0]]
        color = OURS if any(label.startswith("ptsa") for label in labels) else OTHERS
        ax.scatter(x, y, s=AREA * row["folded"] / 1e6, color=color, alpha=0.55, linewidths=0)
        ax.scatter(x, y, s=9, color=color)
    ax.set_xscale("log")
    ax.set_ylim(0, 1.12 * max(y for _, y in points))
