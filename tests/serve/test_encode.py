"""A prediction as PNG, ZIP, NPZ and JSON: what other programs read is what the contract says."""

import base64
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ptsa_serve.encoding.colors import colorize
from ptsa_serve.encoding.encode import map_png, maps_png, meta, render_png, to_json, to_npz, to_zip
from ptsa_serve.prediction import Maps, PhotoInfo, Prediction
from ptsa_serve.resize import stretch
from ptsa_serve.tasks import TASKS, Task

H, W = 30, 40


def read(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.fixture
def prediction() -> Prediction:
    random = np.random.default_rng(3)
    normals = random.standard_normal((H, W, 3)).astype(np.float32)
    maps: Maps = {
        "segmentation": random.integers(0, 3, (H, W), dtype=np.uint8),
        "depth": random.uniform(0.5, 9, (H, W)).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
        "saliency": random.uniform(0, 1, (H, W)).astype(np.float32),
    }
    return Prediction(
        maps, dict(TASKS), PhotoInfo(W, H, 6), (H, W), ("ptsa-tiny", "1"), {"model": 1.23456}, ("Rooms only.",)
    )


def test_depth_png_is_millimetres_with_zero_for_no_value():
    depth = np.array([[np.nan, np.inf, -1, 0, 0.0004, 1.2345, 65.535, 70]], np.float32)
    found = read(map_png(TASKS["depth"], depth)).tolist()[0]
    assert found[:5] == [0, 0, 0, 0, 0]
    assert found[5] in (1234, 1235)
    assert found[6:] == [65535, 65535]


def test_wall_seen_face_on_is_128_128_255():
    normals = np.zeros((4, 4, 3), np.float32)
    normals[..., 2] = 1
    assert read(map_png(TASKS["normals"], normals))[0, 0].tolist() == [128, 128, 255]


def test_boundaries_are_grey_as_probabilities_are() -> None:
    edges, chance = Task("edges", "boundary", channels=1), np.array([[0, 0.25, 0.5, 1]], np.float32)
    assert read(map_png(edges, chance)).tolist() == [[0, 64, 128, 255]]
    assert colorize(edges, chance)[0].tolist() == [[grey] * 3 for grey in (0, 64, 128, 255)]
    assert stretch(np.array([[0, 1]], np.float32), (1, 4), "boundary").tolist() == [[0, 0.25, 0.75, 1]]


def test_png_values_follow_the_contract(prediction: Prediction):
    images = {name: read(data) for name, data in maps_png(prediction).items()}
    maps = prediction.maps
    assert np.array_equal(images["segmentation"], maps["segmentation"])
    assert images["depth"].dtype == np.uint16
    assert np.abs(images["depth"] / 1000 - maps["depth"]).max() <= 0.00051
    assert np.abs(images["normals"] - (maps["normals"] + 1) / 2 * 255).max() <= 0.501
    assert np.abs(images["saliency"] - maps["saliency"] * 255).max() <= 0.501


def test_zip_holds_every_map_and_meta_stored(prediction: Prediction):
    with zipfile.ZipFile(io.BytesIO(to_zip(prediction))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [*(f"{name}.png" for name in TASKS), "meta.json"]
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert json.loads(archive.read("meta.json")) == meta(prediction)
        assert archive.read("depth.png") == map_png(TASKS["depth"], prediction.maps["depth"])


@pytest.mark.parametrize("compress", [False, True])
def test_numpy_reads_the_npz_exactly(prediction: Prediction, compress: bool):
    data = to_npz(prediction, compress=compress)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        assert list(arrays) == list(prediction.maps)
        for name, values in prediction.maps.items():
            assert arrays[name].dtype == values.dtype
            assert np.array_equal(arrays[name], values)


def test_float16_halves_the_float_arrays_alone(prediction: Prediction):
    with np.load(io.BytesIO(to_npz(prediction, dtype="float16"))) as arrays:
        assert arrays["segmentation"].dtype == np.uint8
        assert {arrays[name].dtype for name in ("depth", "normals", "saliency")} == {np.dtype(np.float16)}
        assert np.allclose(arrays["depth"], prediction.maps["depth"], atol=0.004)


def test_json_holds_meta_and_the_same_pngs(prediction: Prediction):
    document = json.loads(to_json(prediction))
    maps = document.pop("maps")
    assert document == meta(prediction)
    assert {name: base64.b64decode(item["png"]) for name, item in maps.items()} == maps_png(prediction)


def test_equal_predictions_give_equal_bytes_on_any_thread(prediction: Prediction):
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(to_zip, [prediction] * 8)) == {to_zip(prediction)}


def test_meta_counts_classes_and_depths(prediction: Prediction):
    found = meta(prediction)
    classes = found["tasks"]["segmentation"]["classes"]
    assert sum(item["share"] for item in classes) == pytest.approx(1, abs=1e-5)
    assert [item["name"] for item in classes] == [TASKS["segmentation"].classes[item["index"]] for item in classes]
    depth, values = found["tasks"]["depth"], prediction.maps["depth"]
    assert depth["unit"] == "m"
    for key, value in (("minimum", values.min()), ("median", np.median(values)), ("maximum", values.max())):
        assert depth[key] == pytest.approx(float(value), abs=0.02 if key == "median" else 0.001)
    assert found["photo"] == {"width": W, "height": H, "orientation": 6}
    assert found["timings_ms"] == {"model": 1.23}
    assert found["notes"] == ["Rooms only."]


def test_depth_without_any_value_has_no_figures(prediction: Prediction):
    prediction.maps["depth"][:] = 0
    assert meta(prediction)["tasks"]["depth"]["median"] is None


@pytest.mark.parametrize("name", TASKS)
def test_colours_and_overlays_are_rgb_of_the_same_size(prediction: Prediction, name: str):
    photo = np.random.default_rng(1).integers(0, 256, (H, W, 3), dtype=np.uint8)
    color = read(render_png(prediction, name, "color"))
    assert color.shape == (H, W, 3)
    assert np.array_equal(read(render_png(prediction, name, "overlay", image=photo, opacity=0)), photo)
    assert np.array_equal(read(render_png(prediction, name, "overlay", image=photo, opacity=1)), color)


def test_near_is_bright(prediction: Prediction):
    color = read(render_png(prediction, "depth", "color")).sum(-1)
    depth = prediction.maps["depth"]
    assert color[depth < 1].mean() > color[depth > 8].mean() + 200


def test_classes_have_their_own_colours(prediction: Prediction):
    color = read(render_png(prediction, "segmentation", "color"))
    assert np.array_equal(color, np.array(TASKS["segmentation"].colors)[prediction.maps["segmentation"]])


def test_overlay_without_the_photo_says_how(prediction: Prediction):
    with pytest.raises(ValueError, match="keep_image=True"):
        render_png(prediction, "depth", "overlay")
