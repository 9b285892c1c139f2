"""What holds for every engine and precision that runs on this machine: those that are not installed are not tested."""

import builtins
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import ENGINES, Engine, EngineOptions, load_engine
from ptsa_serve.engines.base import Prefer
from ptsa_serve.engines.openvino import OpenVinoEngine
from ptsa_serve.errors import ArtifactError, EngineError
from ptsa_serve.graphs import Graph
from ptsa_serve.predictor import Predictor
from ptsa_serve.tasks import TASKS
from ptsa_serve.variants import Variant

# What computes in fp32 answers as ONNX Runtime did when the artifact was made, to rounding.
EXACT = 1e-4


@pytest.fixture(scope="module")
def artifact(tiny_artifact: Path) -> Artifact:
    return Artifact.open(tiny_artifact)


@pytest.fixture(scope="module", params=sorted(ENGINES))
def name(request: pytest.FixtureRequest, artifact: Artifact) -> str:
    if not ENGINES[request.param].version():
        pytest.skip(f"{request.param} is not installed")
    if not ENGINES[request.param].offers(artifact):
        pytest.skip(f"{request.param} runs nothing of this model on this machine: it needs a GPU, or a plan")
    return request.param


@pytest.fixture(scope="module", params=get_args(Prefer))
def engine(request: pytest.FixtureRequest, name: str, artifact: Artifact) -> Iterator[Engine]:
    engine = load_engine(name, artifact, EngineOptions(threads=2, prefer=request.param))
    yield engine
    engine.close()


def batch_of(size: tuple[int, int], count: int = 1) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def test_every_precision_that_is_offered_reproduces_the_sample(name: str, artifact: Artifact):
    offers = ENGINES[name].offers(artifact)
    assert offers
    for options in offers:
        engine = load_engine(name, artifact, options)
        assert (engine.name, engine.precision, engine.branches) == (name, options.precision, options.branches)
        worst = max(Predictor(artifact, engine).verify().values())
        assert worst <= EXACT or options.precision != "fp32"
        engine.close()


def test_every_size_takes_any_batch_and_answers_by_photo(engine: Engine):
    for size in engine.sizes:
        batch = batch_of(size, 3)
        maps = engine.run(batch)
        assert list(maps) == list(TASKS)
        for name, values in engine.run(batch[1:2]).items():
            assert values.shape[1:3] == size
            assert values.dtype == maps[name].dtype
            assert np.allclose(values[0], maps[name][1], atol=EXACT)


@pytest.mark.parametrize("tasks", [["depth"], ["saliency", "depth"]])
def test_only_the_tasks_that_are_asked_for_are_answered_and_as_ever(engine: Engine, tasks: list[str]):
    batch = batch_of((48, 64))
    maps, every = engine.run(batch, tasks), engine.run(batch)
    assert list(maps) == [task for task in TASKS if task in tasks]
    for name, values in maps.items():
        assert np.allclose(values, every[name], atol=EXACT)


def test_runs_side_by_side_answer_as_one_alone(engine: Engine):
    batches = [batch_of(size, count) for size in engine.sizes for count in (1, 2)]
    expected = [engine.run(batch) for batch in batches]
    with ThreadPoolExecutor(engine.lanes) as pool:
        found = list(pool.map(lambda batch: engine.run(batch, alone=False), batches * 3))
    for maps, other in zip(expected * 3, found, strict=True):
        for name, values in maps.items():
            assert np.allclose(values, other[name], atol=EXACT)


def test_an_answer_is_not_overwritten_by_the_next(engine: Engine):
    first, second = batch_of((48, 64)), np.zeros((1, 48, 64, 3), np.uint8)
    maps = engine.run(first)
    kept = {name: values.copy() for name, values in maps.items()}
    engine.run(second)
    assert all(np.array_equal(kept[name], values) for name, values in maps.items())


@pytest.mark.parametrize("batch", [np.zeros((1, 48, 64, 3)), np.zeros((1, 9, 9, 3), np.uint8)])
def test_another_array_is_refused(engine: Engine, batch: np.ndarray):
    with pytest.raises(EngineError, match=r"the model takes uint8 \(N, H, W, 3\), HxW one of 48x64, "):
        engine.run(batch)


def test_a_precision_that_the_model_lacks_is_refused(name: str, artifact: Artifact):
    with pytest.raises((ArtifactError, EngineError), match="int8"):
        load_engine(name, artifact, EngineOptions(precision="int8"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The tasks of each graph that an engine made, in turn."""
    graphs: list[tuple[str, ...]] = []
    original = Artifact.graph

    def graph(self: Artifact, variant: Variant, tasks: Sequence[str] | None = None) -> Graph:
        graphs.append(tuple(tasks or variant.tasks))
        return original(self, variant, tasks)

    monkeypatch.setattr(Artifact, "graph", graph)
    return graphs


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_where_memory_is_preferred_five_graphs_are_kept_and_others_made_again(
    name: str, artifact: Artifact, made: list[tuple[str, ...]]
):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'ptsa-serve[cpu,openvino]'")
    engine = load_engine(name, artifact, EngineOptions(threads=2, prefer="memory"))
    photos, most = [(batch_of(size), tasks) for tasks in (None, ["depth"]) for size in engine.sizes], 5
    first = [engine.run(*photo)["depth"] for photo in photos[:most]]
    for photo in photos[:most]:
        engine.run(*photo, alone=False)
    assert len(made) == most, "one for each, and none beside it for runs that are not alone"
    engine.run(*photos[most])
    engine.run(*photos[1])
    assert len(made) == most + 1, "the oldest has gone"
    assert np.array_equal(engine.run(*photos[0])["depth"], first[0])
    assert len(made) == most + 2
    engine.close()


@pytest.mark.parametrize(("name", "graphs"), [("onnxruntime", 5 + 5), ("openvino", 5 + 2)])
def test_where_speed_is_preferred_the_graphs_of_five_sizes_are_kept_for_photos_alone_and_side_by_side(
    name: str, graphs: int, artifact: Artifact, made: list[tuple[str, ...]], until
):
    """One engine has graphs for photos side by side at the first size alone; two of the five are of that."""
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'ptsa-serve[cpu,openvino]'")
    engine = load_engine(name, artifact, EngineOptions(threads=2))
    photos = [(batch_of(size), tasks) for tasks in (None, ["depth"]) for size in engine.sizes][:5]
    for alone in (True, False):
        for photo in photos:
            engine.run(*photo, alone=alone)
    until(lambda: len(made) == graphs)
    for alone in (True, False):
        for photo in photos:
            engine.run(*photo, alone=alone)
    engine.close()
    assert len(made) == graphs


@pytest.mark.parametrize("missing", ["onnxruntime", "openvino"])
def test_a_missing_runtime_says_how_to_get_it(missing: str, artifact: Artifact, monkeypatch: pytest.MonkeyPatch):
    original = builtins.__import__
    module = ENGINES[missing].module.rpartition(".")[2]

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == module:
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EngineError, match=r"pip install 'ptsa-serve\["):
        load_engine(missing, artifact)


class TestOpenVino:
    """What its own file promises."""

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("openvino", reason="openvino is not installed: pip install 'ptsa-serve[openvino]'")

    def test_a_precision_that_the_cpu_lacks_is_neither_offered_nor_taken(
        self, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("ptsa_serve.engines.openvino._capabilities", lambda core: ["FP32", "INT8"])
        assert [offer.precision for offer in ENGINES["openvino"].offers(artifact)] == ["fp32"]
        with pytest.raises(EngineError, match=r"does not compute bf16; OpenVINO runs fp32, int8 on it"):
            load_engine("openvino", artifact, EngineOptions(precision="bf16"))

    def test_weights_are_one_copy_for_all_graphs(self, artifact: Artifact):
        """Changed in the one place before a graph is compiled, they change what it answers."""
        engine = OpenVinoEngine(artifact, EngineOptions(threads=1))
        batch = batch_of((48, 64))
        before = engine.run(batch)["depth"]
        engine._weights["head.depth"] += 1
        assert not np.allclose(engine.run(batch, ["depth"])["depth"], before)

    @pytest.mark.parametrize("prefer", get_args(Prefer))
    def test_memory_is_given_back_while_others_run(self, artifact: Artifact, prefer: Prefer):
        """Switching between sizes from many threads never frees the memory of a graph that runs."""
        engine = load_engine("openvino", artifact, EngineOptions(threads=2, prefer=prefer))
        batches = [batch_of(size) for size in engine.sizes]
        expected = [engine.run(batch)["depth"] for batch in batches]
        start = threading.Barrier(4)

        def many(offset: int) -> bool:
            start.wait()
            places = [(offset + step) % len(batches) for step in range(12)]
            return all(np.allclose(engine.run(batches[i], alone=False)["depth"], expected[i]) for i in places)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(many, range(4)))


_CLOSE_ON_ANOTHER_THREAD = """
import faulthandler, gc, os, signal, sys, threading
from pathlib import Path
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import load_engine
faulthandler.enable()  # gives signals a stack of their own, as pytest does
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
engines = [load_engine(sys.argv[1], Artifact.open(Path(sys.argv[2])))]
def drop():
    engines.pop().close()
    gc.collect()
thread = threading.Thread(target=drop)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_are_handled_after_an_engine_was_dropped_on_another_thread(name: str, artifact: Artifact):
    command = [sys.executable, "-c", _CLOSE_ON_ANOTHER_THREAD, name, str(artifact.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
