import json
from pathlib import Path

from benchmarks.measurement import Measurement, median_ms, save, table


def test_a_measurement_carries_its_conditions(tmp_path: Path) -> None:
    measurement = Measurement("How fast?", {"whole_ms": 1.5}, {"threads": 2})
    text = table(measurement)
    assert "whole_ms  1.5" in text
    assert "threads 2" in text
    save(measurement, tmp_path / "new" / "fast.json")
    written = json.loads((tmp_path / "new" / "fast.json").read_text())
    assert written["figures"] == {"whole_ms": 1.5}
    assert {"cpu", "cores", "date", "commit", "onnxruntime"} <= written["machine"].keys()


def test_median_is_in_milliseconds() -> None:
    assert median_ms([0.3, 0.1, 0.2]) == 200
