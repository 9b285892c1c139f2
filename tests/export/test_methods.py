"""Every method of the registry, from a trained checkpoint to maps of the runtime: the compiler knows none of them."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch

from export.compile import CompileConfig, compile_artifact
from ptsa_serve.artifact import Artifact
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.predictor import Predictor
from ptsa_serve.task_tree import TaskTree
from training.backbones.swin import SWINS
from training.methods import METHODS
from training.network.checkpoint import save_checkpoint
from training.network.model import ModelConfig, PTSAModel

SIZE = (64, 96)
TREE = TaskTree.parse("depth,saliency / depth,saliency / depth,saliency / depth | saliency")
# Window attentions: stages times branches; a tooth leaves behind them. Polyhistor's first adapter is behind the first.
# LV-Adapter adds those of two tasks to their tokens.
ATTENTIONS = {
    "single_task": 8,
    "lora_per_task": 8,
    "ptsa": 5,
    "taps": 8,
    "rcm": 7,
    "mtl_lora": 8,
    "tora": 8,
    "polyhistor": 7,
    "polyhistor_lite": 7,
    "lv_adapter": 12,
}
# What follows an attention, where teeth have left. In the last stage MTLoRA's alone need the trunk there.
MLPS = {name: ATTENTIONS[name] for name in ("single_task", "lora_per_task", "ptsa", "taps", "mtl_lora", "tora")}
MLPS |= {"mtlora": 4 * 3, **dict.fromkeys(("dora", "ditask", "sinewich"), 3 * 3 + 2)}
# Options of whichever method has them: small adapters, gates that no noise shuts.
SMALL = {"rank": 2, "start": 1.0}


def compiled(method: str, decoder: str, folder: Path, photo: Path, **options: object) -> Artifact:
    torch.manual_seed(0)
    options |= {name: value for name, value in SMALL.items() if name in METHODS[method].options.__dataclass_fields__}
    model = PTSAModel(ModelConfig("swin_methods_test", TREE, method, options, decoder, width=8))
    with torch.no_grad():
        for name in model.owners():
            parameter = model.get_parameter(name)
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for buffer in model.method.buffers() if METHODS[method].experts else ():
            buffer.normal_(std=0.05)
    save_checkpoint(model, folder / "model.safetensors", info={})
    config = CompileConfig(folder / "model.safetensors", folder / "artifact", photo, [photo], sizes=(SIZE,))
    return compile_artifact(config)


# The exporter takes a second a block: by default the method whose graph has an operation of its own.
@pytest.mark.parametrize(
    "method", [name if name == "mtlora" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_it_exports_passes_the_gate_and_serves(
    method: str, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SWINS, "swin_methods_test", {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)})
    artifact = compiled(method, "hrnet" if method == "mtlora" else "pyramid", tmp_path, photo)
    found = operations(artifact, photo)
    assert found["Softmax"] == ATTENTIONS.get(method, 4)
    assert method not in MLPS or found["Gelu"] + found["Erf"] == MLPS[method]


@pytest.mark.slow
def test_weights_by_photo_stay_in_the_graph(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SWINS, "swin_methods_test", {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)})
    artifact = compiled("ct_moa", "pyramid", tmp_path, photo, gate="dynamic")
    assert operations(artifact, photo)["Softmax"] == 4 + 4 * 2


@pytest.mark.slow
def test_kernels_of_the_photo_are_in_no_convolution(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a shifted block, and windows that the map does not fill."""
    monkeypatch.setitem(SWINS, "swin_methods_test", {"embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 2, 2)})
    artifact = compiled("tadformer", "hrnet", tmp_path, photo)
    assert operations(artifact, photo)["Softmax"] == 5
    graph = onnx.load(artifact.folder / artifact.variants.all[0].path, load_external_data=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    assert all(node.input[1] in constant for node in graph.node if node.op_type == "Conv")


def operations(artifact: Artifact, photo: Path) -> Counter[str]:
    """Of a graph that serves both maps, how many there are of each."""
    engine = load_engine("onnxruntime", artifact, EngineOptions(threads=1))
    maps = Predictor(artifact, engine).predict(photo.read_bytes()).maps
    engine.close()
    assert {name: values.shape for name, values in maps.items()} == {"depth": (90, 120), "saliency": (90, 120)}
    nodes = onnx.load(artifact.folder / artifact.variants.all[0].path, load_external_data=False).graph.node
    return Counter(node.op_type for node in nodes)
