"""Free Sinewich (arXiv 2603.21111), its frequencies constant: tasks read one low-rank matrix at their own frequencies.

    W_t = W + scale * lowpass(sin(w_t (up core down))),    w_t = gain (tanh theta_t + offset)

Published: first the product of the three, then the sine of each of its numbers, then a low pass over the matrix (7 by
7, Gaussian, sigma 1); frequencies within a band; in the last block of a stage alone; ranks 32 and 64. A clock net makes
w_t of a token of the task: if that is the token which was learnt, the net is a constant, one number theta_t; if it is
what attention makes of it, w_t depends on the photo. Which it is we could not find out: this is the constant form.
Ours: LoRA in all other blocks and at qkv, teeth as MTLoRA has them, and in a stage's last block a frequency for the
trunk as for the tasks; core (the paper's convolutional prior) the identity at the start, `up` zero; a band of 5 to 15,
over which the frequencies are spread at the start; merging is not trained, for the published count, 6.53 M at rank 64,
has no room for it: ours is 6.57 M with MTLoRA's decoders, where the paper's share one base. Counts: LoRA's, in each
layer with a sine r² more, and a number for each task and the trunk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.base import Change, Method, MethodSpec
from training.methods.comb import comb, lora
from training.methods.options import LowRankOptions, all_shared, ranks_of
from training.network.changes import Update, factors
from training.network.layout import Stream
from training.network.slots import Slot

__all__ = ["SINEWICH"]

TAPS, SIGMA = 7, 1.0


@dataclass(frozen=True)
class Options(LowRankOptions):
    """gain, offset: the frequencies are within gain * (offset - 1) and gain * (offset + 1). sine_scale: of what the
    sine adds; scale and dropout are of the adapters elsewhere."""

    merge: Literal["train", "lora", "frozen"] = "frozen"
    rank: int | list[int] = 64
    gain: float = 5.0
    offset: float = 2.0
    sine_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        all_shared(self)
        if not (self.gain > 0 and self.offset >= 1):
            raise ConfigError(
                f"gain is {self.gain}, offset {self.offset}; gain must be above 0 and offset 1 or more, so that no "
                "frequency is below 0"
            )


class Sine(Update):
    """See above."""

    def __init__(self, options: Options, weight: Tensor, streams: Sequence[Stream], rank: int) -> None:
        super().__init__(streams)
        self.gain, self.offset, self.scale = options.gain, options.offset, options.sine_scale
        self.down, self.up = factors(weight, rank)
        self.core = nn.Parameter(torch.eye(rank))
        spread = torch.linspace(-1, 1, len(streams))
        self.theta = nn.ParameterList(one.reshape(1) for one in spread)

    def update(self, weight: Tensor, number: int) -> Tensor:
        up, core, down, theta = (t.to(weight.dtype) for t in (self.up, self.core, self.down, self.theta[number]))
        frequency = self.gain * (theta.tanh() + self.offset)
        return self.scale * lowpass((frequency * (up @ core @ down)).sin())

    def still(self, number: int) -> bool:
        return not self.up.is_meta and not (self.up.any() and self.core.any() and self.down.any())

    def owners(self) -> Mapping[str, frozenset[str]]:
        own = {f"theta.{i}": frozenset(stream.tasks) for i, stream in enumerate(self.streams)}
        everyone = frozenset(task for stream in self.streams for task in stream.tasks)
        return own | dict.fromkeys(("down", "up", "core"), everyone)


def lowpass(matrix: Tensor) -> Tensor:
    """A Gaussian over (out, in), as if there were zeros around it."""
    places = torch.arange(TAPS, dtype=matrix.dtype, device=matrix.device) - TAPS // 2
    taps = (-places.square() / (2 * SIGMA**2)).exp()
    taps = taps / taps.sum()
    image = F.conv2d(matrix[None, None], taps.view(1, 1, -1, 1), padding=(TAPS // 2, 0))
    return F.conv2d(image, taps.view(1, 1, 1, -1), padding=(0, TAPS // 2))[0, 0]


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    ranks, elsewhere = ranks_of(options.rank, backbone), lora(backbone, options)

    def make(slot: Slot, weight: Tensor, streams: Sequence[Stream]) -> Change | None:
        rank = ranks[slot.stage]
        if rank and len(streams) > 1:
            return Sine(options, weight, streams, rank)
        return elsewhere(slot, weight, streams)

    return comb(make, backbone, tree, options, tap)


SINEWICH = MethodSpec(
    build=build,
    options=Options,
    tree="shared",
    kind="low rank",
    source="arXiv 2603.21111, its frequencies constant",
    trains="adapters that all tasks share, at the ends of stages read at a frequency of each task's; by default patch "
    "embedding, norms and position tables too",
    folds="wholly: the second half of each stage's last block for each task",
)
