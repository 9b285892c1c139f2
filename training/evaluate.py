"""A checkpoint's figures on a split: every photo once, maps at the labels' own size; no label, no figure."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from training.data.evenly import evenly
from training.data.labels import LabelledPhoto, pixels
from training.data.loading import load
from training.data.opening import open_set
from training.data.photoset import PhotoSet
from training.data.records import shared_tasks
from training.data.transforms import to_tensors
from training.errors import CheckpointError, ConfigError
from training.network.checkpoint import load_checkpoint
from training.network.heads import finish
from training.options import refuse
from training.running.resume import note
from training.running.stepping import Precision, make_fabric
from training.scoring.metrics import Figures, metric_for

__all__ = ["EvaluateConfig", "evaluate", "figures"]


@dataclass(frozen=True)
class EvaluateConfig:
    """What `python -m training evaluate` takes.

    Args:
        checkpoint: a .safetensors file that `fit` wrote.
        data: folder of each data set, e.g. {nyu: data/nyu, ccp: data/ccp}.
        split: val or train.
        limit: only so many photos of each set, evenly spread; 0 = all.
        scale: of the input's sides, 1 = as deployed.
        square: measure as MTLoRA does: photos and labels at so many pixels a side, e.g. 448; 0 = labels at their own
            size. Figures of the two ways do not belong in one table.
        settings: of the method, those that may be set anew in a trained model, e.g. {preference: {depth: 1}}.
        precision: 32-true, bf16-mixed, or on a GPU 16-mixed.
    """

    checkpoint: Path
    data: dict[str, Path]
    split: str = "val"
    limit: int = 0
    scale: float = 1.0
    square: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        faults = [] if self.data else ["--data names no data set; e.g. --data '{nyu: data/nyu, ccp: data/ccp}'"]
        if self.limit < 0:
            faults.append(f"--limit is {self.limit}; allowed are 0 (all photos) and more")
        if not 0 < self.scale <= 4:
            faults.append(f"--scale is {self.scale}; allowed are more than 0, up to 4; 1 is as deployed")
        if self.square and (self.square % 32 or not 32 <= self.square <= 2048):
            faults.append(f"--square is {self.square}; allowed are 0 and multiples of 32 up to 2048")
        if self.square and self.scale != 1:
            faults.append("--square and --scale both say how large the input is; give one")
        refuse(faults)


def evaluate(config: EvaluateConfig) -> dict[str, dict[str, Figures]]:
    """Data set -> task -> figure -> value, None where no photo had a label.

    Raises FileNotFoundError for a missing checkpoint or data, TrainingError for either that cannot be used.
    """
    sets = {name: open_set(name, root, config.split) for name, root in config.data.items()}
    fabric = make_fabric(config.precision)
    model = fabric.setup_module(load_checkpoint(config.checkpoint, config.settings))
    for name, data in sets.items():
        shared = shared_tasks(data.records, model.tasks)
        if not shared:
            raise ConfigError(
                f"{name} has labels of {', '.join(data.tasks)}, the model answers {', '.join(model.tasks)}; "
                "leave the data set out, or evaluate another checkpoint"
            )
        for task in data.tasks:
            if task in model.tasks and task not in shared:
                note(f"{name}: its {task} is another task than the model's, of other classes; it is left out")
    results = {}
    for name, data in sets.items():
        if config.square:
            size = (config.square, config.square)
            results[name] = figures(model, data, size, limit=config.limit, published=True)
        else:
            results[name] = figures(model, data, scaled(data.size, config.scale), limit=config.limit)
    return results


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """`size` times `scale`, each side rounded to a multiple of 32."""
    return (max(32, round(size[0] * scale / 32) * 32), max(32, round(size[1] * scale / 32) * 32))


class _Photos(Dataset[dict]):
    def __init__(self, data: PhotoSet, size: tuple[int, int], indices: list[int], published: bool) -> None:
        self._data, self._size, self._indices, self._published = data, size, indices, published

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:
        sample: LabelledPhoto = self._data[self._indices[index]]
        return to_tensors(sample, self._size, self._size if self._published else None, cubic=self._published)


@torch.inference_mode()
def figures(
    model: Any, data: PhotoSet, size: tuple[int, int], *, limit: int = 0, published: bool = False
) -> dict[str, Figures]:
    """Task -> figure -> value, for the tasks that both the model (a PTSAModel) and the data set have.

    At the labels' own sizes; `published`: at `size`, images resized as in `to_tensors(cubic=True)`.
    """
    indices = evenly(range(len(data)), limit or len(data))
    tasks = shared_tasks(data.records, model.tasks)
    metrics = {task: metric_for(model.tasks[task], tolerance=data.tolerance) for task in tasks}
    was_training = model.training
    model.eval()
    # One photo at a time: the sizes of the labels differ, and a batch gains nothing on a CPU.
    photos = load(_Photos(data, size, indices, published), batch_size=None)
    for sample in tqdm(photos, total=len(indices), desc="evaluate", unit="photo", leave=False, disable=None):
        raw = model(sample["image"][None].to(model.mean.device), tasks)
        for task, metric in metrics.items():
            label = pixels(sample[task].numpy())
            map_ = finish(model.tasks[task], raw[task].float(), (label.shape[0], label.shape[1]))
            if not raw[task].isfinite().all():
                raise CheckpointError(
                    f"the model answers {task} of {data.name} photo {sample['name']} with no numbers; "
                    "its weights are damaged, or too large for --precision"
                )
            metric.update(map_[0].cpu().numpy(), label)
    model.train(was_training)
    return {task: metric.compute() for task, metric in metrics.items()}
