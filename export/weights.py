"""The compact file of weights: what the folded weights were made from, in fp16 wherever nothing is lost by it.

The graphs of all sizes read the same weights, fp32 and folded: a copy of the shared layers for each branch. The file
holds the frozen layers once and the small factors of each branch; `ptsa_serve.weights` folds them for the engine.
"""

from collections.abc import Iterable

import torch
from safetensors.torch import save
from torch import Tensor

from export.fold import Folded
from export.passes import TRANSPOSED
from ptsa_serve.weights import Recipe, metadata

__all__ = ["compact", "weight_bytes"]


def compact(folded: Folded, names: Iterable[str]) -> bytes:
    """A safetensors file from which `WeightsFile` makes the weights `names` of the graphs, in this order.

    names: a parameter's, with `TRANSPOSED` behind it where the graphs hold it so.
    """
    parameters = dict(folded.network.named_parameters(remove_duplicate=False))
    tensors: dict[str, Tensor] = {}
    recipes: dict[str, Recipe] = {}
    for name in names:
        parameter = name.removesuffix(TRANSPOSED)
        transpose = name.endswith(TRANSPOSED)
        if origin := folded.origins.get(parameter):
            recipes[name] = Recipe(origin.base, origin.up, origin.down, origin.scale, transpose)
            tensors |= {key: folded.tensors[key] for key in (origin.base, origin.up, origin.down)}
        else:
            recipes[name] = Recipe(parameter, transpose=transpose)
            tensors[parameter] = parameters[parameter]
    kept = {key: _smallest(tensor) for key, tensor in sorted(tensors.items())}
    return save(kept, metadata=metadata(recipes))


def weight_bytes(folded: Folded, names: Iterable[str]) -> dict[str, int]:
    """Bytes of each weight as the graphs hold it: float32."""
    parameters = dict(folded.network.named_parameters(remove_duplicate=False))
    return {name: 4 * parameters[name.removesuffix(TRANSPOSED)].numel() for name in names}


def _smallest(tensor: Tensor) -> Tensor:
    """fp16 if that holds every value exactly (matrices of a checkpoint are rounded to it), else as it is."""
    tensor = tensor.detach().cpu()
    half = tensor.to(torch.float16)
    # Vectors are a hundredth of the bytes: they stay fp32 for whoever reads the file.
    exact = tensor.ndim >= 2 and torch.equal(half.to(tensor.dtype), tensor)
    return (half if exact else tensor).contiguous()
