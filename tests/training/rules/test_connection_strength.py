"""Channels of shared layers belong to the task that reads them most, and other tasks do not work against it there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.errors import ConfigError
from training.fit import FitConfig, fit
from training.network.model import ModelConfig, PTSAModel
from training.rules.connection_strength import ConnectionStrength, _reads, owned_by, projected


def test_a_channel_belongs_to_the_task_whose_strength_has_most_of_itself_there() -> None:
    """Not to the loudest: shares of 0.9 and 0.1 against 0.4 and 0.6."""
    assert owned_by(torch.tensor([[9.0, 1.0], [40.0, 60.0]])).tolist() == [0, 1]


def test_what_opposes_the_owner_of_its_rows_goes() -> None:
    gradients = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[-3.0, 5.0], [7.0, -2.0]]])
    # Row 0 is of task 0: (-3, 5) loses what is along (1, 0). Row 1 is of task 1: (0, 2) what is along (7, -2).
    against = torch.tensor([0.0, 2.0]) + 4 / 53 * torch.tensor([7.0, -2.0])
    expected = torch.stack([torch.tensor([1.0, 5.0]), torch.tensor([7.0, -2.0]) + against])
    torch.testing.assert_close(projected(gradients, torch.tensor([0, 1])), expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tasks=st.integers(2, 4), rows=st.integers(2, 5))
def test_no_owner_gets_less_than_it_wants(seed: int, tasks: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(tasks, rows, 3, generator=generator, dtype=torch.float64)
    owner = torch.randint(0, tasks, (rows,), generator=generator)
    found = projected(gradients, owner)
    if len(owner.unique()) == 1:
        torch.testing.assert_close(found, gradients.sum(0))
        return
    for task in owner.unique():
        own = gradients[task, owner == task]
        assert (own * found[owner == task]).sum() >= own.square().sum() - 1e-9
    same = gradients[:1].expand(tasks, -1, -1)
    torch.testing.assert_close(projected(same, owner), same.sum(0))


@pytest.mark.parametrize(("decoder", "gained"), [("pyramid", True), ("hrnet", False)])
def test_strength_is_of_the_first_layer_of_a_decoder(decoder: str, gained: bool, tree: Any) -> None:
    """A change of that layer's weights, and nothing else of them, changes what the decoder makes of a channel."""
    model = PTSAModel(ModelConfig("swin_test", tree, "lora", {"rank": 2}, decoder, width=8))
    head, tap = model.decoders["depth"], model.method.layout.tap
    for stage, width in enumerate(model.backbone.widths):
        strength = _reads(model, "depth", stage)
        if stage == 0 and tap == "merged":
            assert strength is None  # read behind the merging alone
            continue
        assert strength is not None
        assert strength.shape == (width,)
    place = 1
    with torch.no_grad():
        if gained:
            head.norms[place].weight[3] = 0  # pyright: ignore
        else:
            head.projections[0].weight[:, 3] = 0  # pyright: ignore
    strength = _reads(model, "depth", place)
    assert strength is not None
    assert strength.argmin() == 3
    assert strength[3] == 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for each step of the optimiser: how many parameters it moved."""
    original, moved = torch.optim.AdamW.step, []

    def step(self: Any, *given: Any) -> Any:
        moved.append(sum(p.grad is not None for group in self.param_groups for p in group["params"]))
        return original(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return moved


def _losses(model: Any) -> dict[str, Tensor]:
    images = torch.linspace(0, 255, 3 * 64 * 64).view(1, 3, 64, 64)
    return {task: (raw - 1).square().mean() for task, raw in model(images).items()}


def test_early_on_tasks_step_one_by_one_and_later_together(
    model: PTSAModel, steps: Any, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model.freeze()
    model.train()
    rule = ConnectionStrength()
    rule.phases(10)
    rule.bind(model, model.owners())
    run = steps(rule, model, _losses, lr=1e-3)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(0.0))  # the smallest that can be drawn
    run.take(1)
    assert len(counted) == 4
    everything = len(model.owners())
    assert max(counted) < everything  # another task's adapters and decoder stay
    counted.clear()
    run.take(1)
    assert counted == [everything]


def test_the_method_decides_which_rows_have_owners(tree: Any) -> None:
    def rows(method: str, **options: Any) -> set[str]:
        rule, options = ConnectionStrength(), options or {"rank": 2}
        model = PTSAModel(ModelConfig("swin_test", tree, method, options, width=8))
        rule.bind(model, model.owners())
        return {name.rpartition("/")[2].replace("changes.", "") for name in rule._rows}

    assert {"proj.up.0", "fc2.up.0"} <= rows("ptsa")
    # Of four tasks' own adapters nothing is shared but what is trained for all of them.
    assert rows("lora_per_task") == {f"backbone.trunk.{n}" for n in (
        "patch_embed.proj.weight", *(f"layers.{s}.downsample.reduction.weight" for s in (1, 2, 3)),
    )}  # fmt: skip


def test_a_method_that_shares_no_such_layer_is_refused(
    fit_config: FitConfig, tmp_path: Path, kill_in_step: Callable[..., None]
) -> None:
    start = fit(replace(fit_config, steps=1, out=tmp_path / "start"))
    with pytest.raises(ConfigError, match=r"--rule connection_strength shares out the channels .* trains none; take"):
        fit(replace(fit_config, method="decoders", start=start, rule="connection_strength", out=tmp_path / "run"))
