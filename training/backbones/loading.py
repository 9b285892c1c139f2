"""How weights get into a backbone: from files in timm's or the official layout, or from timm's hub.

Files of torch are read as tensors and nothing else: no pickle is ever run.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.backbones import Backbone, build_backbone, known_backbones
from training.errors import CheckpointError, ConfigError

__all__ = ["HUB", "TORCH_FILES", "load_backbone", "pretrained"]

# Endings of what torch.save writes.
TORCH_FILES = (".pth", ".pt", ".bin")

# timm's names with their tags, as its defaults differ in data. ImageNet-1k alone where there is such a file: what
# MTLoRA (arXiv 2403.20320) starts from.
HUB = {
    "swin_tiny": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_small": "swin_small_patch4_window7_224.ms_in1k",
    "swin_base": "swin_base_patch4_window7_224.ms_in1k",
    "swin_large": "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "pvt_v2_b0": "pvt_v2_b0.in1k",
    "pvt_v2_b1": "pvt_v2_b1.in1k",
    "pvt_v2_b2": "pvt_v2_b2.in1k",
}

CLASSIFIER = ("head.", "norm.")  # a PVT's norms belong to its stages: it has none of the second name


def load_backbone(backbone: Backbone, path: Path | str) -> None:
    """Load a safetensors file or one of torch's (`TORCH_FILES`), of any float type, into the backbone.

    Its layout is timm's or the official one (microsoft/Swin-Transformer, whai362/PVT); position tables of another
    window are resized, classifiers left out. Raises FileNotFoundError, or CheckpointError for a file that is damaged,
    of another network, or not finite.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of backbone weights")
    _put(backbone, _read(Path(path)), str(path))


def pretrained(backbone: Backbone) -> None:
    """Load the published ImageNet weights of `HUB`, which timm fetches and keeps.

    Raises ConfigError for a backbone that was not published, CheckpointError where the hub cannot be reached.
    """
    name = HUB.get(backbone.name)
    if name is None:
        raise ConfigError(
            f"nobody published weights of {backbone.name}, only of {', '.join(HUB)}; choose one of them, or name a "
            "file with --start"
        )
    try:
        network = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # which one depends on the hub's client and its version
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"timm cannot fetch {name} ({type(error).__name__}: {reason}); where there is a network, download "
            f"model.safetensors of https://huggingface.co/timm/{name} and name it with --start"
        ) from error
    _put(backbone, network.state_dict(), name)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises CheckpointError for anything else."""
    try:
        stored: Any = _read_torch(path) if path.suffix in TORCH_FILES else load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is no safetensors file, or damaged ({error}); make it again. Files of torch end in "
            f"{', '.join(TORCH_FILES)}"
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping):
            stored = stored[key]
    if not isinstance(stored, Mapping) or not stored or not all(map(_named, stored.items())):
        raise CheckpointError(
            f"{path} holds no tensors by name, alone or under 'model' or 'state_dict'; save a state_dict"
        )
    return dict(stored)


def _named(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds Python objects ({found[1]}), which are not run" if found else "is no file of torch, or damaged"
        raise CheckpointError(f"{path} {what}; save its tensors alone: torch.save(model.state_dict(), FILE)") from None
    except OSError:
        raise
    except Exception as error:  # torch has no error of its own for what is damaged
        raise CheckpointError(
            f"{path} is no file of torch, or damaged ({type(error).__name__}); make it again"
        ) from None


def _put(backbone: Backbone, stored: dict[str, Tensor], source: str) -> None:
    weights = {name: t.float() for name, t in stored.items() if not name.startswith(CLASSIFIER)}
    if any(name.startswith("backbone.") for name in weights):
        raise CheckpointError(f"{source} holds a whole model; name a backbone alone, which `pretrain` wrote")
    fitting = backbone.renamed(weights)
    if faults := _faults(backbone, fitting):
        raise CheckpointError(
            f"{source} does not fit this backbone, {backbone.name}: {'; '.join(faults)}. {_advice(weights)}"
        )
    if bad := [name for name, tensor in fitting.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{source}: {bad[:3]} hold infinity or NaN; make the file again")
    backbone.trunk.load_state_dict(fitting)


def _faults(backbone: Backbone, weights: Mapping[str, Tensor]) -> list[str]:
    """In what `weights` differ from the backbone's."""
    own = backbone.trunk.state_dict()
    other = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    kinds = {
        "missing": [name for name in own if name not in weights],
        "left over": [name for name in weights if name not in own],
        "other shapes": other,
    }
    return [f"{kind} {_some(names)}" for kind, names in kinds.items() if names]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _advice(weights: dict[str, Tensor]) -> str:
    for name in known_backbones():
        with torch.device("meta"):
            backbone = build_backbone(name)
        if not _faults(backbone, backbone.renamed(weights)):
            return f"It looks like {name}: name that with --backbone"
    return f"It looks like none of {', '.join(known_backbones())}: take a file of one of them"
