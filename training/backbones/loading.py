"""How weights get into a backbone, from files with timm's names."""

from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn

from training.backbones import Backbone, known_backbones
from training.errors import CheckpointError

__all__ = ["load_backbone"]


def load_backbone(backbone: Backbone, path: Path | str) -> None:
    """Load safetensors with timm's names; position tables of another window are resized.

    Raises FileNotFoundError, or CheckpointError if a weight is missing, left over or not finite.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of backbone weights")
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file, or damaged ({error}); make it again") from None
    weights = {k: v.float() for k, v in stored.items() if not k.startswith(("head.", "norm."))}
    own = backbone.trunk.state_dict()
    width = weights.get("patch_embed.proj.weight", torch.empty(0)).shape
    if width == own["patch_embed.proj.weight"].shape:  # else the resizing of tables has nothing to go by
        weights = checkpoint_filter_fn(weights, cast(SwinTransformer, backbone.trunk))
    if any(name.startswith("backbone.") for name in weights):
        raise CheckpointError(f"{path} holds a whole model; name a backbone alone, which `pretrain` wrote")
    odd = [name for name in own.keys() | weights.keys() if name not in own or name not in weights]
    odd = odd or [name for name, tensor in own.items() if tensor.shape != weights[name].shape]
    if odd:
        known = ", ".join(known_backbones())
        raise CheckpointError(
            f"{path} does not fit this backbone: {sorted(odd)[:3]} differ; made from another one of {known}?"
        )
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{path}: {bad[:3]} hold infinity or NaN; make the file again")
    backbone.trunk.load_state_dict(weights)
