"""A task that the project has no row of is compiled and answered as any other: its checkpoint says what it is."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export.compile import CompileConfig, compile_artifact
from ptsa_serve.encoding.encode import maps_png
from ptsa_serve.engines import EngineOptions, load_engine
from ptsa_serve.predictor import Predictor
from ptsa_serve.task_tree import TaskTree
from ptsa_serve.tasks import Task
from training.network.checkpoint import save_checkpoint
from training.network.model import ModelConfig, PTSAModel

WEATHER = Task("weather", "classes", 3, classes=("sun", "rain", "fog"), colors=((0, 0, 0), (9, 9, 9), (99, 0, 0)))
EDGES = Task("edges", "boundary", 1)


@pytest.mark.slow  # 7 s; tests/training/test_new_task.py trains one by default
def test_a_task_made_up_on_the_spot_is_compiled_and_served(photo: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tree = TaskTree.shared(("weather", "edges"))
    model = PTSAModel(ModelConfig("swin_export_test", tree, "multi_task", width=8, tasks=(WEATHER, EDGES)))
    save_checkpoint(model, tmp_path / "model.safetensors", info={})
    artifact = compile_artifact(
        CompileConfig(
            checkpoint=tmp_path / "model.safetensors",
            out=tmp_path / "artifact",
            sample=photo,
            photos=[photo],
            sizes=((64, 96),),
            name="tiny",
        )
    )
    predictor = Predictor(artifact, load_engine("onnxruntime", artifact, EngineOptions(threads=1)))
    prediction = predictor.predict(photo.read_bytes())
    assert prediction.tasks == {"weather": WEATHER, "edges": EDGES}
    assert set(np.unique(prediction.maps["weather"])) <= {0, 1, 2}
    edges = prediction.maps["edges"]
    assert (edges.shape, edges.dtype) == ((90, 120), np.float32)
    assert 0 <= edges.min() < edges.max() <= 1
    assert set(maps_png(prediction)) == {"weather", "edges"}
