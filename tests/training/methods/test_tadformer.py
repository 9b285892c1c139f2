"""TADFormer: prompts in the windows of a Swin, and filters of the photo inside the low-rank space."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptsa_serve.task_tree import TaskTree
from training.accounting.account import trained
from training.backbones import swin
from training.errors import ConfigError
from training.network.model import ModelConfig, PTSAModel
from training.network.ops import apply
from training.network.slots import Op, Slot, position_bias

TASKS = ("segmentation", "depth", "normals", "saliency")
LINEAR = Slot("a", "proj", "linear", 0, {})


def built(tree: TaskTree, **options: Any) -> PTSAModel:
    """float64, at its start."""
    torch.manual_seed(0)
    return PTSAModel(ModelConfig("swin_test", tree, "tadformer", {"rank": 2, **options}, width=8)).eval().double()


def shaken(model: PTSAModel) -> PTSAModel:
    with torch.no_grad():
        for name in model.owners():
            model.get_parameter(name).add_(torch.randn_like(model.get_parameter(name)), alpha=0.1)
    return model


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double() * 255


def expected(model: PTSAModel, photo: Tensor) -> list[dict[str, Tensor]]:
    """The stages' maps for each task where B = 0, written apart: timm's layers, one window after another."""
    trunk: Any = model.backbone.trunk
    own = dict(model.method.named_parameters())
    x = trunk.patch_embed.norm(trunk.patch_embed.proj(model.normalised(photo)).permute(0, 2, 3, 1))
    prompts, asked, found = own["changes.prompts.rows"], [], []
    for stage, layer in enumerate(trunk.layers):
        if stage:
            x = layer.downsample(x)
            prompts = prompts @ own[f"changes.layers/{stage}/downsample/prompts.weight"].T
        for number, block in enumerate(layer.blocks):
            x, prompts, asked = through(block, 3 * (number % 2), x, prompts)
        gate = own[f"changes.layers/{stage}/skip.gate"].sigmoid()
        found.append({task: gate * asked[i] + (1 - gate) * x for i, task in enumerate(TASKS)})
    return found


def through(block: Any, shift: int, x: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    attention, size = block.attn, (x.shape[1], x.shape[2])
    heads, width, tokens = attention.num_heads, x.shape[-1] // attention.num_heads, len(prompts)
    windows = swin._to_windows(block.norm1(x), shift=shift)
    between = position_bias(attention.relative_position_bias_table, 7)[0]
    masks = swin._mask(*size, between) if shift else torch.zeros(len(windows), 49, 49)
    outputs, asked, after = [], [[] for _ in TASKS], []
    for window, mask in zip(windows, masks, strict=True):
        qkv = attention.qkv(torch.cat([block.norm1(prompts), window]))
        q, k, v = qkv.view(tokens + 49, 3, heads, width).permute(1, 2, 0, 3)
        raw = q @ k.transpose(1, 2)
        scores = raw / math.sqrt(width)
        scores[:, tokens:, tokens:] += between + mask
        attended = (scores.softmax(-1) @ v).transpose(0, 1).reshape(tokens + 49, -1)
        for task, of_task in enumerate(asked):
            gates = F.gelu(raw[:, task, tokens:]).T.repeat_interleave(width, 1)
            of_task.append(gates * attended[tokens:])
        projected = attention.proj(attended)
        after.append(projected[:tokens])
        outputs.append(projected[tokens:])
    back = [swin._from_windows(torch.stack(one), shift=shift, size=size) for one in (outputs, *asked)]
    x = x + back[0]
    prompts = prompts + block.mlp(block.norm2(torch.stack(after).mean(0)))
    return x + block.mlp(block.norm2(x)), prompts, back[1:]


@torch.no_grad()
def test_without_adapters_it_is_the_frozen_trunk_with_prompts(tree: TaskTree) -> None:
    model, photo = built(tree), images(1)
    model.get_parameter("method.changes.layers/1/skip.gate").fill_(0.7)
    maps = expected(model, photo)
    for task, raw in model(photo).items():
        torch.testing.assert_close(raw, model.decoders[task]([stage[task] for stage in maps]))


@torch.no_grad()
def test_photos_are_filtered_each_by_itself(tree: TaskTree) -> None:
    model, photos = shaken(built(tree)), images(2)
    together, alone = model(photos), [model(photos[i : i + 1]) for i in range(2)]
    for task in TASKS:
        torch.testing.assert_close(together[task], torch.cat([one[task] for one in alone]))


def convolved(op: Op, z: Tensor) -> Tensor:
    """(M, h, w, r) through a convolution of each sample's own kernels."""
    t, (count, h, w, rank) = op.tensors, z.shape
    kernels = F.linear(z.mean((1, 2)), t["generate"], t["generate_bias"]).view(count, rank, 9)
    kernels = (kernels - kernels.mean(-1, keepdim=True)) / (kernels.std(-1, keepdim=True) + 1e-10)
    kernels = kernels * t["std"].view(rank, 9) + t["mean"].view(rank, 9)
    planes = z.permute(0, 3, 1, 2).reshape(1, -1, h, w)
    found = F.conv2d(planes, kernels.view(-1, 1, 3, 3), padding=1, groups=count * rank)
    return found.view(count, rank, h, w).permute(0, 2, 3, 1)


@pytest.fixture
def filters() -> Op:
    shapes = {"down": (3, 6), "up": (5, 3), "generate": (27, 3), "generate_bias": (27,), "std": (27,), "mean": (27,)}
    tensors = {role: torch.randn(shape).double() for role, shape in shapes.items()}
    return Op("dyn_depthwise", {}, tensors, {"scale": 0.5, "prompts": 4})


def test_nine_shifted_products_are_a_convolution_of_the_samples_kernels(filters: Op) -> None:
    x, y = torch.randn(2, 5, 8, 6).double(), torch.randn(2, 5, 8, 5).double()
    update = 0.5 * convolved(filters, x @ filters.tensors["down"].T) @ filters.tensors["up"].T
    torch.testing.assert_close(apply(filters, y, x), y + update)


def test_windows_have_a_kernel_each_and_prompts_none(filters: Op) -> None:
    x, y = torch.randn(3, 4 + 49, 6).double(), torch.randn(3, 4 + 49, 5).double()
    found = apply(filters, y, x)
    assert torch.equal(found[:, :4], y[:, :4])
    z = (x[:, 4:] @ filters.tensors["down"].T).view(3, 7, 7, 3)
    update = 0.5 * convolved(filters, z).flatten(1, 2) @ filters.tensors["up"].T
    torch.testing.assert_close(found[:, 4:], y[:, 4:] + update)
    assert torch.equal(apply(filters, y[:, :4], x[:, :4]), y[:, :4])


# As published: 3.56, 4.78 and 7.38 million; the last one, of its code, to the digit.
@pytest.mark.parametrize(("rank", "published"), [(16, 3_557_502), (32, 4_776_126), (64, 7_379_262)])
def test_counts_on_swin_tiny(rank: int, published: int, tree: TaskTree) -> None:
    with torch.device("meta"):
        model = PTSAModel(ModelConfig("swin_tiny", tree, "tadformer", {"rank": rank}))
    counts, gates, patch, decoders = trained(model), 4, 4_704, 1_946_624
    assert counts["adapters"] == 16 * 4416 * rank + 12 * (9 * rank**2 + 27 * rank) + 387_456 + 2 * 4416 + gates
    assert counts["extras"] == 46_558 - gates + patch
    assert counts["adapters"] + counts["extras"] + decoders == published


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("swin_test", {"rank": 0}, "rank is 0; tadformer's filters need at least 1 in every stage"),
        ("swin_test", {"norms": "per_group"}, "norms is 'per_group'; allowed are shared, frozen"),
        ("pvt_test", {}, "method tadformer puts tokens into windows, pvt_test has none; take a Swin"),
    ],
)
def test_what_it_cannot_have_is_refused(backbone: str, options: dict, message: str, tree: TaskTree) -> None:
    with pytest.raises(ConfigError, match=message):
        PTSAModel(ModelConfig(backbone, tree, "tadformer", options))
