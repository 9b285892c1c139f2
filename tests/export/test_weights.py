from pathlib import Path

import numpy as np
import torch

from export.fold import fold
from export.weights import compact
from ptsa_serve.weights import WeightsFile
from training.network.checkpoint import load_checkpoint, save_checkpoint
from training.network.model import PTSAModel


def test_weights_too_large_for_fp16_come_through_to_the_engine(model: PTSAModel, tmp_path: Path) -> None:
    """From the trained model through checkpoint and artifact: a layer with adapters, and one without."""
    large = {
        "backbone.trunk.layers.3.blocks.0.mlp.fc1.weight": "slots.layers/3/blocks/0/mlp/fc1.0.weight",
        "backbone.trunk.layers.1.downsample.reduction.weight": "slots.layers/1/downsample/reduction.0.weight",
    }
    with torch.no_grad():
        for name in large:
            model.get_parameter(name)[0, 0] = 70_000.0
    save_checkpoint(model, tmp_path / "model.safetensors", info={})
    folded = fold(load_checkpoint(tmp_path / "model.safetensors"))
    (tmp_path / "weights.safetensors").write_bytes(compact([folded], large.values()))
    for name, found in WeightsFile.open(tmp_path / "weights.safetensors").make(large.values()).items():
        np.testing.assert_allclose(found, folded.network.get_parameter(name).numpy(), rtol=1e-6, atol=1e-8)
        assert abs(found[0, 0] - 70_000) < 1
