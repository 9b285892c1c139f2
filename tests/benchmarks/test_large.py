"""What a large model takes: an export of its own process, and graphs that are timed in turn."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.large import LargeConfig, _watched, large_table, measure_large
from export.errors import ExportError


def test_memory_and_time_of_an_export_are_those_of_its_process() -> None:
    found = _watched([sys.executable, "-c", "import time; held = bytearray(300_000_000); time.sleep(0.3)"])
    assert 0.3 < found["peak_GB"] < 0.6
    assert found["seconds"] > 0.3


def test_an_export_that_fails_says_why() -> None:
    with pytest.raises(ExportError, match="the export failed: error: no photos"):
        _watched([sys.executable, "-c", "import sys; sys.exit('begun\\nerror: no photos')"])


def test_an_unknown_tree_is_told_with_the_known_ones() -> None:
    done = CliRunner().invoke(main, ["large", "--trees", "1-2-3"])
    assert isinstance(done.exception, ExportError)
    assert str(done.exception) == "tree '1-2-3' is unknown; known are 1-1-1-1, 1-1-2-4, 1-2-2-4, 4-4-4-4"


@pytest.mark.slow
def test_both_forms_and_a_graph_a_task_are_compared(tmp_path: Path) -> None:
    config = LargeConfig(
        "swin_nano", ["1-1-2-4"], size=64, decoder="pyramid", rank=16, engine="onnxruntime", threads=1, rounds=1,
        work=tmp_path,
    )  # fmt: skip
    row = measure_large(config).figures["1-1-2-4"]
    assert row["low_rank_weights_MB"] < row["folded_weights_MB"]
    assert row["one_graph_against_one_each_ratio"] == pytest.approx(
        row["folded_ms"] / sum(row[f"{task}_ms"] for task in ("segmentation", "human_parts", "saliency", "normals"))
    )
    again = measure_large(config)
    assert again.figures["1-1-2-4"]["folded_export_seconds"] == row["folded_export_seconds"]
    assert "low_rank_against_backbone_ratio" in large_table(again)
