"""Polyhistor: generators that make adapters, kernels that stretch them, and nothing of either in a folded network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from export.fold import fold
from ptsa_serve.task_tree import TaskTree
from training.errors import ConfigError
from training.methods.polyhistor import Codes, Generated, LiteOptions, Options
from training.network.layout import Stream
from training.network.model import ModelConfig, PTSAModel
from training.network.slots import Op, Slot

SLOT = Slot("out", "after_mlp", "identity", stage=0, tensors={})


def lite(width: int, tasks: tuple[str, ...], **options: object) -> Generated:
    """An adapter four times as wide as its template, with random values in all places."""
    chosen = LiteOptions(code=5, inner=3, ratio=2, **options)  # pyright: ignore[reportArgumentType]
    change = Generated(Codes(tasks, width // 4, chosen), width, chosen).double()
    change._common[0].double()
    for parameter in (*change.parameters(), *change._common[0].parameters()):
        nn.init.normal_(parameter, std=0.5)
    return change


@torch.no_grad()
@pytest.mark.parametrize("share", [False, True])
def test_stretched_it_is_the_kronecker_product_of_kernel_and_template(share: bool) -> None:
    change = lite(24, ("a", "b"), share_scaling=share)
    x = torch.randn(2, 3, 5, 24, dtype=torch.double)
    y = change(SLOT, {}, x, [Stream(("a",)), Stream(("b",))])
    for task, part, found in zip("ab", x, y, strict=True):
        template, scale_down, scale_up = change._common[0].template, change.scale_down, change.scale_up
        assert template is not None
        assert scale_down is not None
        assert (scale_up is None) == share
        down, up = template(change._common[0].codes[task])
        down, up = torch.kron(scale_down, down), torch.kron(scale_down if scale_up is None else scale_up, up)
        torch.testing.assert_close(found, part + F.gelu(part @ down.T) @ up.T)


def test_an_adapter_begins_as_nothing_and_has_a_gradient() -> None:
    chosen = LiteOptions(code=5, inner=3, ratio=2)
    common = Codes(("a",), 6, chosen)
    change = Generated(common, 12, chosen)
    x = torch.randn(4, 12)
    assert torch.equal(change(SLOT, {}, x, [Stream(("a",))]), x)
    change(SLOT, {}, x, [Stream(("a",))]).sum().backward()
    assert common.template is not None
    # P of `up` is 0, so all else waits for it.
    assert common.template.up_p.grad is not None
    assert common.template.up_p.grad.any()


def count(tree: TaskTree, method: str, **options: object) -> dict[str, int]:
    with torch.device("meta"):
        model = PTSAModel(ModelConfig("swin_tiny", tree, method, options))
    return {name: parameter.numel() for name, parameter in model.method.named_parameters()}


def test_scaling_kernels_of_swin_tiny_have_468_numbers_a_place(tree: TaskTree) -> None:
    def scales(**options: object) -> int:
        return sum(n for name, n in count(tree, "polyhistor_lite", **options).items() if ".scale_" in name)

    assert scales(place="after_mlp") == 468
    assert scales(share_scaling=True) == 2 * 234


def test_codes_are_all_that_a_task_has_of_its_own(tree: TaskTree) -> None:
    for method in ("polyhistor", "polyhistor_lite"):
        model = PTSAModel(ModelConfig("swin_test", tree, method, {"code": 7}, width=8))
        own = {name: tasks for name, tasks in model.method.owners().items() if len(tasks) == 1}
        assert set(own) == {f"common.codes.{task}" for task in tree.tasks}
        assert all(model.method.get_parameter(name).shape == (7,) for name in own)


@torch.no_grad()
@pytest.mark.parametrize("method", ["polyhistor", "polyhistor_lite"])
def test_a_folded_network_holds_two_constants_an_adapter_and_no_generator(method: str, tree: TaskTree) -> None:
    model = PTSAModel(ModelConfig("swin_test", tree, method, {"code": 7}, width=8)).eval()
    for name in model.owners():
        model.get_parameter(name).add_(torch.randn_like(model.get_parameter(name)), alpha=0.1)
    network = fold(model).network
    places = [slot for slot in model.backbone.slots if slot.kind in ("after_attn", "after_mlp")]
    for slot in places:
        assert len(network.plan[slot.name]) == len(tree.tasks)
        for stream in (node.stream for node in network.plan[slot.name]):
            assert isinstance(op := model.method.effective(slot, stream), Op)
            width = model.backbone.widths[slot.stage]
            assert {role: tuple(t.shape) for role, t in op.held().items()} == {
                "down": (width // 4, width), "up": (width, width // 4),
            }  # fmt: skip
    added = {name for name, _ in network.slots.named_parameters() if name.endswith((".up", ".down"))}
    assert len(added) == 2 * len(tree.tasks) * len(places)
    backbone = sum(p.numel() for p in model.backbone.parameters())
    adapters = sum(2 * w * (w // 4) for w in (model.backbone.widths[slot.stage] for slot in places))
    stored = sum(p.numel() for n, p in model.backbone.trunk.named_parameters() if n.endswith("table"))
    tables = sum(p.numel() for n, p in network.slots.named_parameters() if n.endswith("position_bias"))
    held = backbone - stored + tables + len(tree.tasks) * adapters
    assert sum(p.numel() for p in network.slots.parameters()) == held


@pytest.mark.parametrize(
    ("options", "message"),
    [({"place": "mlp"}, "place is 'mlp'; allowed are both, after_attn, after_mlp"), ({"inner": 0}, "inner is 0")],
)
def test_options_that_make_no_adapter_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options(**options)
