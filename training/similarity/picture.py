"""Similarities as heat maps: one a stage and one of all stages, values and standard errors in the cells."""

import io

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.similarity.record import Measure, Similarity, scopes

__all__ = ["heat_maps"]

# Three a row: about as wide as a page, so that the numbers can be read where it is shown.
COLUMNS = 3
CELL = 0.72  # inches
COLORS = colormaps["viridis"]
SAME = "#ececec"  # the diagonal says nothing and has no colour
TITLES: dict[Measure, str] = {
    "unit": "element-wise normalised cosine of unit gradients",
    "weighted": "element-wise normalised cosine of weighted gradients",
    "plain_cosine": "cosine of gradients",
}


def heat_maps(similarity: Similarity, measure: Measure = "unit") -> bytes:
    """A PNG. One colour scale, from the least to the largest similarity of two different tasks, for all maps."""
    names, tasks = scopes(len(similarity.count) - 1), len(similarity.tasks)
    rows = -(-len(names) // COLUMNS)
    side = max(2.2, CELL * tasks)
    figure = Figure(figsize=(COLUMNS * (side + 0.1) + 1.9, rows * (side + 0.4) + 1.3), dpi=160, layout="constrained")
    figure.suptitle(
        f"Task similarity: {TITLES[measure]}\nmean ± standard error over {similarity.batches} batches\n", fontsize=11
    )
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    scale = _scale(similarity.mean[measure])
    for index, ax in enumerate(axes.ravel()):
        if index < len(names):
            _map(ax, similarity.mean[measure][index], similarity.error[measure][index], scale)
            ax.set_title(names[index], fontsize=10, fontweight="bold")
            _name(ax, similarity.tasks, above=index < COLUMNS, left=index % COLUMNS == 0)
        else:
            ax.set_axis_off()
    bar = figure.colorbar(ScalarMappable(scale, COLORS), ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(labelsize=8, length=2)
    file = io.BytesIO()
    # Without the version of the program that drew it: the same figures give the same file.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _scale(mean: NDArray[np.float64]) -> Normalize:
    different = mean[:, ~np.eye(mean.shape[1], dtype=bool)]
    low, high = (different.min(), different.max()) if different.size else (0.0, 1.0)
    return Normalize(low, max(high, low + 1e-3))


def _map(ax: Axes, mean: NDArray[np.float64], error: NDArray[np.float64], scale: Normalize) -> None:
    own = np.eye(len(mean), dtype=bool)
    ax.imshow(np.ma.masked_array(mean, own), cmap=COLORS.with_extremes(bad=SAME), norm=scale)
    for (i, j), value in np.ndenumerate(mean):
        if i == j:
            ax.text(j, i, "1", ha="center", va="center", color="#777777", fontsize=9)
            continue
        ink = "white" if scale(value) < 0.6 else "black"
        number, spread = f"{value:.3f}\n".replace("-", "−"), f"\n± {error[i, j]:.3f}"
        ax.text(j, i, number, ha="center", va="center", color=ink, fontsize=9, linespacing=0.9)
        ax.text(j, i, spread, ha="center", va="center", color=ink, fontsize=6.5, linespacing=1.6)
    # Gaps between cells, so that neighbours of one colour stay two.
    edges = np.arange(len(mean) + 1) - 0.5
    ax.set_xticks(edges, minor=True)
    ax.set_yticks(edges, minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.spines[:].set_visible(False)


def _name(ax: Axes, tasks: tuple[str, ...], *, above: bool, left: bool) -> None:
    """Names of tasks above the first row and left of the first column; maps share them."""
    texts = [task.replace("_", " ") for task in tasks]
    ax.xaxis.tick_top()
    ax.tick_params(which="both", length=0)
    ax.set_xticks(range(len(tasks)), texts if above else [], rotation=30, ha="left", rotation_mode="anchor", fontsize=9)
    ax.set_yticks(range(len(tasks)), texts if left else [], fontsize=9)
