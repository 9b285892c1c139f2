from collections.abc import Callable

import numpy as np
import pytest
import torch

from export.errors import ParityError
from export.fold import FoldedNetwork, fold
from export.parity import TOLERANCES, Comparison, check, measure
from ptsa_serve.tasks import KINDS, TASKS
from training.network.model import PTSAModel

SIZE = (64, 96)

Images = Callable[[int, tuple[int, int]], np.ndarray]
Engine = Callable[[np.ndarray], dict[str, np.ndarray]]


@pytest.fixture
def network(model: PTSAModel) -> FoldedNetwork:
    return fold(model).network


@pytest.fixture
def photos(images: Images) -> list[np.ndarray]:
    return list(images(3, SIZE))


def engine_of(network: FoldedNetwork, change: Callable[[dict[str, np.ndarray]], None] = lambda _: None) -> Engine:
    """The network as an engine whose maps `change` spoils."""

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            maps = {name: values.numpy().copy() for name, values in network(torch.from_numpy(batch)).items()}
        change(maps)
        return maps

    return run


def test_equal_forms_pass_and_give_the_manifests_entry(
    model: PTSAModel, network: FoldedNetwork, photos: list[np.ndarray]
) -> None:
    parity = check(measure(model, network, engine_of(network), photos))
    assert list(parity) == list(network.tasks)
    assert all(entry["worst"] <= entry["tolerance"] for entry in parity.values())
    assert parity["depth"] == {"tolerance": 1e-4, "worst": parity["depth"]["worst"], "measure": "absolute"}


def test_every_kind_has_a_tolerance_as_strict_as_promised() -> None:
    assert TOLERANCES.keys() == KINDS.keys()
    assert TOLERANCES["classes"] <= 1e-3
    assert all(value <= 1e-4 for kind, value in TOLERANCES.items() if kind != "classes")


def shift_depth(maps: dict[str, np.ndarray]) -> None:
    maps["depth"][0, 5, 5] += 2e-4


def relabel(maps: dict[str, np.ndarray]) -> None:
    maps["segmentation"][:, :1, :20] ^= 1


def swap(maps: dict[str, np.ndarray]) -> None:
    maps["depth"], maps["saliency"] = maps["saliency"], maps["depth"]


def lose(maps: dict[str, np.ndarray]) -> None:
    del maps["normals"]


def not_a_number(maps: dict[str, np.ndarray]) -> None:
    maps["normals"][0, 0, 0, 0] = np.nan


def mix_photos(maps: dict[str, np.ndarray]) -> None:
    maps["saliency"] = maps["saliency"][::-1]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (shift_depth, "depth at 64 x 96"),
        (relabel, "segmentation at 64 x 96"),
        (swap, "saliency at 64 x 96"),
        (lose, "normals at 64 x 96"),
        (not_a_number, "normals at 64 x 96"),
        (mix_photos, "saliency at 64 x 96"),
    ],
)
def test_any_other_map_is_refused_by_name(
    model: PTSAModel,
    network: FoldedNetwork,
    photos: list[np.ndarray],
    damage: Callable[[dict[str, np.ndarray]], None],
    named: str,
) -> None:
    with pytest.raises(ParityError, match=named):
        check(measure(model, network, engine_of(network, damage), photos))


def test_a_folding_fault_is_told_from_an_engines(
    model: PTSAModel, network: FoldedNetwork, photos: list[np.ndarray]
) -> None:
    network.get_parameter("decoders.depth.head.bias").add_(0.1)
    failed = [c for c in measure(model, network, engine_of(network), photos) if c.difference > c.tolerance]
    assert {(c.task.name, c.forms) for c in failed} == {
        ("depth", ("training form", "folded")),
        ("depth", ("training form", "engine")),
    }


def test_no_photos_prove_nothing() -> None:
    with pytest.raises(ParityError, match="no photo"):
        check([])


def test_the_worst_photo_counts(model: PTSAModel, network: FoldedNetwork, photos: list[np.ndarray]) -> None:
    seen = []

    def spoil_the_first(maps: dict[str, np.ndarray]) -> None:
        if not seen:
            maps["depth"] += 0.5
        seen.append(1)

    found = measure(model, network, engine_of(network, spoil_the_first), photos)
    assert len(seen) == 2  # three photos, two at a time
    assert max(c.difference for c in found if c.task.name == "depth") == pytest.approx(0.5, abs=1e-4)


def test_a_comparison_reads_well() -> None:
    text = str(Comparison(TASKS["depth"], ("folded", "engine"), (384, 512), 0.02))
    assert text == "depth at 384 x 512, folded against engine: largest difference 0.02, allowed 0.0001"
