"""Published figures are typed in by hand: what can be recomputed from a row is."""

from collections.abc import Mapping

import pytest

from benchmarks.published import CAVEATS, PUBLISHED, UNITS, Result, results_table
from training.accounting.count import CountConfig, count


def change(figures: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Mean change in percent, better is positive."""
    better = {task: -1 if "down" in UNITS[task] else 1 for task in figures}
    return sum(100 * better[t] * (figures[t] - baseline[t]) / baseline[t] for t in figures) / len(figures)


@pytest.mark.parametrize("data", PUBLISHED)
def test_stated_changes_follow_from_their_rows(data) -> None:
    baseline = PUBLISHED[data][0]
    whole = [row for row in PUBLISHED[data] if row.figures.keys() == baseline.figures.keys()]
    assert len(whole) >= 4
    off = {row.method: change(row.figures, baseline.figures) - (row.delta or 0) for row in whole}
    known = {"multi-task, full"} if data == "pascal" else set()
    assert {method for method, difference in off.items() if abs(difference) > 0.03} == known


def test_published_counts_of_mtlora_are_ours() -> None:
    rows = {row.method: row.trainable for row in PUBLISHED["pascal"]}
    tasks = "segmentation:21,human_parts:7,saliency,normals"
    for rank in (16, 32, 64):
        ours = count(CountConfig("swin_tiny", 448, tasks, "mtlora", rank=rank, decoder="hrnet"))
        assert round(ours["trainable"] / 1e6, 2) == rows[f"MTLoRA r{rank}"]


@pytest.mark.parametrize("data", PUBLISHED)
def test_every_row_is_marked_as_what_it_is(data) -> None:
    ours = [Result("mine", {"segmentation": 40.0, "saliency": 60.0}, trainable=1.0)]
    lines = results_table(data, ours).splitlines()
    assert lines[0].split()[0] == "method"
    assert lines[1].startswith("mine")
    assert lines[1].endswith("ours")
    assert all("published: " in line for line in lines[2 : 2 + len(PUBLISHED[data])])
    assert lines[-len(CAVEATS[data]) :] == list(CAVEATS[data])
