"""Accumulators of the optimiser for each task: no task is drowned by a louder one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from training.errors import ConfigError
from training.fit import FitConfig, fit
from training.rules.adatask import AdaTask
from training.rules.weighted_sum import WeightedSum

EVERYONE = frozenset({"a", "b"})
OWNERS = {"shared": EVERYONE, "own": frozenset({"b"})}


def _losses(model: Any) -> dict[str, torch.Tensor]:
    a = (model.shared - torch.tensor([1.0, 2.0])).square().sum()
    return {"a": a, "b": (model.shared * model.own + 3).square().sum()}


def _trained(rule: Any, numbers: Any, steps: Any, losses: Any = _losses, weights: Any = None, **options: Any) -> Any:
    model = numbers({"shared": [0.5, -0.3], "own": [0.2, 0.1]})
    rule.bind(model, OWNERS)
    steps(rule, model, losses, **{"lr": 0.01, "weight_decay": 0.1} | options).take(7, weights)
    return model


def test_with_common_accumulators_it_is_adamw(numbers: Any, steps: Any) -> None:
    one = _trained(AdaTask(separate=False), numbers, steps, max_norm=0.5)
    two = _trained(WeightedSum(), numbers, steps, max_norm=0.5)
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter, two.get_parameter(name), rtol=1e-5, atol=1e-7)


def test_tasks_that_want_the_same_move_as_one_does(numbers: Any, steps: Any) -> None:
    """As T = 1: the accumulators of each are Adam's."""

    def same(model: Any) -> dict[str, torch.Tensor]:
        return dict.fromkeys(("a", "b"), (model.shared - 2).pow(4).sum())

    one, two = (_trained(rule, numbers, steps, same, eps=1e-12) for rule in (AdaTask(), WeightedSum()))
    torch.testing.assert_close(one.shared, two.shared)


def test_a_louder_task_moves_the_weights_no_more(numbers: Any, steps: Any) -> None:
    quiet = _trained(AdaTask(), numbers, steps, eps=1e-12)
    loud = _trained(AdaTask(), numbers, steps, weights={"a": 1.0, "b": 1e4}, eps=1e-12)
    torch.testing.assert_close(quiet.shared, loud.shared, atol=1e-5, rtol=0)
    plain = _trained(WeightedSum(), numbers, steps, weights={"a": 1.0, "b": 1e4}, eps=1e-12)
    assert (plain.shared - quiet.shared).abs().max() > 0.01


def _apart(model: Any) -> dict[str, torch.Tensor]:
    return {"a": (model.x - 1).square().sum() / 2, "b": 1e4 * (model.x + 1).square().sum() / 2}


@pytest.mark.parametrize(("separate", "share", "moved"), [(True, 0.5, 0.0), (False, 0.0, -0.01)])
def test_between_two_minima_both_pull_alike(
    numbers: Any, steps: Any, separate: bool, share: float, moved: float
) -> None:
    """The gradients' ratio is 3e4: Adam follows the second task alone, here the two unit steps cancel."""
    model, rule = numbers({"x": [0.5]}), AdaTask(separate=separate)
    rule.bind(model, {"x": EVERYONE})
    values = steps(rule, model, _apart, lr=0.01, weight_decay=0.0).take(1)
    assert model.x.item() == pytest.approx(0.5 + moved, abs=1e-5)
    assert values["share/stage 1/a"] == pytest.approx(share, abs=1e-4)
    assert sum(rule.report()["update_share"]["stage 1"].values()) == pytest.approx(1)


def test_gradients_that_are_not_finite_change_nothing(numbers: Any, steps: Any) -> None:
    model, rule = numbers({"x": [0.5]}), AdaTask()
    rule.bind(model, {"x": EVERYONE})
    with pytest.raises(ValueError, match="gradients of photo are not finite"):
        # The loss is finite, the gradient of a root at 0 is not.
        steps(rule, model, lambda m: {"a": (m.x - 0.5).abs().sqrt().sum()}).take(1)
    assert model.x.item() == 0.5
    assert not rule.state_dict()["moments"]


def test_a_method_that_shares_nothing_is_refused(fit_config: FitConfig, tmp_path: Path) -> None:
    start = fit(replace(fit_config, steps=1, out=tmp_path / "start"))
    with pytest.raises(ConfigError, match=r"--rule adatask balances what several tasks share, .* shares nothing; take"):
        fit(replace(fit_config, method="single_task", start=start, rule="adatask", out=tmp_path / "run"))


def test_wrong_options_are_refused(fit_config: FitConfig) -> None:
    with pytest.raises(ConfigError, match="--rule adatask: decay is 1; allowed are 0 up to, but not, 1"):
        replace(fit_config, rule="adatask", rule_options={"decay": 1})
    with pytest.raises(ConfigError, match="--rule adatask has no option 'beta'; it has separate, decay"):
        replace(fit_config, rule="adatask", rule_options={"beta": 1})
