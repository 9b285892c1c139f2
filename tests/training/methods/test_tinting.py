"""Tinting: experts are corners of what is trained, photos need no labels, and one network is left."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from ptsa_serve.task_tree import TaskTree
from ptsa_serve.tasks import TASKS as KNOWN
from training.build import build
from training.data.labels import IGNORE
from training.errors import CheckpointError, ConfigError
from training.fit import RESUME, FitConfig, fit
from training.network.checkpoint import load_checkpoint, read_info, save_checkpoint
from training.network.model import ModelConfig, PTSAModel
from training.network.plan import make_plan
from training.rules.tinting import expert_label
from training.scoring.losses import task_loss

TASKS = ("depth", "normals", "saliency")
TREE = TaskTree.shared(TASKS)
ONE = "saliency / saliency / saliency / saliency"
IMAGES = (torch.arange(3 * 64 * 64) % 251).float().view(1, 3, 64, 64)


def stored(path: Path, method: str, seed: int, tree: TaskTree = TREE, **options: object) -> Path:
    """A model of random weights as a checkpoint."""
    torch.manual_seed(seed)
    model = PTSAModel(ModelConfig("swin_test", tree, method, options, width=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
    path.mkdir(exist_ok=True)
    save_checkpoint(model, path / f"{method}{seed}.safetensors", info={})
    return path / f"{method}{seed}.safetensors"


@pytest.fixture
def config(fit_config: FitConfig, tmp_path: Path) -> FitConfig:
    """A run on photos that are labelled with saliency alone: its experts are a whole network and an adapted one."""
    ptsa, single = stored(tmp_path, "ptsa", 1, rank=2), stored(tmp_path, "single_task", 2)
    return replace(
        fit_config,
        data={"ccp": fit_config.data["ccp"]},
        batches={"ccp": 2},
        tree=" / ".join([",".join(TASKS)] * 4),
        method="tinting",
        rule="tinting",
        start=stored(tmp_path, "multi_task", 0),
        experts={"depth": ptsa, "normals": single, "saliency": single},
        steps=2,
        save_every=1,
    )


@torch.no_grad()
def test_at_its_corner_a_task_is_its_expert_and_at_zero_the_backbone(config: FitConfig) -> None:
    model = build(config).eval()
    for task in TASKS:
        corner = {f"method.{name}": value for name, value in model.method.expert(task).items()}
        found = functional_call(model, corner, (IMAGES, [task]))[task]
        expected = load_checkpoint(config.experts[task])(IMAGES)[task]
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    nothing = {name: torch.zeros(len(TASKS)) for name, _ in model.named_parameters() if ".coefficients." in name}
    maps = model.backbone.maps(model.normalised(IMAGES))
    for task, raw in functional_call(model, nothing, (IMAGES,)).items():
        assert torch.equal(raw, model.decoders[task](maps))


@torch.no_grad()
def test_without_rounding_the_corner_is_exact() -> None:
    """`build` brings differences to fp16, as they are stored; the algebra is exact."""
    model = PTSAModel(ModelConfig("swin_test", TREE, "tinting", width=8)).double().eval()
    expert = PTSAModel(ModelConfig("swin_test", TREE, "multi_task", width=8)).double().eval()
    for slot in expert.backbone.slots:
        model.method.adopt("depth", slot, expert.backbone.tensors(slot))
    corner = {f"method.{name}": value.double() for name, value in model.method.expert("depth").items()}
    expected = model.decoders["depth"](expert.backbone.maps(model.normalised(IMAGES.double())))
    torch.testing.assert_close(functional_call(model, corner, (IMAGES.double(),))["depth"], expected)


def test_it_learns_without_labels_what_it_says_and_nothing_else(config: FitConfig) -> None:
    before, path = build(config).state_dict(), fit(replace(config, rate=0.5))
    trained = {name for name, p in build(config).named_parameters() if p.requires_grad}
    assert read_info(path)["experts"].keys() == set(TASKS)
    for file in set(config.experts.values()):
        file.unlink()
    model = load_checkpoint(path)  # needs no expert
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= trained
    assert {name for name in trained if ".head." in name} <= changed
    coefficients = [p for name, p in model.named_parameters() if ".coefficients." in name]
    assert all(((p >= 0) & (p <= 1)).all() for p in coefficients)
    assert any((p == bound).any() for p in coefficients for bound in (0, 1))
    plan = make_plan(model.backbone.slots, model.method.layout, model.method.version)
    assert {len(nodes) for nodes in plan.values()} == {1}


@pytest.mark.slow
def test_a_killed_run_comes_to_the_same_result(
    config: FitConfig, tmp_path: Path, kill_in_step: Callable[..., None]
) -> None:
    whole = fit(replace(config, out=tmp_path / "whole"))
    kill_in_step(2, lambda: fit(config))
    assert torch.load(config.out / RESUME, weights_only=True)["step"] == 1
    assert fit(config).read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_it_comes_closer_to_the_experts(config: FitConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(replace(config, steps=30, rate=0.02, save_every=30))
    events = EventAccumulator(str(config.out / "logs")).Reload()
    for task in TASKS:
        values = [event.value for event in events.Scalars(f"loss/{task}")]
        assert sum(values[-5:]) < 0.8 * sum(values[:5]), task


def test_coefficients_learn_from_labels_too(config: FitConfig) -> None:
    model = build(config)
    model(IMAGES)["depth"].square().sum().backward()
    gradients = [p.grad for name, p in model.named_parameters() if ".coefficients." in name]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), kind=st.sampled_from(("segmentation", "saliency")))
def test_a_pixel_counts_where_both_agree_or_the_expert_is_as_sure(seed: int, kind: str) -> None:
    task, generator = KNOWN[kind], torch.Generator().manual_seed(seed)
    expert, model = (torch.randn(1, task.channels, 4, 4, generator=generator) * 3 for _ in range(2))
    label = expert_label(task, expert, model, (4, 4))
    scores = [
        raw.softmax(1) if kind == "segmentation" else torch.cat([-raw, raw], 1).sigmoid() for raw in (expert, model)
    ]
    (sure, says), (own_sure, own_says) = (one.max(1) for one in scores)
    believed = (says == own_says) | (sure >= own_sure)
    assert torch.equal(label != IGNORE, believed)
    assert torch.equal(label[believed], says[believed])


def test_where_no_pixel_is_believed_the_loss_is_zero() -> None:
    task = KNOWN["segmentation"]
    unsure, sure = torch.zeros(1, task.channels, 4, 4), torch.zeros(1, task.channels, 4, 4)
    unsure[:, 0], sure[:, 1] = 0.1, 9.0
    label = expert_label(task, unsure, sure, (4, 4))
    assert (label == IGNORE).all()
    assert task_loss(task, sure.requires_grad_(), label) == 0


@pytest.mark.parametrize("name", ["depth", "normals"])
def test_maps_of_numbers_are_labels_as_they_are(name: str) -> None:
    raw = torch.randn(2, KNOWN[name].channels, 4, 4)
    label = expert_label(KNOWN[name], raw, -raw, (8, 6))
    assert label.shape == ((2, 8, 6) if name == "depth" else (2, 3, 8, 6))
    assert task_loss(KNOWN[name], raw, label) < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": {}}, "--method tinting merges a network of each task: name them by --experts"),
        ({"method": "ptsa"}, "--method ptsa merges no experts; leave --experts out"),
        ({"method": "ptsa", "experts": {}}, "no data set of --data labels depth"),
        (
            {"method": "ptsa", "experts": {}, "tree": ONE},
            "--rule tinting learns from an expert of each task, and --method",
        ),
        ({"experts": {"depth": "ptsa1", "normals": "ptsa1"}}, "--experts names none for saliency; name one for each"),
        ({"experts": dict.fromkeys(TASKS, "lone")}, r"--experts names normals, but .* has depth; take one of these"),
        ({"experts": dict.fromkeys(TASKS, "mtlora3")}, "by mtlora, of which low_rank_add is left at layers.0.blocks.0"),
        ({"width": 16, "start": "wide"}, "is of another model: width is 8, here 16. Take the same for all experts"),
        ({"options": {"start": 1.5}}, "start is 1.5; allowed are 0"),
    ],
)
def test_what_cannot_be_merged_is_refused(config: FitConfig, tmp_path: Path, change: dict, message: str) -> None:
    lone = stored(tmp_path / "lone", "multi_task", 4, TaskTree.shared(("depth",)))
    wide = PTSAModel(ModelConfig("swin_test", TREE, "multi_task", width=16))
    save_checkpoint(wide, tmp_path / "wide.safetensors", info={})
    files = {"ptsa1": config.experts["depth"], "lone": lone, "wide": tmp_path / "wide.safetensors"}
    if "mtlora3" in str(change):
        files["mtlora3"] = stored(tmp_path, "mtlora", 3, rank=2)
    if experts := change.get("experts"):
        change = change | {"experts": {task: files[name] for task, name in experts.items()}}
    if start := change.get("start"):
        change = change | {"start": files[start]}
    with pytest.raises((ConfigError, CheckpointError), match=message):
        fit(replace(config, **change))
