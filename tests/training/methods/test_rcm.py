"""RCM: a basis that photos gave, modulators a task, and tasks that come later without touching the earlier ones."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ptsa_serve.task_tree import TaskTree
from training.accounting.account import trained
from training.errors import CheckpointError, ConfigError
from training.fit import FitConfig, fit
from training.methods.rcm import Modulated, principal_axes
from training.network.checkpoint import load_checkpoint, read_tensors, save_checkpoint
from training.network.model import ModelConfig, PTSAModel
from training.network.responses import covariances
from training.network.slots import compute

TASKS = ("depth", "normals")
TREE = TaskTree.shared(TASKS)


def new(tree: TaskTree = TREE, **options: object) -> PTSAModel:
    return PTSAModel(ModelConfig("swin_test", tree, "rcm", options, width=8)).eval()


def changes(model: PTSAModel) -> dict[str, Modulated]:
    return {s.name: found for s in model.backbone.slots if isinstance(found := model.method.change(s), Modulated)}


@pytest.fixture
def full(fit_config: FitConfig, tmp_path: Path) -> Path:
    whole = PTSAModel(ModelConfig("swin_test", TaskTree.parse(fit_config.tree), "multi_task", width=8))
    save_checkpoint(whole, tmp_path / "full.safetensors", info={})
    return tmp_path / "full.safetensors"


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 12), count=st.integers(1, 12), seed=st.integers(0, 99))
def test_principal_axes_are_orthonormal_and_lead_in_variance(size: int, count: int, seed: int) -> None:
    x = torch.randn(40, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    covariance = x.T @ x
    axes = principal_axes(covariance, count)
    assert axes.shape == (size, min(count, size))
    torch.testing.assert_close(axes.T @ axes, torch.eye(axes.shape[1], dtype=torch.float64), atol=1e-12, rtol=0)
    kept = (axes.T @ covariance @ axes).diagonal()
    torch.testing.assert_close(kept, torch.linalg.eigvalsh(covariance).flip(0)[:count])


def test_covariances_are_those_of_the_responses_to_all_photos() -> None:
    model = new()
    photos = [torch.randn(2, 3, 64, 64), torch.randn(1, 3, 96, 64)]
    slot = next(slot for slot in model.backbone.slots if slot.kind == "fc2")
    seen: list[torch.Tensor] = []

    original = compute

    def watched(at, tensors, x):
        y = original(at, tensors, x)
        if at is slot:
            seen.append(y.detach().flatten(0, -2))
        return y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.backbones.base.compute", watched)
        found = covariances(model.backbone, [slot], photos)
    expected = torch.cat(seen).double().T.cov(correction=0)
    assert list(found) == [slot.name]
    torch.testing.assert_close(found[slot.name], expected, atol=1e-12, rtol=1e-9)
    assert covariances(model.backbone, [slot], []) == {}


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_after_photos_it_is_still_the_backbone_exactly(full: bool, normalised: bool) -> None:
    model = new(full=full, rank=3, normalised=normalised, layers="all")
    model.method.start([torch.randn(4, 3, 64, 64)])
    with torch.no_grad():
        for change in changes(model).values():
            assert not torch.equal(change.basis, torch.eye(*change.basis.shape))
            own = torch.eye(change.basis.shape[1])
            torch.testing.assert_close(change.basis.T @ change.basis, own, atol=1e-5, rtol=0)
            assert all(
                not change._difference(stream).any()
                for stream in model.method.layout.streams(model.backbone.slots)[model.backbone.slots[0].name]
            )
        images = torch.rand(1, 3, 64, 64) * 255
        maps = model.backbone.maps(model.normalised(images))
        for task, raw in model(images).items():
            torch.testing.assert_close(raw, model.decoders[task](maps), atol=1e-6, rtol=1e-5)


def test_over_all_axes_it_is_a_modulator_of_the_responses() -> None:
    """E = M U' W with M free: what is published, and no truncation in it."""
    model = new(full=True, normalised=False).double()
    model.method.start([torch.randn(4, 3, 64, 64, dtype=torch.float64)])
    slot = next(slot for slot in model.backbone.slots if slot.kind == "proj")
    change, base = changes(model)[slot.name], model.backbone.tensors(slot)
    modulator = torch.randn_like(change.basis)
    stream = model.method.layout.streams(model.backbone.slots)[slot.name][0]
    with torch.no_grad():
        change.modulators[stream.tasks[0]].copy_(modulator - change.basis)
        found = model.method.effective(slot, stream).tensors["weight"]  # pyright: ignore
        torch.testing.assert_close(found, modulator @ change.basis.T @ base["weight"], atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"full": True, "layers": "all"}, 58_226_688),  # 27 Q
        ({"full": True}, 4_313_088),  # 2 Q
        ({"rank": 64}, 565_248),  # 2 * 64 S
    ],
)
def test_counts_on_swin_tiny_are_those_of_the_notes(options: dict, count: int) -> None:
    with torch.device("meta"):
        config = ModelConfig("swin_tiny", TREE, "rcm", {**options, "normalised": False}, width=8)
        assert trained(PTSAModel(config))["adapters"] == len(TASKS) * count


def _looked_again(backbone: object, slots: object, photos: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    return pytest.fail("it looked again") if list(photos) else {}


@pytest.mark.slow
def test_fit_begins_with_photos_and_a_killed_run_keeps_what_it_saw(
    full: Path, fit_config: FitConfig, tmp_path: Path, kill_in_step, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(fit_config, method="rcm", rank=2, start=full, steps=2, save_every=1, ema=0.5)
    whole = fit(replace(run, out=tmp_path / "whole"))
    kill_in_step(2, lambda: fit(run))
    monkeypatch.setattr("training.methods.base.covariances", _looked_again)
    assert fit(run).read_bytes() == whole.read_bytes()
    for name, change in changes(load_checkpoint(whole)).items():
        assert not torch.equal(change.basis, torch.eye(*change.basis.shape)), name
        own = torch.eye(change.basis.shape[1])
        torch.testing.assert_close(change.basis.T @ change.basis, own, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("nyu", "segmentation,normals,depth"),  # the earlier ones have labels here
        pytest.param("ccp", "depth,normals,saliency", marks=pytest.mark.slow),
    ],
)
def test_a_task_that_is_added_leaves_the_others_bit_for_bit(
    full: Path, fit_config: FitConfig, tmp_path: Path, name: str, more: str
) -> None:
    run = replace(fit_config, method="rcm", rank=2, steps=2, start=full)
    tree = " / ".join(["depth,normals"] * 4)
    nyu = {"data": {"nyu": fit_config.data["nyu"]}, "batches": {"nyu": 2}}
    earlier = fit(replace(run, **nyu, tree=tree, out=tmp_path / "earlier"))
    data = {"data": {name: fit_config.data[name]}, "batches": {name: 2}}
    later = fit(replace(run, **data, tree=" / ".join([more] * 4), start=earlier, keep=["depth", "normals"]))
    before, after = load_file(earlier), load_file(later)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    images = torch.rand(1, 3, 64, 64) * 255
    old, model = load_checkpoint(earlier)(images), load_checkpoint(later)
    # The same tasks at a time: products of more rows round otherwise on some CPUs.
    now = model(images, ["depth", "normals"])
    assert all(torch.equal(now[task], raw) for task, raw in old.items())
    beside = model(images)
    assert all(torch.allclose(beside[task], raw, rtol=0, atol=1e-6) for task, raw in old.items())
    added = [
        tensor for key, tensor in after.items() if key.endswith(("modulators.saliency", "modulators.segmentation"))
    ]
    assert any(tensor.any() for tensor in added)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "ptsa"}, "keep depth: --method ptsa trains .* for normals too; take one whose tasks share nothing"),
        ({"keep": ["saliency"]}, r"keep names saliency, but \S+ has depth, normals; take one of these"),
        ({"rank": 3}, "options is .*'rank': 2.*, here .*'rank': 3"),
        ({"keep": ["depth", "normals"]}, "must be of --start, and --tree name them and others to learn"),
        ({"start": None, "method": "multi_task", "rank": None}, "must be of --start"),
    ],
)
def test_what_cannot_be_kept_is_refused(fit_config: FitConfig, tmp_path: Path, change: dict, message: str) -> None:
    from training.build import build

    run = {"method": "rcm", "rank": 2, "start": tmp_path / "start.safetensors", "keep": ["depth"]} | change
    model = PTSAModel(ModelConfig("swin_test", TREE, run["method"], {"rank": 2} if run["rank"] else {}, width=8))
    model = model if run["rank"] != 3 else new(rank=2)
    save_checkpoint(model, tmp_path / "start.safetensors", info={})
    tree = "depth,normals,saliency" if "saliency" in run["keep"] else "depth,normals"
    data = {"data": {"nyu": fit_config.data["nyu"]}, "batches": {"nyu": 2}}
    with pytest.raises((ConfigError, CheckpointError), match=message):
        build(replace(fit_config, **run, **data, tree=" / ".join([tree] * 4)))


def test_a_later_model_may_leave_tasks_out(tmp_path: Path) -> None:
    from training.network.start import take_over

    earlier, path = new(rank=2), tmp_path / "earlier.safetensors"
    with torch.no_grad():
        for parameter in earlier.parameters():
            parameter.copy_(torch.randn_like(parameter).half())
    save_checkpoint(earlier, path, info={})
    later = new(TaskTree.shared(("normals",)), rank=2)
    take_over(later, path)
    stored = read_tensors(path)
    assert later.state_dict().keys() < stored.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in later.state_dict().items())
