"""The Open Inference Protocol: metadata, JSON and binary tensors, and what is refused."""

import concurrent.futures
import json

import numpy as np
import pytest

MODEL = "/v2/models/ptsa-tiny"
TASKS = ["segmentation", "depth", "normals", "saliency"]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (2, 48, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(server, images: np.ndarray) -> dict[str, np.ndarray]:
    maps = [server.runtime.predictor.engine.run(image[None]) for image in images]
    return {name: np.concatenate([each[name] for each in maps]) for name in TASKS}


def tensor(images: np.ndarray, **more: object) -> dict:
    return {"name": "image", "shape": list(images.shape), "datatype": "UINT8", **more}


def test_health_and_metadata(server) -> None:
    assert server.get("/v2/health/live").json() == {"live": True}
    assert server.get("/v2/health/ready").json() == {"ready": True}
    assert server.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    for path in (MODEL, f"{MODEL}/versions/1"):
        model = server.get(path).json()
        assert server.get(f"{path}/ready").json() == {"name": "ptsa-tiny", "ready": True}
        assert model["versions"] == ["1"]
        assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
        assert [output["name"] for output in model["outputs"]] == TASKS
        assert model["parameters"]["sizes"] == [[48, 64], [64, 48], [56, 56]]


@pytest.mark.parametrize("nested", [True, False])
def test_json_tensors_are_the_engines(server, images: np.ndarray, expected, nested: bool) -> None:
    data = images.tolist() if nested else images.ravel().tolist()
    answer = server.post(f"{MODEL}/infer", json={"id": "seven", "inputs": [tensor(images, data=data)]})
    content = answer.json()
    assert (content["model_name"], content["model_version"], content["id"]) == ("ptsa-tiny", "1", "seven")
    assert [output["name"] for output in content["outputs"]] == TASKS
    for output in content["outputs"]:
        wanted = expected[output["name"]]
        assert output["datatype"] == {"uint8": "UINT8", "float32": "FP32"}[str(wanted.dtype)]
        found = np.array(output["data"], wanted.dtype).reshape(output["shape"])
        np.testing.assert_array_equal(found, wanted)


def binary(images: np.ndarray, **request: object) -> tuple[bytes, dict[str, str]]:
    described = tensor(images, parameters={"binary_data_size": images.nbytes})
    head = json.dumps({"inputs": [described], **request}).encode()
    return head + images.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def test_binary_tensors_in_and_out(server, images: np.ndarray, expected) -> None:
    wanted = [{"name": "normals"}, {"name": "segmentation", "parameters": {"binary_data": False}}, {"name": "depth"}]
    body, headers = binary(images, outputs=wanted, parameters={"binary_data_output": True})
    answer = server.post(f"{MODEL}/versions/1/infer", content=body, headers=headers)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    end = int(answer.headers["Inference-Header-Content-Length"])
    outputs = json.loads(answer.content[:end])["outputs"]
    assert [output["name"] for output in outputs] == ["normals", "segmentation", "depth"]
    for output in outputs:
        shape, name = output["shape"], output["name"]
        if "data" in output:
            found = np.array(output["data"], np.uint8).reshape(shape)
        else:
            size = output["parameters"]["binary_data_size"]
            found = np.frombuffer(answer.content[end : end + size], np.float32).reshape(shape)
            end += size
        np.testing.assert_array_equal(found, expected[name])
    assert end == len(answer.content)


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"name": "picture"}, "inputs"),
        ({"datatype": "FP32"}, "inputs"),
        ({"shape": [1, 50, 64, 3]}, "inputs"),
        ({"shape": [48, 64, 3]}, "inputs"),
        ({"shape": "large"}, "inputs"),
        ({"shape": [3, 48, 64, 3]}, "inputs"),
        ({"data": [256] * (2 * 48 * 64 * 3)}, "inputs"),
        ({"data": [0.5] * (2 * 48 * 64 * 3)}, "inputs"),
        ({"data": [[1], [2, 3]]}, "inputs"),
        ({"data": None}, "inputs"),
        ({"parameters": {"binary_data_size": 5}}, "inputs"),
        ({"parameters": 5}, "parameters"),
        ({"shape": [10**30, 48, 64, 3]}, "inputs"),
    ],
)
def test_wrong_tensors_are_refused(server, images: np.ndarray, change: dict, parameter: str) -> None:
    described = tensor(images, data=images.ravel().tolist()) | change
    answer = server.post(f"{MODEL}/infer", json={"inputs": [described]})
    assert (answer.status_code, answer.json()["code"], answer.json()["parameter"]) == (422, "bad-parameter", parameter)


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"[]", b"{}", b'{"inputs": []}', b'{"inputs": [1]}', b'{"inputs": 3}']
)
def test_what_is_not_the_protocol_is_refused(server, body: bytes) -> None:
    assert server.post(f"{MODEL}/infer", content=body).json()["code"] == "bad-parameter"


@pytest.mark.parametrize("length", ["-1", "x", "99999999"])
def test_wrong_length_of_the_json_part_is_refused(server, images: np.ndarray, length: str) -> None:
    body, _ = binary(images)
    answer = server.post(f"{MODEL}/infer", content=body, headers={"Inference-Header-Content-Length": length})
    assert answer.json()["parameter"] == "Inference-Header-Content-Length"


def test_unknown_names_are_refused(server, images: np.ndarray) -> None:
    body, headers = binary(images, outputs=[{"name": "edges"}])
    assert server.post(f"{MODEL}/infer", content=body, headers=headers).json()["allowed"] == TASKS
    assert server.get("/v2/models/other").json()["code"] == "unknown-model"
    assert server.get(f"{MODEL}/versions/2").json()["code"] == "unknown-model"
    assert server.get(f"{MODEL}/infer").status_code == 405


def test_engine_fault_of_one_image_is_one_500(serve, images: np.ndarray) -> None:
    with serve(PTSA_MAX_BATCH="4") as server:
        server.engine.fails_on_black = True
        body, headers = binary(np.concatenate([images, np.zeros_like(images)]))
        answer = server.post(f"{MODEL}/infer", content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        body, headers = binary(images)
        assert server.post(f"{MODEL}/infer", content=body, headers=headers).status_code == 200


def test_batch_beyond_the_queue_is_refused(serve, images: np.ndarray) -> None:
    with serve(PTSA_QUEUE="1") as server:
        body, headers = binary(images)
        assert server.post(f"{MODEL}/infer", content=body, headers=headers).json()["code"] == "too-large"


def test_photos_and_tensors_share_the_queue(serve, images: np.ndarray, photo_jpeg: bytes) -> None:
    with serve() as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        server.engine.delay = 0.02
        body, headers = binary(images)
        tensors = [pool.submit(server.post, f"{MODEL}/infer", content=body, headers=headers) for _ in range(4)]
        photos = [pool.submit(server.photo, photo_jpeg) for _ in range(4)]
        assert {each.result().status_code for each in tensors + photos} == {200}
        assert sum(server.engine.batches) == 12
