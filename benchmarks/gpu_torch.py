"""What PyTorch does with the same network on the same GPU: the baseline of every engine there."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from export.fold import fold
from export.latency import random_model
from ptsa_serve.manifest import Manifest
from ptsa_serve.task_tree import TaskTree
from training.network.checkpoint import load_checkpoint
from training.network.model import ModelConfig

__all__ = ["torch_network", "torch_runs"]

Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def torch_network(manifest: Manifest, device: str, checkpoint: Path | None) -> nn.Module:
    """The folded network of `checkpoint` on `device`; without one, of random weights: backbone
    and tree are the manifest's, and what a pass takes is the same.

    Raises TrainingError for a checkpoint that cannot be read, or a backbone that is not known here.
    """
    if checkpoint:
        model = load_checkpoint(checkpoint)
    else:
        tree = TaskTree.from_json(manifest.tree.model_dump())
        tasks = tuple(manifest.task_table()[name] for name in tree.tasks)
        model = random_model(ModelConfig(manifest.backbone.name, tree, tasks=tasks))
    # Moved before it is folded: what the walk through the backbone needs beside weights is then there too.
    return fold(model.to(device)).network.to(device)


def torch_runs(network: nn.Module, device: str, backend: str = "inductor") -> dict[str, Run]:
    """Ways to run `network`, photos and maps being copied as for an engine. backend: of torch.compile."""
    compiled = torch.compile(network, backend=backend)
    half = torch.bfloat16

    def runner(module: Callable[..., Mapping[str, torch.Tensor]], autocast: bool) -> Run:
        @torch.inference_mode()
        def run(batch: np.ndarray) -> dict[str, np.ndarray]:
            with torch.autocast(device.partition(":")[0], half, enabled=autocast):
                maps = module(torch.from_numpy(batch).to(device))
            return {name: values.float().cpu().numpy() for name, values in maps.items()}

        return run

    return {
        "eager fp32": runner(network, autocast=False),
        "eager bf16": runner(network, autocast=True),
        "compiled fp32": runner(compiled, autocast=False),
        "compiled bf16": runner(compiled, autocast=True),
    }
