"""The pipeline from bytes to maps, and the engine under it, on a real model."""

import builtins
import io
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.engines.base import Prefer
from ptsa_serve.engines.onnxruntime import OnnxRuntimeEngine
from ptsa_serve.errors import BadImage, DeadlineExceeded, EngineError, UnknownTask
from ptsa_serve.graphs import Graph
from ptsa_serve.images import ImageLimits
from ptsa_serve.predictor import Predictor
from ptsa_serve.tasks import KINDS, TASKS


@pytest.fixture(scope="module")
def predictor(tiny_artifact: Path) -> Predictor:
    artifact = Artifact.open(tiny_artifact)
    return Predictor(artifact, load_engine("onnxruntime", artifact, EngineOptions(threads=1)), ImageLimits())


def photo_of(width: int, height: int) -> bytes:
    random = np.random.default_rng(width)
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(("width", "height"), [(320, 240), (30, 41), (64, 48), (500, 20), (17, 17)])
@pytest.mark.parametrize("size", ["photo", "model"])
def test_maps_have_the_kind_and_grid_of_the_contract(predictor: Predictor, width: int, height: int, size: str):
    prediction = predictor.predict(photo_of(width, height), size=size)
    assert list(prediction.maps) == list(TASKS)
    assert prediction.size == ((height, width) if size == "photo" else predictor.prepare(photo_of(width, height)).size)
    for name, values in prediction.maps.items():
        dtype, axes = KINDS[TASKS[name].kind]
        assert values.dtype == dtype
        assert values.shape == (*prediction.size, *axes)
    assert np.abs(np.linalg.norm(prediction.maps["normals"], axis=-1) - 1).max() < 1e-5
    assert prediction.maps["segmentation"].max() < 39
    assert prediction.maps["depth"].min() > 0
    assert 0 <= prediction.maps["saliency"].min() <= prediction.maps["saliency"].max() <= 1


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(640, 480, (48, 64)), (480, 640, (64, 48)), (500, 500, (56, 56)), (900, 100, (48, 64))],
)
def test_size_nearest_the_aspect_ratio_is_chosen(predictor: Predictor, width: int, height: int, size: tuple[int, int]):
    prepared = predictor.prepare(photo_of(width, height))
    assert prepared.size == size
    assert prepared.pixels.shape == (*size, 3)
    assert prepared.image is None


def test_turned_photo_gives_the_maps_of_the_upright_one(predictor: Predictor):
    upright = Image.open(io.BytesIO(photo_of(80, 60)))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    expected, found = predictor.predict(photo_of(80, 60)), predictor.predict(file.getvalue())
    assert found.photo.orientation == 6
    for name, values in expected.maps.items():
        assert np.array_equal(found.maps[name], values)


def test_tasks_are_chosen_in_the_models_order(predictor: Predictor, photo_jpeg: bytes):
    prediction = predictor.predict(photo_jpeg, tasks=["normals", "depth"])
    assert list(prediction.maps) == list(prediction.tasks) == ["depth", "normals"]


def test_unknown_task_lists_those_that_exist(predictor: Predictor, photo_jpeg: bytes):
    with pytest.raises(UnknownTask, match=r"depht.*segmentation, depth, normals, saliency") as caught:
        predictor.predict(photo_jpeg, tasks=["depht"])
    assert caught.value.allowed == tuple(TASKS)


def test_same_photo_gives_the_same_maps_alone_in_a_batch_and_side_by_side(predictor: Predictor, photo_jpeg: bytes):
    alone = predictor.predict(photo_jpeg, size="model").maps
    other = predictor.prepare(photo_of(64, 48))
    mine = predictor.prepare(photo_jpeg)
    batched = predictor.run([other, mine, other])[1]
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(lambda _: predictor.predict(photo_jpeg, size="model").maps, range(8)))
    for maps in (batched, *beside):
        for name, values in alone.items():
            assert np.array_equal(maps[name], values)


def test_batch_of_two_sizes_is_refused(predictor: Predictor):
    with pytest.raises(EngineError, match="one size"):
        predictor.run([predictor.prepare(photo_of(64, 48)), predictor.prepare(photo_of(48, 64))])


def test_whole_photo_is_kept_on_request(predictor: Predictor, photo_jpeg: bytes):
    image = predictor.prepare(photo_jpeg, keep_image=True).image
    assert image is not None
    assert image.shape == (240, 320, 3)


def test_bad_photo_leaves_the_predictor_working(predictor: Predictor, photo_jpeg: bytes):
    before = predictor.predict(photo_jpeg).maps["depth"]
    with pytest.raises(BadImage):
        predictor.predict(photo_jpeg[:1000])
    assert np.array_equal(predictor.predict(photo_jpeg).maps["depth"], before)


def test_sample_is_reproduced(predictor: Predictor):
    assert max(predictor.verify().values()) < 1e-4


def test_engine_that_answers_otherwise_fails_the_check(predictor: Predictor):
    class Shifted:
        name, version, sizes, lanes = "shifted", "0", predictor.engine.sizes, 1
        precision, branches = predictor.engine.precision, predictor.engine.branches

        def run(self, batch: np.ndarray, tasks: object = None, *, alone: bool = True) -> dict[str, np.ndarray]:
            maps = predictor.engine.run(batch)
            return {**maps, "depth": maps["depth"] * 1.1, "normals": maps["normals"][:, ::-1]}

        def close(self) -> None: ...

    with pytest.raises(EngineError, match=r"shifted 0 does not reproduce.*depth 0\.1, normals"):
        Predictor(predictor.artifact, Shifted(), ImageLimits()).verify()


def test_info_has_what_the_contract_names(predictor: Predictor):
    info = predictor.info()
    assert info["engine"]["name"] == "onnxruntime"
    assert info["limits"]["max_pixels"] == 40_000_000
    assert {"name", "version", "tasks", "tree", "counts", "parity"} <= set(info)


@pytest.mark.parametrize(
    "batch", [np.zeros((1, 48, 64, 3)), np.zeros((1, 9, 9, 3), np.uint8), np.zeros((48, 64, 3), np.uint8)]
)
def test_engine_refuses_other_arrays_and_names_its_own(predictor: Predictor, batch: np.ndarray):
    with pytest.raises(EngineError, match=r"the model takes uint8 \(N, H, W, 3\), HxW one of 48x64, "):
        predictor.engine.run(batch)


@pytest.mark.parametrize("prefer", ["speed", "memory"])
def test_sessions_share_one_copy_of_the_weights(tiny_artifact: Path, prefer: Prefer):
    """Changed in the one place, the weights change the answers of all sizes: where speed counts, but the first, which
    has a packed copy.
    """
    engine = OnnxRuntimeEngine(Artifact.open(tiny_artifact), EngineOptions(threads=1, prefer=prefer))
    batches = [np.full((1, *size, 3), 99, np.uint8) for size in engine.sizes]
    before = [engine.run(batch)["depth"] for batch in batches]
    engine._arrays["head.depth"] += 1
    same = [np.allclose(engine.run(batch)["depth"], old) for batch, old in zip(batches, before, strict=True)]
    assert same == [prefer == "speed", *[False] * (len(same) - 1)]
    engine.close()


def test_unknown_engine_lists_the_known(tiny_artifact: Path):
    with pytest.raises(EngineError, match="'magic'; use one of: onnxruntime"):
        load_engine("magic", Artifact.open(tiny_artifact))


def test_damaged_graph_is_an_engine_error(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch):
    artifact = Artifact.open(tiny_artifact)
    monkeypatch.setattr(Artifact, "graph", lambda *_: Graph(b"\x08\x0a" + bytes(50), ("depth",), ()))
    with pytest.raises(EngineError, match=r"cannot load .*model-48x64\.onnx.*export"):
        load_engine("onnxruntime", artifact).run(np.zeros((1, 48, 64, 3), np.uint8))


def test_missing_runtime_says_how_to_get_it(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch):
    original = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EngineError, match=r"pip install 'ptsa-serve\[cpu\]'"):
        load_engine("onnxruntime", Artifact.open(tiny_artifact))


def test_two_builds_of_the_runtime_are_refused(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    with pytest.raises(EngineError, match=r"both installed.*pip uninstall"):
        load_engine("onnxruntime", Artifact.open(tiny_artifact))


def test_deadline_ends_the_preparation(predictor: Predictor, photo_jpeg: bytes):
    with pytest.raises(DeadlineExceeded):
        predictor.prepare(photo_jpeg, deadline=time.monotonic() - 1)
    assert predictor.prepare(photo_jpeg, deadline=time.monotonic() + 60).photo.width == 320
