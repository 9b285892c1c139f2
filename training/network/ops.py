"""The operations that stay in a graph: a closed set, each one function of tensors that a graph can hold.

A method names one by its kind and gives the tensors (`slots.Op`); training, folding, counting and the compiler run the
same function, so a new kind is a function and a line here.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from training.network.slots import Op, Slot, compute

__all__ = ["OPS", "apply", "dense"]


def dense(slot: Slot, op: Op, x: Tensor) -> Tensor:
    """The slot's own operation under `op`, on the input of its source: all of it, or its first `reads` channels."""
    return compute(slot, op.base, x[..., : op.attributes["reads"]] if "reads" in op.attributes else x)


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

    Tensors: up (out, n); shift (out), if there is one. Attribute: reads, the channels that it does read. Several
    read-outs of one stream share the dense product. Source: VMT-Adapter (arXiv 2312.08733).
    """
    return y + F.linear(x[..., op.attributes["reads"] :], op.tensors["up"], op.tensors.get("shift"))


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


def _rows(op: Op, y: Tensor, x: Tensor) -> Tensor:
    """The same tokens for every photo, (N, T, C). Tensors: rows (T, C)."""
    return op.tensors["rows"].expand(x.shape[0], -1, -1)


def _row(op: Op, y: Tensor, x: Tensor) -> Tensor:
    """What the prompt of this number asks for, of (M, T, ...). Attribute: number; None = 0 everywhere."""
    number = op.attributes["number"]
    return torch.zeros_like(y[:, 0]) if number is None else y[:, number]


def _linear(op: Op, y: Tensor, x: Tensor) -> Tensor:
    """weight y. Tensors: weight (out, in)."""
    return F.linear(y, op.tensors["weight"])


def _scale(op: Op, y: Tensor, x: Tensor) -> Tensor:
    """y times a number. Tensors: scale (1)."""
    return y * op.tensors["scale"]


def _dyn_depthwise(op: Op, y: Tensor, x: Tensor) -> Tensor:
    """y + scale * up (K * down x), where K is a 3 x 3 kernel a channel that is made of the mean of down x.

    x is a map (N, h, w, in) or windows (M, prompts + side², in), each with a kernel of its own; the prompts, or prompts
    alone, stay as they are in y. Tensors: down (r, in), up (out, r); generate (9 r, r), generate_bias, std and mean
    (9 r), see `_kernels`; norm and norm_bias (in) before `down`, if there are any. Attributes: scale, prompts.
    Source: TADFormer (arXiv 2501.04293). The convolution is a sum of nine shifted products: engines know none whose
    weights are computed.
    """
    t, prompts = op.tensors, op.attributes["prompts"]
    windows = x.ndim == 3
    if windows:
        if x.shape[1] == prompts:
            return y
        side = math.isqrt(x.shape[1] - prompts)
        x = x[:, prompts:].unflatten(1, (side, side))
    if "norm" in t:
        x = F.layer_norm(x, t["norm"].shape, t["norm"], t["norm_bias"])
    z = F.linear(x, t["down"])
    update = F.linear(_convolved(z, _kernels(op, z.mean((1, 2)))) * op.attributes["scale"], t["up"])
    return y + (F.pad(update.flatten(1, 2), (0, 0, prompts, 0)) if windows else update)


def _convolved(z: Tensor, kernels: Tensor) -> Tensor:
    """z (M, h, w, r) through kernels (M, r, 9), zeros around it: three shifts to the side, three of them all down."""
    _, h, w, rank = z.shape
    padded = F.pad(z, (0, 0, 1, 1, 1, 1))
    aside = torch.cat([padded[:, :, column : column + w] for column in range(3)], -1)
    rows = kernels.unflatten(-1, (3, 3)).permute(2, 0, 3, 1).flatten(2)[:, :, None, None]
    sums = [aside[:, row : row + h] * rows[row] for row in range(3)]
    return (sums[0] + sums[1] + sums[2]).unflatten(-1, (3, rank)).sum(-2)


def _kernels(op: Op, mean: Tensor) -> Tensor:
    """(M, r) -> (M, r, 9): a linear layer, each kernel brought to mean 0 and deviation 1, then to learnt ones.

    Source: filter normalisation (arXiv 2104.14107).
    """
    t, shape = op.tensors, (mean.shape[-1], 9)
    kernels = F.linear(mean, t["generate"], t["generate_bias"]).unflatten(-1, shape)
    kernels = kernels - kernels.mean(-1, keepdim=True)
    deviation = (kernels.square().sum(-1, keepdim=True) / 8).sqrt()
    return kernels / (deviation + 1e-10) * t["std"].view(shape) + t["mean"].view(shape)


# kind -> (op, the slot's own output, the stream's input) -> output.
OPS: Mapping[str, Callable[[Op, Tensor, Tensor], Tensor]] = {
    "low_rank_add": _low_rank_add,
    "read_out": _read_out,
    "bottleneck": _bottleneck,
    "spatial_bottleneck": _spatial_bottleneck,
    "const_attention": _const_attention,
    "gate": _gate,
    "rows": _rows,
    "row": _row,
    "linear": _linear,
    "scale": _scale,
    "dyn_depthwise": _dyn_depthwise,
}
