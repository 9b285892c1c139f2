import shutil
from pathlib import Path

import pytest

from export.annotate import annotate, entry

MEASURED = {
    "question": "How good?",
    "figures": {"depth_RMSE_m": 0.91234567},
    "conditions": {"data": "nyu", "split": "val", "photos": 436},
}


def test_figures_reach_the_manifest_and_nothing_else_changes(tiny_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_artifact, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    artifact = annotate(folder, [entry(MEASURED)])
    assert artifact.manifest.metrics[0]["figures"] == {"depth_RMSE_m": 0.9123}
    assert artifact.manifest.metrics[0]["photos"] == 436
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"} == before


def test_another_measurement_is_refused() -> None:
    with pytest.raises(ValueError, match="benchmarks accuracy --out"):
        entry({"figures": {}, "conditions": {"threads": 2}})
