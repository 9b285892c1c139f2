"""The operations that stay in a graph: a closed set, each one function of tensors that a graph can hold.

A method names one by its kind and gives the tensors (`slots.Op`); training, folding, counting and the compiler run the
same function, so a new kind is a function and a line here.
"""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from training.network.slots import Op, Slot, compute

__all__ = ["OPS", "apply", "dense"]


def dense(slot: Slot, op: Op, x: Tensor) -> Tensor:
    """The slot's own operation under `op`, on the input of its source."""
    if op.kind == "read_out":
        x = x[..., : op.base["weight"].shape[1]]
    return compute(slot, op.base, x)


def apply(op: Op, y: Tensor, x: Tensor) -> Tensor:
    """The slot's output: `y` as `dense` gives it, and what the kind adds to it of the stream's own input `x`."""
    return OPS[op.kind](op, y, x)


def _low_rank_add(op: Op, y: Tensor, x: Tensor) -> Tensor:
    """y + scale * up (down x). Tensors: down (r, in), up (out, r); attribute: scale.

    Source: MTLoRA (arXiv 2403.20320): what a task adds to the dense product of another stream.
    """
    return y + F.linear(F.linear(x, op.tensors["down"]) * op.attributes["scale"], op.tensors["up"])


def _read_out(op: Op, y: Tensor, x: Tensor) -> Tensor:
    """y + up z + bias, where z, the last channels of x, is what the slot's own weight does not read.

    Tensors: up (out, n); shift (out), if there is one. Several read-outs of one stream share the dense product.
    Source: VMT-Adapter (arXiv 2312.08733).
    """
    return y + F.linear(x[..., op.base["weight"].shape[1] :], op.tensors["up"], op.tensors.get("shift"))


def _bottleneck(op: Op, y: Tensor, x: Tensor) -> Tensor:
    """y + up GELU(down x + down_bias) + up_bias. Tensors: down (n, in), up (out, n), their biases if there are any.

    Source: adapters (arXiv 1902.00751), behind or beside the slot's own operation.
    """
    t = op.tensors
    return y + F.linear(F.gelu(F.linear(x, t["down"], t.get("down_bias"))), t["up"], t.get("up_bias"))


def _gate(op: Op, y: Tensor, x: Tensor) -> Tensor:
    """y + up (p * GELU(down x)), p = share * softmax(router m) + constant, where m is the mean of x (N, h, w, C).

    `down` (K n, C) and `up` (C, K n) are K bottlenecks side by side; p (N, K) weighs them for each photo. Tensors also:
    router (K, C); constant (K), if there is one. Attribute: share. Source: mixtures of adapters with a router each
    (Pilot, arXiv 2501.13985).
    """
    t = op.tensors
    weights = op.attributes["share"] * F.linear(x.mean((1, 2)), t["router"]).softmax(-1)
    if "constant" in t:
        weights = weights + t["constant"]
    hidden = F.gelu(F.linear(x, t["down"])).unflatten(-1, (len(t["router"]), -1)) * weights[:, None, None, :, None]
    return y + F.linear(hidden.flatten(-2), t["up"])


# kind -> (op, the slot's own output, the stream's input) -> output.
OPS: Mapping[str, Callable[[Op, Tensor, Tensor], Tensor]] = {
    "low_rank_add": _low_rank_add,
    "read_out": _read_out,
    "bottleneck": _bottleneck,
    "gate": _gate,
}
