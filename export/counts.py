"""What a model costs: parameters that are frozen, trained, deployed; multiply-adds of one photo."""

import math

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from export.attention import FoldedAttention
from export.fold import FoldedNetwork
from training.adapters import StreamLinear
from training.model import PTSAModel

__all__ = ["deployed", "frozen", "multiply_adds", "trainable"]


def multiply_adds(network: FoldedNetwork) -> int:
    """Multiply-adds of all tasks' maps for one photo of the network's size.

    Counted where torch's counter counts: matrix products, attention's among them, and convolutions; not element-wise
    work, normalisation, softmax or up-sampling.
    """
    photo = torch.zeros((1, *network.size, 3), dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(photo)
    # The counter counts a multiplication and an addition as two.
    return counter.get_total_flops() // 2


def deployed(network: FoldedNetwork) -> int:
    """Parameters of the folded network; what branches have in common counts once.

    Position tables count as the tables that they are, not as the biases that were looked up from them.
    """
    biases = {id(m.position_bias): m.position_bias for m in network.modules() if isinstance(m, FoldedAttention)}
    return _numel(network) - sum(bias.numel() - _table_numel(bias) for bias in biases.values())


def trainable(model: PTSAModel) -> int:
    """Parameters that were trained: adapters and decoders, or all of a model that has no adapters.

    `training fit` makes no other models: it refuses to adapt one without adapters.
    """
    if not any(model.config.ranks):
        return _numel(model)
    adapters = [module for module in model.backbone.modules() if isinstance(module, StreamLinear)]
    factors = sum(module.up.numel() + module.down.numel() for module in adapters)
    return factors + _numel(model.decoders)


def frozen(model: PTSAModel) -> int:
    """Parameters of the backbone that adaptation left alone; none of a model that was tuned as a whole."""
    return _numel(model) - trainable(model)


def _table_numel(bias: Tensor) -> int:
    """Entries of the table behind a bias (1, heads, T, T): offsets -(w - 1)...w - 1 along both sides of a window."""
    _, heads, tokens, _ = bias.shape
    return heads * (2 * math.isqrt(tokens) - 1) ** 2


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
