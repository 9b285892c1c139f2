"""Adapt, then fine-tune, and the LV-Adapter on top ("Effective Adaptation in Multi-Task Co-Training for Unified
Autonomous Driving", Liang et al., arXiv 2209.08953).

A run has two phases, whatever its rule: the backbone is frozen and in eval mode while adapters and decoders learn, then
all is trained at a smaller rate. Decoders read each stage through an adapter that all tasks share, 1x1 - 3x3 - 1x1:

    F' = F + up GELU(conv GELU(down F))

`lv_adapter` lets every task attend from there to tokens E_t (m, w) of its own, in heads of d channels:

    F'' = F' + g_t softmax(F' W_q (E_t W_k)^T / sqrt d) (E_t W_v) W_o

The backbone itself never sees either, so stages run once for all tasks. Keys and values are constants once it is
trained; W_q is folded into the keys and W_o into the values. Counts, with C channels a stage: 2 C (C / ratio)
+ 9 (C / ratio)² for all tasks; for each task 2 C d' + 2 w d' + 1 a stage, d' = heads * d, and m w once.

Published: the order of pretraining (given here), adapting and fine-tuning, adapters over several scales, attention from
pixels to what a text encoder says of a task. Ours: shapes, places, GELU, no biases, gates that begin at zero (as `up`
does), how long the phases are. There is no text encoder and no caption here: the tokens are learned vectors that begin
as a random orthogonal set, the same number whatever the task's classes, and nothing aligns them with labels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.base import Base, Change, Common, Method, MethodSpec
from training.methods.options import whole_number
from training.network.changes import factors
from training.network.layout import Layout, Stream
from training.network.ops import apply
from training.network.slots import Op, Slot, Weights
from training.phases import Phase

__all__ = ["ADAPT_FINETUNE", "LV_ADAPTER"]


@dataclass(frozen=True)
class Options:
    """ratio: of a stage's channels to its adapter's. adapt: part of the run's steps before the backbone is trained.
    fine_tune_rate: of the learning rates, from then on.
    """

    ratio: int = 4
    adapt: float = 0.4
    fine_tune_rate: float = 0.1

    def __post_init__(self) -> None:
        whole_number("ratio", self.ratio)
        for name in ("adapt", "fine_tune_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed is more than 0, up to 1")


@dataclass(frozen=True)
class LVOptions(Options):
    """orthogonal_tokens: how many vectors a task attends to; they begin random and orthogonal, in place of a text's.
    token_width: of each. heads: of the attention, of head_width channels each.
    """

    orthogonal_tokens: int = 16
    token_width: int = 512
    heads: int = 4
    head_width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("orthogonal_tokens", "token_width", "heads", "head_width"):
            whole_number(name, getattr(self, name))
        if self.orthogonal_tokens > self.token_width:
            raise ConfigError(
                f"orthogonal_tokens is {self.orthogonal_tokens}, token_width {self.token_width}: no more vectors than "
                "their width are orthogonal; ask for fewer"
            )


class MultiScale(Change):
    """One convolutional adapter of a stage, for whoever reads it."""

    def __init__(self, width: int, tasks: Sequence[str], ratio: int) -> None:
        super().__init__()
        self.tasks = frozenset(tasks)
        n = max(1, width // ratio)
        self.down, self.up = factors(torch.empty(width, width), n)
        self.middle = nn.Parameter(torch.empty(n, n, 3, 3))
        nn.init.kaiming_uniform_(self.middle, a=math.sqrt(5))

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        # The trunk goes on as it is; all tasks leave it here, with the same.
        trunk = x.unflatten(0, (len(streams), -1))[0]
        read = apply(self._op(base), trunk, trunk)
        return torch.cat([read if stream.tooth else trunk for stream in streams])

    def version(self, stream: Stream) -> str | None:
        return "" if stream.tooth else None

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights | Op:
        return _frozen(self._op(base), self.down.dtype) if stream.tooth else Weights(base)

    def owners(self) -> Mapping[str, frozenset[str]]:
        return dict.fromkeys(("down", "middle", "up"), self.tasks)

    def _op(self, base: Base) -> Op:
        return Op("spatial_bottleneck", base, {"down": self.down, "middle": self.middle, "up": self.up})


class Tokens(Common):
    """What each task attends to: (orthogonal_tokens, token_width), with entries of about 1."""

    def __init__(self, tasks: Sequence[str], options: LVOptions) -> None:
        super().__init__()
        size = options.orthogonal_tokens, options.token_width
        drawn = {task: nn.init.orthogonal_(torch.empty(size), gain=math.sqrt(size[1])) for task in tasks}
        self.tokens = nn.ParameterDict({task: nn.Parameter(tokens) for task, tokens in drawn.items()})

    def owners(self) -> Mapping[str, frozenset[str]]:
        return {f"tokens.{task}": frozenset({task}) for task in self.tokens}


class Attention(Change):
    """A task's attention to its tokens in `common`."""

    def __init__(self, common: Tokens, width: int, options: LVOptions) -> None:
        super().__init__()
        self._common = [common]  # not a submodule: the method holds it
        self.heads, inner = options.heads, options.heads * options.head_width
        shapes = {"query": (inner, width), "key": (inner, options.token_width), "value": (inner, options.token_width)}
        shapes |= {"out": (width, inner)}
        self.weights = nn.ModuleDict(
            {
                task: nn.ParameterDict({role: nn.init.xavier_uniform_(torch.empty(s)) for role, s in shapes.items()})
                for task in common.tokens
            }
        )
        self.gate = nn.ParameterDict({task: nn.Parameter(torch.zeros(1)) for task in common.tokens})

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        parts = zip(x.unflatten(0, (len(streams), -1)), streams, strict=True)
        return torch.cat([self._add(base, part, stream) for part, stream in parts])

    def version(self, stream: Stream) -> str | None:
        return stream.tasks[0] if stream.tooth else None

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights | Op:
        if not stream.tooth:
            return Weights(base)
        task = stream.tasks[0]
        return _frozen(self._op(base, task, lambda tensor: tensor.double()), self.gate[task].dtype)

    def owners(self) -> Mapping[str, frozenset[str]]:
        own = {f"gate.{task}": frozenset({task}) for task in self.gate}
        roles = ("query", "key", "value", "out")
        return own | {f"weights.{task}.{role}": frozenset({task}) for task in self.gate for role in roles}

    def _add(self, base: Base, x: Tensor, stream: Stream) -> Tensor:
        return apply(self._op(base, stream.tasks[0], lambda tensor: tensor), x, x) if stream.tooth else x

    def _op(self, base: Base, task: str, cast: Callable[[Tensor], Tensor]) -> Op:
        own: Any = self.weights[task]
        query, key, value, out = (cast(own[role]) for role in ("query", "key", "value", "out"))
        tokens, h = cast(self._common[0].tokens[task]), self.heads
        keys, values = ((tokens @ part.T).unflatten(-1, (h, -1)).transpose(0, 1) for part in (key, value))
        # (h, m, d) of the tokens with (h, d, C) of the queries, and (h, C, d) of the output.
        keys = keys / math.sqrt(keys.shape[-1]) @ query.unflatten(0, (h, -1))
        values = out.unflatten(-1, (h, -1)).transpose(0, 1) @ values.transpose(1, 2)
        folded = {"score": keys.flatten(0, 1), "read": cast(self.gate[task]) * values.transpose(0, 1).flatten(1)}
        return Op("const_attention", base, folded, {"heads": h})


def _frozen(op: Op, dtype: torch.dtype) -> Op:
    return replace(op, tensors={role: tensor.detach().to(dtype) for role, tensor in op.tensors.items()})


class Phased(Method):
    """A method whose runs adapt and then fine-tune."""

    options: Options

    def phases(self, steps: int) -> Sequence[Phase]:
        adapt = round(self.options.adapt * steps)
        return [
            Phase("adapt", adapt, lambda name: not name.startswith("backbone.")),
            Phase("fine-tune", steps - adapt, rate=self.options.fine_tune_rate),
        ]


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    common = Tokens(tree.tasks, options) if isinstance(options, LVOptions) else None
    changes: dict[str, Change] = {}
    for slot in backbone.slots:
        width = backbone.widths[slot.stage]
        if slot.kind == "tap":
            changes[slot.name] = MultiScale(width, tree.tasks, options.ratio)
        elif slot.kind == "after_tap" and common and isinstance(options, LVOptions):
            changes[slot.name] = Attention(common, width, options)
    layout = Layout(tree, teeth="tap", tap=tap)
    method = Phased(backbone, layout, changes, lambda slot, role: True, common=common)
    method.options = options
    return method


ADAPT_FINETUNE = MethodSpec(
    build=build,
    options=Options,
    tree="shared",
    kind="adapters",
    source="arXiv 2209.08953",
    trains="first an adapter behind each stage, shared by all tasks; then, at a tenth of the rate, the backbone too",
    folds="stages run once; a convolutional adapter stays behind each",
)
LV_ADAPTER = replace(
    ADAPT_FINETUNE,
    options=LVOptions,
    trains="as adapt_finetune, and attention from each stage to a task's own learned tokens (no text encoder)",
    folds="as adapt_finetune; the attention's keys and values become constants",
)
