"""VMT-Adapter and its Lite form (arXiv 2312.08733): one adapter beside each MLP, which tasks read out in their own way.

With h what the MLP reads and z = GELU(W_d h + c), n wide:

    trunk            x + MLP(h) + a (W_u z + u)
    task, at taps    x + MLP(h) + a (W_u (g_t * z + b_t) + u)

What tasks read goes no further, so the trunk runs once, however many tasks there are. In the Lite form W_u is
diag(s) W_d^T. Counts, with C channels in each of d blocks: sum of d (2 C n + n + C) and 2 n T a stage; Lite
sum of d (C n + n + 2 C) and as much.

Published: the place beside the MLP, scale and shift of each task between the projections, W_d shared with W_u in the
Lite form, a frozen trunk. Ours, for there is no public code: GELU, n = C / ratio, a as a constant, taps at the last
block of each stage alone (nobody would read the others), biases, frozen norms, s, and the start: W_u, or s, is zero,
g_t one and b_t zero.

As z has the MLP's own activation, adapter and MLP are one wider MLP: W_d stands below fc1's weight. In fc2 the
products of both are one where the trunk goes on alone. At the taps W_u diag(g_t) and its bias stay, a product a task
over one z; the MLP's own is computed once. A depthwise convolution between fc1 and fc2 leaves z as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.base import Base, Change, Method, MethodSpec
from training.methods.options import whole_number
from training.network.changes import factors
from training.network.layout import Layout, Stream
from training.network.ops import apply, dense
from training.network.slots import Op, Slot, Weights, compute

__all__ = ["VMT", "VMT_LITE"]


@dataclass(frozen=True)
class Options:
    """ratio: of a stage's channels to the adapter's width. scale: of what the adapter adds, a."""

    ratio: int = 4
    scale: float = 1.0

    def __post_init__(self) -> None:
        whole_number("ratio", self.ratio)
        if not self.scale > 0:
            raise ConfigError(f"scale is {self.scale}; allowed is what is more than 0")


class Beside(Change):
    """At fc1: W_d and its bias below the layer's own."""

    def __init__(self, weight: Tensor, tasks: Sequence[str], ratio: int) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.down, _ = factors(weight, max(1, weight.shape[1] // ratio))
        self.bias = nn.Parameter(torch.zeros(len(self.down)))

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        return torch.cat([compute(slot, base, x), F.linear(x, self.down, self.bias)], -1)

    def version(self, stream: Stream) -> str:
        return ""

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        own = {"weight": self.down, "bias": self.bias}
        return Weights({role: torch.cat([tensor, own[role].detach()]) for role, tensor in base.items()})

    def owners(self) -> Mapping[str, frozenset[str]]:
        return dict.fromkeys(("down", "bias"), frozenset(self.tasks))


class Through(Change):
    """At a depthwise convolution behind fc1: z passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        own, z = x.split([x.shape[1] - self.width, self.width], 1)
        return torch.cat([compute(slot, base, own), z], 1)

    def version(self, stream: Stream) -> str:
        return ""

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights:
        weight, bias = base["weight"], base["bias"]
        same = weight.new_zeros(self.width, *weight.shape[1:])
        same[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = 1
        return Weights({"weight": torch.cat([weight, same]), "bias": torch.cat([bias, bias.new_zeros(self.width)])})

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {}


class ReadOut(Change):
    """At fc2: the up-projection of the trunk, and one for each of `tasks` that leave there.

    tied: whether W_u is made from the W_d of `beside`.
    """

    def __init__(self, weight: Tensor, beside: Beside, tasks: Sequence[str], scale: float, *, tied: bool) -> None:
        super().__init__()
        self.scale = scale
        self._beside = [beside]  # not a submodule: it is fc1's
        outputs, n = len(weight), len(beside.down)
        self.up = nn.Parameter(torch.zeros(outputs) if tied else torch.zeros(outputs, n))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gain = nn.ParameterDict({task: nn.Parameter(torch.ones(n)) for task in tasks})
        self.shift = nn.ParameterDict({task: nn.Parameter(torch.zeros(n)) for task in tasks})

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        ops = [self._op(base, stream, self.up.dtype) for stream in streams]
        parts = x.unflatten(0, (len(streams), -1))
        y = dense(slot, ops[0], parts[0])  # all of them read the same here
        return torch.cat([apply(op, y, part) for op, part in zip(ops, parts, strict=True)])

    def version(self, stream: Stream) -> str:
        return stream.tasks[0] if stream.tooth else ""

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights | Op:
        op = self._op(base, stream, torch.float64)
        if self.gain:
            return replace(op, tensors={role: t.detach().to(base["weight"].dtype) for role, t in op.tensors.items()})
        weight, bias = torch.cat([base["weight"], op.tensors["up"]], 1), base["bias"] + op.tensors["shift"]
        return Weights({role: t.detach().to(base["weight"].dtype) for role, t in (("weight", weight), ("bias", bias))})

    def owners(self) -> Mapping[str, frozenset[str]]:
        own = {f"{part}.{task}": frozenset({task}) for part in ("gain", "shift") for task in self.gain}
        return own | dict.fromkeys(("up", "bias"), frozenset(self._beside[0].tasks))

    def _op(self, base: Base, stream: Stream, dtype: torch.dtype) -> Op:
        beside, up = self._beside[0], self.up.to(dtype)
        up = self.scale * (up if up.ndim == 2 else up[:, None] * beside.down.T.to(dtype))
        shift = self.scale * self.bias.to(dtype)
        if stream.tooth:
            task = stream.tasks[0]
            shift = shift + up @ self.shift[task].to(dtype)
            up = up * self.gain[task].to(dtype)
        reads = {"reads": base["weight"].shape[1]}
        return Op("read_out", base, {"up": up, "shift": shift}, reads, source=Stream(beside.tasks))


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap, *, tied: bool = False) -> Method:
    changes: dict[str, Change] = {}
    besides: dict[tuple[int, int | None], Beside] = {}
    for slot in backbone.slots:
        base, block = backbone.tensors(slot), (slot.stage, slot.block)
        if slot.kind == "fc1":
            changes[slot.name] = besides[block] = Beside(base["weight"], tree.tasks, options.ratio)
        elif slot.kind == "depthwise":
            changes[slot.name] = Through(len(besides[block].down))
        elif slot.kind == "fc2":
            teeth = tree.tasks if slot.last else ()
            changes[slot.name] = ReadOut(base["weight"], besides[block], teeth, options.scale, tied=tied)
    return Method(backbone, Layout(tree, teeth="fc2", tap=tap), changes)


VMT = MethodSpec(
    build=build,
    options=Options,
    tree="shared",
    kind="adapters",
    source="arXiv 2312.08733; there is no public code",
    trains="an adapter beside each MLP that all tasks share, and a scale and shift for each task at the ends of stages",
    folds="into a wider MLP; at the ends of stages an up-projection a task stays",
)
VMT_LITE = replace(VMT, build=partial(build, tied=True), trains="as vmt, with one matrix to narrow and to widen")
