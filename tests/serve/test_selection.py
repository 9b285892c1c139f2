"""The fastest engine is found by running all of them; a wrong one is never taken; the choice is remembered."""

import json
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import ENGINES, Engine, EngineOptions, EngineRow
from ptsa_serve.engines import onnxruntime as real
from ptsa_serve.engines.base import Prefer
from ptsa_serve.errors import EngineError
from ptsa_serve.loading import load_predictor
from ptsa_serve.selection import Timing, _rounds, candidates, fastest, recall, remember, time_engines
from ptsa_serve.settings import Settings


class Other:
    """The real engine under another name, slower or at fault."""

    lanes = 1

    def __init__(self, name: str, inner: Engine) -> None:
        self.name, self.inner = name, inner
        self.version, self.sizes = inner.version, inner.sizes
        self.precision, self.branches = inner.precision, inner.branches

    def run(self, batch: np.ndarray, tasks: object = None, *, alone: bool = True) -> dict[str, np.ndarray]:
        maps = self.inner.run(batch)
        if self.name == "slow":
            time.sleep(0.02)
        return maps if self.name == "slow" else {**maps, "depth": maps["depth"] * 2}

    def close(self) -> None:
        self.inner.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines more, the first of the table among them."""
    rows = {"onnxruntime": ENGINES["onnxruntime"]}
    for name in ("slow", "wrong"):
        module = types.ModuleType(f"engine_{name}")
        module.load = lambda artifact, options, name=name: Other(name, real.load(artifact, options))
        module.offers = real.offers
        monkeypatch.setitem(sys.modules, module.__name__, module)
        rows[name] = EngineRow(module.__name__, ("onnxruntime",))
    for name in [*reversed(ENGINES)]:  # put back the other way round, they have their old order
        monkeypatch.delitem(ENGINES, name)
    for name in ("slow", "wrong", "onnxruntime"):
        monkeypatch.setitem(ENGINES, name, rows[name])


@pytest.mark.usefixtures("three")
def test_fastest_is_first_and_what_is_wrong_is_left_out_with_the_reason(tiny_artifact: Path):
    artifact = Artifact.open(tiny_artifact)
    timings = time_engines(artifact, candidates(artifact, EngineOptions(threads=1)), seconds=0.1)
    assert [timing.engine for timing in timings] == ["onnxruntime", "slow", "wrong"]
    assert "does not reproduce the model's sample (off by: depth" in timings[2].refused
    assert timings[1].alone_ms >= 20
    assert fastest(timings) == timings[0]
    with pytest.raises(EngineError, match=r"no engine runs this model here \(wrong .*; install one"):
        fastest(timings[2:])


def test_of_those_that_are_as_fast_the_one_with_the_fewest_bits_is_taken():
    def timing(precision: str, alone_ms: float | None) -> Timing:
        return Timing("onnxruntime", "1", precision, "folded", alone_ms)

    slower, faster, by_far = timing("int8", 10.4), timing("bf16", 10.0), timing("fp32", 9.0)
    assert fastest([faster, slower]) == slower
    assert fastest([faster, replace(slower, alone_ms=10.6)]) == faster
    assert fastest([by_far, faster, slower]) == by_far
    assert fastest([timing("int8", 10.2), slower, faster]).alone_ms == 10.2
    assert fastest([faster, replace(slower, alone_ms=None, refused="no kernels")]) == faster


@pytest.mark.usefixtures("three")
def test_engines_that_pack_are_left_out_where_memory_is_preferred(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch):
    def names(prefer: Prefer) -> list[str]:
        return [name for name, _ in candidates(Artifact.open(tiny_artifact), EngineOptions(prefer=prefer))]

    monkeypatch.setitem(ENGINES, "slow", replace(ENGINES["slow"], packs=True))
    assert "slow" in names("speed")
    assert names("memory") == [name for name in names("speed") if name != "slow"] != []
    for name in ("wrong", "onnxruntime"):
        monkeypatch.delitem(ENGINES, name)
    assert names("memory") == names("speed") != []


@pytest.mark.usefixtures("three")
def test_the_choice_is_remembered_for_this_model_and_these_engines(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
):
    artifact = Artifact.open(tiny_artifact)
    found = candidates(artifact, EngineOptions(threads=1))
    assert recall(artifact, found) is None
    remember(artifact, found, Timing("slow", "1", "fp32", "folded", 1.0, 1.0, 0.0))
    assert recall(artifact, found) == Timing("slow", "1", "fp32", "folded", 1.0, 1.0, 0.0)
    for other in (EngineOptions(threads=2), EngineOptions(threads=1, prefer="memory")):
        assert recall(artifact, candidates(artifact, other)) is None
    settings = Settings.load({"PTSA_MODEL": str(tiny_artifact), "PTSA_THREADS": "1"})
    assert load_predictor(settings).engine.name == "slow"
    monkeypatch.delitem(ENGINES, "wrong")
    assert recall(artifact, candidates(artifact, EngineOptions(threads=1))) is None


@pytest.mark.usefixtures("three")
def test_what_is_not_known_is_found_out_when_the_server_starts(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch):
    """The process that times knows the real engines alone: its answer is put in their place."""
    asked = []

    def timed(artifact: Artifact, options: EngineOptions) -> list[Timing]:
        asked.append((options.threads, options.prefer))
        return time_engines(artifact, candidates(artifact, options), seconds=0.1)

    monkeypatch.setattr("ptsa_serve.loading._timed_elsewhere", timed)
    settings = Settings.load({"PTSA_MODEL": str(tiny_artifact), "PTSA_THREADS": "1", "PTSA_PREFER": "memory"})
    assert load_predictor(settings).engine.name == "slow", "the first, without any timing"
    assert load_predictor(settings, tune=True).engine.name == "onnxruntime"
    assert load_predictor(settings, tune=True).engine.name == "onnxruntime"
    assert load_predictor(settings).engine.name == "onnxruntime"
    assert asked == [(1, "memory")], "once"


def test_timing_in_a_process_of_its_own(tiny_artifact: Path):
    from ptsa_serve.loading import _timed_elsewhere

    options = EngineOptions(threads=1, precision="fp32", prefer="memory")
    timings = _timed_elsewhere(Artifact.open(tiny_artifact), options, seconds=0)
    found = {timing.engine: timing for timing in timings}["onnxruntime"]
    assert (found.precision, found.refused) == ("fp32", "")
    assert found.alone_ms is not None


def test_a_cache_that_holds_something_else_is_as_good_as_none(tiny_artifact: Path, cache: Path):
    artifact = Artifact.open(tiny_artifact)
    found = candidates(artifact, EngineOptions())
    remember(artifact, found, Timing("onnxruntime", "1", "fp32", "folded"))
    (file,) = cache.rglob("*.json")
    for content in ("", "[]", json.dumps({"colour": "red"})):
        file.write_text(content)
        assert recall(artifact, found) is None


class Paced:
    """Stands for a predictor whose photos take `seconds` each."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.engine = seconds, types.SimpleNamespace(lanes=1)

    def run(self, photos: list[Any], alone: bool = True) -> None:
        time.sleep(self.seconds)


def test_after_three_rounds_the_time_is_left_to_those_that_may_be_the_fastest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ptsa_serve.selection._REST", 0)
    quick, near, slow = _rounds([Paced(0.01), Paced(0.011), Paced(0.03)], None, seconds=1.5)  # type: ignore[arg-type]
    assert len(slow[0]) == len(slow[1]) == 2
    assert len(quick[0]) == len(near[0]) > 3
