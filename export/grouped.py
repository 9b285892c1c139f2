"""One frozen layer that several groups adapt, their inputs stacked: y_g = (W + scale * up_g down_g) x_g + b."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.network.executor import Fork
from training.network.slots import LowRankProduct, Op, Weights

__all__ = ["Factors", "factors_of", "grouped"]


@dataclass(frozen=True, eq=False)
class Factors:
    """What the groups have in common, by role, and what each of them adds: products over one base."""

    common: Mapping[str, Tensor]
    products: tuple[LowRankProduct, ...]

    @property
    def scale(self) -> float:
        return self.products[0].scale

    def tensors(self, order: Sequence[int]) -> dict[str, Tensor]:
        """By role: what is common, and for the groups in this order `down` (g, in, r) and `up` (g, r, out)."""
        chosen = [self.products[number] for number in order]
        up, down = (torch.stack([getattr(one, role).T for one in chosen]) for role in ("up", "down"))
        return {**self.common, "up": up, "down": down}


def factors_of(found: Sequence[Weights | Op]) -> Factors | None:
    """None unless all of them are products of one base, one scale and one rank, and the same but for these."""
    products = [one.product for one in found if isinstance(one, Weights) and one.product]
    if len(products) < len(found) or len({_kind(one) for one in found if isinstance(one, Weights)}) > 1:
        return None
    first = found[0]
    assert isinstance(first, Weights)
    return Factors({**first.tensors, "weight": products[0].base}, tuple(products))


def grouped(tensors: Mapping[str, Tensor], scale: float, x: Tensor, groups: int, fork: Fork) -> Tensor:
    """Stacked tokens (..., in) before the fork -> (groups * N, ..., out), with tensors as `Factors.tensors`."""
    # The wide product before the fork: what has not parted yet is computed once.
    y = fork(F.linear(x, tensors["weight"], tensors.get("bias")))
    z = fork(x).reshape(groups, -1, x.shape[-1])
    # The scale goes on the small factor, as in training: cheaper than on the wide output.
    return y + (z @ tensors["down"] * scale @ tensors["up"]).reshape(y.shape)


def _kind(one: Weights) -> tuple:
    """Equal where all but the factors is the same."""
    assert one.product
    common = {role: tensor for role, tensor in one.tensors.items() if role != "weight"} | {"weight": one.product.base}
    same = tuple((role, tensor.data_ptr()) for role, tensor in sorted(common.items()))
    return same, one.product.scale, one.product.up.shape
