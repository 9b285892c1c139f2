"""A trained model as a plain network: adapters folded into their layers, one copy of a stage for each branch.

Nothing of PTSA is left in the result but its shape: linear layers whose weight is W + scale * up @ down, computed in
fp32; decoders whose batch norms are part of the convolution before them; stages that several tasks share, once.
What the branches of a stage have in common (biases, norms, position tables) is one tensor in all of them.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.attention import FoldedAttention
from export.plan import Plan, make_plan
from training.adapters import StreamLinear
from training.heads import finish
from training.model import PTSAModel
from training.swin import set_size

__all__ = ["Folded", "FoldedNetwork", "Origin", "fold"]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a folded weight was made from: base (out, in) + scale * up (out, r) @ down (r, in).

    The keys name tensors of `Folded.tensors`.
    """

    base: str
    up: str
    down: str
    scale: float


@dataclass(frozen=True)
class Folded:
    """The plain network, and for each folded weight, by its parameter's name, what it was made from."""

    network: "FoldedNetwork"
    origins: dict[str, Origin]
    tensors: dict[str, Tensor]


class FoldedStage(nn.Module):
    """Patch merging once for each parent that continues, then blocks for each branch."""

    def __init__(self, downsample: nn.Module, branches: Sequence[nn.Module], parents: Sequence[int]) -> None:
        super().__init__()
        self.downsample = downsample
        self.branches = nn.ModuleList(branches)
        self.parents = tuple(parents)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of the branches, (N, h, w, C) each, for the outputs of the stage before."""
        merged = {parent: self.downsample(maps[parent]) for parent in sorted(set(self.parents))}
        return [blocks(merged[parent]) for blocks, parent in zip(self.branches, self.parents, strict=True)]


class FoldedNetwork(nn.Module):
    """Photos (N, H, W, 3), uint8 RGB, in; final maps by task at (H, W) out, as `training.heads.finish` makes them.

    H and W are fixed: masks are made for them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: PTSAModel, plan: Plan, stages: Sequence[FoldedStage], size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.plan = plan
        self.tasks = {task: model.tasks[task] for branch in plan[-1] for task in branch.tasks}
        self.tasks = {name: self.tasks[name] for name in model.tasks if name in self.tasks}
        self.patch_embed = model.backbone.swin.patch_embed
        self.stages = nn.ModuleList(stages)
        self.decoders = nn.ModuleDict({task: _fold_batch_norms(model.decoders[task]) for task in self.tasks})
        self.register_buffer("mean", model.get_buffer("mean"))
        self.register_buffer("std", model.get_buffer("std"))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        # Cast before permute: TensorRT takes uint8 tensors only into a cast.
        images = image.to(torch.float32).permute(0, 3, 1, 2)
        maps: list[Tensor] = [self.patch_embed((images - self.mean) / self.std)]
        taps: dict[str, list[Tensor]] = {task: [] for task in self.tasks}
        for stage, branches in zip(self.stages, self.plan, strict=True):
            maps = stage(maps)
            for x, branch in zip(maps, branches, strict=True):
                for task in branch.tasks:
                    taps[task].append(x)
        return {name: finish(task, self.decoders[name](taps[name]), self.size) for name, task in self.tasks.items()}


def fold(model: PTSAModel, size: tuple[int, int], *, tasks: Sequence[str] | None = None) -> Folded:
    """The plain network that does what `model` does in eval mode, for photos of `size` (H, W).

    The model keeps its adapters; parameters that need no folding are shared with it. Raises ValueError for a model in
    training mode, a size whose sides are no multiples of 32, or an unknown task.
    """
    if model.training:
        raise ValueError("a model in training mode cannot be folded (batch norms still move); call model.eval()")
    set_size(model.backbone.swin, size)
    layers = list(model.backbone.swin.layers.children())
    adapters = [_adapters(layer) for layer in layers]
    plan = make_plan(model.config.tree, tasks=tasks, signature=lambda stage, group: _digest(adapters[stage], group))
    origins: dict[str, Origin] = {}
    tensors: dict[str, Tensor] = {}
    stages = []
    for number, (layer, branches) in enumerate(zip(layers, plan, strict=True)):
        plain = _without_lookups(layer.get_submodule("blocks"))
        copies = []
        for index, branch in enumerate(branches):
            copies.append(_copy(plain))
            for path, adapter in adapters[number].items():
                copies[-1].set_submodule(path, _linear(adapter, branch.group))
                name = f"stages.{number}.branches.{index}.{path}.weight"
                origins[name] = _origin(tensors, f"stages.{number}.{path}", adapter, branch.group)
        downsample = layer.get_submodule("downsample")
        stages.append(FoldedStage(downsample, copies, [branch.parent for branch in branches]))
    network = FoldedNetwork(model, plan, stages, size).eval().requires_grad_(False)
    return Folded(network, origins, tensors)


def _without_lookups(blocks: nn.Module) -> nn.Module:
    """A copy whose attention biases and masks are finished tensors instead of computed in every pass."""
    blocks = _copy(blocks)
    for block in blocks.children():
        assert isinstance(block, SwinTransformerBlock)
        assert isinstance(block.attn, WindowAttention)
        block.register_buffer("attn_mask", block.get_attn_mask(), persistent=False)
        block.dynamic_mask = False
        with torch.no_grad():
            bias = nn.Parameter(block.attn._get_rel_pos_bias(), requires_grad=False)
        block.set_submodule("attn", FoldedAttention(block.attn, bias))
    return blocks


def _linear(adapter: StreamLinear, group: int) -> nn.Linear:
    linear = nn.Linear(adapter.frozen.in_features, adapter.frozen.out_features, device="meta")
    linear.weight = nn.Parameter(adapter.folded(group), requires_grad=False)
    linear.bias = adapter.frozen.bias
    return linear


def _origin(tensors: dict[str, Tensor], key: str, adapter: StreamLinear, group: int) -> Origin:
    """Keep the factors under names of their own and say how they make the weight."""
    origin = Origin(f"{key}.weight", f"{key}.up.{group}", f"{key}.down.{group}", adapter.scale)
    tensors[origin.base] = adapter.frozen.weight.detach()
    tensors[origin.up] = adapter.up[group].detach()
    tensors[origin.down] = adapter.down[group].detach()
    return origin


def _adapters(stage: nn.Module) -> dict[str, StreamLinear]:
    """The adapted layers of a stage by their path below its blocks."""
    return {path: m for path, m in stage.get_submodule("blocks").named_modules() if isinstance(m, StreamLinear)}


def _digest(adapters: dict[str, StreamLinear], group: int) -> str:
    """Equal for groups whose adapters change the stage in the same way; an `up` of zeros changes nothing."""
    digest = hashlib.sha256()
    for path, adapter in adapters.items():
        if adapter.up[group].any():
            for factor in (adapter.up[group], adapter.down[group]):
                digest.update(path.encode() + factor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _copy(blocks: nn.Module) -> nn.Module:
    """A copy with its own modules and the same parameters, so that what branches have in common stays one tensor."""
    return copy.deepcopy(blocks, {id(parameter): parameter for parameter in blocks.parameters()})


def _fold_batch_norms(decoder: nn.Module) -> nn.Module:
    """A copy without batch norms: each becomes part of the convolution before it."""
    decoder = copy.deepcopy(decoder)
    for module in decoder.modules():
        if isinstance(module, nn.Sequential):
            for index in range(len(module) - 1):
                layer, norm = module[index], module[index + 1]
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[index] = fuse_conv_bn_eval(layer, norm)
                    module[index + 1] = nn.Identity()
    return decoder
