"""Photos that are held out, what is made of their figures, and which weights are kept."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data.nyu import NYU
from training.data.nyud import NYUD
from training.errors import ConfigError
from training.evaluate import figures
from training.fit import BEST, RESULT, RESUME, FitConfig, fit
from training.network.checkpoint import load_checkpoint, read_info
from training.network.model import PTSAModel
from training.running.holdout import Part, hold_out
from training.running.pictures import pictures
from training.running.validation import improvement


@pytest.fixture
def held(fit_config: FitConfig) -> FitConfig:
    return replace(fit_config, hold_out=0.2, validate_every=2, rate=3e-3, backbone_rate=3e-3)


def _names(data: Part | NYU) -> list[str]:
    return [data.photo_path(index).name for index in range(len(data))]


def test_what_is_held_out_is_not_trained_on(data: dict[str, Path]) -> None:
    whole = NYU(data["nyu"], "train")
    choices = set()
    for seed in range(20):
        trained, held = hold_out(whole, 0.3, seed)
        assert held is not None
        assert sorted(_names(trained) + _names(held)) == _names(whole)  # pyright: ignore
        assert len(held) == 2
        assert _names(hold_out(whole, 0.3, seed)[1]) == _names(held)  # pyright: ignore
        choices.add(tuple(_names(held)))  # pyright: ignore
        assert [held[i].name for i in range(2)] == [Path(name).stem for name in _names(held)]  # pyright: ignore
        assert len(held.label_paths("depth")) == 2
    assert len(choices) > 5


def test_a_share_of_nothing_holds_nothing_out(data: dict[str, Path]) -> None:
    whole = NYU(data["nyu"], "train")
    assert hold_out(whole, 0.0, 0) == (whole, None)
    one = Part(whole, [0])
    with pytest.raises(ConfigError, match=r"--hold_out 0.05 leaves none of the 1 photos of nyu to train on"):
        hold_out(one, 0.05, 0)


def test_a_part_of_a_set_is_measured_and_labelled_as_the_whole(archives: dict[str, Path]) -> None:
    whole = NYUD(archives["nyud_arrays"], "train")
    part = Part(whole, [3, 5])
    assert (part.tolerance, part.records, part.notes) == (0.011, whole.records, whole.notes)
    assert part.label_path("depth", 1) == whole.label_path("depth", 5)


def test_a_part_of_a_set_reaches_a_worker(data: dict[str, Path]) -> None:
    part = pickle.loads(pickle.dumps(Part(NYU(data["nyu"], "train"), [1, 3])))
    assert (part.name, part.size, part.tasks, len(part)) == ("nyu", NYU.size, tuple(NYU.records), 2)


_FIGURES = st.floats(0.1, 99).map(lambda v: round(v, 3))


def _results(m_iou: float, rmse: float) -> dict:
    return {"a": {"seg": {"mIoU_percent": m_iou, "x": 1.0}}, "b": {"depth": {"RMSE_m": rmse}, "none": {"RMSE_m": None}}}


@given(_FIGURES, _FIGURES, _FIGURES)
def test_smaller_errors_are_an_improvement_and_the_same_are_none(m_iou: float, rmse: float, other: float) -> None:
    first = _results(m_iou, rmse)
    assert improvement(first, first) == 0
    changed = improvement(first, _results(m_iou, other))
    assert np.sign(changed) == np.sign(rmse - other)
    assert changed == pytest.approx(50 * (rmse - other) / rmse)
    assert improvement(first, _results(100.0, 0.0)) == pytest.approx(100)
    assert improvement({}, first) == 0


def test_last_and_best_are_kept_apart_and_both_reported(held: FitConfig) -> None:
    last = fit(held)
    report = json.loads((held.out / "metrics.json").read_text())
    assert [entry["step"] for entry in report["history"]] == [2, 4, 6]
    scores = [entry["score"] for entry in report["history"]]
    assert report["best"] == report["history"][scores.index(max(scores))]
    assert report["last"] == report["history"][-1]
    assert "first figure" in report["decides"]
    info, best = read_info(last), read_info(held.out / BEST)
    assert info["validation"] == {"last": report["last"], "best": report["best"]}
    assert best["validation"]["last"] == best["validation"]["best"] == report["best"]
    assert (info["step"], best["step"], info["weights"]) == (6, report["best"]["step"], "plain")
    assert info["data"]["nyu"]["photos"] == 4
    assert info["held_out"]["nyu"]["photos"] == 1
    # What is reported is what the file gives: weights are stored in fp16, hence not exactly.
    _, part = hold_out(NYU(held.data["nyu"], "train"), held.hold_out, held.seed)
    assert part is not None
    found = figures(load_checkpoint(held.out / BEST), part, (64, 96))
    assert found["depth"]["RMSE_m"] == pytest.approx(report["best"]["figures"]["nyu"]["depth"]["RMSE_m"], rel=1e-2)


def test_validating_changes_nothing_that_is_learnt(held: FitConfig) -> None:
    fit(held)
    fit(replace(held, validate_every=0, out=held.out / "once"))
    one, two = (torch.load(out / RESUME)["model"] for out in (held.out, held.out / "once"))
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())


def test_the_checkpoint_holds_the_average(held: FitConfig) -> None:
    path = fit(replace(held, ema=0.9))
    state = torch.load(held.out / RESUME)
    name = "decoders.depth.head.bias"
    stored = load_checkpoint(path).get_parameter(name)
    assert torch.equal(stored, state["average"][name])
    assert not torch.equal(stored, state["model"][name])
    assert read_info(path)["weights"] == "averaged"


def test_curves_and_pictures_go_to_tensorboard_also_of_a_killed_run(held: FitConfig, kill_in_step) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kill_in_step(6, lambda: fit(held))  # saved at 4, where it was validated too
    fit(held)
    events = EventAccumulator(str(held.out / "logs")).Reload()
    tags = events.Tags()
    assert {tag.rsplit("/", 1)[0] for tag in tags["images"]} == {
        "nyu/segmentation",
        "nyu/depth",
        "nyu/normals",
        "ccp/saliency",
    }
    assert [event.step for event in events.Scalars("validation/nyu/depth/RMSE_m")] == [2, 4, 6]
    assert [event.step for event in events.Scalars("loss/depth")] == [1, 2, 3, 4, 5, 6]


def test_a_picture_is_photo_label_and_prediction(model: PTSAModel, data: dict[str, Path]) -> None:
    whole = NYU(data["nyu"], "val")
    found = dict(pictures(model, whole, (64, 96), count=2))
    assert set(found) == {f"{task}/{name}" for task in NYU.records for name in ("0000", "0002")}
    picture, photo = found["segmentation/0002"], whole[2]
    assert picture.shape == (48, 3 * 64, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[:, :64], photo.image)
    from ptsa_serve.tasks import TASKS

    colours = np.array(TASKS["segmentation"].colors, np.uint8)
    assert np.array_equal(picture[:, 64:128], colours[photo.labels["segmentation"]])


def test_a_killed_run_finds_the_same_best(held: FitConfig, kill_in_step, tmp_path: Path) -> None:
    # Saved at 3, validated at 2 and 4: the kill in step 5 comes between the validation of 4 and the next save.
    held = replace(held, save_every=3, ema=0.9, accumulate=2, batches={"nyu": 1, "ccp": 1})
    whole = fit(held)
    broken = replace(held, out=tmp_path / "broken")
    kill_in_step(5, lambda: fit(broken))
    assert torch.load(broken.out / RESUME)["step"] == 3
    assert not (broken.out / RESULT).exists()
    fit(broken)
    assert (broken.out / RESULT).read_bytes() == whole.read_bytes()
    for name in (BEST, "metrics.json"):
        assert (broken.out / name).read_bytes() == (held.out / name).read_bytes()
