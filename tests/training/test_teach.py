"""The heads of the room teacher, taught on photos whose labels are their colours, by networks that see colours."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import training.teach
import training.teaching.cache
from training.data.labels import LabelledPhoto
from training.data.nyu import NYU
from training.errors import CheckpointError, ConfigError, DataError, ResumeError
from training.labelling import TEACHERS
from training.labelling.finding import find_teachers
from training.labelling.room_features import CHANNELS, FILES, FINE, GRID, Features
from training.labelling.room_head import KEPT, KEPT_FINE, Projection, RoomHead, RoomHeads, load_heads, mirrored
from training.teach import TeachConfig, teach
from training.teaching.projection import fitted
from training.teaching.views import view

SIZE = (60, 80)
SEEN: list[int] = []


class Colours:
    """Networks each of which has a photo's colours in channels that it mixes in its own way, and a little noise."""

    def __init__(self, *paths: Path) -> None:
        assert [path.name for path in paths] == list(FILES)
        rng = torch.Generator().manual_seed(0)
        self._mixes = torch.randn(sum(CHANNELS), 3, generator=rng)
        self._noise = 0.05 * torch.randn(sum(CHANNELS), *GRID, generator=rng)

    def __call__(self, photo: np.ndarray) -> Features:
        SEEN.append(photo.shape[0])
        pixels = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        coarse = torch.einsum("ck,khw->chw", self._mixes, F.interpolate(pixels, GRID, mode="area")[0]) + self._noise
        maps = list(coarse.split(CHANNELS))
        return Features(maps, [F.interpolate(maps[number][None], scale_factor=2)[0] for number in FINE], 1.0)


def scene(seed: int, size: tuple[int, int] = SIZE) -> dict[str, np.ndarray]:
    """Red says which of two classes, blue how far, and all of it faces the camera."""
    cells = np.random.default_rng(seed).integers(0, 2, (3, 4, 3)) * 255
    image = np.kron(cells, np.ones((size[0] // 3, size[1] // 4, 1))).astype(np.uint8)
    return {
        "image": image,
        "segmentation": (image[..., 0] > 127).astype(np.uint8),
        "depth": (1000 + 3000 * (image[..., 2] > 127)).astype(np.uint16),
        "normals": np.broadcast_to(np.array([128, 128, 255], np.uint8), image.shape),
    }


def write(root: Path, name: str, maps: dict[str, np.ndarray]) -> None:
    for folder, values in maps.items():
        (root / "train" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(values)).save(root / "train" / folder / f"{name}.png")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TeachConfig:
    """Twelve photos, two of them held out, and two small heads."""
    for module in (training.teach, training.teaching.cache):
        monkeypatch.setattr(module, "RoomFeatures", Colours)
    monkeypatch.setitem(TEACHERS, "room", replace(TEACHERS["room"], modules={}))  # type: ignore[index]
    (tmp_path / "networks").mkdir()
    for name in FILES:
        (tmp_path / "networks" / name).write_text(name)
    for number in range(12):
        write(tmp_path / "rooms", f"{number:04}", scene(number))
    SEEN.clear()
    return TeachConfig(
        data=tmp_path / "rooms",
        networks=str(tmp_path / "networks"),
        out=tmp_path / "out",
        views=2,
        steps=4,
        batch=2,
        width=8,
        blocks=1,
        hold_out=0.17,
        workers=0,
        precision="32-true",
        save_every=2,
    )


def test_heads_learn_what_the_networks_see(config: TeachConfig) -> None:
    found = teach(replace(config, members=1, steps=24, batch=3, width=16, rate=5e-3, ema=0.5))
    assert found["held_out_photos"] == 2
    assert found["figures"]["segmentation"]["pixel_accuracy_percent"] > 90
    assert found["figures"]["depth"]["RMSE_m"] < 1
    assert found["figures"]["normals"]["mean_angle_degrees"] < 10
    assert json.loads((config.out / "metrics.json").read_bytes()) == found


def test_a_killed_run_gives_the_same_heads(
    config: TeachConfig, tmp_path: Path, kill_in_step: Callable[[int, Callable[[], object]], None]
) -> None:
    found = teach(config)
    assert list(found["of_each_head"]) == ["head_1", "head_2"]
    looked = len(SEEN)
    again = replace(config, out=tmp_path / "again")
    kill_in_step(7, lambda: teach(again))  # in the second head
    assert not (again.out / "head.safetensors").exists()
    assert teach(again) == found
    assert (again.out / "head.safetensors").read_bytes() == (config.out / "head.safetensors").read_bytes()
    assert len(SEEN) == 2 * looked  # no photo was looked at twice
    assert len(load_heads(again.out / "head.safetensors").heads) == 2


def test_a_run_killed_while_it_looks_goes_on_from_there(
    config: TeachConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, members=1, steps=2)
    found = teach(config)
    looked, again, look = len(SEEN), replace(config, out=tmp_path / "again"), Colours.__call__
    assert looked == 10 + 2 + 10 * 2  # to fit the projection, then what is held out, then two views
    SEEN.clear()

    def killed(networks: Colours, photo: np.ndarray) -> Features:
        if len(SEEN) == 17:
            raise KeyboardInterrupt
        return look(networks, photo)

    with monkeypatch.context() as patch:
        patch.setattr(Colours, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            teach(again)
    assert len(list((again.out / "cache").iterdir())) == 7
    assert teach(replace(again, workers=1)) == found
    assert len(SEEN) == 17  # the rest by a process of its own
    for name in ("head.safetensors", "metrics.json", "projection.safetensors"):
        assert (again.out / name).read_bytes() == (config.out / name).read_bytes()


def test_damaged_files_of_a_run_are_named(config: TeachConfig) -> None:
    config = replace(config, members=1, steps=2)
    whole = teach(config)
    seen = sorted((config.out / "cache").iterdir())
    content = seen[0].read_bytes()
    shutil.rmtree(config.out / "head-1")
    for damaged in (content[:-999], b"", content[:5000] + b"x" + content[5001:]):
        for path in seen:
            path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cache/[0-9]{4}-[01]\.npz is damaged; remove it, and run again"):
            teach(config)
    for path in seen:
        path.unlink()
    assert teach(config) == whole
    path = config.out / "projection.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ResumeError, match=r"projection\.safetensors is damaged; name another --out folder"):
        teach(config)


def test_other_settings_are_refused(config: TeachConfig) -> None:
    teach(replace(config, members=1))
    with pytest.raises(ResumeError, match=r"hold_out was 0\.17, now 0\.3"):
        teach(replace(config, members=1, hold_out=0.3))
    with pytest.raises(ResumeError, match="steps was 4, now 5"):
        teach(replace(config, members=1, steps=5))
    (config.out / "teach.json").write_text("[1]")
    with pytest.raises(ResumeError, match=r"teach\.json is damaged"):
        teach(config)


def test_what_cannot_be_taught_is_refused_at_once(config: TeachConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--views is 0; .*; --members is 0"):
        replace(config, views=0, members=0)
    with pytest.raises(FileNotFoundError, match=f"teacher room: no file {FILES[0]} in"):
        teach(replace(config, networks=str(tmp_path / "rooms")))
    write(tmp_path / "rooms", "0003", scene(3, (84, 60)))
    with pytest.raises(DataError, match=r"0003\.png is higher than wide"):
        teach(config)
    for path in (tmp_path / "rooms/train/normals").iterdir():
        path.unlink()
    (tmp_path / "rooms/train/normals").rmdir()
    with pytest.raises(DataError, match=r"no labels of normals; a room teacher learns segmentation, depth, normals"):
        teach(config)


def test_a_view_depends_on_its_number_and_key(config: TeachConfig) -> None:
    photo: LabelledPhoto = NYU(config.data, "train")[0]
    assert view(photo, 0, (3,)) is photo
    first, again, other, next_one = (view(photo, *which) for which in ((1, (3,)), (1, (3,)), (1, (4,)), (2, (3,))))
    np.testing.assert_array_equal(first.image, again.image)
    for different in (other, next_one):
        assert (different.image != first.image).any()
    assert {task: label.shape for task, label in first.labels.items()} == {
        task: label.shape for task, label in photo.labels.items()
    }


def test_projected_channels_are_uncorrelated_and_half_white() -> None:
    torch.manual_seed(0)
    # As many channels matter as are kept, and their deviations differ.
    seen = []
    mixes = [
        torch.linalg.qr(torch.randn(channels, channels))[0][:, :kept]
        for channels, kept in zip(CHANNELS, KEPT, strict=True)
    ]
    scales = [torch.linspace(1, 9, kept).view(-1, 1, 1) for kept in KEPT]
    for _ in range(4):
        maps = [
            5 + torch.einsum("ck,khw->chw", mix, scale * torch.randn(len(scale), 40, 40))
            for mix, scale in zip(mixes, scales, strict=True)
        ]
        seen.append(Features(maps, [F.interpolate(maps[n][None], scale_factor=2)[0] for n in FINE], 1.0))
    projection = fitted(iter(seen))
    coarse, fine = projection(seen[0].maps, seen[0].fine)
    assert coarse.shape == (sum(KEPT), 40, 40)
    assert fine.shape == (sum(KEPT_FINE), 80, 80)
    torch.testing.assert_close(fine[: KEPT_FINE[0], ::2, ::2], coarse[: KEPT_FINE[0]])
    for part, scale in zip(coarse.flatten(1).split(KEPT), scales, strict=True):
        correlations = torch.corrcoef(part) - torch.eye(len(part))
        assert correlations.abs().max() < 0.2
        # The deviation of each is the root of what it was, in units of the mean one.
        was = scale.flatten().flip(0)
        torch.testing.assert_close(part.std(1), (was / was.square().mean().sqrt()).sqrt(), rtol=0.25, atol=0)


def heads() -> RoomHeads:
    torch.manual_seed(0)
    return RoomHeads(Projection(), [RoomHead(8, 1, 4), RoomHead(12, 2, 6)]).eval()


def test_maps_of_the_mirror_image_are_mirrored() -> None:
    seen = [torch.randn(2, channels, rows, 2 * rows) for channels, rows in ((928, 4), (72, 8), (3, 8))]
    with torch.no_grad():
        maps, others = heads()(*seen), heads()(*(values.flip(-1) for values in seen))
    assert {task: tuple(values.shape[1:]) for task, values in maps.items()} == {
        "segmentation": (39, 8, 16),
        "depth": (1, 8, 16),
        "normals": (3, 8, 16),
    }
    for task, values in mirrored(others).items():
        torch.testing.assert_close(values, maps[task], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mirrored(mirrored(maps))[task], maps[task], atol=0, rtol=0)
    torch.testing.assert_close(maps["segmentation"].sum(1), torch.ones(2, 8, 16))
    torch.testing.assert_close(maps["normals"].norm(dim=1), torch.ones(2, 8, 16))
    assert maps["depth"].min() >= 0.7


def test_heads_are_as_wide_as_their_file(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_file(heads().state_dict(), path)
    for name, tensor in load_heads(path).state_dict().items():
        torch.testing.assert_close(tensor, heads().state_dict()[name])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="make it with `python -m training teach`"):
        load_heads(path)


@pytest.mark.slow
def test_the_real_networks_teach_a_head_that_labels(tmp_path: Path) -> None:
    folder, data = os.environ.get("PTSA_TEACHERS", ""), Path(os.environ.get("PTSA_DATA", ""))
    if not folder or not (data / "nyu/train").is_dir():
        pytest.skip("needs PTSA_TEACHERS, the folder above the teachers' own, and PTSA_DATA, which holds nyu/")
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install -e '.[label]'")
    rooms = NYU(data / "nyu", "train")
    for number in range(3):
        for path in (rooms.photo_path(number), *(rooms.label_path(task, number) for task in rooms.tasks)):
            assert path is not None
            copy = tmp_path / "rooms" / path.relative_to(data / "nyu")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    config = TeachConfig(tmp_path / "rooms", folder, tmp_path / "out", views=2, members=1, steps=2, hold_out=0.34)
    found = teach(replace(config, batch=2, width=16, blocks=1, workers=1))
    assert found["held_out_photos"] == 1
    teacher = find_teachers([f"room={config.out}:{folder}"])[0].open()
    for number in range(2):
        guesses = teacher(rooms[number].image)
        assert guesses.familiar > 0.01
        for task, guess in guesses.maps.items():
            assert guess.values.shape[:2] == (60, 80), task
            assert np.isfinite(guess.values).all(), task
