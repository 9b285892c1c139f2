"""What a new model takes over from an earlier one: a backbone alone, or all that both of them have."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from training.backbones import build_backbone
from training.backbones.loading import TORCH_FILES, load_backbone
from training.errors import CheckpointError
from training.network.checkpoint import is_checkpoint, misfits, read_config, read_tensors
from training.network.model import ModelConfig, PTSAModel
from training.running.resume import note

__all__ = ["take_over"]


def take_over(model: PTSAModel, path: Path, photos: Iterable[Tensor] = ()) -> None:
    """Start `model` from the weights in `path`, and say which of its decoders start fresh.

    What a method added is taken over where the file has it (of methods whose tasks share nothing: for the tasks that
    both have), else it starts, see `Method.start`; photos: (N, 3, H, W), 0...255. Decoders are taken over of the tasks
    that both have. Raises FileNotFoundError, or CheckpointError if the file is of another network.
    """
    if path.suffix not in TORCH_FILES and is_checkpoint(path):
        stored = read_config(path)
        tensors = read_tensors(path)
        if _by_task(model):
            tensors = {name: tensor for name, tensor in tensors.items() if not _of_others(name, model, stored)}
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
        model.method.start(map(model.normalised, photos))


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
            same = ("method", "options") if _by_task(model) else ("method", "tree", "options")
            pairs |= {name: (getattr(stored, name), getattr(own, name)) for name in same}
    faults = [
        f"{name} is {found}, here {wanted}" for name, (found, wanted) in pairs.items() if found != wanted
    ] + faults
    if faults:
        raise CheckpointError(
            f"{path} is of another model: {'; '.join(faults)}. "
            "Give the options that it was trained with, or start from a file that fits"
        )


def _by_task(model: PTSAModel) -> bool:
    """Whether all that the method adds is one task's and called after it, so that tasks may come and go."""
    owners = model.method.owners()
    return bool(owners) and all(tasks == {name.rpartition(".")[2]} for name, tasks in owners.items())


def _of_others(name: str, model: PTSAModel, stored: ModelConfig) -> bool:
    """Whether a method's tensor is of a task of the file that the model does not have."""
    task = name.rpartition(".")[2]
    return name.startswith("method.") and task in stored.tree.tasks and task not in model.tasks


def _task(name: str) -> str | None:
    """The task whose decoder a tensor belongs to."""
    return name.split(".")[1] if name.startswith("decoders.") else None
