"""A Swin and a PVT small enough for milliseconds, and data sets of a few photos in the layouts of the real ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.backbones.pvt import PVTS
from training.backbones.swin import SWINS
from training.fit import FitConfig
from training.model import ModelConfig, PTSAModel
from training.tree import TaskTree

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
