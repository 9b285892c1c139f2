"""Picture of what methods cost: trained parameters across, milliseconds up, deployed parameters as areas."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw_parameters"]

AREA = 8.0  # square points a million deployed parameters
OURS, OTHERS = "#d1495b", "#30638e"
LINE = 0.05  # height of a label's line, as a share of the panel

Points = dict[tuple[float, float, float], list[str]]  # millions trained, ms, millions deployed -> models


def draw_parameters(figures: Mapping[str, Mapping[str, Mapping[str, Any]]], conditions: Mapping[str, Any]) -> bytes:
    """A PNG, a panel a backbone; `figures` and `conditions` are those of `measure_parameters`, with times."""
    figure = Figure(figsize=(6.4 * len(figures), 5.6), dpi=160, layout="constrained")
    what = f"{conditions['size']} pixels, {conditions['decoder']} decoders, rank {conditions['rank']}"
    figure.suptitle(f"What methods cost for {len(conditions['tasks'].split(','))} tasks: {what}", fontsize=11)
    for ax, (backbone, rows) in zip(figure.subplots(1, len(figures), squeeze=False)[0], figures.items(), strict=True):
        _panel(ax, rows)
        ax.set_title(f"{backbone}   (areas: deployed parameters)", fontsize=9.5)
        ax.set_xlabel("trained parameters, millions", fontsize=9)
        ax.set_ylabel(f"ms a photo, {conditions['threads']} threads", fontsize=9)
    file = io.BytesIO()
    # Without the version of the program that drew it: the same figures give the same file.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _panel(ax: Axes, rows: Mapping[str, Mapping[str, Any]]) -> None:
    points: Points = {}
    for label, row in rows.items():
        points.setdefault((row["trainable"] / 1e6, row["ms"], row["folded"] / 1e6), []).append(label)
    top = 1.1 * max(y for _, y, _ in points)
    for (x, y, deployed), labels in points.items():
        color = OURS if any(label.startswith("ptsa") for label in labels) else OTHERS
        ax.scatter(x, y, s=AREA * deployed, color=color, alpha=0.3, linewidths=0)
        ax.scatter(x, y, s=10, color=color)
    ax.set_xscale("log")
    ax.set_xlim(0.5 * min(x for x, *_ in points), 9 * max(x for x, *_ in points))
    ax.set_ylim(0, top)
    for (x, y, deployed), labels, place in _places(points, top):
        ax.annotate(
            "\n".join(labels) + f"   {deployed:.1f} M",
            (x, y),
            place,
            fontsize=7.5,
            ha="center" if place[0] == x else "left" if place[0] > x else "right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.6},
        )
    ax.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    ax.minorticks_off()
    ax.tick_params(labelsize=8)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _places(points: Points, top: float) -> Iterator[tuple[tuple[float, float, float], list[str], tuple[float, float]]]:
    """Every point, its labels, and where they stand: of the fastest below, of others beside it, none on another."""
    taken: list[tuple[float, float]] = []
    fastest = min(y for _, y, _ in points)
    for point, labels in sorted(points.items()):
        x, y, _ = point
        below = y == fastest
        blocked = any(1.1 < other / x < 3 and abs(height - y) < LINE * top for other, height, _ in points)
        at, height = (x, y - 1.6 * LINE * top) if below else (x / 1.35 if blocked else 1.35 * x, y)
        # Labels are about as wide as a factor of three on the axis.
        while any(abs(height - other) < 0.9 * LINE * top and 1 / 3 < at / place < 3 for place, other in taken):
            height += (-0.3 if below else 0.3) * LINE * top
        taken.append((at, height))
        yield point, labels, (at, height)
