"""What a model takes over from networks that were trained for one task each."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch

from training.data.records import agree
from training.errors import CheckpointError
from training.network.checkpoint import load_checkpoint
from training.network.layout import reader
from training.network.model import PTSAModel
from training.network.slots import Weights

__all__ = ["adopt"]


@torch.no_grad()
def adopt(model: PTSAModel, experts: Mapping[str, Path]) -> None:
    """Give each task the decoder of its expert, and the method the trunk.

    experts: a checkpoint for each task, of whichever method; several may name one file. Raises CheckpointError for one
    that is of another network, or whose trunk is more than tensors.
    """
    load = lru_cache(maxsize=1)(load_checkpoint)  # several tasks of one file
    for task in sorted(model.tasks, key=lambda task: str(experts[task])):
        path = experts[task]
        expert = load(path)
        _refuse_another(model, expert, task, path)
        model.decoders[task].load_state_dict(expert.decoders[task].state_dict())
        layout = expert.method.layout.streams(expert.backbone.slots, [task])
        for slot in expert.backbone.slots:
            streams = layout[slot.name]
            found = expert.method.effective(slot, streams[reader(task, streams)])
            if not isinstance(found, Weights):
                raise CheckpointError(
                    f"{path} was trained by {expert.config.method}, of which {found.kind} is left at {slot.name}: "
                    "no tensors to merge; train this expert by another method, e.g. single_task"
                )
            model.method.adopt(task, slot, found.tensors)


def _refuse_another(model: PTSAModel, expert: PTSAModel, task: str, path: Path) -> None:
    pairs = {name: (getattr(expert.config, name), getattr(model.config, name)) for name in ("backbone", "decoder")}
    if model.config.decoder == "pyramid":
        pairs["width"] = (expert.config.width, model.config.width)
    if faults := [f"{name} is {found}, here {wanted}" for name, (found, wanted) in pairs.items() if found != wanted]:
        raise CheckpointError(f"{path} is of another model: {'; '.join(faults)}. Take the same for all experts")
    if not agree(expert.tasks[task], model.tasks[task]):
        raise CheckpointError(f"{path} has another {task} than the model, of other classes; take an expert of the same")
