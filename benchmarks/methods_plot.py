"""Picture of a suite: what each arm gains over single tasks, against what it trains and what its graph costs."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

__all__ = ["draw_methods", "front"]

OURS, OTHERS = "#d1495b", "#30638e"
LOWEST = -9  # per cent; what lies below is drawn there, with its figure
# Where a name may stand: points to the right and up, and which of its ends is there.
PLACES = ((5, 0, "left"), (-5, 0, "right"), (5, 7, "left"), (5, -7, "left"), (-5, 7, "right"), (-5, -7, "right"))
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
    names, gains = [row["arm"] for row in rows], [row["delta_m_percent"] for row in rows]
    panels = figure.subplots(1, 2)
    for ax, (costs, text) in zip(panels, across, strict=True):
        _panel(ax, costs, gains, [name.startswith("ptsa") for name in names])
        ax.set_xlabel(text, fontsize=9)
        ax.set_ylabel("Δm, %", fontsize=9)
    figure.draw_without_rendering()
    for ax, (costs, _) in zip(panels, across, strict=True):
        _name(ax, names, costs, gains)
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


def _panel(ax: Axes, costs: Sequence[float], gains: Sequence[float], ours: Sequence[bool]) -> None:
    shown = [max(gain, LOWEST) for gain in gains]
    for x, y, own, gain in zip(costs, shown, ours, gains, strict=True):
        ax.scatter(x, y, s=18, color=OURS if own else OTHERS, marker="o" if gain >= LOWEST else "v")
    line = front(costs, gains)
    ax.step([costs[i] for i in line], [shown[i] for i in line], where="post", color="#888888", linewidth=0.8)
    ax.axhline(0, color="#bbbbbb", linewidth=0.6)
    ax.set_ylim(LOWEST - 0.5)
    ax.margins(x=0.12)
    if max(costs) > 10 * min(costs):
        ax.set_xscale("log")
        ax.set_xticks(ticks := [tick for tick in TICKS if min(costs) < 1.5 * tick < 2 * max(costs)], map(str, ticks))
        ax.minorticks_off()
    ax.grid(color="#eeeeee", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _name(ax: Axes, names: Sequence[str], costs: Sequence[float], gains: Sequence[float]) -> None:
    """Write the names that find a place, those on the line first; to be called once the panel has its final size."""
    line = front(costs, gains)
    taken = [
        Bbox.from_extents(x - 3, y - 3, x + 3, y + 3)
        for x, y in ax.transData.transform(np.column_stack([costs, gains]))
    ]
    for i in sorted(range(len(names)), key=lambda i: (i not in line, -abs(gains[i]))):
        below = gains[i] < LOWEST
        text = f"{names[i]} {gains[i]:+.1f}" if below else names[i]
        for x, y, side in PLACES:
            at = (costs[i], max(gains[i], LOWEST))
            note = ax.annotate(text, at, (x, y), textcoords="offset points", fontsize=6.5, ha=side, va="center")
            box = note.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            note.remove()
