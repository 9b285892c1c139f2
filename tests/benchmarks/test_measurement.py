import json
from pathlib import Path

import pytest

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


def test_a_figure_that_there_is_not_is_null_and_never_nan(tmp_path: Path) -> None:
    out = tmp_path / "none.json"
    nothing = Measurement("How fast?", {"refusal_ms": None, "whole_ms": 1.0}, {})
    assert "refusal_ms  none" in table(nothing)
    save(nothing, out)
    assert json.loads(out.read_text())["figures"] == {"refusal_ms": None, "whole_ms": 1.0}
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(Measurement("How fast?", {"whole_ms": float("nan")}, {}), tmp_path / "nan.json")
    assert not (tmp_path / "nan.json").exists()
