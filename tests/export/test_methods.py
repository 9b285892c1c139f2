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
    "polyhistor": 7,
    "polyhistor_lite": 7,
    "lv_adapter": 4 + 4 * 2,
}


def compiled(method: str, decoder: str, folder: Path, photo: Path) -> Artifact:
    torch.manual_seed(0)
    options = {"rank": 2} if "rank" in METHODS[method].options.__dataclass_fields__ else {}
    model = PTSAModel(ModelConfig("swin_methods_test", TREE, method, options, decoder, width=8))
    with torch.no_grad():
        for name in model.owners():
            parameter = model.get_parameter(name)
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
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
    engine = load_engine("onnxruntime", artifact, EngineOptions(threads=1))
    maps = Predictor(artifact, engine).predict(photo.read_bytes()).maps
    engine.close()
    assert {name: values.shape for name, values in maps.items()} == {"depth": (90, 120), "saliency": (90, 120)}
    nodes = onnx.load(artifact.folder / artifact.variants.all[0].path, load_external_data=False).graph.node
    assert Counter(node.op_type for node in nodes)["Softmax"] == ATTENTIONS.get(method, 4)
