"""What training writes and export reads: one safetensors file that holds tensors and, as JSON, how to build the model.

Matrices are rounded to fp16 on the way in: that is how the artifact ships them, so nothing is lost later.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ptsa_serve.files import replace_file
from training.errors import CheckpointError, ConfigError
from training.methods import set_anew
from training.network.checkpoint_v1 import upgraded_config, upgraded_tensors
from training.network.model import ModelConfig, PTSAModel

__all__ = [
    "as_stored",
    "is_checkpoint",
    "load_checkpoint",
    "misfits",
    "read_config",
    "read_info",
    "read_tensors",
    "save_checkpoint",
    "sha256",
    "write_whole",
]

VERSION = 2


def save_checkpoint(model: PTSAModel, path: Path, *, info: dict) -> None:
    """Write the model's tensors (matrices fp16, vectors fp32) and `info` (JSON) beside its configuration.

    Raises CheckpointError for weights that are not finite, OSError if the file cannot be written.
    """
    tensors = {name: as_stored(tensor.detach().cpu()).contiguous() for name, tensor in model.state_dict().items()}
    _refuse_infinite(path, tensors)
    metadata = {"ptsa": json.dumps({"version": VERSION, "model": model.config.to_json(), "info": info})}
    write_whole(path, save(tensors, metadata=metadata))


def as_stored(tensor: Tensor) -> Tensor:
    """A tensor as a checkpoint holds it: matrices in fp16, unless that is too small for a value; the rest as it is."""
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if torch.equal(half.isfinite(), tensor.isfinite()) else tensor


def write_whole(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all, and wait until it is on the disk. Raises OSError that names it."""
    try:
        replace_file(path, data)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}); make room or give leave to write there, then run again"
        ) from error


def load_checkpoint(path: Path | str, settings: Mapping[str, Any] | None = None) -> PTSAModel:
    """The model of a checkpoint, float32, in eval mode.

    settings: options of its method that may be set anew, see `MethodSpec`. Raises FileNotFoundError, CheckpointError if
    the file is no checkpoint or does not fit the model it describes, ConfigError for settings that it does not have.
    """
    path = Path(path)
    config = read_config(path)
    if settings:
        config = replace(config, options=set_anew(config.method, config.options, settings))
    try:
        model = PTSAModel(config)
    except (KeyError, TypeError, ValueError) as error:
        if settings and isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"{path} describes a model that cannot be built ({error}); train it again") from None
    tensors = read_tensors(path)
    if odd := misfits(model, tensors):
        raise CheckpointError(f"{path}: {odd[:3]} do not fit the model that it describes; train it again")
    model.load_state_dict(tensors)
    return model.eval()


def read_config(path: Path | str) -> ModelConfig:
    """How to build the model of a checkpoint. Raises as `load_checkpoint`."""
    metadata = _read_metadata(Path(path))
    try:
        return ModelConfig.from_json(
            upgraded_config(metadata["model"]) if metadata["version"] == 1 else metadata["model"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not say what model it holds ({error!r}); train it again") from None


def read_info(path: Path | str) -> dict:
    """What training wrote about itself: every setting that the weights depend on, and the data. Raises as above."""
    info = _read_metadata(Path(path)).get("info", {})
    if not isinstance(info, dict):
        raise CheckpointError(f"{path} does not say how it was trained: its metadata are damaged; train it again")
    return info


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, fp16 as float32. Raises CheckpointError for infinity and NaN."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _refuse_infinite(path, tensors)
    return upgraded_tensors({name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()})


def misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names that only one of the two has, or that have another shape; sorted."""
    own = model.state_dict()
    different = {name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape}
    return sorted((own.keys() ^ tensors.keys()) | different)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_checkpoint(path: Path | str) -> bool:
    """Whether a safetensors file holds a whole model, not a backbone alone.

    Raises FileNotFoundError, or CheckpointError for a file of another kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of weights; `python -m training pretrain` or `fit` writes one")
    try:
        with safe_open(path, "pt") as file:
            return "ptsa" in (file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is no ptsa checkpoint or weights, or damaged ({error}); "
            "take the .safetensors file that `python -m training pretrain` or `fit` wrote"
        ) from None


def _read_metadata(path: Path) -> dict[str, Any]:
    if not is_checkpoint(path):
        raise CheckpointError(f"{path} is not a ptsa checkpoint; `python -m training fit` writes one")
    with safe_open(path, "pt") as file:
        text = file.metadata()["ptsa"]
    try:
        metadata = dict(json.loads(text))
    except (TypeError, ValueError):
        raise CheckpointError(f"{path} does not say what it holds: its metadata are damaged; train it again") from None
    if metadata.get("version") not in (1, VERSION):
        raise CheckpointError(
            f"{path} is a checkpoint of version {metadata.get('version')!r}, this program reads 1 and {VERSION}; "
            "install the ptsa-serve that wrote it, or train it again"
        )
    return metadata


def _refuse_infinite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"{path}: {bad[:3]} hold infinity or NaN; train again in a new --out folder, with a lower --rate"
        )
