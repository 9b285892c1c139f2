"""What is timed is whole steps of both methods, on the same photos."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.training_speed import _step
from ptsa_serve.errors import TreeError
from ptsa_serve.task_tree import TaskTree
from ptsa_serve.tasks import TASKS
from training.backbones.swin import SWINS
from training.network.model import ModelConfig, PTSAModel


@pytest.fixture(autouse=True)
def small_swin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SWINS, "swin_nano", {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 3)})


@pytest.mark.parametrize("method", ["lora", "ptsa"])
def test_a_step_changes_all_that_the_method_trains_and_nothing_else(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[PTSAModel] = []

    def kept(config: ModelConfig) -> PTSAModel:
        models.append(PTSAModel(config))
        return models[0]

    monkeypatch.setattr("benchmarks.training_speed.PTSAModel", kept)
    config = ModelConfig("swin_nano", TaskTree.of_counts(list(TASKS), (1, 1, 2, 4)), method, {"rank": 2})
    step = _step(config, 2, (64, 64))
    before = {name: parameter.detach().clone() for name, parameter in models[0].named_parameters()}
    for _ in range(2):  # the first leaves `down`: `up` is 0
        step()
    changed = {n for n, parameter in models[0].named_parameters() if not torch.equal(parameter, before[n])}
    assert changed == set(models[0].owners())


def test_the_ratios_belong_together(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    out = tmp_path / "speed.json"
    command = f"training_speed --size 64 --batch 1 --rank 2 --rounds 1 --threads {threads} --out {out}"
    CliRunner().invoke(main, command.split(), catch_exceptions=False)
    found = json.loads(out.read_text())
    figures = found["figures"]
    assert found["conditions"]["tree"] == "1-1-2-4"
    assert 0 < figures["multiply_adds_of_maps_ratio"] < 1
    assert figures["lora_step_giga_multiply_adds"] < figures["ptsa_step_giga_multiply_adds"]
    speed = figures["ptsa_steps_per_second"] / figures["lora_steps_per_second"]
    assert figures["speed_ratio"] == pytest.approx(speed)
    by_step = figures["lora_step_giga_multiply_adds"] / figures["ptsa_step_giga_multiply_adds"]
    assert figures["speed_against_steps_ratio"] == pytest.approx(speed / by_step)


def test_a_tree_that_is_none_is_refused() -> None:
    done = CliRunner().invoke(main, ["training_speed", "--tree", "2-1-1-1"])
    assert isinstance(done.exception, TreeError)
