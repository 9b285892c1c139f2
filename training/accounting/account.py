"""What a model costs, before there is one: parameters that are trained and deployed, multiply-adds of a photo.

Everything is built and walked on torch's meta device, where tensors have shapes and no values.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.network.model import ModelConfig, PTSAModel, check_size
from training.network.plan import Plan, make_plan
from training.network.planned import Effective, Planned
from training.network.slots import Op, Slot, Weights

__all__ = ["Account", "Found", "GraphShape", "account", "costs_and_graph", "effective_tensors", "trained"]

# What does the same as a method in each slot, by slot and version.
Found = dict[tuple[str, Hashable], Weights | Op]


@dataclass(frozen=True)
class GraphShape:
    """copies: how often each stage is computed for what flows on, where that is most. teeth: how many streams leave it
    for decoders within its last block. kept: kinds of the operations that no folding takes away.
    """

    copies: tuple[int, ...]
    teeth: int
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Account:
    """Parameters, and multiply-adds of one photo.

    adapters: what the method adds and trains. extras: trained tensors of the backbone's own. decoders: they too are
    trained. folded: of the network as it is compiled, decoders' batch norms made part of their convolutions. low_rank:
    the same, but where several groups adapt a layer, that layer once and the factors of each.
    """

    adapters: int
    extras: int
    decoders: int
    folded: int
    low_rank: int
    multiply_adds: int

    @property
    def trainable(self) -> int:
        return self.adapters + self.extras + self.decoders

    def to_json(self) -> dict[str, Any]:
        return {
            "trainable": self.trainable,
            "adapters": self.adapters,
            "extras": self.extras,
            "decoders": self.decoders,
            "deployed": {"folded": self.folded, "low_rank": self.low_rank},
            "multiply_adds": self.multiply_adds,
        }


def account(config: ModelConfig, size: tuple[int, int]) -> Account:
    """The costs of a model, see `costs_and_graph`."""
    return costs_and_graph(config, size)[0]


def costs_and_graph(config: ModelConfig, size: tuple[int, int]) -> tuple[Account, GraphShape]:
    """What a model costs for photos of `size` (H, W), as if no two of its tensors had become equal by chance.

    Multiply-adds are those of matrix products, attention's among them, and convolutions. Trees with as many groups a
    stage cost the same. Raises ConfigError for options that do not fit, ValueError for a size that does not.
    """
    check_size(size)
    with torch.device("meta"):
        model = PTSAModel(config).eval()
    plan = make_plan(model.backbone.slots, model.method.layout, model.method.version)
    with torch.no_grad():
        found = effective_tensors(model, plan)
        multiply_adds = _multiply_adds(model, plan, found, size)
    decoders = sum(map(_without_norms, model.decoders.values()))
    costs = Account(
        **trained(model),
        folded=decoders + _parameters(model, plan, found, low_rank=False),
        low_rank=decoders + _parameters(model, plan, found, low_rank=True),
        multiply_adds=multiply_adds,
    )
    return costs, _graph_shape(model, plan, found)


def trained(model: PTSAModel) -> dict[str, int]:
    """Parameters that are trained: `adapters`, `extras` and `decoders`, see `Account`."""
    counts = {"adapters": 0, "extras": 0, "decoders": 0}
    parts = {"method": "adapters", "backbone": "extras", "decoders": "decoders"}
    for name in model.owners():
        counts[parts[name.partition(".")[0]]] += model.get_parameter(name).numel()
    return counts


def _graph_shape(model: PTSAModel, plan: Plan, found: Found) -> GraphShape:
    copies, teeth = [0] * len(model.backbone.widths), 0
    for slot in (slot for slot in model.backbone.slots if slot.tensors):
        leaving = sum(all(stream.tooth for stream in node.streams) for node in plan[slot.name])
        copies[slot.stage] = max(copies[slot.stage], len(plan[slot.name]) - leaving)
        teeth = max(teeth, leaving)
    kept = {one.kind for one in found.values() if isinstance(one, Op)}
    return GraphShape(tuple(copies), teeth, tuple(sorted(kept)))


def effective_tensors(model: PTSAModel, plan: Plan) -> Found:
    """What every node of the plan computes with; tensors of the backbone's own are its own objects."""
    found: Found = {}
    for slot in model.backbone.slots:
        base, change = model.backbone.tensors(slot), model.method.change(slot)
        for node in plan[slot.name]:
            if (slot.name, node.key) not in found:
                found[slot.name, node.key] = (
                    Weights(base) if change is None else change.effective(slot, base, node.stream)
                )
    return found


def _parameters(model: PTSAModel, plan: Plan, found: Found, *, low_rank: bool) -> int:
    """Of the backbone's slots; a tensor that several nodes have counts once."""
    distinct: dict[int, Tensor] = {}
    for slot in model.backbone.slots:
        keys = {node.key for node in plan[slot.name]}
        for key in keys:
            tensors = _held(found[slot.name, key], factors=low_rank and len(keys) > 1)
            distinct |= {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() for tensor in distinct.values())


def _held(found: Weights | Op, *, factors: bool) -> Iterator[Tensor]:
    """The tensors that a node needs; with `factors` what its weight was folded from, in its place."""
    if isinstance(found, Op):
        yield from found.held().values()
    elif factors and (product := found.product):
        yield from (tensor for role, tensor in found.tensors.items() if role != "weight")
        yield from (product.base, product.up, product.down)
    else:
        yield from found.tensors.values()


def _without_norms(decoder: nn.Module) -> int:
    """Parameters of a decoder whose batch norms are part of the convolution before them."""
    count = sum(parameter.numel() for parameter in decoder.parameters())
    for module in decoder.modules():
        if isinstance(module, nn.Sequential):
            for layer, norm in pairwise(module):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    # Two vectors go; a convolution that had no bias has one now.
                    count -= norm.num_features * (1 if layer.bias is None else 2)
    return count


def _multiply_adds(model: PTSAModel, plan: Plan, found: Found, size: tuple[int, int]) -> int:
    def effective(slot: Slot, index: int) -> Weights | Op:
        return found[slot.name, plan[slot.name][index].key]

    flow = Planned(plan, list(model.tasks), model.method.layout.tap, Effective(plan, effective))
    images = torch.empty((1, 3, *size), device="meta")
    with FlopCounterMode(display=False) as counter:
        model.backbone.walk(images, flow)
        for task, decoder in model.decoders.items():
            decoder(flow.taps[task])
    # The counter counts a multiplication and an addition as two.
    return counter.get_total_flops() // 2
