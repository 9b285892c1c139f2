"""What training writes and export reads: one safetensors file that holds tensors and, as JSON, how to build the model.

Matrices are rounded to fp16 on the way in: that is how the artifact ships them, so nothing is lost later.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.model import ModelConfig, PTSAModel

__all__ = ["is_checkpoint", "load_checkpoint", "load_matching", "read_info", "save_checkpoint", "save_state", "sha256"]


def save_checkpoint(model: PTSAModel, path: Path, *, info: dict) -> None:
    """Write the model's tensors (matrices fp16, vectors fp32) and `info` (JSON) beside its configuration."""
    tensors = {name: _compact(tensor) for name, tensor in model.state_dict().items()}
    metadata = {"ptsa": json.dumps({"version": 1, "model": model.config.to_json(), "info": info})}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=metadata)
    partial.replace(path)


def save_state(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Write what a killed run resumes from, beside the old one, then rename: a kill leaves whole files only."""
    partial = path.with_suffix(".partial")
    fabric.save(partial, state)
    partial.replace(path)


def load_checkpoint(path: Path | str) -> PTSAModel:
    """The model of a checkpoint, float32, in eval mode.

    Raises FileNotFoundError, or ValueError if the file is no checkpoint or does not fit the model it describes.
    """
    config = ModelConfig.from_json(_read_metadata(Path(path))["model"])
    model = PTSAModel(config)
    model.load_state_dict(_read_tensors(Path(path)))
    return model.eval()


def load_matching(model: PTSAModel, path: Path | str) -> list[str]:
    """Take over what fits from a checkpoint without adapters (frozen layers, decoders); returns the names left as are.

    Raises ValueError if anything in the file has no place in the model.
    """
    tensors = _read_tensors(Path(path))
    renamed = {_in_wrapped(model, name): tensor for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    if unexpected:
        raise ValueError(f"{path}: {unexpected[:3]} have no place in this model; same backbone, tasks and width?")
    return [name for name in missing if not name.endswith((".up", ".down"))]


def read_info(path: Path | str) -> dict:
    """What training wrote about itself: data, steps, figures."""
    return _read_metadata(Path(path))["info"]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compact(tensor: Tensor) -> Tensor:
    if tensor.ndim >= 2 and tensor.is_floating_point():
        return tensor.detach().cpu().half().contiguous()
    return tensor.detach().cpu().contiguous()


def is_checkpoint(path: Path | str) -> bool:
    """Whether a safetensors file holds a whole model, not a backbone alone. Raises FileNotFoundError or ValueError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of weights; `python -m training pretrain` or `fit` writes one")
    try:
        with safe_open(path, "pt") as file:
            return "ptsa" in (file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is no ptsa checkpoint or weights, or damaged: {error}") from None


def _read_metadata(path: Path) -> dict:
    if not is_checkpoint(path):
        raise ValueError(f"{path} is not a ptsa checkpoint; `python -m training fit` writes one")
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["ptsa"])


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {
            name: t.float() if (t := file.get_tensor(name)).dtype == torch.float16 else t
            for name in file.keys()  # noqa: SIM118
        }


def _in_wrapped(model: PTSAModel, name: str) -> str:
    """`....fc1.weight` is `....fc1.frozen.weight` where an adapter wraps the layer."""
    owner, _, leaf = name.rpartition(".")
    wrapped = f"{owner}.frozen.{leaf}"
    return wrapped if wrapped in model.state_dict() else name
