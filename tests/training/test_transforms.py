import numpy as np

from ptsa_serve.tasks import TASKS
from training.data.camera import turn
from training.data.labels import LabelledPhoto
from training.data.transforms import Augmentation, flip, to_tensors


def sample(seed: int = 0) -> LabelledPhoto:
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(24, 32, 3)).astype(np.float32)
    normals[:4] = 0
    labels = {
        "segmentation": rng.integers(0, 39, (24, 32)).astype(np.uint8),
        "depth": np.where(rng.random((24, 32)) < 0.2, 0, rng.uniform(1, 9, (24, 32))).astype(np.float32),
        "normals": normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9),
    }
    return LabelledPhoto(
        "0001", rng.integers(0, 255, (24, 32, 3)).astype(np.uint8), labels, {task: TASKS[task].kind for task in labels}
    )


def test_flip_twice_is_identity() -> None:
    photo = sample()
    twice = flip(flip(photo))
    assert np.array_equal(twice.image, photo.image)
    assert all(np.array_equal(twice.labels[task], label) for task, label in photo.labels.items())


def test_flip_turns_x_of_normals_and_nothing_else() -> None:
    photo = sample()
    flipped = flip(photo).labels["normals"]
    assert np.array_equal(flipped[:, ::-1] * [-1, 1, 1], photo.labels["normals"])


def test_labels_are_never_averaged() -> None:
    photo = sample()
    tensors = to_tensors(turn(photo, pan=0.1, tilt=0.05, roll=-0.1, zoom=1.2), (48, 64), (11, 13))
    assert set(np.unique(tensors["segmentation"])) <= {*np.unique(photo.labels["segmentation"]), 255}
    lengths = np.linalg.norm(tensors["normals"].numpy(), axis=0)
    assert np.all((np.abs(lengths - 1) < 1e-5) | (lengths == 0))


def test_the_whole_photo_at_its_own_size_is_unchanged() -> None:
    photo = sample()
    tensors = to_tensors(photo, (24, 32), (24, 32))
    assert np.array_equal(tensors["image"].permute(1, 2, 0), photo.image)
    assert np.array_equal(tensors["depth"], photo.labels["depth"])


def test_a_sample_depends_on_its_generator_alone() -> None:
    augment = Augmentation()
    one, two = (augment(sample(), np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one.image, two.image)
