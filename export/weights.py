"""The compact file of weights: what the folded weights were made from, in fp16 wherever nothing is lost by it.

The graphs of all sizes and forms read the same weights. The file holds the frozen layers once and the small factors of
each branch; for the engine, `ptsa_serve.weights` folds them into a copy of a layer for each branch, or stacks them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from safetensors.torch import save
from torch import Tensor

from export.fold import Folded
from export.passes import TRANSPOSED
from ptsa_serve.weights import Recipe, metadata

__all__ = ["compact", "weight_bytes"]


def compact(forms: Sequence[Folded], names: Iterable[str]) -> bytes:
    """A safetensors file from which `WeightsFile` makes the weights `names` of the graphs, in this order.

    forms: folded networks that have them. names: a parameter's, with `TRANSPOSED` behind it where the graphs hold it
    so.
    """
    parameters, recipes, made = _parameters(forms), {}, {}
    for folded in forms:
        recipes |= folded.recipes
        made |= folded.tensors
    chosen, tensors = {}, {}
    for name in names:
        parameter = name.removesuffix(TRANSPOSED)
        recipe = recipes.get(parameter) or Recipe(parameter)
        chosen[name] = replace(recipe, transpose=recipe.transpose ^ name.endswith(TRANSPOSED))
        keys = [key for key in (recipe.base, recipe.up, recipe.down, *recipe.stack) if key]
        tensors |= {key: made.get(key, parameters.get(key)) for key in keys}
    kept = {key: _smallest(tensor) for key, tensor in sorted(tensors.items())}
    return save(kept, metadata=metadata(chosen))


def weight_bytes(forms: Sequence[Folded], names: Iterable[str]) -> dict[str, int]:
    """Bytes of each weight as the graphs hold it: float32."""
    parameters = _parameters(forms)
    return {name: 4 * parameters[name.removesuffix(TRANSPOSED)].numel() for name in names}


def _parameters(forms: Sequence[Folded]) -> dict[str, Tensor]:
    return {
        name: parameter
        for folded in forms
        for name, parameter in folded.network.named_parameters(remove_duplicate=False)
    }


def _smallest(tensor: Tensor) -> Tensor:
    """fp16 if that holds every value exactly (matrices of a checkpoint are rounded to it), else as it is."""
    tensor = tensor.detach().cpu()
    half = tensor.to(torch.float16)
    # Vectors are a hundredth of the bytes: they stay fp32 for whoever reads the file.
    exact = tensor.ndim >= 2 and torch.equal(half.to(tensor.dtype), tensor)
    return (half if exact else tensor).contiguous()
