"""Polyhistor and Polyhistor-Lite (arXiv 2210.03265): adapters whose weights are made from a code of the task.

Behind each half of a block, before it is added to what it read, an adapter a task: y = x + up GELU(down x). Two small
generators, linear in the task's code e_t, make its matrices as products of a narrow inner width b:

    K_t = P_t Q_t      P_t = H_p e_t (n, b)      Q_t = H_q e_t (b, C)

`polyhistor` has such generators for each adapter; they read the codes that all of them share. In `polyhistor_lite` all
adapters have one pair of templates, K_down,t (n, C_1) and K_up,t (C_1, n), which kernels S_l (m, m) of each adapter
stretch to its width m C_1 as Kronecker products S_l (x) K_t. Counts on Swin-T, with T tasks and p places in a block:
lite 2 k b (n + C_1) + T k + 468 p, where 468 = 2 sum of m² over all blocks; the other 4,416 p * 2 k b (1 + 1 / ratio)
+ T k.

Published: codes, generators in factors, templates and kernels by layer, a frozen backbone. Ours, for there is no
public code: the sizes k, b and n, the places, kernels apart for down and up, no biases, which parts have generators of
their own, C_1 as the greatest width that divides all others, and the start: S_l is the identity and P of `up` zero, so
that an adapter begins as nothing and its other factor has a gradient.

When a model is folded the generators have run: what is left are two constant matrices an adapter and task.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.methods.base import Base, Change, Common, Method, MethodSpec
from training.methods.options import one_of, whole_number
from training.network.layout import Layout, Stream
from training.network.slots import Op, Slot, SlotKind

__all__ = ["POLYHISTOR", "POLYHISTOR_LITE"]

PLACES: dict[str, frozenset[SlotKind]] = {
    "both": frozenset({"after_attn", "after_mlp"}),
    "after_attn": frozenset({"after_attn"}),
    "after_mlp": frozenset({"after_mlp"}),
}


@dataclass(frozen=True)
class Options:
    """ratio: of a width to what its adapters are narrowed to. code: length of a task's code, k. inner: width of the
    product that makes a matrix, b. place: where adapters sit in a block.
    """

    ratio: int = 4
    code: int = 32
    inner: int = 8
    place: Literal["both", "after_attn", "after_mlp"] = "both"

    def __post_init__(self) -> None:
        for name in ("ratio", "code", "inner"):
            whole_number(name, getattr(self, name))
        one_of("place", self.place, tuple(PLACES))


@dataclass(frozen=True)
class LiteOptions(Options):
    """share_scaling: whether one kernel stretches both matrices of an adapter."""

    share_scaling: bool = False


class Generator(nn.Module):
    """From a code (k,) the matrices `down` (n, width) and `up` (width, n) of an adapter."""

    def __init__(self, width: int, options: Options) -> None:
        super().__init__()
        k, b, self.n, self.width = options.code, options.inner, max(1, width // options.ratio), width
        # With codes of variance 1, entries of P have 1, and those of `down` 1 / width.
        self.down_p = nn.Parameter(torch.randn(self.n * b, k) / math.sqrt(k))
        self.down_q = nn.Parameter(torch.randn(b * width, k) / math.sqrt(k * b * width))
        self.up_p = nn.Parameter(torch.zeros(width * b, k))
        self.up_q = nn.Parameter(torch.randn(b * self.n, k) / math.sqrt(k * b * self.n))

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """In the type of `code`."""
        down_p, down_q, up_p, up_q = (part.to(code.dtype) @ code for part in self.parameters())
        down = down_p.view(self.n, -1) @ down_q.view(-1, self.width)
        return down, up_p.view(self.width, -1) @ up_q.view(-1, self.n)


class Codes(Common):
    """A code for each task, and in the lite form the generator of the template."""

    def __init__(self, tasks: Sequence[str], width: int, options: Options) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.codes = nn.ParameterDict({task: nn.Parameter(torch.randn(options.code)) for task in tasks})
        self.template = Generator(width, options) if isinstance(options, LiteOptions) else None

    def owners(self) -> Mapping[str, frozenset[str]]:
        own = {f"codes.{task}": frozenset({task}) for task in self.tasks}
        return {name: own.get(name, frozenset(self.tasks)) for name, _ in self.named_parameters()}


class Generated(Change):
    """An adapter a task, from the codes of `common`: by a generator of its own, or its template and kernels here."""

    def __init__(self, common: Codes, width: int, options: Options) -> None:
        super().__init__()
        self._common = [common]  # not a submodule: the method holds it
        self.generator = None if common.template else Generator(width, options)
        self.scale_down = self.scale_up = None
        if common.template and isinstance(options, LiteOptions):
            times = width // common.template.width
            self.scale_down = nn.Parameter(torch.eye(times))
            self.scale_up = None if options.share_scaling else nn.Parameter(torch.eye(times))

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        pairs = [self._templates(self._code(stream)) for stream in streams]
        down, up = (torch.stack(parts).transpose(1, 2)[:, None] for parts in zip(*pairs, strict=True))
        scale_down, scale_up = self._scales()
        # The Kronecker products are never made: x as rows of C_1 channels, first the template, then the kernel.
        z = x.reshape(len(streams), -1, x.shape[-1] // down.shape[-2], down.shape[-2])
        z = F.gelu(_mixed(scale_down, z @ down))
        return x + _mixed(scale_up, z @ up).reshape(x.shape)

    def version(self, stream: Stream) -> str:
        return stream.tasks[0]

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Op:
        code = self._code(stream)
        made = zip(("down", "up"), self._templates(code.double()), self._scales(), strict=True)
        whole = {role: kernel if scale is None else torch.kron(scale.double(), kernel) for role, kernel, scale in made}
        return Op("bottleneck", base, {role: tensor.detach().to(code.dtype) for role, tensor in whole.items()})

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {name: frozenset(self._common[0].tasks) for name, _ in self.named_parameters()}

    def _code(self, stream: Stream) -> Tensor:
        return self._common[0].codes[stream.tasks[0]]

    def _templates(self, code: Tensor) -> tuple[Tensor, Tensor]:
        generator = self.generator or self._common[0].template
        assert generator is not None
        return generator(code)

    def _scales(self) -> tuple[Tensor | None, Tensor | None]:
        return self.scale_down, self.scale_down if self.scale_up is None else self.scale_up


def _mixed(scale: Tensor | None, x: Tensor) -> Tensor:
    """(g, tokens, m, n): rows mixed by a kernel (m, m)."""
    return x if scale is None else scale.to(x.dtype) @ x


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    common = Codes(tree.tasks, math.gcd(*backbone.widths), options)
    changes: dict[str, Change] = {
        slot.name: Generated(common, backbone.widths[slot.stage], options)
        for slot in backbone.slots
        if slot.kind in PLACES[options.place]
    }
    return Method(backbone, Layout(tree, tap=tap), changes, common=common)


POLYHISTOR = MethodSpec(
    build=build,
    options=Options,
    tree="independent",
    kind="adapters",
    source="arXiv 2210.03265; there is no public code",
    trains="a code for each task, and generators that make its adapters behind both halves of a block from it",
    folds="generators become constants; an adapter a task stays behind each half of a block",
)
POLYHISTOR_LITE = replace(
    POLYHISTOR,
    options=LiteOptions,
    trains="a code for each task, one generator of a template, and kernels that stretch it to every width",
)
