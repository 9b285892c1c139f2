"""Two processes take the steps of one; each half of what makes them do so is tested in one process too."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import nn

import training.fit
from training.errors import ConfigError, ResumeError
from training.fit import RESUME, FitConfig, fit
from training.rules import RULES
from training.rules.weighted_sum import WeightedSum
from training.running.parallel import Share, SharedBatchNorm, gather, share_batch_norms

ROOT = Path(__file__).parents[2]

_RUN = """
import sys
from pathlib import Path
import torch
from training.fit import FitConfig, fit
from training.running.stepping import Optimisation
from training.backbones.swin import SWINS

SWINS["swin_test"] = {"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 3)}
torch.set_num_threads(1)
data, out, kill_after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
count = Optimisation.count

def counted(run):
    if run.step == kill_after:
        raise KeyboardInterrupt
    count(run)

Optimisation.count = counted
fit(
    FitConfig(
        data={"nyu": data / "nyu", "ccp": data / "ccp"}, out=out, method="multi_task", backbone="swin_test", width=8,
        batches={"nyu": 2, "ccp": 2}, steps=4, warmup=1, scale=1 / 6, workers=0, precision="32-true", save_every=2,
        rate=1e-4, backbone_rate=1e-4, drop_path=0.0, hold_out=0.2, ema=0.9, accumulate=2,
    )
)
"""


def _start(processes: int, data: Path, out: Path, script: Path, kill_after: int = -1) -> subprocess.CompletedProcess:
    script.write_text(_RUN)
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    # pytest's own run may be on fewer threads; so is this.
    return subprocess.run(
        [sys.executable, *torchrun, str(script), str(data), str(out), str(kill_after)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow  # three launches of Python and torch
def test_two_processes_give_the_weights_of_one_also_when_killed(data: dict[str, Path], tmp_path: Path) -> None:
    root, script = data["nyu"].parent, tmp_path / "run.py"
    assert _start(1, root, tmp_path / "one", script).returncode == 0
    assert _start(2, root, tmp_path / "two", script, kill_after=3).returncode != 0
    assert torch.load(tmp_path / "two" / RESUME)["step"] == 2
    done = _start(2, root, tmp_path / "two", script)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name / RESUME) for name in ("one", "two"))
    for part in ("model", "average"):
        moved = max(float((one["model"][n] - t).abs().max()) for n, t in one["average"].items())
        assert moved > 5e-5  # else the comparison would say nothing
        for name, tensor in one[part].items():
            torch.testing.assert_close(
                two[part][name], tensor, atol=1e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
            )
    assert done.stderr.count("nyu/train: 5 photos") == 1
    assert done.stderr.count("going on from there") == 1
    # A run keeps the number of its processes: what layers draw depends on it.
    again = _start(1, root, tmp_path / "two", script)
    assert "processes was 2, now 1" in again.stderr


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _fabric(rank: int, processes: int) -> Fabric:
    return cast(Fabric, SimpleNamespace(global_rank=rank, world_size=processes))


@pytest.mark.usefixtures("alone")
def test_a_shared_batch_norm_is_a_batch_norm() -> None:
    one, two = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
    nn.init.normal_(one.weight)
    two.load_state_dict(one.state_dict())
    names = list(two.state_dict())
    share_batch_norms(nn.Sequential(two), _fabric(0, 2))
    assert type(two) is SharedBatchNorm
    x = torch.randn(3, 5, 4, 6) * 3 + 7
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    for _ in range(2):
        ya, yb = one(a), two(b)
        ya.square().mul(x).sum().backward()
        yb.square().mul(x).sum().backward()
        torch.testing.assert_close(ya, yb, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.weight.grad, two.weight.grad, atol=1e-3, rtol=1e-4)
    assert list(two.state_dict()) == names
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.eval()(x), two.eval()(x), atol=1e-5, rtol=1e-5)


def test_one_process_keeps_its_batch_norms() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2))
    share_batch_norms(model, _fabric(0, 1))
    assert type(model[0]) is nn.BatchNorm2d


@pytest.mark.usefixtures("alone")
def test_what_is_gathered_has_a_gradient() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    gather(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_nothing_is_gathered_where_there_is_one_process() -> None:
    x = torch.randn(2)
    assert gather(x) is x


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_are_the_batches_in_pieces(processes: int) -> None:
    samples, batch = list(range(24)), 6
    shares = [Share(samples, batch, "nyu", _fabric(rank, processes)) for rank in range(processes)]
    size = shares[0].size
    for step in range(4):
        found = [share[i] for share in shares for i in range(step * size, (step + 1) * size)]
        assert found == samples[step * batch : (step + 1) * batch]
    assert {len(share) for share in shares} == {24 // processes}


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 photos of nyu make a step, which 2 processes cannot share evenly"):
        Share([], 3, "nyu", _fabric(0, 2))


def test_rules_that_need_gradients_of_tasks_are_refused_under_torchrun(
    fit_config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Greedy(WeightedSum):
        needs_task_grads = True

    monkeypatch.setitem(RULES, "greedy", Greedy)
    config = replace(fit_config, rule="greedy")
    with pytest.raises(
        ConfigError, match="--rule greedy needs gradients of each task, or passes side by side, which one process has"
    ):
        training.fit._prepare(config, _fabric(0, 2), {}, {})


def test_another_number_of_processes_is_refused_by_name(fit_config: FitConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(replace(fit_config, steps=1))
    described: Any = training.fit._settings
    monkeypatch.setattr(training.fit, "_settings", lambda *given: described(*given) | {"processes": 2})
    with pytest.raises(ResumeError, match="processes was 1, now 2"):
        fit(replace(fit_config, steps=1))


@pytest.mark.slow  # two launches of Python and torch
def test_the_readmes_command_shares_a_training_of_adapters(data: dict[str, Path], tmp_path: Path) -> None:
    """As it is typed, `--start` and all, up to the first thing that is wrong: a file that is not there."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "--", "training", "fit"]
    options = ["--data", f"{{nyu: {data['nyu']}, ccp: {data['ccp']}}}", "--start", str(tmp_path / "none.safetensors")]
    done = subprocess.run(
        [*command, *options, "--out", str(tmp_path / "run")],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "none.safetensors: no such file of weights" in done.stderr
