"""Phases, adapters that decoders alone see, and attention to constants."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from export.fold import fold
from ptsa_serve.task_tree import TaskTree
from training.errors import ConfigError
from training.fit import FitConfig, fit
from training.methods.adapt_finetune import LVOptions, Options
from training.network.checkpoint import read_tensors
from training.network.layout import Stream
from training.network.model import ModelConfig, PTSAModel
from training.network.slots import Op, Weights

FORMS = ["adapt_finetune", "lv_adapter"]
SMALL = {"orthogonal_tokens": 3, "token_width": 8, "heads": 2, "head_width": 4}


def model(method: str, tree: TaskTree, backbone: str = "swin_test") -> PTSAModel:
    options = SMALL if method == "lv_adapter" else {}
    return PTSAModel(ModelConfig(backbone, tree, method, options, width=8)).eval()


def random(one: PTSAModel) -> PTSAModel:
    with torch.no_grad():
        for parameter in one.method.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return one


def test_adapting_leaves_the_backbone_bit_for_bit_and_fine_tuning_does_not(
    fit_config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = fit(replace(fit_config, steps=1, out=fit_config.out / "start"))
    config = replace(fit_config, method="adapt_finetune", start=start, drop_path=0.5, steps=2)
    seen: list[tuple[bool, bool]] = []
    forward = PTSAModel.forward

    def noted(self: PTSAModel, *arguments: Any) -> Any:
        seen.append((self.backbone.training, self.decoders.training))
        return forward(self, *arguments)

    def backbone(path: Path) -> dict[str, Tensor]:
        return {name: t for name, t in read_tensors(path).items() if name.startswith("backbone.")}

    monkeypatch.setattr(PTSAModel, "forward", noted)
    begun = backbone(start)
    adapted = backbone(fit(replace(config, options={"adapt": 1.0}, out=config.out / "adapt")))
    assert set(seen) == {(False, True)}
    seen.clear()
    tuned = backbone(fit(replace(config, options={"adapt": 0.5}, out=config.out / "both")))
    assert seen == 2 * [(False, True)] + 2 * [(True, True)]  # a pass for each data set
    assert all(torch.equal(begun[name], adapted[name]) for name in begun)
    assert any(not torch.equal(begun[name], tuned[name]) for name in begun)


@pytest.mark.parametrize("backbone", ["swin_test", "pvt_test"])
@pytest.mark.parametrize("method", FORMS)
def test_the_backbone_runs_once_and_never_sees_what_decoders_read(method: str, backbone: str, tree: TaskTree) -> None:
    one = random(model(method, tree, backbone))
    network = fold(one).network
    kinds = Counter(slot.kind for slot in one.backbone.slots for _ in network.plan[slot.name])
    slots = Counter(slot.kind for slot in one.backbone.slots)
    readers = len(tree.tasks) if method == "lv_adapter" else 1
    # The backbone's own stream, and one for all tasks, that only their attention parts.
    assert kinds.pop("tap") == 2 * slots.pop("tap")
    assert kinds.pop("after_tap") == (1 + readers) * slots.pop("after_tap")
    assert kinds == slots
    teeth = {slot.kind: one.method.effective(slot, Stream(("depth",), tooth=True)) for slot in one.backbone.slots}
    flow = [one.method.effective(slot, Stream(tree.tasks)) for slot in one.backbone.slots]
    assert all(isinstance(found, Weights) for found in flow)
    assert {found.kind for found in teeth.values() if isinstance(found, Op)} == {
        "spatial_bottleneck", *(["const_attention"] if method == "lv_adapter" else []),
    }  # fmt: skip


@torch.no_grad()
def test_attention_is_that_of_queries_to_keys_and_values_in_heads(tree: TaskTree) -> None:
    one = random(model("lv_adapter", tree)).double()
    slot = next(slot for slot in one.backbone.slots if slot.kind == "after_tap")
    change: Any = one.method.change(slot)
    x = torch.randn(2, 3, 5, 12, dtype=torch.double)
    y = change(slot, {}, torch.cat([x, x]), [Stream(tree.tasks), Stream(("depth",), tooth=True)])
    assert torch.equal(y[:2], x)
    own, tokens = change.weights["depth"], change._common[0].tokens["depth"]
    q, k, v = x.flatten(1, 2) @ own["query"].T, tokens @ own["key"].T, tokens @ own["value"].T
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(-3, -2) for t in (q, k, v))
    read = torch.nn.functional.scaled_dot_product_attention(q, k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1))
    read = read.transpose(1, 2).flatten(2) @ own["out"].T
    torch.testing.assert_close(y[2:], x + change.gate["depth"] * read.view_as(x))


@torch.no_grad()
def test_a_closed_gate_reads_the_stage_as_adapted_and_the_order_of_tokens_means_nothing(tree: TaskTree) -> None:
    one = random(model("lv_adapter", tree)).double()
    images = torch.rand(1, 3, 64, 64) * 255
    before = one(images)
    for tokens in one.method.common.tokens.values():  # pyright: ignore
        tokens.copy_(tokens[torch.tensor([2, 0, 1])])
    for task, raw in one(images).items():
        torch.testing.assert_close(raw, before[task])
    plain = model("adapt_finetune", tree).double()
    plain.load_state_dict({name: one.state_dict()[name] for name in plain.state_dict()})
    for name, parameter in one.method.named_parameters():
        if ".gate." in name:
            parameter.zero_()
    for task, raw in one(images).items():
        torch.testing.assert_close(raw, plain(images)[task])
        assert not torch.equal(raw, before[task])


def test_tokens_begin_orthogonal_with_entries_of_about_one(tree: TaskTree) -> None:
    common: Any = model("lv_adapter", tree).method.common
    for tokens in common.tokens.values():
        torch.testing.assert_close(tokens @ tokens.T, 8 * torch.eye(3), atol=1e-4, rtol=0)


def test_phases_fill_runs_of_any_length(tree: TaskTree) -> None:
    method = model("adapt_finetune", tree).method
    for steps in (1, 2, 3, 1000):
        phases = method.phases(steps)
        assert sum(phase.steps for phase in phases) == steps
    assert [phase.steps for phase in phases] == [400, 600]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapt": 0.0}, "adapt is 0.0; allowed is more than 0, up to 1"),
        ({"fine_tune_rate": 2.0}, "fine_tune_rate is 2.0"),
        ({"heads": 0}, "heads is 0; allowed are whole numbers from 1 to 1024"),
        ({"orthogonal_tokens": 20, "token_width": 8}, "no more vectors than their width are orthogonal"),
    ],
)
def test_options_that_fit_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        (Options if set(options) <= {"adapt", "fine_tune_rate"} else LVOptions)(**options)
