"""Ranks that an adapter does not need go, and never come back."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric import Fabric
from torch import Tensor, nn

from export.fold import fold
from training.errors import ConfigError
from training.fit import RESUME, FitConfig, fit
from training.network.changes import LowRank
from training.network.checkpoint import load_checkpoint
from training.network.layout import Stream
from training.network.model import PTSAModel
from training.network.slots import Slot
from training.rules import RULES, rank_shrink
from training.rules.base import Batch
from training.rules.rank_shrink import RankShrink, covering
from training.rules.weighted_sum import WeightedSum
from training.running.stepping import Optimisation
from training.running.turn import StepTurn

ROOT = Path(__file__).parents[3]
SLOT = Slot("fc", "fc1", "linear", stage=0, tensors={"weight": "fc.weight"})
scores = st.lists(st.floats(0, 1e3), min_size=1, max_size=12).map(lambda values: torch.tensor(values).double())


_RUN = """
import os
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from training.backbones import build_backbone
from training.backbones.swin import SWINS
from training.fit import FitConfig, fit
from training.rules import rank_shrink

SWINS["swin_test"] = {"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 3)}
torch.set_num_threads(1)
rank_shrink.TIMES, rank_shrink.COVER = 2, 0.5
data, out = Path(sys.argv[1]), Path(sys.argv[2])
start = out.with_suffix(f".{os.environ.get('RANK', 0)}.safetensors")
torch.manual_seed(0)
save_file(build_backbone("swin_test").trunk.state_dict(), start)
fit(
    FitConfig(
        data={"nyu": data / "nyu", "ccp": data / "ccp"}, out=out, start=start, rule="rank_shrink", rank=4,
        options={"dropout": 0.0}, backbone="swin_test", width=8, batches={"nyu": 2, "ccp": 2}, steps=4, warmup=1,
        scale=1 / 6, workers=0, precision="32-true", rate=1e-3, drop_path=0.0,
    )
)
"""


class Toy(nn.Module):
    """A layer of eight ranks for a target that needs two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(10, 12), requires_grad=False)
        self.target = nn.Parameter(self.weight + torch.randn(10, 2) @ torch.randn(2, 12), requires_grad=False)
        self.adapter = LowRank(self.weight, [("a",)], rank=8, scale=1.0, dropout=0.0)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.adapter(SLOT, {"weight": self.weight}, x, [Stream(("a",))])
        return {"a": (found - x @ self.target.T).square().mean()}


def trained(rule: WeightedSum | RankShrink, steps: int) -> Toy:
    model = Toy()
    rule.bind(model, {})
    rule.phases(steps)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    run = Optimisation(Fabric(accelerator="cpu"), model, torch.optim.AdamW(trainable, lr=0.02), max_norm=1e6)
    for step in range(steps):
        x = torch.randn(32, 12, generator=torch.Generator().manual_seed(step))
        rule.step(StepTurn(run, [Batch("toys", x)], run.model, {"a": 1.0}, "train"))
        run.count()
    return model


@given(scores, st.floats(0.01, 1), st.floats(0.01, 1))
def test_covering_more_takes_no_rank_away(values: Tensor, share: float, other: float) -> None:
    less, more = (covering(values, one) for one in sorted((share, other)))
    assert less.any()
    assert (more | ~less).all()


@given(scores, st.floats(0.01, 0.99))
def test_it_is_the_smallest_set_that_covers_the_share(values: Tensor, share: float) -> None:
    kept = covering(values, share)
    if not values.sum() > 0:
        assert kept.all()
        return
    wanted = share * values.sum()
    assert values[kept].sum() >= wanted * (1 - 1e-9)
    assert kept.sum() == 1 or values[kept].sum() - values[kept].min() < wanted * (1 + 1e-9)


def test_with_all_ranks_in_every_pass_it_is_the_weighted_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_shrink, "_first", lambda alive, draw: alive)
    monkeypatch.setattr(rank_shrink, "COVER", 1.0)
    ours, plain = trained(RankShrink(), 10), trained(WeightedSum(), 10)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name)), name


def test_a_pass_moves_the_ranks_it_uses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_shrink, "_first", lambda alive, draw: torch.arange(8) < 3)
    adapter, start = trained(RankShrink(), 1).adapter, Toy().adapter
    assert adapter.up[0][:, :3].all()
    assert not adapter.up[0][:, 3:].any()
    # AdamW's decay touches the others too.
    torch.testing.assert_close(adapter.down[0][3:], start.down[0][3:], rtol=1e-3, atol=0)


def test_a_target_of_rank_two_keeps_about_two_ranks() -> None:
    rule = RankShrink()
    model, x = trained(rule, 400), torch.randn(100, 12)
    (alive,) = rule.alive.values()
    assert 2 <= alive.sum() <= 4
    assert model(x)["a"] < 0.01 * Toy()(x)["a"]
    assert not model.adapter.up[0][:, ~alive].any()
    assert not model.adapter.down[0][~alive].any()


@pytest.fixture
def shrinking(fit_config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FitConfig:
    """Whose ranks go in every second step, to half of what they do."""
    monkeypatch.setattr(rank_shrink, "TIMES", 3)
    monkeypatch.setattr(rank_shrink, "COVER", 0.5)
    start = fit(replace(fit_config, steps=1, out=tmp_path / "start"))
    return replace(fit_config, rule="rank_shrink", method="ptsa", rank=4, start=start, ema=0.9)


@pytest.mark.parametrize("method", ["ptsa", pytest.param("dora", marks=pytest.mark.slow)])
def test_it_resumes_leaves_nothing_of_a_removed_rank_and_the_graph_as_it_is(
    method: str, shrinking: FitConfig, tmp_path: Path, kill_in_step, randomise
) -> None:
    config = replace(shrinking, method=method)
    whole = fit(replace(config, out=tmp_path / "whole"))
    kill_in_step(5, lambda: fit(config))
    assert fit(config).read_bytes() == whole.read_bytes()
    model = load_checkpoint(whole)
    alive = torch.load(config.out / RESUME, weights_only=True)["rule"]["alive"]
    for name, ranks in alive.items():
        down, up = (model.get_parameter(name.format(part)) for part in ("down", "up"))
        assert not down[~ranks].any()
        assert not up[:, ~ranks].any()
        assert ranks.any()
    assert sum(int((~ranks).sum()) for ranks in alive.values()) > len(alive)
    assert shapes(fold(model).network) == shapes(fold(randomise(PTSAModel(model.config))).network)


def shapes(network: nn.Module) -> list[tuple[str, Sequence[int]]]:
    return [(name, parameter.shape) for name, parameter in network.named_parameters()]


def test_a_method_without_ranks_is_refused(shrinking: FitConfig) -> None:
    assert "rank_shrink" in RULES
    with pytest.raises(
        ConfigError, match=r"takes ranks from low-rank adapters, and this method has none .* choose ptsa"
    ):
        fit(replace(shrinking, method="bitfit", rank=None))


@pytest.mark.slow  # two launches of Python and torch
def test_two_processes_keep_the_ranks_that_one_keeps(data: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(_RUN)
    for name, torchrun in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc_per_node", "2"])):
        command = [sys.executable, *torchrun, str(tmp_path / "run.py"), str(data["nyu"].parent), str(tmp_path / name)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name / RESUME, weights_only=True) for name in ("one", "two"))
    for name, alive in one["rule"]["alive"].items():
        assert torch.equal(alive, two["rule"]["alive"][name]), name
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, atol=1e-4, rtol=0)
