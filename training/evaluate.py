"""A checkpoint's figures on a split: every photo once, maps at the labels' own size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from training.checkpoint import load_checkpoint
from training.data import DATASETS
from training.data.labels import LabelledPhoto
from training.data.transforms import to_tensors
from training.heads import finish
from training.metrics import metric_for

__all__ = ["EvaluateConfig", "evaluate", "figures"]

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class EvaluateConfig:
    """What `python -m training evaluate` takes.

    Args:
        checkpoint: a .safetensors file that `fit` wrote.
        data: folder of each data set, e.g. {nyu: data/nyu, ccp: data/ccp}.
        split: val or train.
        limit: only so many photos of each set, evenly spread; 0 = all.
        scale: of the input's sides, 1 = as deployed.
        precision: of Fabric: 32-true or bf16-mixed.
    """

    checkpoint: Path
    data: dict[str, Path]
    split: str = "val"
    limit: int = 0
    scale: float = 1.0
    precision: str = "32-true"


def evaluate(config: EvaluateConfig) -> dict[str, Figures]:
    """Data set -> task -> figure -> value."""
    fabric = Fabric(accelerator="auto", devices=1, precision=config.precision)  # pyright: ignore[reportArgumentType]
    model = fabric.setup_module(load_checkpoint(config.checkpoint))
    results = {}
    for name, root in config.data.items():
        data = DATASETS[name](root, config.split)
        size = scaled(data.size, config.scale)
        results[name] = figures(model, data, size, limit=config.limit)
    return results


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """`size` times `scale`, each side rounded to a multiple of 32."""
    return (max(32, round(size[0] * scale / 32) * 32), max(32, round(size[1] * scale / 32) * 32))


class _Photos(Dataset[dict]):
    def __init__(self, data, size: tuple[int, int], indices: list[int]) -> None:
        self._data, self._size, self._indices = data, size, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:
        sample: LabelledPhoto = self._data[self._indices[index]]
        return to_tensors(sample, self._size, label_size=None)


@torch.inference_mode()
def figures(model: Any, data, size: tuple[int, int], *, limit: int = 0) -> Figures:
    """Task -> figure -> value, for the tasks that both the model (a PTSAModel) and the data set have."""
    count = min(limit, len(data)) if limit else len(data)
    indices = np.linspace(0, len(data) - 1, count).round().astype(int).tolist()
    tasks = [task for task in data.tasks if task in model.tasks]
    metrics = {task: metric_for(model.tasks[task]) for task in tasks}
    was_training = model.training
    model.eval()
    # One photo at a time: the sizes of the labels differ, and a batch gains nothing on a CPU.
    for sample in tqdm(DataLoader(_Photos(data, size, indices), batch_size=None), desc="evaluate", unit="photo"):
        raw = model(sample["image"][None].to(model.mean.device), tasks)
        for task, metric in metrics.items():
            label = sample[task].numpy()
            if task == "normals":
                label = label.transpose(1, 2, 0)
            map_ = finish(model.tasks[task], raw[task].float(), (label.shape[0], label.shape[1]))
            metric.update(map_[0].cpu().numpy(), label)
    model.train(was_training)
    return {task: metric.compute() for task, metric in metrics.items()}
