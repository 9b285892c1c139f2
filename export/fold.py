"""A trained model as a plain network: every slot with its effective tensors, common prefixes of the streams once.

What the method is does not matter here: it says, for each slot and stream, which tensors do the same, or which of the
kept operations does. Tensors of equal content are one tensor, whichever branches hold them; decoders' batch norms
become part of the convolution before them.
"""

import copy
import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.backbones.base import Tap
from training.network.heads import finish
from training.network.layout import Stream
from training.network.model import PTSAModel, check_size
from training.network.plan import Plan, make_plan
from training.network.planned import Effective, Planned
from training.network.slots import Op, Slot, Weights, position_bias

__all__ = ["POSITION_BIAS", "Folded", "FoldedNetwork", "Origin", "fold"]

POSITION_BIAS = "position_bias"  # last part of the name of such a parameter


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


class FoldedNetwork(nn.Module):
    """Photos (N, H, W, 3), uint8 RGB, in; final maps by task at (H, W) out, as `heads.finish` makes them.

    H and W are fixed: masks are made for them. plan: what runs, for whom. Parameters are `slots.SLOT.NUMBER.ROLE`,
    numbered by their content: nodes of a plan that differ in their input alone have one number.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: PTSAModel, tasks: Sequence[str], plan: Plan, effective: "_Interned", size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.size = size
        self.plan = plan
        self.tasks = {name: task for name, task in model.tasks.items() if name in tasks}
        self._place: Tap = model.method.layout.tap
        self._backbone = [model.backbone]  # its walk; no parameter of it is one of this network's
        self._numbers = {slot: list(dict.fromkeys(node.key for node in nodes)) for slot, nodes in plan.items()}
        self._ops: dict[tuple[str, int], Op] = {}
        self.slots = nn.ModuleDict()
        for slot in model.backbone.slots:
            keys = self._numbers[slot.name]
            self.slots[_key(slot)] = nn.ModuleList(effective.parameters(slot, key) for key in keys)
            found = [effective.of(slot, key) for key in keys]
            self._ops |= {(slot.name, i): one for i, one in enumerate(found) if isinstance(one, Op)}
        self.decoders = nn.ModuleDict({task: _fold_batch_norms(model.decoders[task]) for task in self.tasks})
        self.register_buffer("mean", model.get_buffer("mean"))
        self.register_buffer("std", model.get_buffer("std"))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        # Cast before permute: TensorRT takes uint8 tensors only into a cast.
        images = image.to(self.mean.dtype).permute(0, 3, 1, 2)
        flow = Planned(self.plan, list(self.tasks), self._place, Effective(self.plan, self._effective))
        self._backbone[0].walk((images - self.mean) / self.std, flow)
        return {
            name: finish(task, self.decoders[name](flow.taps[name]), self.size) for name, task in self.tasks.items()
        }

    def _effective(self, slot: Slot, index: int) -> Weights | Op:
        number = self._numbers[slot.name].index(self.plan[slot.name][index].key)
        own = dict(self.slots[_key(slot)].get_submodule(str(number)).named_parameters())
        if op := self._ops.get((slot.name, number)):
            return Op(op.kind, own, own["up"], own["down"], op.scale, op.source)
        return Weights(own)


def fold(model: PTSAModel, size: tuple[int, int], *, tasks: Sequence[str] | None = None) -> Folded:
    """The plain network that does what `model` does in eval mode, for photos of `size` (H, W).

    The model stays as it is; tensors that need no folding are shared with it. Raises ValueError for a model in
    training mode, a size whose sides are no multiples of 32, or an unknown task.
    """
    if model.training:
        raise ValueError("a model in training mode cannot be folded (batch norms still move); call model.eval()")
    check_size(size)
    effective = _Interned(model)
    plan = make_plan(model.backbone.slots, model.method.layout, effective.key, tasks=tasks)
    network = FoldedNetwork(model, tasks or list(model.tasks), plan, effective, size).eval().requires_grad_(False)
    origins: dict[str, Origin] = {}
    tensors: dict[str, Tensor] = {}
    for slot in model.backbone.slots:
        for number, key in enumerate(network._numbers[slot.name]):
            found = effective.of(slot, key)
            if isinstance(found, Weights) and (product := found.product):
                up, down = f"{slot.name}.up.{number}", f"{slot.name}.down.{number}"
                origin = Origin(slot.tensors["weight"], up, down, product.scale)
                origins[f"slots.{_key(slot)}.{number}.weight"] = origin
                tensors |= {origin.base: product.base, origin.up: product.up, origin.down: product.down}
    return Folded(network, origins, tensors)


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
        """The tensors by role, none of which is trained; those that several share are one object.

        Position tables are finished biases: exporters fold the lookup or not, depending on its size, and the graphs of
        two sizes would then hold different tensors.
        """
        tensors = _tensors(self.of(slot, key))
        if slot.op == "position_bias":
            tensors = {POSITION_BIAS: position_bias(tensors["table"], slot.attributes["window"])}
        return nn.ParameterDict({role: self._leaf(tensor) for role, tensor in tensors.items()})

    def _leaf(self, tensor: Tensor) -> nn.Parameter:
        place = (tensor.data_ptr(), tensor.shape)
        if place not in self._leaves:
            self._leaves[place] = nn.Parameter(tensor.detach(), requires_grad=False)
        return self._leaves[place]


def _tensors(found: Weights | Op) -> dict[str, Tensor]:
    return dict(found.tensors) if isinstance(found, Weights) else {**found.base, "up": found.up, "down": found.down}


def _digest(found: Weights | Op) -> str:
    digest = hashlib.sha256(b"" if isinstance(found, Weights) else repr((found.kind, found.scale)).encode())
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
