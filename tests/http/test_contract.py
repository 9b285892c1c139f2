"""The HTTP contract over a real connection: answers, headers, problems."""

import base64
import io
import json
import re
import zipfile

import httpx
import numpy as np
import pytest
from PIL import Image

from ptsa_serve.errors import REQUEST_ERRORS
from ptsa_serve.predictor import Predictor

TASKS = ("segmentation", "depth", "normals", "saliency")


def check_problem(answer: httpx.Response, status: int, code: str) -> dict:
    """The answer is the problem `code`, whole, and says nothing that it should not."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    problem = answer.json()
    assert problem["code"] == code
    assert problem["type"] == f"/problems/{code}"
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    assert problem["title"]
    assert problem["detail"]
    assert "Traceback" not in answer.text
    assert not re.search(r"\.py\b|/site-packages|PIL", answer.text)
    return problem


@pytest.fixture(scope="module")
def expected(server, photo_jpeg: bytes):
    """The maps by the library, without HTTP."""
    predictor: Predictor = server.runtime.predictor
    return predictor.predict(photo_jpeg)


def test_zip_holds_a_png_for_each_task_and_meta(server, photo_jpeg: bytes, expected) -> None:
    answer = server.photo(photo_jpeg)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as file:
        assert file.namelist() == [*(f"{task}.png" for task in TASKS), "meta.json"]
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}
        meta = json.loads(file.read("meta.json"))
        classes = np.asarray(Image.open(io.BytesIO(file.read("segmentation.png"))))
        depth = np.asarray(Image.open(io.BytesIO(file.read("depth.png"))))
    np.testing.assert_array_equal(classes, expected.maps["segmentation"])
    np.testing.assert_allclose(depth / 1000, expected.maps["depth"], atol=0.00051)
    assert meta["photo"] == {"width": 320, "height": 240, "orientation": 1}
    assert meta["model"] == {"name": "ptsa-tiny", "version": "1"}
    assert {"decode", "queue", "model"} <= meta["timings_ms"].keys()


def test_npz_equals_the_library(server, photo_jpeg: bytes, expected) -> None:
    answer = server.photo(photo_jpeg, "/v1/predict?format=npz")
    assert answer.headers["Content-Type"] == "application/x-npz"
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as arrays:
        assert tuple(arrays.files) == TASKS
        for name in TASKS:
            np.testing.assert_array_equal(arrays[name], expected.maps[name])
            assert arrays[name].dtype == expected.maps[name].dtype


def test_npz_can_be_halved_and_packed(server, photo_jpeg: bytes) -> None:
    def size(query: str) -> int:
        answer = server.photo(photo_jpeg, f"/v1/predict?format=npz{query}")
        with np.load(io.BytesIO(answer.content)) as arrays:
            assert arrays["depth"].shape == (240, 320)
        return len(answer.content)

    whole = size("")
    assert size("&dtype=float16") < 0.6 * whole
    assert size("&compress=1") < whole


def test_json_holds_meta_and_png_in_base64(server, photo_jpeg: bytes) -> None:
    answer = server.photo(photo_jpeg, "/v1/predict?tasks=depth", Accept="application/json")
    assert answer.headers["Content-Type"] == "application/json"
    content = answer.json()
    assert list(content["maps"]) == list(content["tasks"]) == ["depth"]
    with Image.open(io.BytesIO(base64.b64decode(content["maps"]["depth"]["png"]))) as image:
        assert image.size == (320, 240)


def test_model_size_is_the_models_own_grid(server, photo_jpeg: bytes) -> None:
    answer = server.photo(photo_jpeg, "/v1/predict?format=npz&size=model")
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert arrays["normals"].shape == (48, 64, 3)
    assert answer.headers["X-Photo"] == "width=320, height=240, orientation=1"


@pytest.mark.parametrize(
    "query", ["", "?render=color", "?render=overlay", "?render=overlay&opacity=0.1", "?size=model"]
)
@pytest.mark.parametrize("task", TASKS)
def test_one_task_is_one_png(server, photo_jpeg: bytes, task: str, query: str) -> None:
    answer = server.photo(photo_jpeg, f"/v1/predict/{task}{query}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png"), answer.text
    with Image.open(io.BytesIO(answer.content)) as image:
        image.load()
        assert image.size == ((64, 48) if "model" in query else (320, 240))
        if "render" in query:
            assert image.mode == "RGB"


def test_overlay_without_opacity_is_the_photo(server, photo_jpeg: bytes) -> None:
    answer = server.photo(photo_jpeg, "/v1/predict/depth?render=overlay&opacity=0")
    photo = np.asarray(Image.open(io.BytesIO(photo_jpeg)).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), photo)


def test_every_answer_has_the_headers_of_the_contract(server, photo_jpeg: bytes) -> None:
    answer = server.photo(photo_jpeg, X_Request_Id="my.id-1")
    assert answer.headers["X-Request-Id"] == "my.id-1"
    assert answer.headers["X-Model"] == "ptsa-tiny@1"
    assert answer.headers["Vary"] == "Accept"
    assert answer.headers["Cache-Control"] == "no-store"
    steps = re.findall(r"(\w+);dur=[\d.]+", answer.headers["Server-Timing"])
    assert steps == ["decode", "queue", "model", "encode"]


@pytest.mark.parametrize("sent", ["x" * 65, "a b", "", "é".encode().decode("latin-1")])
def test_insane_request_id_is_replaced(server, sent: str) -> None:
    answer = server.get("/v1/models", headers=[(b"X-Request-Id", sent.encode("latin-1"))])
    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["X-Request-Id"])


def test_same_photo_gives_the_same_bytes(server, photo_jpeg: bytes) -> None:
    first, second = (server.photo(photo_jpeg, "/v1/predict?format=npz").content for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "image/jpg", "image/png", "application/octet-stream", "image/x-unknown"]
)
def test_bytes_decide_whatever_type_is_named(server, photo_jpeg: bytes, black_png: bytes, kind: str) -> None:
    for photo in (photo_jpeg, black_png):
        assert server.photo(photo, "/v1/predict/depth", Content_Type=kind).status_code == 200
        assert server.post("/v1/predict/depth", files={"image": ("x", photo, kind)}).status_code == 200


def test_orientation_is_applied_before_anything_else(server) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100), "red").save(file, "JPEG", exif=exif)
    answer = server.photo(file.getvalue(), "/v1/predict?format=npz&tasks=depth")
    assert answer.headers["X-Photo"] == "width=100, height=200, orientation=6"
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert arrays["depth"].shape == (200, 100)


def test_bad_photos_are_400_never_500(server, photo_jpeg: bytes) -> None:
    for bad in (b"garbage", photo_jpeg[: len(photo_jpeg) // 2], b"\x89PNG\r\n\x1a\n" + b"\0" * 50):
        check_problem(server.photo(bad), 400, "bad-image")
        check_problem(server.post(files={"image": ("a.jpg", bad, "image/jpeg")}), 400, "bad-image")


def test_wrong_multipart_is_400(server, photo_jpeg: bytes) -> None:
    check_problem(server.post(files={"foo": photo_jpeg}), 400, "missing-image")
    check_problem(server.post(files=[("image", photo_jpeg), ("image", photo_jpeg)]), 400, "missing-image")
    check_problem(server.photo(b""), 400, "missing-image")
    headers = {"Content-Type": "multipart/form-data"}
    check_problem(server.post(content=b"x", headers=headers), 400, "bad-multipart")


def test_address_in_place_of_a_photo_is_never_fetched(server) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.3)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/x.jpg"
        for sent in ({"data": {"image": address}}, {"files": {"image": (None, address)}}):
            answer = server.post(**sent)
            assert 400 <= answer.status_code < 500
        check_problem(server.photo(address.encode()), 400, "bad-image")
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/predict/dept", 404, "unknown-task"),
        ("/v1/predict?tasks=dept", 422, "bad-parameter"),
        ("/v1/predict?x=1", 422, "bad-parameter"),
        ("/v1/predict/depth?opacity=1", 422, "bad-parameter"),
        ("/v1/predict/depth/more", 404, "not-found"),
        ("/nothing/here", 404, "not-found"),
    ],
)
def test_wrong_address_is_named(server, photo_jpeg: bytes, path: str, status: int, code: str) -> None:
    check_problem(server.photo(photo_jpeg, path), status, code)


def test_unknown_names_come_with_those_that_exist(server, photo_jpeg: bytes) -> None:
    task = check_problem(server.photo(photo_jpeg, "/v1/predict/dept"), 404, "unknown-task")
    assert task["allowed"] == list(TASKS)
    model = check_problem(server.get("/v1/models/other"), 404, "unknown-model")
    assert model["allowed"] == ["ptsa-tiny"]


def test_wrong_method_says_which_are_right(server) -> None:
    answer = server.get("/v1/predict")
    check_problem(answer, 405, "method-not-allowed")
    assert answer.headers["Allow"] == "POST"


def test_unacceptable_and_unsupported_types(server, photo_jpeg: bytes) -> None:
    problem = check_problem(server.photo(photo_jpeg, Accept="text/html"), 406, "not-acceptable")
    assert "application/x-npz" in problem["allowed"]
    check_problem(server.photo(photo_jpeg, Content_Type="text/plain"), 415, "unsupported-media-type")
    check_problem(server.photo(b"%PDF-1.7 ..."), 415, "unsupported-media-type")


def test_small_and_long_sides_are_422(server) -> None:
    for size in ((8, 100), (100, 8)):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "PNG")
        check_problem(server.photo(file.getvalue()), 422, "bad-parameter")


@pytest.mark.parametrize("code", sorted(REQUEST_ERRORS))
def test_every_problem_has_a_page(server, code: str) -> None:
    answer = server.get(f"/problems/{code}")
    assert answer.status_code == 200
    assert code in answer.text
    assert REQUEST_ERRORS[code].title in answer.text.replace("&#x27;", "'")


def test_every_code_of_the_contract_exists() -> None:
    from ptsa_serve.http import problems

    assert problems._EXPLANATIONS.keys() == REQUEST_ERRORS.keys()


def test_models_tell_what_a_client_must_know(server) -> None:
    listed = server.get("/v1/models").json()["models"]
    model = server.get("/v1/models/ptsa-tiny").json()
    assert listed == [model]
    assert [task["name"] for task in model["tasks"]] == list(TASKS)
    assert len(model["tasks"][0]["classes"]) == len(model["tasks"][0]["colors"]) == 39
    assert model["limits"]["max_bytes"] == 20 * 1024 * 1024
    assert {"tree", "counts", "engine", "parity"} <= model.keys()
    assert model["notes"] == ["Rooms only."]
