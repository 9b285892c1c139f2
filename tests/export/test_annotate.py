import shutil
from pathlib import Path

import pytest

from export.annotate import annotate, entry
from export.errors import ExportError

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
    with pytest.raises(ExportError, match="benchmarks accuracy --out"):
        entry({"figures": {}, "conditions": {"threads": 2}})


def test_figures_that_there_are_not_are_left_out_and_nan_is_refused() -> None:
    figures = {"depth_RMSE_m": None, "saliency_IoU_percent": 90.0}
    assert entry({**MEASURED, "figures": figures})["figures"] == {"saliency_IoU_percent": 90.0}
    with pytest.raises(ExportError, match="no numbers: depth_RMSE_m; measure them again"):
        entry({**MEASURED, "figures": {"depth_RMSE_m": float("nan")}})
