"""Named configurations, and the two ways in which a run's length and rates may be said."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from training.__main__ import COMMANDS
from training.errors import ConfigError
from training.fit_config import WAYS_TO_SAY, FitConfig, resolved
from training.pretrain import PretrainConfig
from training.recipes import RECIPES, RecipesConfig, recipes, with_recipe

GIVEN = {"out": Path("z"), "start": Path("w")}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_configuration_and_prints_as_one(name: str) -> None:
    command, options = RECIPES[name].command, RECIPES[name].options
    data = dict.fromkeys(options.get("batches", ["nyu", "ccp"]), Path("x"))
    given = {"data": data, **GIVEN} if command == "fit" else {"photos": ["x"], "teachers": ["y"], "out": Path("z")}
    config = COMMANDS[command].config(**with_recipe(name, command, given))
    assert isinstance(config, FitConfig | PretrainConfig)
    assert {option: getattr(config, option) for option in options} == dict(options)
    assert yaml.safe_load(recipes(RecipesConfig(name))) == options
    assert f"{name} " in recipes(RecipesConfig())


def test_what_is_given_goes_before_the_recipe_however_it_is_said() -> None:
    assert with_recipe("paper", "fit", {"drop_path": 0.0})["drop_path"] == 0.0
    for given, gone in (("steps", "epochs"), ("warmup", "warmup_epochs"), ("batches", "batch_each"), ("scale", "side")):
        assert gone not in with_recipe("paper", "fit", {given: 1})
    assert "steps" not in with_recipe("nano-half", "fit", {"epochs": 3})


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="--recipe 'nano-pretrain' is unknown; fit has paper, nano-half"):
        with_recipe("nano-pretrain", "fit", {})
    with pytest.raises(ConfigError, match="recipe 'x' is unknown; known are paper"):
        recipes(RecipesConfig("x"))


def test_the_papers_recipe_is_its_schedule_on_its_data() -> None:
    """MTLoRA on PASCAL-Context: 4,998 photos, 156 steps an epoch, 46,800 in all, a peak of 3.125e-5."""
    given = {**GIVEN, "data": {"ccp": Path()}, "tree": "saliency / saliency / saliency / saliency"}
    run = resolved(FitConfig(**with_recipe("paper", "fit", given)), {"ccp": 4998})
    assert (run.steps, run.warmup, run.batches) == (46_800, 3_120, {"ccp": 32})
    assert run.rate == pytest.approx(3.125e-5)
    nyud = resolved(FitConfig(**with_recipe("paper", "fit", given)), {"ccp": 795})
    assert (nyud.steps, nyud.warmup) == (7_200, 480)


def test_a_resolved_run_is_resolved(fit_config: FitConfig) -> None:
    photos = {"nyu": 21, "ccp": 40}
    config = replace(fit_config, epochs=3, warmup_epochs=1, hold_out=0.1, validate_epochs=2, rate_batch=2, accumulate=2)
    run = resolved(config, photos)
    # The set that lasts longest has 40 photos for steps of 4.
    assert (run.steps, run.warmup, run.validate_every) == (30, 10, 20)
    assert (run.rate, run.backbone_rate) == (pytest.approx(4e-3), pytest.approx(1.6e-3))
    assert resolved(run, photos) == run
    assert not any(getattr(run, second) for second in WAYS_TO_SAY.values())


def test_an_epoch_has_a_step_at_least(fit_config: FitConfig) -> None:
    run = resolved(replace(fit_config, epochs=2, data={"nyu": Path()}, batches={"nyu": 2}, tree=DEPTH), {"nyu": 1})
    assert run.steps == 2


DEPTH = "depth / depth / depth / depth"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validate_every": 5}, "--validate_every needs photos that are not trained on"),
        ({"validate_epochs": 5}, "keep some with --hold_out"),
        ({"side": 100}, "--side is 100; it must be a multiple of 32, or 0"),
        ({"hold_out": 0.9}, "--hold_out is 0.9; it must be from 0 to 0.5"),
        ({"ema": 1.0}, "--ema is 1.0"),
        ({"accumulate": 0}, "--accumulate is 0"),
        ({"clip": 0.0}, "--clip is 0.0"),
        ({"batch_each": -1}, "--batch_each is -1"),
        ({"epochs": -1}, "--epochs is -1"),
    ],
)
def test_a_course_that_cannot_be_run_is_refused(fit_config: FitConfig, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(fit_config, **change)
