"""Which Swin Transformers can be built, how weights get in, and which size they expect. The blocks are timm's."""

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from training.errors import CheckpointError, ConfigError

__all__ = [
    "MEAN",
    "STD",
    "SWINS",
    "WINDOW",
    "build_swin",
    "load_swin",
    "set_size",
    "stage_maps",
    "stage_widths",
    "stages",
]

WINDOW = 7

# ImageNet statistics (timm's IMAGENET_DEFAULT_MEAN and _STD) times 255: images come as 0...255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

# timm's constructor arguments. nano is tiny at half the width; the others are Liu et al. 2021, table 7.
SWINS: dict[str, dict] = {
    "swin_nano": {"embed_dim": 48, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin_tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin_small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "swin_base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}


def build_swin(name: str, *, size: tuple[int, int] = (224, 224), drop_path: float = 0.0) -> SwinTransformer:
    """A Swin of `SWINS` with window 7 and no classifier, randomly initialised, for inputs of size (H, W).

    Windows are never shrunk for small inputs, so that weights fit every size. Raises ConfigError for an unknown name.
    """
    if name not in SWINS:
        raise ConfigError(f"backbone {name!r} is unknown; known are {', '.join(SWINS)}")
    swin = SwinTransformer(
        img_size=size,
        window_size=WINDOW,
        num_classes=0,
        drop_path_rate=drop_path,
        strict_img_size=False,
        always_partition=True,
        **SWINS[name],
    )
    swin.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]  every tap is before it
    for module in swin.modules():
        if hasattr(module, "fused_attn"):
            # For windows of 49 tokens the fused kernel is slower on a CPU: 52 against 40 ms a photo of 224 x 224,
            # forward and backward in bf16 on two cores.
            setattr(module, "fused_attn", torch.cuda.is_available())  # noqa: B010  pyright takes timm's flag for a tensor
    return swin


def set_size(swin: SwinTransformer, size: tuple[int, int]) -> None:
    """Make masks and windows for inputs (H, W), each a multiple of 32; weights stay as they are."""
    if swin.patch_embed.img_size == size:  # pyright: ignore[reportAttributeAccessIssue]
        return
    if size[0] % 32 or size[1] % 32:
        raise ValueError(f"input size {size[0]} x {size[1]}: both sides must be multiples of 32")
    swin.set_input_size(img_size=size, window_size=WINDOW, always_partition=True)


def load_swin(swin: SwinTransformer, path: Path | str) -> None:
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
    own = swin.state_dict()
    width = weights.get("patch_embed.proj.weight", torch.empty(0)).shape
    if width == own["patch_embed.proj.weight"].shape:  # else the resizing of tables has nothing to go by
        weights = checkpoint_filter_fn(weights, swin)
    if "backbone.swin.patch_embed.proj.weight" in weights:
        raise CheckpointError(f"{path} holds a whole model; name a backbone alone, which `pretrain` wrote")
    odd = [name for name in own.keys() | weights.keys() if name not in own or name not in weights]
    odd = odd or [name for name, tensor in own.items() if tensor.shape != weights[name].shape]
    if odd:
        raise CheckpointError(
            f"{path} does not fit this backbone: {sorted(odd)[:3]} differ; made from another one of {', '.join(SWINS)}?"
        )
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{path}: {bad[:3]} hold infinity or NaN; make the file again")
    swin.load_state_dict(weights)


def stage_widths(swin: SwinTransformer) -> tuple[int, ...]:
    """Channels of each stage's output."""
    return tuple(info["num_chs"] for info in swin.feature_info)


def stages(swin: SwinTransformer) -> list[Any]:
    """The four stages; each has `downsample` (merging of patches; nothing in the first) and `blocks`."""
    return list(cast(nn.Sequential, swin.layers))


def stage_maps(swin: SwinTransformer, images: Tensor) -> list[Tensor]:
    """Outputs of the four stages for normalised images (N, 3, H, W): channels last, at strides 4, 8, 16, 32."""
    x = swin.patch_embed(images)
    maps = []
    for stage in stages(swin):
        x = stage(x)
        maps.append(x)
    return maps
