"""A folder that holds a run: it goes on with the same settings, everything else is refused by name, nothing is lost."""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.errors import ConfigError, ResumeError
from training.fit import RESULT, RESUME, FitConfig, fit
from training.network.checkpoint import save_checkpoint
from training.network.model import PTSAModel
from training.options import MAY_CHANGE
from training.running.log import curves
from training.running.resume import claim, read_state, write_state

ROOT = Path(__file__).parents[2]
TREE = (
    "segmentation,depth,normals,saliency / segmentation,depth,normals,saliency / "
    "segmentation,depth | normals,saliency / segmentation | saliency | depth | normals"
)


@pytest.fixture
def adapted(fit_config: FitConfig, tmp_path: Path) -> FitConfig:
    """A finished run of two steps that adapted a model."""
    full = fit(replace(fit_config, steps=1, out=tmp_path / "full"))
    config = replace(fit_config, method="ptsa", rank=2, start=full, steps=2)
    fit(config)
    return config


def test_other_settings_are_refused_by_name_and_the_result_stays(adapted: FitConfig, tmp_path: Path) -> None:
    before = (adapted.out / RESULT).read_bytes()
    other = shutil.copytree(adapted.data["nyu"], tmp_path / "fewer")
    (other / "train/image/0004.jpg").unlink()
    for folder in ("segmentation", "depth", "normals"):
        next((other / "train" / folder).glob("0004.*")).unlink()
    changed_start = fit(
        replace(adapted, method="multi_task", rank=None, start=None, seed=1, steps=1, out=tmp_path / "other")
    )
    for change, message in (
        ({"tree": TREE}, r"tree was .* \| depth,normals / .*, now .* \| normals,saliency / "),
        ({"rate": 1e-4, "weight_decay": 0.1}, "rate was 0.001, now 0.0001; weight_decay was 0.05, now 0.1"),
        ({"steps": 4}, "steps was 2, now 4"),
        ({"batches": {"nyu": 1, "ccp": 2}}, "batches.nyu was 2, now 1"),
        ({"precision": "bf16-mixed"}, "precision was 32-true, now bf16-mixed"),
        ({"scale": 0.25}, "scale was 0.16.*, now 0.25"),
        ({"side": 64}, "side was 0, now 64"),
        ({"ema": 0.9}, "ema was 0.0, now 0.9"),
        ({"accumulate": 2}, "accumulate was 1, now 2"),
        ({"clip": 1.0}, "clip was 5.0, now 1.0"),
        ({"hold_out": 0.2, "validate_every": 1}, "hold_out was 0.0, now 0.2; validate_every was 0, now 1; .*held_out"),
        ({"epochs": 3}, "steps was 2, now 6"),
        ({"rate_batch": 8}, "rate was 0.001, now 0.0005"),
        ({"data": {**adapted.data, "nyu": other}}, "data.nyu.photos was 5, now 4; data.nyu.names_sha256 was"),
        ({"start": changed_start}, r"start was \w{12}\.\.\., now \w{12}\.\.\."),
    ):
        with pytest.raises(ResumeError, match=rf"{adapted.out} holds a run with other settings: .*{message}"):
            fit(replace(adapted, **change))
    assert (adapted.out / RESULT).read_bytes() == before


def test_a_finished_run_says_so_and_does_not_train_again(
    adapted: FitConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = (adapted.out / RESULT).read_bytes()
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("it trains"))
    # What may change, and a copy of the same weights and data somewhere else.
    moved = {name: shutil.copytree(folder, tmp_path / "moved" / name) for name, folder in adapted.data.items()}
    assert adapted.start is not None
    start = Path(shutil.copy(adapted.start, tmp_path / "copy.safetensors"))
    assert fit(replace(adapted, workers=1, save_every=1, data=moved, start=start)) == adapted.out / RESULT
    assert "this run is finished" in capsys.readouterr().err
    assert MAY_CHANGE == ("out", "workers", "save_every")
    # A kill between the state and the result costs nothing.
    (adapted.out / RESULT).unlink()
    assert fit(adapted).read_bytes() == before


def test_the_same_run_said_otherwise_goes_on(adapted: FitConfig, capsys: pytest.CaptureFixture[str]) -> None:
    twice = {"rate": 2 * adapted.rate, "backbone_rate": 2 * adapted.backbone_rate}
    said = replace(adapted, epochs=1, batch_each=2, rate_batch=8, warmup=1, **twice)
    assert fit(said) == adapted.out / RESULT
    assert "this run is finished" in capsys.readouterr().err


def test_weights_of_which_no_run_is_known_are_not_replaced(fit_config: FitConfig) -> None:
    fit_config.out.mkdir()
    (fit_config.out / RESULT).write_bytes(b"precious")
    with pytest.raises(ResumeError, match="weights of another run, which this one would replace; name a new --out"):
        fit(fit_config)
    assert (fit_config.out / RESULT).read_bytes() == b"precious"


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda _: b"hello\n" * 99, lambda d: d[:200], lambda d: d[: len(d) // 2], _flipped],
    ids=["empty", "text", "head", "half", "one bit"],
)
def test_a_damaged_resume_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / RESUME
    write_state(path, {"model": torch.randn(5000)}, {"rate": 0.1})
    assert read_state(path, {"rate": 0.1})["model"].shape == (5000,)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ResumeError, match=rf"{path} is damaged; remove it to begin anew, or name another --out"):
        read_state(path, {"rate": 0.1})


def test_a_resume_file_of_an_older_version_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}, "optimizer": {}, "step": 3}, tmp_path / RESUME)
    with pytest.raises(ResumeError, match="did not store the run's settings; remove it to begin anew"):
        read_state(tmp_path / RESUME, {})


def test_an_output_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, reason in ((tmp_path / "file", "it is a file"), (tmp_path / "file" / "below", "Not a directory")):
        with pytest.raises(ConfigError, match=rf"--out {out} cannot be written to \({reason}\); name another"):
            claim(out, RESUME, RESULT, {})


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 20 bytes; the test runner's own neither, so inside a test alone."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_error_that_names_the_file_and_keeps_the_old_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / RESUME
    write_state(path, {"step": 1}, {})
    before = path.read_bytes()
    with full_disk():
        with pytest.raises(OSError, match=rf"{path} cannot be written \(File too large\); make room"):
            write_state(path, {"step": 2}, {})
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
        with pytest.raises(ConfigError, match=rf"--out {tmp_path} cannot be written to \(File too large\)"):
            claim(tmp_path, RESUME, RESULT, {})
        with pytest.raises(OSError, match=rf"{tmp_path / 'logs'} cannot be written \(File too large\)"):  # noqa: SIM117
            with curves(tmp_path / "logs", first=0):
                pass
    assert capfd.readouterr().err == ""


_SAVE_FOR_EVER = """
import itertools, sys
from pathlib import Path
import torch
from training.running.resume import write_state
for step in itertools.count():
    write_state(Path(sys.argv[1]), {"step": step, "model": torch.full((500_000,), float(step))}, {})
    print(step, flush=True)
"""


def test_files_are_on_the_disk_before_they_take_their_name(
    model: PTSAModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), sync(file)))
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, lambda old, new: (done.append("rename"), rename(old, new)))
    for write in (
        lambda: write_state(tmp_path / RESUME, {"step": 1}, {}),
        lambda: save_checkpoint(model, tmp_path / RESULT, info={}),
    ):
        done.clear()
        write()
        assert done[:2] == ["fsync", "rename"]


def test_a_kill_while_saving_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / RESUME
    command = [sys.executable, "-c", _SAVE_FOR_EVER, path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for number in range(1, 40):
            time.sleep(0.005)
            state = read_state(path, {})  # whole at any moment, not only at the last
            assert (state["model"] == state["step"]).all(), number
        process.kill()
    state = read_state(path, {})
    assert (state["model"] == state["step"]).all()
    # What a kill may leave has another name, and nothing looks for it.
    assert claim(tmp_path, RESUME, RESULT, {}) is not None
