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


def _spatial_bottleneck(op: Op, y: Tensor, x: Tensor) -> Tensor:
    """y + up GELU(middle * GELU(down x)) of tokens (N, h, w, in): as `bottleneck`, with a convolution in its middle.

    Tensors: down (n, in), middle (n, n, k, k) with k odd, up (out, n).
    """
    middle = op.tensors["middle"]
    z = F.gelu(F.linear(x, op.tensors["down"])).permute(0, 3, 1, 2)
    z = F.gelu(F.conv2d(z, middle, padding=middle.shape[-1] // 2)).permute(0, 2, 3, 1)
    return y + F.linear(z, op.tensors["up"])


def _const_attention(op: Op, y: Tensor, x: Tensor) -> Tensor:
    """y + read softmax(score x), the softmax over the m constants of each head.

    Tensors: score (heads * m, in), the keys with the queries' projection and the scale in them; read (out, heads * m),
    the values with the output's projection in them. Attribute: heads. Source: attention (arXiv 1706.03762) to what
    does not depend on x.
    """
    scores = F.linear(x, op.tensors["score"]).unflatten(-1, (op.attributes["heads"], -1))
    return y + F.linear(scores.softmax(-1).flatten(-2), op.tensors["read"])


# kind -> (op, the slot's own output, the stream's input) -> output.
OPS: Mapping[str, Callable[[Op, Tensor, Tensor], Tensor]] = {
    "low_rank_add": _low_rank_add,
    "read_out": _read_out,
    "bottleneck": _bottleneck,
    "spatial_bottleneck": _spatial_bottleneck,
    "const_attention": _const_attention,
}
