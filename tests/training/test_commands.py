"""The commands as a user types them: a mistake is one line, a fault of ours keeps its traceback."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

import training.__main__
from training.__main__ import Command, main
from training.backbones import build_backbone
from training.fit import FitConfig
from training.network.checkpoint import sha256

ROOT = Path(__file__).parents[2]
SMALL = "--backbone swin_test --width 8 --scale 0.17 --precision 32-true --warmup 1 --steps 2 --method multi_task"

FIT = shlex.split("training fit --data '{nyu: x}' --tree depth/depth/depth/depth --method multi_task")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`refused(command)`: the line that it ends with."""

    def run(command: str) -> str:
        monkeypatch.setattr(sys, "argv", ["training", *shlex.split(command)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        if isinstance(caught.value.code, str):
            line = caught.value.code
        else:  # jsonargparse has printed its own
            assert caught.value.code == 2
            error = capsys.readouterr().err
            assert len(error.splitlines()) <= 4
            line = " ".join(error[error.index("error: ") :].split())
        assert line.startswith("error: ")
        assert len(line.splitlines()) == 1
        return line

    return run


def test_wrong_options_are_one_line_and_make_no_folder(refused, data: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"\x80\x02abc")
    sets = f"--data '{{nyu: {data['nyu']}, ccp: {data['ccp']}}}' --batches '{{nyu: 2, ccp: 2}}'"
    out = f"--out {tmp_path / 'run'}"
    for command, message in (
        (f"fit --data '{{}}' {SMALL} {out}", "--data names no data set"),
        (f"fit {sets} {SMALL} {out} --method ptsa", "--method ptsa without --start"),
        (f"fit {sets} {SMALL} {out} --steps 0", "--steps is 0; it must be from 1"),
        (f"fit {sets} {SMALL} {out} --steps many", "\"steps\": Expected a <class 'int'>. Got value: many"),
        (f"fit {sets} {SMALL} {out} --method nothing", "method 'nothing' is unknown; known are"),
        (f"fit {sets} {SMALL} {out} --precision fp8", "'32-true', 'bf16-mixed', '16-mixed'"),
        (f"fit {sets} {SMALL} {out} --start {tmp_path / 'x.pth'}", "x.pth is no file of torch, or damaged"),
        (f"fit {sets} {SMALL} {out} --start {tmp_path / 'none'}", "none: no such file of weights"),
        (f"fit {sets} {SMALL} --out {tmp_path / 'x.pth'}", "x.pth cannot be written to (it is a file)"),
        (f"fit {SMALL} {out}", "fit.data"),
        (f"fit {sets} {SMALL} {out} --stepz 3", "--stepz"),
        (f"pretrain --photos '[{tmp_path / 'none'}]' --teachers '[t]' {out}", "no such folder of photos"),
        (f"pretrain --photos '[]' --teachers '[]' {out}", "--photos names none"),
        (f"evaluate --checkpoint {tmp_path / 'x.pth'} --data '{{nyu: {data['nyu']}}}'", "x.pth is no ptsa checkpoint"),
        (f"fit {sets} {SMALL} {out} --recipe papr", "--recipe 'papr' is unknown; fit has paper, nano-half"),
        (f"fit {sets} {SMALL} {out} --rule greedy", "--rule 'greedy' is unknown; known are weighted_sum"),
        ("recipes papr", "recipe 'papr' is unknown; known are paper"),
        ("nonsense", "invalid choice: 'nonsense'"),
    ):
        assert message in refused(command), command
        assert not (tmp_path / "run").exists(), command


def test_a_recipe_is_printed_and_goes_under_what_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "recipes", "nano-half"])
    main()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(capsys.readouterr().out)
    seen: list[FitConfig] = []
    monkeypatch.setitem(training.__main__.COMMANDS, "fit", Command(FitConfig, seen.append, ""))
    for how in (["--recipe", "nano-half"], ["--config", str(recipe)]):
        given = ["--data", "{nyu: x, ccp: y}", "--out", str(tmp_path), "--steps", "7"]
        monkeypatch.setattr(sys, "argv", ["training", "fit", *how, *given])
        main()
    assert seen[0] == seen[1]
    assert (seen[0].steps, seen[0].scale, seen[0].batches) == (7, 0.5, {"nyu": 14, "ccp": 2})


def test_what_is_run_is_said_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: dict[str, Path], tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    save_file(build_backbone("swin_test").trunk.state_dict(), start)
    sets = f"{{nyu: {data['nyu']}, ccp: {data['ccp']}}}"
    options = f"--batch_each 1 --rate_batch 4 --epochs 1 --start {start} --out {tmp_path / 'run'}"
    monkeypatch.setattr(
        sys, "argv", ["training", "fit", "--data", sets, *shlex.split(SMALL.replace("--steps 2", options))]
    )
    main()
    lines = capsys.readouterr().err.splitlines()
    for line in ("steps: 5", "rate: 0.0005", "batches: {nyu: 1, ccp: 1}", f"start: {sha256(start)}"):
        assert line in lines


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_label_is_one_line_also_from_a_process_that_reads(
    refused, data: dict[str, Path], tmp_path: Path, workers: int
) -> None:
    nyu = shutil.copytree(data["nyu"], tmp_path / "nyu")
    for path in (nyu / "train/depth").iterdir():
        path.write_bytes(path.read_bytes()[:70])
    line = refused(
        f"fit --data '{{nyu: {nyu}, ccp: {data['ccp']}}}' --batches '{{nyu: 2, ccp: 2}}' {SMALL} --workers {workers} "
        f"--out {tmp_path / 'run'}"
    )
    assert f"{nyu}/train/depth/000" in line


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(_: object) -> None:
        raise ValueError("not the user's")

    monkeypatch.setitem(training.__main__.COMMANDS, "fit", Command(FitConfig, broken, ""))
    monkeypatch.setattr(sys, "argv", [*FIT, "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="not the user's"):
        main()


def test_control_c_is_one_line_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(training.__main__.COMMANDS, "fit", Command(FitConfig, interrupted, ""))
    monkeypatch.setattr(sys, "argv", [*FIT, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from where it last saved\n"


def test_the_real_command_ends_with_1_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "fit", "--data", "{}", "--steps", "0", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: --steps is 0; it must be from 1 to 1000000000; --data names no data set")
    assert list(tmp_path.iterdir()) == []
