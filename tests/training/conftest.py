"""A Swin and a PVT small enough for milliseconds, and data sets of a few photos in the layouts of the real ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from ptsa_serve.task_tree import TaskTree
from training.backbones.pvt import PVTS
from training.backbones.swin import SWINS
from training.fit import FitConfig
from training.network.model import ModelConfig, PTSAModel
from training.similarity import report

TREE = TaskTree.parse(
    "segmentation,depth,normals,saliency / segmentation,depth,normals,saliency / "
    "segmentation,saliency | depth,normals / segmentation | depth | normals | saliency"
)


@pytest.fixture(autouse=True)
def small_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SWINS, "swin_test", {"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 3)})
    monkeypatch.setitem(
        PVTS, "pvt_test", {"depths": (1, 1, 2, 1), "embed_dims": (8, 8, 12, 16), "num_heads": (1, 2, 2, 4)}
    )
    torch.manual_seed(0)


def _randomise(model: PTSAModel) -> PTSAModel:
    """Give the adapters and batch norms values that matter: at the start, `up` is 0."""
    for name, parameter in model.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return model.eval()


@pytest.fixture
def tree() -> TaskTree:
    return TREE


@pytest.fixture
def randomise() -> Callable[[PTSAModel], PTSAModel]:
    return _randomise


@pytest.fixture
def model() -> PTSAModel:
    return _randomise(PTSAModel(ModelConfig("swin_test", TREE, options={"rank": [2, 2, 3, 3]}, width=8)))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders `nyu` and `ccp` with a few small photos each."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def save(path: Path, array: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)

    for split, count in (("train", 5), ("val", 3)):
        for i in range(count):
            photo = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            blocks = np.kron(rng.integers(0, 39, (6, 8)), np.ones((8, 8))).astype(np.uint8)
            save(root / f"nyu/{split}/image/{i:04}.jpg", photo)
            save(root / f"nyu/{split}/segmentation/{i:04}.png", blocks)
            save(root / f"nyu/{split}/depth/{i:04}.png", (blocks.astype(np.uint16) + 20) * 50)
            save(root / f"nyu/{split}/normals/{i:04}.jpg", np.full_like(photo, (128, 128, 255)))
            save(root / f"ccp/{split}/{i:04}.jpg", photo)
            save(root / f"ccp/{split}/{i:04}.png", (blocks > 20).astype(np.uint8))
    return {"nyu": root / "nyu", "ccp": root / "ccp"}


def _scene(seed: int) -> dict[str, np.ndarray]:
    """A room of blocks, 64 x 48, whose edges are the photo's: class 0 to 38, the floor (1) below, and its geometry."""
    rng = np.random.default_rng(seed)
    # Blocks of uneven widths: mirrored, they lie elsewhere.
    classes = rng.integers(2, 39, (6, 8)).repeat([6, 9, 7, 10, 8, 8], 0).repeat([5, 9, 11, 6, 13, 7, 8, 5], 1)
    classes[40:] = 1
    colors = rng.integers(0, 255, (39, 3))
    floor = classes == 1
    return {
        "photo": np.clip(colors[classes] + rng.normal(0, 2, (48, 64, 3)), 0, 255).astype(np.uint8),
        "classes": classes,
        "depth": (1 + classes / 20).astype(np.float32),
        "normals": np.where(floor[..., None], (0, 0.96, 0.28), (0.28, 0, 0.96)).astype(np.float32),
        "edges": (np.diff(classes, axis=1, append=-1) != 0).astype(np.uint8),
    }


SPLITS = {"train": range(12), "val": range(12, 15)}


def _lists(folder: Path, names: Callable[[int], str]) -> None:
    folder.mkdir(parents=True)
    for split, numbers in SPLITS.items():
        (folder / f"{split}.txt").write_text("".join(f"{names(number)}\n" for number in numbers))


def _put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def _nyud(root: Path, *, arrays: bool) -> Path:
    """NYU Depth v2 as ASTMT and MTI-Net have it (`arrays`), or as InvPT has it."""
    _lists(root / "gt_sets", lambda number: f"{number:04}")
    for number in (number for numbers in SPLITS.values() for number in numbers):
        scene, name = _scene(number), f"{number:04}"
        stored = (scene["classes"] + 1).astype(np.uint8)
        stored[:4, :4] = 0
        _put(root / f"images/{name}.{'jpg' if arrays else 'png'}", scene["photo"])
        _put(root / f"segmentation/{name}.png", stored)
        _put(root / f"depth/{name}.npy", scene["depth"])
        if arrays:
            _put(root / f"normals/{name}.npy", scene["normals"] * np.array([1, -1, 1], np.float32))  # y down
            _put(root / f"edge/{name}.npy", scene["edges"].astype(float))
        else:
            _put(root / f"normals/{name}.png", np.rint((scene["normals"] + 1) * 127.5).astype(np.uint8))
            _put(root / f"edge/{name}.png", scene["edges"] * 255)
    return root


def _people(shape: tuple[int, int], parts: dict[str, tuple[slice, slice]]) -> dict[str, np.ndarray]:
    """PASCAL-Part's struct arrays: a dog, and one person with `parts`, or one without any."""
    part = [("part_name", "O"), ("mask", "O")]
    thing = [("class", "O"), ("class_ind", "O"), ("mask", "O"), ("parts", "O")]
    whole = np.ones(shape, np.uint8)
    found = np.zeros((1, len(parts)), part)
    for place, (name, where) in enumerate(parts.items()):
        mask = np.zeros(shape, np.uint8)
        mask[where] = 1
        found[0, place] = (name, mask)
    dog = np.zeros((1, 1), part)
    dog[0, 0] = ("muzzle", whole)
    things = np.zeros((1, 2), thing)
    things[0, 0] = ("dog", 12, whole, dog)
    things[0, 1] = ("person", 15, whole, found if parts else np.zeros((0, 0)))
    return {"imname": "x", "objects": things}


def _pascal(root: Path) -> Path:
    """PASCAL_MT: every second photo has VOC's own classes, every third a person with parts."""
    _lists(root / "ImageSets/Context", lambda number: f"2008_{number:06}")
    for number in (number for numbers in SPLITS.values() for number in numbers):
        scene, name = _scene(number), f"2008_{number:06}"
        voc = (scene["classes"] % 21).astype(np.uint8)
        _put(root / f"JPEGImages/{name}.jpg", scene["photo"])
        _put(root / f"semseg/pascal-context/{name}.png", np.zeros_like(voc))
        if number % 2 == 0:
            _put(root / f"semseg/VOC12/{name}.png", voc)
        parts = {"hair": np.s_[:8, :8], "lear": np.s_[8:16, :8], "lfoot": np.s_[16:24, :8]} if number % 3 == 0 else {}
        _put(root / f"normals_distill/{name}.png", np.rint((scene["normals"] + 1) * 127.5).astype(np.uint8))
        _put(root / f"sal_distill/{name}.png", np.where(scene["classes"] > 20, 200, 90).astype(np.uint8))
        # Walls (440) have normals in NYU, sheep (347) have none; the floor is 158.
        context = np.where(scene["classes"] == 1, 158, np.where(scene["classes"] > 20, 347, 440)).astype(np.uint16)
        for folder, content in (
            ("human_parts", {"anno": _people(context.shape, parts)}),
            ("pascal-context/trainval", {"LabelMap": context}),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            scipy.io.savemat(root / folder / f"{name}.mat", content)
    return root


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small copies of the standard archives: `nyud_arrays`, `nyud_images` and `pascal`, of 12 and 3 photos each."""
    root = tmp_path_factory.mktemp("archives")
    return {
        "nyud_arrays": _nyud(root / "nyud_arrays", arrays=True),
        "nyud_images": _nyud(root / "nyud_images", arrays=False),
        "pascal": _pascal(root / "pascal"),
    }


@pytest.fixture
def scene() -> Callable[[int], dict[str, np.ndarray]]:
    """What photo number n of the archives shows."""
    return _scene


@pytest.fixture
def kill_in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """`kill_in_step(n, run)`: interrupts `run` in its n-th optimiser step, as a kill would."""

    def interrupt(number: int, run: Callable[[], object]) -> None:
        original, steps = torch.optim.AdamW.step, []

        def step(*arguments: object) -> object:
            steps.append(1)
            if len(steps) == number:
                raise KeyboardInterrupt
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", step)
            with pytest.raises(KeyboardInterrupt):
                run()

    return interrupt


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures of a search: they take longer than all the rest of it."""
    for picture in ("heat_maps", "tree_picture"):
        monkeypatch.setattr(report, picture, lambda *_: b"")


@pytest.fixture
def fit_config(data: dict[str, Path], tmp_path: Path) -> FitConfig:
    """Six steps of training on `data`, in milliseconds each."""
    return FitConfig(
        data=data,
        out=tmp_path / "run",
        method="multi_task",
        backbone="swin_test",
        width=8,
        batches={"nyu": 2, "ccp": 2},
        steps=6,
        warmup=1,
        scale=1 / 6,
        workers=0,
        precision="32-true",
        save_every=2,
    )
