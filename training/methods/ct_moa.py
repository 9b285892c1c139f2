"""CT-MoA, the cross-task mixture of adapters of Pilot (arXiv 2501.13985), on the maps that decoders read.

The backbone is frozen. At the end of every stage task t has a bottleneck A_t, and then reads those of all tasks:

    first    z_t = x + A_t(x)                             every A_t by its own task
    then     z_t = x + sum_j p_tj A_j(x)                  p alone, and decoders; the A_j are frozen

Published: adapters of tasks first, then a mixture across tasks with routers, and averages whose weights come from
Euclidean distances. Its federated clients and its language model have no counterpart here.

Ours, as the paper has no dense maps: A(x) = W_u GELU(W_d x) of C / 8 channels without biases; where they sit; how p is
made (`gate`); the mean of x over a map as what a router sees, and no choice of the best two; the two halves of a run.

    static     p_t = softmax(w_t), constants: one wide bottleneck in a graph
    dynamic    p_t = softmax(R_t mean(x)), for each photo: stays in a graph as it is
    fading     b times the second and 1 - b times the first; b falls from 1 to 0 in the last fifth of a run

Counts on Swin-T with four tasks: 783,360 of adapters, 23,040 of routers, 64 of constants.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.base import Base, Change, Method, MethodSpec
from training.methods.options import one_of
from training.network.changes import factors
from training.network.layout import Layout, Stream
from training.network.slots import Op, Slot, Weights
from training.phases import Phase

__all__ = ["CT_MOA"]


@dataclass(frozen=True)
class Options:
    """gate: see above. reduction: of channels inside an adapter. first: the part of a run that trains adapters.

    balance: times minus the entropy of a batch's mean p is added to the task's loss: 0 leaves tasks free to read one
    adapter alone. average: c > 0 replaces adapters, before they are mixed, by their means with weights that are as
    1 / (distance + c), the distance between two adapters' tensors; 0 leaves them as they are.
    """

    gate: Literal["static", "dynamic", "fading"] = "static"
    reduction: int = 8
    first: float = 0.5
    balance: float = 0.01
    average: float = 0.0

    def __post_init__(self) -> None:
        one_of("gate", self.gate, ("static", "dynamic", "fading"))
        if not (isinstance(self.reduction, int) and 1 <= self.reduction <= 1024):
            raise ConfigError(f"reduction is {self.reduction}; allowed are 1 to 1024")
        if not 0 < self.first < 1:
            raise ConfigError(f"first is {self.first}; it is a part of the run: allowed are values between 0 and 1")
        for name in ("balance", "average"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed are 0 (none) and more")


# What p consists of, in thousandths: one-hot on the task's own adapter, router, constants. Whole numbers, which no
# average over steps blurs; they lie in the state, so a checkpoint of any step holds what was in force.
Parts = tuple[int, int, int]
OWN: Parts = (1000, 0, 0)
ROUTED: Parts = (0, 1000, 0)
CONSTANT: Parts = (0, 0, 1000)


class Mixture(Change):
    """The adapters of all tasks at the end of a stage, side by side, and what weighs them for each task."""

    parts: Tensor

    def __init__(self, width: int, tasks: Sequence[str], options: Options) -> None:
        super().__init__()
        self.tasks, count = tuple(tasks), len(tasks)
        # All begin as the same one, so that they can be averaged.
        down, up = factors(torch.empty(width, width), max(1, width // options.reduction))
        self.down = nn.Parameter(down.detach().repeat(count, 1))
        self.up = nn.Parameter(up.detach().repeat(1, count))
        routed = tasks if options.gate != "static" else ()
        fixed = tasks if options.gate != "dynamic" else ()
        self.router = nn.ParameterDict({task: nn.Parameter(torch.zeros(count, width)) for task in routed})
        self.constant = nn.ParameterDict({task: nn.Parameter(torch.zeros(count)) for task in fixed})
        # What does not train is what a run ends with.
        self.end = CONSTANT if fixed else ROUTED
        self.register_buffer("parts", torch.tensor(self.end))
        self.seen: dict[str, Tensor] = {}  # the batch's mean p, until it is asked for

    def forward(self, slot: Slot, base: Base, x: Tensor, streams: Sequence[Stream]) -> Tensor:
        maps = list(x.unflatten(0, (len(streams), -1)))
        # Teeth leave here: all of them have what the trunk has.
        hidden = F.gelu(F.linear(maps[0], self.down)).unflatten(-1, (len(self.tasks), -1))
        own, routed, constant = self.parts.to(x.dtype) / 1000
        for i, stream in enumerate(streams):
            if task := self.version(stream):
                p = self._fixed(task, own, constant).expand(len(hidden), -1)
                if self.router:
                    p = p + routed * F.linear(maps[i].mean((1, 2)), self.router[task]).softmax(-1)
                if self.training and p.requires_grad:
                    self.seen[task] = p.mean(0)
                maps[i] = maps[i] + F.linear((hidden * p[:, None, None, :, None]).flatten(-2), self.up)
        return torch.cat(maps)

    def version(self, stream: Stream) -> str | None:
        return stream.tasks[0] if stream.tooth else None

    def effective(self, slot: Slot, base: Base, stream: Stream) -> Weights | Op:
        task = self.version(stream)
        if task is None:
            return Weights(base)
        # Counted before there are values: as it ends.
        own, routed, constant = self.end if self.parts.is_meta else self.parts.tolist()
        down, up = self.down, self.up
        fixed = self._fixed(task, own / 1000, constant / 1000, torch.float64)
        if routed:
            tensors = {"down": down, "up": up, "router": self.router[task]}
            tensors |= {"constant": fixed.to(up.dtype)} if routed < 1000 else {}
            return Op("gate", base, tensors, {"share": routed / 1000})
        if own == 1000:
            at = self.tasks.index(task)
            down, up = (one.chunk(len(self.tasks), dim)[at].contiguous() for dim, one in enumerate((down, up)))
            return Op("bottleneck", base, {"down": down, "up": up})
        scaled = up.double().unflatten(-1, (len(self.tasks), -1)) * fixed[:, None]
        return Op("bottleneck", base, {"down": down, "up": scaled.flatten(1).to(up.dtype)})

    def owners(self) -> Mapping[str, frozenset[str]]:
        everyone = frozenset(self.tasks)
        return {
            name: everyone if name in ("down", "up") else frozenset({name.split(".")[1]})
            for name, _ in self.named_parameters()
        }

    def average(self, c: float) -> None:
        """Every adapter becomes a mean of all; see `Options`."""
        parts = [one.detach().chunk(len(self.tasks), dim) for dim, one in enumerate((self.down, self.up))]
        adapters = torch.stack([torch.cat([tensor.flatten() for tensor in pair]) for pair in zip(*parts, strict=True)])
        near = 1 / (torch.cdist(adapters, adapters) + c)
        means = (near / near.sum(1, keepdim=True)) @ adapters
        downs, ups = means.split(parts[0][0].numel(), 1)
        self.down.data.copy_(downs.reshape(self.down.shape))
        self.up.data.copy_(ups.unflatten(1, parts[1][0].shape).transpose(0, 1).flatten(1))

    def _fixed(self, task: str, own: Any, constant: Any, dtype: torch.dtype | None = None) -> Tensor:
        """The part of p that is the same for all photos, (K)."""
        like = {"device": self.down.device, "dtype": dtype or self.down.dtype}
        p = own * torch.eye(len(self.tasks), **like)[self.tasks.index(task)]
        return p + constant * self.constant[task].to(p.dtype).softmax(-1) if self.constant else p


class MixtureMethod(Method):
    """Mixtures behind the stages, trained in turns."""

    def __init__(self, backbone: Backbone, layout: Layout, options: Options) -> None:
        self.options = options
        width, tasks = backbone.widths, layout.tree.tasks
        changes: dict[str, Change] = {
            slot.name: Mixture(width[slot.stage], tasks, options) for slot in backbone.slots if slot.kind == "tap"
        }
        super().__init__(backbone, layout, changes)

    def phases(self, steps: int) -> Sequence[Phase]:
        first = max(1, round(self.options.first * steps))
        fade = min(steps - first, max(1, steps // 5)) if self.options.gate == "fading" else 0
        mixed = CONSTANT if self.options.gate == "static" else ROUTED

        def fading(done: int) -> None:
            left = round(1000 * (1 - (done + 1) / fade))
            self._set((0, left, 1000 - left))

        return [
            Phase("adapters", first, lambda name: not _mixes(name), lambda _: self._set(OWN)),
            Phase("mixture", steps - first - fade, lambda name: not _adapts(name), lambda _: self._set(mixed)),
            Phase("fade", fade, lambda name: not _adapts(name), fading),
        ]

    def penalties(self, progress: float) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for change in self._mixtures():
            for task, p in change.seen.items():
                found.setdefault(task, []).append(-torch.special.entr(p).sum())
            change.seen = {}
        if not self.options.balance:
            return {}
        return {task: self.options.balance * torch.stack(terms).mean() for task, terms in found.items()}

    def _set(self, parts: Parts) -> None:
        for change in self._mixtures():
            if self.options.average and parts != OWN and tuple(change.parts.tolist()) == OWN:
                change.average(self.options.average)
            change.parts.copy_(torch.tensor(parts))

    def _mixtures(self) -> list[Mixture]:
        return [change for change in self.changes.values() if isinstance(change, Mixture)]


def _adapts(name: str) -> bool:
    """Whether a parameter of the model is an adapter's."""
    return name.startswith("method.") and name.endswith((".down", ".up"))


def _mixes(name: str) -> bool:
    """Whether it weighs adapters."""
    return name.startswith("method.") and not _adapts(name)


def build(backbone: Backbone, tree: TaskTree, options: Options, tap: Tap) -> Method:
    return MixtureMethod(backbone, Layout(tree, teeth="tap", tap=tap), options)


CT_MOA = MethodSpec(
    build=build,
    options=Options,
    tree="shared",
    kind="adapters",
    source="arXiv 2501.13985, its mixture alone",
    trains="a bottleneck a task behind every stage, then for each task what weighs them all",
    folds="constant weights: a wide bottleneck a task stays; weights by photo stay as they are",
)
