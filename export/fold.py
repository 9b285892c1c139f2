"""A trained model as a plain network: every slot with its effective tensors, common prefixes of the streams once.

What the method is does not matter here: it says, for each slot and stream, which tensors do the same, or which of the
kept operations does. Tensors of equal content are one tensor, whichever branches hold them; decoders' batch norms
become part of the convolution before them.

Branches part in one of two forms. `folded`: a copy of a layer's weight for each group, base + scale * up @ down; the
branches run one after another. `low_rank`: the branches are stacked on the batch axis, and a layer that several groups
adapt has its frozen weight once and their factors with a leading axis of groups (`grouped`).
"""

import copy
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.grouped import Factors, factors_of, grouped
from ptsa_serve.variants import Branches
from ptsa_serve.weights import Recipe
from training.backbones.base import Tap
from training.network.executor import Fork, Stacked
from training.network.heads import finish
from training.network.layout import Stream
from training.network.model import PTSAModel
from training.network.plan import Node, Plan, make_plan
from training.network.planned import Effective, Planned
from training.network.slots import Op, Slot, Weights, compute, position_bias

__all__ = ["POSITION_BIAS", "Folded", "FoldedNetwork", "fold"]

POSITION_BIAS = "position_bias"  # last part of the name of such a parameter


@dataclass(frozen=True)
class Folded:
    """The plain network, and what its parameters are made from.

    recipes: by the name of each parameter that is not kept as it is. tensors: what they name, by key.
    """

    network: "FoldedNetwork"
    recipes: dict[str, Recipe]
    tensors: dict[str, Tensor]


class FoldedNetwork(nn.Module):
    """Photos (N, H, W, 3), uint8 RGB, in; final maps by task at (H, W) out, as `heads.finish` makes them.

    H and W are multiples of 32. plan: what runs, for whom. Parameters are `slots.SLOT.NUMBER.ROLE`, numbered by their
    content: nodes of a plan that differ in their input alone have one number. Those of a layer that groups adapt side
    by side are `slots.SLOT.ROLE`.

    keys: of each slot's numbers. grouped: the slots with such layers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: PTSAModel, plan: Plan, effective: "_Interned", tasks: Sequence[str], form: Branches):
        super().__init__()
        self.branches: Branches = form
        self.plan = plan
        self.tasks = {name: task for name, task in model.tasks.items() if name in tasks}
        self._place: Tap = model.method.layout.tap
        self._backbone = [model.backbone]  # its walk; no parameter of it is one of this network's
        self.keys = {slot: list(dict.fromkeys(node.key for node in nodes)) for slot, nodes in plan.items()}
        self._ops: dict[tuple[str, int], Op] = {}
        self.grouped: dict[str, Factors] = {}
        self.slots = nn.ModuleDict()
        for slot in model.backbone.slots:
            self._hold(slot, effective)
        self.decoders = nn.ModuleDict({task: _fold_batch_norms(model.decoders[task]) for task in self.tasks})
        self.register_buffer("mean", model.get_buffer("mean"))
        self.register_buffer("std", model.get_buffer("std"))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        # Cast before permute: TensorRT takes uint8 tensors only into a cast.
        images = image.to(self.mean.dtype).permute(0, 3, 1, 2)
        flow = self._flow()
        self._backbone[0].walk((images - self.mean) / self.std, flow)
        size = (image.shape[1], image.shape[2])
        return {name: finish(task, self.decoders[name](flow.taps[name]), size) for name, task in self.tasks.items()}

    def _hold(self, slot: Slot, effective: "_Interned") -> None:
        """Make the slot's tensors parameters."""
        keys = self.keys[slot.name]
        found = [effective.of(slot, key) for key in keys]
        if self.branches == "low_rank" and len(keys) > 1 and (factors := factors_of(found)):
            self.grouped[slot.name] = factors
            order = [keys.index(node.key) for node in self.plan[slot.name]]
            self.slots[_key(slot)] = effective.leaves(factors.tensors(order))
        else:
            self.slots[_key(slot)] = nn.ModuleList(effective.parameters(slot, key) for key in keys)
            self._ops |= {(slot.name, i): one for i, one in enumerate(found) if isinstance(one, Op)}

    def _flow(self) -> Planned | Stacked:
        each = Effective(self.plan, self._effective)
        if self.branches == "folded":
            return Planned(self.plan, list(self.tasks), self._place, each)

        def together(slot: Slot, x: Tensor, nodes: Sequence[Node], fork: Fork) -> Tensor:
            own = self.slots[_key(slot)]
            if factors := self.grouped.get(slot.name):
                return grouped(dict(own.named_parameters()), factors.scale, x, len(nodes), fork)
            if len(self.keys[slot.name]) == 1 and (slot.name, 0) not in self._ops:
                return fork(compute(slot, dict(own.get_submodule("0").named_parameters()), x))
            parts = list(fork(x).unflatten(0, (len(nodes), -1)))
            return torch.cat([each(slot, index, part, parts) for index, part in enumerate(parts)])

        return Stacked(self.plan, list(self.tasks), self._place, together)

    def _effective(self, slot: Slot, index: int) -> Weights | Op:
        number = self.keys[slot.name].index(self.plan[slot.name][index].key)
        own = dict(self.slots[_key(slot)].get_submodule(str(number)).named_parameters())
        if op := self._ops.get((slot.name, number)):
            base, tensors = ({role: own[role] for role in part} for part in (op.base, op.tensors))
            return replace(op, base=base, tensors=tensors)
        return Weights(own)


def fold(model: PTSAModel, *, tasks: Sequence[str] | None = None, branches: Branches = "folded") -> Folded:
    """The plain network that does what `model` does in eval mode.

    The model stays as it is; tensors that need no folding are shared with it. Raises ValueError for a model in
    training mode or an unknown task.
    """
    if model.training:
        raise ValueError("a model in training mode cannot be folded (batch norms still move); call model.eval()")
    effective = _Interned(model)
    plan = make_plan(model.backbone.slots, model.method.layout, effective.key, tasks=tasks)
    network = FoldedNetwork(model, plan, effective, tasks or list(model.tasks), branches)
    network.eval().requires_grad_(False)
    recipes: dict[str, Recipe] = {}
    tensors: dict[str, Tensor] = {}
    for slot in model.backbone.slots:
        made = _grouped_recipes if slot.name in network.grouped else _folded_recipes
        found, needed = made(network, slot, [effective.of(slot, key) for key in network.keys[slot.name]])
        recipes |= found
        tensors |= needed
    return Folded(network, recipes, tensors)


Made = tuple[dict[str, Recipe], dict[str, Tensor]]


def _folded_recipes(network: FoldedNetwork, slot: Slot, found: Sequence[Weights | Op]) -> Made:
    recipes, tensors = {}, {}
    for number, one in enumerate(found):
        if isinstance(one, Weights) and one.product:
            base, up, down = slot.tensors["weight"], *_factors(slot, number)
            recipes[f"slots.{_key(slot)}.{number}.weight"] = Recipe(base, up, down, one.product.scale)
            tensors |= {base: one.product.base, up: one.product.up, down: one.product.down}
    return recipes, tensors


def _grouped_recipes(network: FoldedNetwork, slot: Slot, found: Sequence[Weights | Op]) -> Made:
    """From the keys that the folded form has: one file serves both."""
    own, factors = f"slots.{_key(slot)}", network.grouped[slot.name]
    base, order = slot.tensors["weight"], [network.keys[slot.name].index(node.key) for node in network.plan[slot.name]]
    keys = [_factors(slot, number) for number in range(len(found))]
    recipes = {f"{own}.{role}": Recipe(f"{own}.0.{role}") for role in factors.common}
    recipes[f"{own}.weight"] = Recipe(base)
    for role, names in zip(("up", "down"), zip(*keys, strict=True), strict=True):
        recipes[f"{own}.{role}"] = Recipe(stack=tuple(names[number] for number in order), transpose=True)
    tensors = {f"{own}.0.{role}": tensor for role, tensor in factors.common.items() if role != "weight"}
    for (up, down), product in zip(keys, factors.products, strict=True):
        tensors |= {up: product.up, down: product.down, base: product.base}
    return recipes, tensors


def _factors(slot: Slot, number: int) -> tuple[str, str]:
    """Keys of `up` and `down` in the file of weights."""
    return f"{slot.name}.up.{number}", f"{slot.name}.down.{number}"


class _Interned:
    """Effective tensors by slot and content: what is equal is one object, folded once."""

    def __init__(self, model: PTSAModel) -> None:
        self._method = model.method
        self._keys: dict[tuple[str, Hashable], str] = {}
        self._found: dict[tuple[str, str], Weights | Op] = {}
        self._leaves: dict[tuple[int, torch.Size], nn.Parameter] = {}

    def key(self, slot: Slot, stream: Stream) -> str:
        """Equal for streams whose effective tensors are equal in this slot."""
        version = (slot.name, self._method.version(slot, stream))
        if version not in self._keys:
            found = self._method.effective(slot, stream)
            self._keys[version] = digest = _digest(found)
            self._found.setdefault((slot.name, digest), found)
        return self._keys[version]

    def of(self, slot: Slot, key: Hashable) -> Weights | Op:
        assert isinstance(key, str)
        return self._found[slot.name, key]

    def parameters(self, slot: Slot, key: Hashable) -> nn.ParameterDict:
        """The tensors by role.

        Position tables are finished biases: exporters fold the lookup or not, depending on its size, and the graphs of
        two sizes would then hold different tensors.
        """
        tensors = _tensors(self.of(slot, key))
        if slot.op == "position_bias":
            tensors = {POSITION_BIAS: position_bias(tensors["table"], slot.attributes["window"])}
        return self.leaves(tensors)

    def leaves(self, tensors: Mapping[str, Tensor]) -> nn.ParameterDict:
        """Tensors by role as parameters, none of which is trained; those that several share are one object."""
        return nn.ParameterDict({role: self._leaf(tensor) for role, tensor in tensors.items()})

    def _leaf(self, tensor: Tensor) -> nn.Parameter:
        place = (tensor.data_ptr(), tensor.shape)
        if place not in self._leaves:
            self._leaves[place] = nn.Parameter(tensor.detach(), requires_grad=False)
        return self._leaves[place]


def _tensors(found: Weights | Op) -> dict[str, Tensor]:
    return dict(found.tensors) if isinstance(found, Weights) else found.held()


def _digest(found: Weights | Op) -> str:
    digest = hashlib.sha256()
    if isinstance(found, Op):
        digest.update(repr((found.kind, *sorted(found.attributes.items()))).encode())
    for role, tensor in sorted(_tensors(found).items()):
        digest.update(role.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _key(slot: Slot) -> str:
    """A module's name holds no dots."""
    return slot.name.replace(".", "/")


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
