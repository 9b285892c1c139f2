"""Which Swin Transformers can be built, how weights get in, and which size they expect. The blocks are timm's."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import Tensor, nn

__all__ = ["MEAN", "STD", "SWINS", "WINDOW", "build_swin", "load_swin", "set_size", "stage_maps", "stage_widths"]

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

    Windows are never shrunk for small inputs, so that weights fit every size. Raises ValueError for an unknown name.
    """
    if name not in SWINS:
        raise ValueError(f"backbone {name!r} is unknown; known are {', '.join(SWINS)}")
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
            module.fused_attn = torch.cuda.is_available()
    return swin


def set_size(swin: SwinTransformer, size: tuple[int, int]) -> None:
    """Make masks and windows for inputs (H, W), each a multiple of 32; weights stay as they are."""
    if tuple(swin.patch_embed.img_size or ()) == size:
        return
    if size[0] % 32 or size[1] % 32:
        raise ValueError(f"input size {size[0]} x {size[1]}: both sides must be multiples of 32")
    swin.set_input_size(img_size=size, window_size=WINDOW, always_partition=True)


def load_swin(swin: SwinTransformer, path: Path | str) -> None:
    """Load safetensors with timm's names; position tables of another window are resized.

    Raises FileNotFoundError, or ValueError if a weight is missing or left over.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of backbone weights")
    weights = {k: v.float() for k, v in load_file(path).items() if not k.startswith(("head.", "norm."))}
    weights = checkpoint_filter_fn(weights, swin)
    missing, unexpected = swin.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"{path} does not fit this backbone: missing {missing[:3]}, unexpected {unexpected[:3]}; "
            f"was it made from another one of {', '.join(SWINS)}?"
        )


def stage_widths(swin: SwinTransformer) -> tuple[int, ...]:
    """Channels of each stage's output."""
    return tuple(info["num_chs"] for info in swin.feature_info)


def stage_maps(swin: SwinTransformer, images: Tensor) -> list[Tensor]:
    """Outputs of the four stages for normalised images (N, 3, H, W): channels last, at strides 4, 8, 16, 32."""
    x = swin.patch_embed(images)
    maps = []
    for stage in swin.layers:
        x = stage(x)
        maps.append(x)
    return maps
