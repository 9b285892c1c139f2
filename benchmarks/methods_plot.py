"""Picture of a suite: what each arm gains over single tasks, against what it trains and what its graph costs."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw_methods", "front"]

OURS, OTHERS = "#d1495b", "#30638e"
TICKS = (0.01, 0.1, 1, 2, 5, 10, 20, 50, 100)


def draw_methods(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG of two panels. rows: as `methods.rows` with costs; times where all of them have one, else multiply-adds."""
    timed = all(row.get("ms") is not None for row in rows)
    across = [
        ([row["trainable"] / 1e6 for row in rows], "trained parameters, millions"),
        (
            [row["ms"] if timed else row["giga_multiply_adds"] for row in rows],
            "ms a photo" if timed else "G multiply-adds",
        ),
    ]
    figure = Figure(figsize=(13, 6), dpi=150, layout="constrained")
    figure.suptitle("Mean change against single tasks; on the line is what nothing beats in both", fontsize=11)
    for ax, (costs, text) in zip(figure.subplots(1, 2), across, strict=True):
        _panel(ax, [row["arm"] for row in rows], costs, [row["delta_m_percent"] for row in rows])
        ax.set_xlabel(text, fontsize=9)
        ax.set_ylabel("Δm, %", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats, at no more cost with no less gain; the cheapest first."""
    best, found = float("-inf"), []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if gains[index] > best:
            best = gains[index]
            found.append(index)
    return found


def _panel(ax: Axes, names: Sequence[str], costs: Sequence[float], gains: Sequence[float]) -> None:
    for name, x, y in zip(names, costs, gains, strict=True):
        ax.scatter(x, y, s=18, color=OURS if name.startswith("ptsa") else OTHERS)
        ax.annotate(name, (x, y), (4, 3), textcoords="offset points", fontsize=6.5)
    line = front(costs, gains)
    ax.step([costs[i] for i in line], [gains[i] for i in line], where="post", color="#888888", linewidth=0.8)
    ax.axhline(0, color="#bbbbbb", linewidth=0.6)
    if max(costs) > 10 * min(costs):
        ax.set_xscale("log")
        ax.set_xticks(ticks := [tick for tick in TICKS if min(costs) < 1.5 * tick < 2 * max(costs)], map(str, ticks))
        ax.minorticks_off()
    ax.grid(color="#eeeeee", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
