"""What a new model takes over from an earlier one: a backbone alone, or all that both of them have."""

from pathlib import Path

from torch import Tensor

from training.backbones import build_backbone
from training.backbones.loading import TORCH_FILES, load_backbone
from training.errors import CheckpointError
from training.network.checkpoint import is_checkpoint, misfits, read_config, read_tensors
from training.network.model import ModelConfig, PTSAModel
from training.running.resume import note

__all__ = ["take_over"]


def take_over(model: PTSAModel, path: Path) -> None:
    """Start `model` from the weights in `path`, and say which of its decoders start fresh.

    What a method added is taken over where the file has it, decoders of the tasks that both have. Raises
    FileNotFoundError, or CheckpointError if the file is of another network.
    """
    if path.suffix not in TORCH_FILES and is_checkpoint(path):
        stored = read_config(path)
        tensors = read_tensors(path)
        _refuse_other_models(model, stored, tensors, path)
        fresh = [task for task in model.tasks if task not in stored.tree.tasks]
        if unused := [task for task in stored.tree.tasks if task not in model.tasks]:
            note(f"{path}: its decoders of {', '.join(unused)} are left out, the tree does not name them")
    else:
        backbone = build_backbone(model.config.backbone)
        load_backbone(backbone, path)
        tensors = {f"backbone.trunk.{name}": tensor for name, tensor in backbone.trunk.state_dict().items()}
        fresh = list(model.tasks)
    if fresh:
        note(f"{path} has no decoder of {', '.join(fresh)}: started from random weights")
    _load(model, tensors, fresh, path)
    if not any(name.startswith("method.") for name in tensors):
        model.method.start()


def _load(model: PTSAModel, tensors: dict[str, Tensor], fresh: list[str], path: Path) -> None:
    """Put `tensors` into the model; only the method's own and the decoders of `fresh` tasks may be missing."""
    own = model.state_dict()
    new = ("method.", *(f"decoders.{task}." for task in fresh))
    wanted = {name: t for name, t in tensors.items() if _task(name) in (None, *model.tasks)}
    kept = {name: t for name, t in own.items() if name.startswith(new)}
    if odd := misfits(model, kept | wanted):
        raise CheckpointError(f"{path}: {odd[:3]} do not fit this model; train the file again")
    model.load_state_dict(kept | wanted)


def _refuse_other_models(model: PTSAModel, stored: ModelConfig, tensors: dict[str, Tensor], path: Path) -> None:
    own = model.config
    pairs = {name: (getattr(stored, name), getattr(own, name)) for name in ("backbone", "decoder", "width")}
    faults = []
    if any(name.startswith("method.") for name in tensors):
        if not model.method.changes:
            faults.append(f"it was adapted by {stored.method}, which --method {own.method} has no place for")
        else:
            pairs |= {name: (getattr(stored, name), getattr(own, name)) for name in ("method", "tree", "options")}
    faults = [
        f"{name} is {found}, here {wanted}" for name, (found, wanted) in pairs.items() if found != wanted
    ] + faults
    if faults:
        raise CheckpointError(
            f"{path} is of another model: {'; '.join(faults)}. "
            "Give the options that it was trained with, or start from a file that fits"
        )


def _task(name: str) -> str | None:
    """The task whose decoder a tensor belongs to."""
    return name.split(".")[1] if name.startswith("decoders.") else None
