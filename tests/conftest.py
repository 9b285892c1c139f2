"""Fixtures of every test area: a real, tiny model folder and a synthetic photo."""

import io
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import hypothesis
import numpy as np
import pytest
from PIL import Image, ImageDraw

from ptsa_serve.artifact import ArtifactFile, external_data, external_layout, write_artifact
from ptsa_serve.manifest import Backbone, Counts, InputSpec, Manifest, TaskRecord, Tree
from ptsa_serve.tasks import TASKS

# Before anything imports torch. Tiny networks on many threads wait more than they compute: on a busy machine the tests
# of training and export took ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, so that what passes here passes elsewhere; HYPOTHESIS_PROFILE=default draws others.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

TINY_SIZES = ((48, 64), (64, 48), (56, 56))
_WIDTH, _INNER, _RANK = 8, 16, 2
# Constants that stay inside the graphs.
_SMALL = {
    "by255": np.array(1 / 255, np.float32),
    "double": np.array([1, 1, 2, 2], np.float32),
    "axis1": np.array([1], np.int64),
}


def pytest_configure(config: pytest.Config) -> None:
    # Pillow warns of odd metadata in files that it reads well; what it warns of is no fault of the code under
    # test.
    config.addinivalue_line("filterwarnings", "ignore::UserWarning:PIL")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2`, what stays together in one process: files, whose fixtures are theirs, and folders in which many
    files share one that is dear, graphs that are exported or a server.

    Not by the mark `xdist_group`: pytest-xdist 3.8 writes it where pytest 9.2 does not look any more.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = PurePosixPath(nodeid.partition("::")[0])
            return str(path.parent if path.parent.name in ("export", "http") else path)

    return Scheduler(config, log)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No choice of an engine that was made before; nor is one left behind."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def photo_jpeg() -> bytes:
    """A room of sorts, 320 x 240: gradient, floor, boxes, a lamp and a little noise."""
    return make_photo(320, 240)


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder with all four tasks at `TINY_SIZES`; tests that damage it copy it first."""
    out = tmp_path_factory.mktemp("artifact") / "tiny"
    make_tiny_artifact(out)
    return out


def make_photo(width: int, height: int, *, seed: int = 0, **save: object) -> bytes:
    """A JPEG with edges, flat parts, gradients and texture; the same bytes for the same arguments."""
    noise = np.random.default_rng(seed).normal(0, 4, (height, width, 3))
    ramp = np.linspace(90, 220, height)[:, None, None] * np.array([1.0, 0.92, 0.8])
    image = Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.polygon(
        [(0, height), (width, height), (width * 3 // 4, height * 2 // 3), (width // 4, height * 2 // 3)], "#8a5a33"
    )
    draw.rectangle([width // 8, height // 3, width * 3 // 8, height * 5 // 6], "#1f4e8c", "black", 2)
    draw.rectangle([width // 2, height // 2, width * 7 // 8, height * 3 // 4], "#b03030")
    draw.ellipse([width * 5 // 8, height // 8, width * 6 // 8, height // 3], "#fff3b0")
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **save})
    return file.getvalue()


def make_tiny_artifact(out: Path, **changes: object) -> None:
    """Write the tiny model to `out`; `changes` are fields of its manifest."""
    weights, arrays = _weights()
    graphs = {size: _graph(size, arrays) for size in TINY_SIZES}
    photo = make_photo(96, 72)
    with Image.open(io.BytesIO(photo)) as image:
        pixels = np.asarray(image.resize(TINY_SIZES[0][::-1], Image.Resampling.BILINEAR))
    maps = io.BytesIO()
    np.savez(maps, **_run(graphs[TINY_SIZES[0]], arrays, pixels))
    names = tuple(TASKS)
    manifest = Manifest(
        **{
            "name": "ptsa-tiny",
            "version": "1",
            "input": InputSpec(sizes=TINY_SIZES),
            "tasks": tuple(TaskRecord.of(task) for task in TASKS.values()),
            "tree": Tree(tasks=names, stages=((names,), (names[:2], names[2:]))),
            "backbone": Backbone(name="tiny", sha256="0" * 64),
            "counts": Counts(frozen=344, trainable=48, deployed=392, multiply_adds={"48x64": 1_000_000}),
            "notes": ("Rooms only.",),
            "provenance": {"code": "tests", "data": "none", "licence": "as the project"},
            **changes,
        }
    )
    files = []
    for (height, width), graph in graphs.items():
        facts = {"height": height, "width": width, "precision": "fp32", "branches": "folded", "tasks": names}
        files.append(ArtifactFile(f"model-{height}x{width}.onnx", "graph", graph, facts))
    files += [
        ArtifactFile("weights.safetensors", "weights", weights),
        ArtifactFile("sample.jpg", "sample-photo", photo),
        ArtifactFile("sample.npz", "sample-maps", maps.getvalue()),
    ]
    write_artifact(out, manifest, files)


def _weights() -> tuple[bytes, dict[str, np.ndarray]]:
    """The compact file, and the arrays that it stands for: a convolution, a folded branch and the heads."""
    from safetensors.numpy import save

    random = np.random.default_rng(7)

    def tensor(*shape: int, gain: float = 1.0) -> np.ndarray:
        return (random.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))).astype(np.float16)

    kept = {
        "stem": tensor(_WIDTH, 3, 3, 3, gain=2.0),
        "trunk": tensor(_INNER, _WIDTH),
        "trunk.up": tensor(_INNER, _RANK),
        "trunk.down": tensor(_RANK, _WIDTH),
        **{f"head.{task.name}": tensor(task.channels, _INNER, gain=3.0) for task in TASKS.values()},
    }
    recipes: dict[str, dict[str, object]] = {
        "stem": {"base": "stem"},
        "trunk": {"base": "trunk", "up": "trunk.up", "down": "trunk.down", "scale": 0.5, "transpose": True},
        **{f"head.{name}": {"base": f"head.{name}", "transpose": True} for name in TASKS},
    }
    wide = {name: array.astype(np.float32) for name, array in kept.items()}
    arrays = {"stem": wide["stem"], "trunk": (wide["trunk"] + 0.5 * wide["trunk.up"] @ wide["trunk.down"]).T}
    arrays |= {f"head.{name}": wide[f"head.{name}"].T for name in TASKS}
    return save(kept, metadata={"initializers": json.dumps(recipes)}), arrays


def _graph(size: tuple[int, int], arrays: dict[str, np.ndarray]) -> bytes:
    """uint8 NHWC in, four maps out."""
    from onnx import TensorProto, helper, numpy_helper

    height, width = size
    layout = external_layout({name: array.nbytes for name, array in arrays.items()})
    initializers = [numpy_helper.from_array(array, name) for name, array in _SMALL.items()]
    initializers += [_external(name, array.shape, layout[name]) for name, array in arrays.items()]
    outputs = [
        helper.make_tensor_value_info("segmentation", TensorProto.UINT8, ["N", height, width]),
        helper.make_tensor_value_info("depth", TensorProto.FLOAT, ["N", height, width]),
        helper.make_tensor_value_info("normals", TensorProto.FLOAT, ["N", height, width, 3]),
        helper.make_tensor_value_info("saliency", TensorProto.FLOAT, ["N", height, width]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", height, width, 3])
    graph = helper.make_graph(_nodes(), "tiny", [image], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def _nodes() -> list:
    """A strided convolution, one shared layer, a head a task, scaled up and finished as its kind asks."""
    from onnx import TensorProto, helper

    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        node("Mul", ["planes", "by255"], ["scaled"]),
        node("Conv", ["scaled", "stem"], ["edges"], strides=[2, 2], pads=[1, 1, 0, 0]),
        node("Relu", ["edges"], ["positive"]),
        node("Transpose", ["positive"], ["cells"], perm=[0, 2, 3, 1]),
        node("MatMul", ["cells", "trunk"], ["inner"]),
        node("Relu", ["inner"], ["features"]),
    ]
    for name in TASKS:
        nodes += [
            node("MatMul", ["features", f"head.{name}"], [f"{name}.raw"]),
            node("Transpose", [f"{name}.raw"], [f"{name}.low"], perm=[0, 3, 1, 2]),
            node("Resize", [f"{name}.low", "", "double"], [f"{name}.high"], mode="linear"),
        ]
    return [
        *nodes,
        node("ArgMax", ["segmentation.high"], ["segmentation.index"], axis=1, keepdims=0),
        node("Cast", ["segmentation.index"], ["segmentation"], to=TensorProto.UINT8),
        node("Squeeze", ["depth.high", "axis1"], ["depth.log"]),
        node("Exp", ["depth.log"], ["depth"]),
        node("LpNormalization", ["normals.high"], ["normals.unit"], axis=1),
        node("Transpose", ["normals.unit"], ["normals"], perm=[0, 2, 3, 1]),
        node("Squeeze", ["saliency.high", "axis1"], ["saliency.flat"]),
        node("Sigmoid", ["saliency.flat"], ["saliency"]),
    ]


def _external(name: str, shape: tuple[int, ...], place: tuple[int, int]):
    from onnx import TensorProto

    tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", external_data("weights.safetensors")),
        ("offset", str(place[0])),
        ("length", str(place[1])),
    ):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _run(graph: bytes, arrays: dict[str, np.ndarray], pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The maps of one photo straight from the runtime, by nothing of the package under test."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    kept = [np.ascontiguousarray(array) for array in arrays.values()]
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in kept]
    options.add_external_initializers(list(arrays), values)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    maps = session.run(list(TASKS), {"image": pixels[None]})
    return {name: values[0] for name, values in zip(TASKS, maps, strict=True)}
