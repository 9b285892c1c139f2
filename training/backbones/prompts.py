"""Prompts in the windows of a Swin: tokens of a photo that attend in each of its windows, T before the patches.

Prompts (N, T, C); windows (N * W, T + 49, C) where they have prompts; scores (N * W, heads, T + 49, T + 49).
Source: TADFormer (arXiv 2501.04293).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["are_prompts", "ask", "conditioned", "joined", "patches", "pooled"]


def are_prompts(value: Tensor | list[Tensor]) -> bool:
    """Whether what left the place of prompts, in whichever flow, is (N, T, C): otherwise it is the map, unchanged."""
    return (value[0] if isinstance(value, list) else value).ndim == 3


def joined(prompts: Tensor, windows: Tensor) -> Tensor:
    """Prompts before the patches of every window of their photo."""
    windows = windows.unflatten(0, (prompts.shape[0], -1))
    return torch.cat([prompts[:, None].expand(-1, windows.shape[1], -1, -1), windows], 2).flatten(0, 1)


def patches(windows: Tensor, prompts: Tensor) -> Tensor:
    """Windows without the prompts."""
    return windows[:, prompts.shape[1] :]


def pooled(windows: Tensor, prompts: Tensor) -> Tensor:
    """What has become of `prompts`: their mean over the windows of a photo."""
    return windows[:, : prompts.shape[1]].unflatten(0, (prompts.shape[0], -1)).mean(1)


def ask(scores: Tensor, qkv: Tensor, prompts: Tensor) -> Tensor:
    """How much each prompt asks for each patch, without the scale of attention: (N * W, T, heads, 49)."""
    tokens = prompts.shape[1]
    width = qkv.shape[-1] // (3 * scores.shape[1])
    return scores[:, :, :tokens, tokens:].transpose(1, 2) * math.sqrt(width)


def conditioned(asked: Tensor, attended: Tensor) -> Tensor:
    """Windows (N * W, T + 49, C): GELU of what one prompt asks for, (N * W, heads, 49), times each head's channels.

    0 in place of the prompts.
    """
    tokens = attended.shape[1] - asked.shape[-1]
    heads = attended[:, tokens:].unflatten(-1, (asked.shape[1], -1))
    return F.pad((F.gelu(asked).transpose(1, 2)[..., None] * heads).flatten(2), (0, 0, tokens, 0))
