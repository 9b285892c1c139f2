"""What holds for every rule of the registry: it trains what it is for, resumes, and leaves the graph as it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from export.fold import fold
from ptsa_serve.task_tree import TaskTree
from training.fit import FitConfig, fit
from training.network.checkpoint import load_checkpoint, read_info
from training.rules import RULES

INDEPENDENT = str(TaskTree.independent(("segmentation", "depth", "normals", "saliency")))

# Rule -> the structures that it is tried on, and its options there. A tree in place of ptsa: ptsa with that tree.
STRUCTURES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "weighted_sum": [("ptsa", {}), ("multi_task", {})],
    "adatask": [("ptsa", {}), ("multi_task", {"separate": False})],
    "connection_strength": [("ptsa", {}), ("multi_task", {})],
    "cross_learning": [
        ("lora_per_task", {"eps": 1e-4, "every": 1}),
        (INDEPENDENT, {}),
        ("single_task", {"eps": [None, 0.01, 1, 1], "every": 1}),
    ],
    "pareto": [("palora", {}), ("pareto", {"window": 2, "coefficient": 0})],
    "rank_shrink": [("ptsa", {}), ("dora", {})],
}
# Of one method alone, the one that holds experts; tests/training/methods/test_tinting.py tries it.
ALONE = ("tinting",)
DEFAULT = ("adatask",)
CASES = [
    # Each is four trainings: by default the one that remembers and moves weights itself.
    pytest.param((rule, method, options), marks=[pytest.mark.slow] if rule not in DEFAULT or number else [])
    for rule, found in STRUCTURES.items()
    for number, (method, options) in enumerate(found)
]


def test_every_rule_is_tried() -> None:
    assert [*STRUCTURES, *ALONE] == list(RULES)
    assert all(len(found) > 1 for found in STRUCTURES.values())


@pytest.fixture
def config(request: pytest.FixtureRequest, fit_config: FitConfig, tmp_path: Path) -> FitConfig:
    rule, method, options = request.param
    start = fit(replace(fit_config, steps=1, out=tmp_path / "start"))
    where = {"method": "ptsa", "tree": method} if "/" in method else {"method": method}
    return replace(
        fit_config, **where, rule=rule, rule_options=options, rank=None if method in WITHOUT_RANK else 2,
        start=start, steps=2, save_every=1, batches={"nyu": 1, "ccp": 1}, accumulate=2,
    )  # fmt: skip


WITHOUT_RANK = ("multi_task", "single_task", "pareto")


@pytest.mark.parametrize(
    "config",
    CASES,
    indirect=True,
    ids=[f"{rule}-{method}" for rule, found in STRUCTURES.items() for method, _ in found],
)
def test_it_trains_resumes_and_leaves_the_graph(config: FitConfig, kill_in_step: Any, tmp_path: Path) -> None:
    whole = fit(config)
    broken = replace(config, out=tmp_path / "broken")
    kill_in_step(2, lambda: fit(broken))
    assert fit(broken).read_bytes() == whole.read_bytes()
    info = read_info(whole)
    assert info["rule"] == config.rule
    assert info["rule_options"].items() >= config.rule_options.items()
    assert _shape(whole) == _shape(fit(replace(config, rule="weighted_sum", rule_options={}, out=tmp_path / "sum")))


def _shape(checkpoint: Path) -> dict[str, Any]:
    """Of the network that is compiled: nodes of every slot, and tensors."""
    model = load_checkpoint(checkpoint)
    assert torch.cat([p.detach().flatten() for p in model.parameters()]).isfinite().all()
    network = fold(model).network
    nodes = {name: len(found) for name, found in network.plan.items()}
    return nodes | {name: parameter.shape for name, parameter in network.named_parameters()}
