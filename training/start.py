"""What a new model takes over from an earlier one: a backbone alone, or all that both of them have."""

from pathlib import Path

from torch import Tensor

from training.checkpoint import is_checkpoint, misfits, read_config, read_tensors
from training.errors import CheckpointError
from training.model import ModelConfig, PTSAModel
from training.resume import note
from training.swin import build_swin, load_swin

__all__ = ["take_over"]


def take_over(model: PTSAModel, path: Path) -> None:
    """Start `model` from the weights in `path`, and say which of its decoders start fresh.

    Adapters are taken over where the file has them, decoders of the tasks that both have. Raises FileNotFoundError, or
    CheckpointError if the file is of another network.
    """
    if is_checkpoint(path):
        stored = read_config(path)
        _refuse_other_models(model.config, stored, path)
        tensors = read_tensors(path)
        fresh = [task for task in model.tasks if task not in stored.tree.tasks]
        if unused := [task for task in stored.tree.tasks if task not in model.tasks]:
            note(f"{path}: its decoders of {', '.join(unused)} are left out, the tree does not name them")
    else:
        swin = build_swin(model.config.backbone)
        load_swin(swin, path)
        tensors = {f"backbone.swin.{name}": tensor for name, tensor in swin.state_dict().items()}
        fresh = list(model.tasks)
    if fresh:
        note(f"{path} has no decoder of {', '.join(fresh)}: started from random weights")
    _load(model, tensors, fresh, path)


def _load(model: PTSAModel, tensors: dict[str, Tensor], fresh: list[str], path: Path) -> None:
    """Put `tensors` into the model; only adapters and the decoders of `fresh` tasks may be missing among them."""
    own = model.state_dict()
    new = {f"decoders.{task}." for task in fresh}
    wanted = {_in_wrapped(own, name): t for name, t in tensors.items() if _task(name) in (None, *model.tasks)}
    kept = {n: t for n, t in own.items() if n.endswith((".up", ".down")) or n.startswith(tuple(new))}
    if odd := misfits(model, kept | wanted):
        raise CheckpointError(f"{path}: {odd[:3]} do not fit this model; train the file again")
    model.load_state_dict(kept | wanted)


def _refuse_other_models(model: ModelConfig, stored: ModelConfig, path: Path) -> None:
    adapted = any(stored.ranks)
    pairs = {"backbone": (stored.backbone, model.backbone), "width": (stored.width, model.width)}
    if adapted and any(model.ranks):
        pairs |= {"tree": (stored.tree, model.tree), "ranks": (list(stored.ranks), list(model.ranks))}
        pairs |= {"scale of the adapters": (stored.scale, model.scale)}
    faults = [f"{name} is {found}, here {wanted}" for name, (found, wanted) in pairs.items() if found != wanted]
    if adapted and not any(model.ranks):
        faults.append("it has adapters, which --train all has no place for")
    if faults:
        raise CheckpointError(
            f"{path} is of another model: {'; '.join(faults)}. "
            "Give the options that it was trained with, or start from a file that fits"
        )


def _task(name: str) -> str | None:
    """The task whose decoder a tensor belongs to."""
    return name.split(".")[1] if name.startswith("decoders.") else None


def _in_wrapped(own: dict[str, Tensor], name: str) -> str:
    """`....fc1.weight` is `....fc1.frozen.weight` where an adapter wraps the layer."""
    owner, _, leaf = name.rpartition(".")
    wrapped = f"{owner}.frozen.{leaf}"
    return wrapped if wrapped in own else name
