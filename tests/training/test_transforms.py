import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.data.labels import LabelledPhoto
from training.data.transforms import Augmentation, flip, to_tensors, zoom


def sample(seed: int = 0) -> LabelledPhoto:
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(24, 32, 3)).astype(np.float32)
    normals[:4] = 0
    labels = {
        "segmentation": rng.integers(0, 39, (24, 32)).astype(np.uint8),
        "depth": np.where(rng.random((24, 32)) < 0.2, 0, rng.uniform(1, 9, (24, 32))).astype(np.float32),
        "normals": normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9),
    }
    return LabelledPhoto("0001", rng.integers(0, 255, (24, 32, 3)).astype(np.uint8), labels)


def test_flip_twice_is_identity() -> None:
    photo = sample()
    twice = flip(flip(photo))
    assert np.array_equal(twice.image, photo.image)
    assert all(np.array_equal(twice.labels[task], label) for task, label in photo.labels.items())


def test_flip_turns_x_of_normals_and_nothing_else() -> None:
    photo = sample()
    flipped = flip(photo).labels["normals"]
    assert np.array_equal(flipped[:, ::-1] * [-1, 1, 1], photo.labels["normals"])


@given(st.floats(1, 3), st.floats(0, 1), st.floats(0, 1))
def test_zoom_brings_the_scene_nearer_and_stays_inside(scale: float, right: float, down: float) -> None:
    photo = sample()
    zoomed, (left, upper, east, lower) = zoom(photo, scale, right, down)
    depth = photo.labels["depth"]
    np.testing.assert_allclose(zoomed.labels["depth"], depth / scale, rtol=1e-6)
    assert np.array_equal(zoomed.labels["depth"] == 0, depth == 0)
    assert left >= 0
    assert upper >= 0
    assert east <= 32 + 1e-9
    assert lower <= 24 + 1e-9


def test_labels_are_never_averaged() -> None:
    photo = sample()
    tensors = to_tensors(photo, (48, 64), (11, 13), (3.3, 2.2, 20.1, 19.9))
    for task in ("segmentation", "depth"):
        assert set(np.unique(tensors[task])) <= set(np.unique(photo.labels[task]))
    lengths = np.linalg.norm(tensors["normals"].numpy(), axis=0)
    assert np.all((np.abs(lengths - 1) < 1e-5) | (lengths == 0))


def test_the_whole_photo_at_its_own_size_is_unchanged() -> None:
    photo = sample()
    tensors = to_tensors(photo, (24, 32), (24, 32))
    assert np.array_equal(tensors["image"].permute(1, 2, 0), photo.image)
    assert np.array_equal(tensors["depth"], photo.labels["depth"])


def test_a_sample_depends_on_its_generator_alone() -> None:
    augment = Augmentation()
    one, box = augment(sample(), np.random.default_rng(7))
    two, other = augment(sample(), np.random.default_rng(7))
    assert box == other
    assert np.array_equal(one.image, two.image)
