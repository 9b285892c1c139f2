"""What a model costs: parameters that are frozen, trained, deployed; multiply-adds of one photo."""

import math

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from export.fold import POSITION_BIAS, FoldedNetwork
from ptsa_serve.sizes import Size
from training.network.model import PTSAModel

__all__ = ["deployed", "frozen", "multiply_adds", "trainable"]


def multiply_adds(network: FoldedNetwork, size: Size) -> int:
    """Multiply-adds of all tasks' maps for one photo of `size` (H, W).

    Counted where torch's counter counts: matrix products, attention's among them, and convolutions; not element-wise
    work, normalisation, softmax or up-sampling.
    """
    photo = torch.zeros((1, *size, 3), dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(photo)
    # The counter counts a multiplication and an addition as two.
    return counter.get_total_flops() // 2


def deployed(network: FoldedNetwork) -> int:
    """Parameters of the folded network, in its form; what branches have in common counts once.

    Position tables count as the tables that they are, not as the biases that were looked up from them.
    """
    biases = [p for name, p in network.named_parameters() if name.endswith(POSITION_BIAS)]
    return _numel(network) - sum(bias.numel() - _table_numel(bias) for bias in biases)


def trainable(model: PTSAModel) -> int:
    """Parameters that the model's method trains, decoders among them."""
    return sum(model.get_parameter(name).numel() for name in model.owners())


def frozen(model: PTSAModel) -> int:
    """Parameters of the backbone that its method left alone."""
    return sum(p.numel() for name, p in model.backbone.trunk.named_parameters() if name not in model.method.trained)


def _table_numel(bias: Tensor) -> int:
    """Entries of the table behind a bias (1, heads, T, T): offsets -(w - 1)...w - 1 along both sides of a window."""
    _, heads, tokens, _ = bias.shape
    return heads * (2 * math.isqrt(tokens) - 1) ** 2


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
