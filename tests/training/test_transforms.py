import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptsa_serve.tasks import TASKS
from training.data.camera import spin, turn
from training.data.labels import IGNORE, LABELS, LabelledPhoto, labelled, no_label, pixels, planes
from training.data.transforms import AUGMENTATIONS, Augmentation, cropped, flip, to_tensors


def sample(seed: int = 0) -> LabelledPhoto:
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(24, 32, 3)).astype(np.float32)
    normals[:4] = 0
    tasks = {
        **{task: TASKS[task].kind for task in ("segmentation", "depth", "normals", "saliency")},
        "edges": "boundary",
    }
    labels = {
        "segmentation": rng.integers(0, 39, (24, 32)).astype(np.uint8),
        "depth": np.where(rng.random((24, 32)) < 0.2, 0, rng.uniform(1, 9, (24, 32))).astype(np.float32),
        "normals": normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9),
        "saliency": rng.choice(np.array([0, 1, 255], np.uint8), (24, 32)),
        "edges": rng.choice(np.array([0, 1, 255], np.uint8), (24, 32)),
    }
    return LabelledPhoto("0001", rng.integers(0, 255, (24, 32, 3)).astype(np.uint8), labels, tasks)


def test_flip_twice_is_identity() -> None:
    photo = sample()
    twice = flip(flip(photo))
    assert np.array_equal(twice.image, photo.image)
    assert all(np.array_equal(twice.labels[task], label) for task, label in photo.labels.items())


def test_flip_turns_x_of_normals_and_nothing_else() -> None:
    photo = sample()
    flipped = flip(photo).labels["normals"]
    assert np.array_equal(flipped[:, ::-1] * [-1, 1, 1], photo.labels["normals"])


@given(height=st.integers(16, 90), width=st.integers(16, 90), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_photos_of_any_shape_are_cropped_only_as_far_as_they_must(height: int, width: int, seed: int) -> None:
    places = np.arange(height * width, dtype=np.float32).reshape(height, width) + 1
    up = np.zeros((height, width, 3), np.float32)
    up[..., 1:] = np.sqrt(0.5)
    image = np.repeat((places % 251).astype(np.uint8)[..., None], 3, 2)
    photo = LabelledPhoto("1", image, {"depth": places, "normals": up}, {"depth": "metres", "normals": "unit_vectors"})
    part = cropped(photo, (30, 40), np.random.default_rng(seed))
    shape = part.image.shape[:2]
    if 3 / 4 <= width / height * 3 / 4 <= 4 / 3:
        assert part is photo  # square to 16 : 9
        return
    assert height in shape or width in shape
    if shape != (height, width):
        assert abs(shape[1] * 3 - shape[0] * 4) <= 4
    zoom = max(height, width) / max(shape)
    # Depths say where the part was cut, and how much nearer it seems.
    first = round(float(part.labels["depth"][0, 0]) * zoom) - 1
    rows, columns = np.divmod(np.rint(part.labels["depth"] * zoom).astype(int) - 1, width)
    assert np.array_equal(rows, np.arange(shape[0])[:, None].repeat(shape[1], 1) + first // width)
    assert np.array_equal(columns, np.arange(shape[1])[None].repeat(shape[0], 0) + first % width)
    assert np.array_equal(part.image[..., 0], image[rows, columns, 0])
    steepness = part.labels["normals"][..., 2] / part.labels["normals"][..., 1]
    np.testing.assert_allclose(steepness, zoom, rtol=1e-4)


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


ANGLE, SCALE = st.floats(-0.4, 0.4), st.floats(0.75, 1.5)


def constant(normal: tuple[float, float, float], depth: float = 2.0) -> LabelledPhoto:
    """A photo whose every pixel has the same labels."""
    labels = {
        "depth": np.full((40, 50), depth, np.float32),
        "normals": np.broadcast_to(np.array(normal, np.float32), (40, 50, 3)).copy(),
        "segmentation": np.full((40, 50), 3, np.uint8),
        "edges": np.zeros((40, 50), np.uint8),
    }
    kinds = {"depth": "metres", "normals": "unit_vectors", "segmentation": "classes", "edges": "boundary"}
    return LabelledPhoto("flat", np.full((40, 50, 3), 200, np.uint8), labels, kinds)


@settings(max_examples=25, deadline=None)
@given(angle=ANGLE, scale=SCALE)
def test_a_wall_seen_face_on_stays_face_on(angle: float, scale: float) -> None:
    for photo in (spin(constant((0, 0, 1)), angle=angle, scale=scale), flip(constant((0, 0, 1)))):
        normals = photo.labels["normals"]
        assert np.array_equal(np.unique(normals[labelled("unit_vectors", normals)], axis=0), [[0, 0, 1]])


@settings(max_examples=25, deadline=None)
@given(angle=ANGLE, scale=SCALE)
def test_there_and_back_again_is_where_it_was(angle: float, scale: float) -> None:
    photo = constant((0.6, 0.0, 0.8))
    back = spin(spin(photo, angle=angle, scale=scale), angle=-angle, scale=1 / scale)
    for task, label in back.labels.items():
        known = labelled(back.kinds[task], label)
        assert known[20, 25]
        np.testing.assert_allclose(label[known], photo.labels[task][known], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(angle=ANGLE, scale=SCALE)
def test_spinning_the_mirror_image_is_mirroring_the_spin(angle: float, scale: float) -> None:
    photo = constant((0.36, 0.48, 0.8))
    one = flip(spin(photo, angle=angle, scale=scale)).labels
    two = spin(flip(photo), angle=-angle, scale=scale).labels
    both = (one["depth"] > 0) & (two["depth"] > 0)
    assert np.mean(one["depth"] != two["depth"]) < 0.06  # the rim, 72 of 2,000 pixels, falls to either side
    np.testing.assert_allclose(one["normals"][both], two["normals"][both], atol=1e-5)


def test_a_quarter_turn_anticlockwise_turns_what_points_right_upwards() -> None:
    photo = constant((1, 0, 0))
    photo.image[20, 40] = 0  # right of the middle
    turned = spin(photo, angle=np.pi / 2, scale=1)
    np.testing.assert_allclose(turned.labels["normals"][20, 25], (0, 1, 0), atol=1e-6)
    rows = np.argwhere(turned.image[:, 10:40].sum(-1) < 300)[:, 0]
    assert len(rows)
    assert rows.max() < 10


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), scale=SCALE)
def test_scaling_divides_depth_and_leaves_what_is_none(seed: int, scale: float) -> None:
    photo = sample(seed)
    before, after = photo.labels["depth"], spin(photo, angle=0, scale=scale).labels["depth"]
    allowed = np.unique(before / np.float32(scale))
    assert 0 in allowed
    nearest = allowed[np.abs(allowed[None] - after.reshape(-1, 1)).argmin(1)]
    np.testing.assert_allclose(after.ravel(), nearest, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), angle=ANGLE, scale=SCALE)
def test_spun_labels_are_never_averaged_and_empty_corners_have_none(seed: int, angle: float, scale: float) -> None:
    photo = sample(seed)
    spun = spin(photo, angle=angle, scale=scale).labels
    for task in ("segmentation", "saliency", "edges"):
        assert set(np.unique(spun[task])) <= {*np.unique(photo.labels[task]), IGNORE}
    lengths = np.linalg.norm(spun["normals"], axis=-1)
    assert np.all((np.abs(lengths - 1) < 1e-5) | (lengths == 0))
    small = spin(constant((0, 0, 1)), angle=angle, scale=0.75)
    for task, label in small.labels.items():
        corners = labelled(small.kinds[task], label)[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert not corners.any()
    assert not small.image[[0, 0, -1, -1], [0, -1, 0, -1]].any()


def test_bicubic_overshoot_is_cut_off_not_wrapped() -> None:
    image = np.zeros((24, 32, 3), np.uint8)
    image[:, 13:] = 255
    photo = LabelledPhoto("step", image, {}, {})
    for pixels_ in (
        to_tensors(photo, (48, 80), None, cubic=True)["image"].numpy().transpose(1, 2, 0),
        spin(photo, angle=0.01, scale=1.3).image,
    ):
        row = pixels_[10, :, 0].astype(int)
        assert (np.diff(row) >= 0).all()  # what wraps around jumps back
        assert (row[0], row[-1]) == (0, 255)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_keeps_size_type_and_what_labels_may_be(name: str) -> None:
    for seed in range(8):
        photo = sample(seed)
        varied = AUGMENTATIONS[name](photo, np.random.default_rng(seed))
        again = AUGMENTATIONS[name](photo, np.random.default_rng(seed))
        assert np.array_equal(varied.image, again.image)
        assert varied.image.shape == photo.image.shape
        for task, label in varied.labels.items():
            assert (label.shape, label.dtype) == (photo.labels[task].shape, photo.labels[task].dtype)
            assert np.array_equal(label, again.labels[task])


def test_the_published_augmentations_draw_what_their_papers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr(
        "training.data.transforms.spin", lambda photo, angle, scale: drawn.append((angle, scale)) or photo
    )
    rng, photo = np.random.default_rng(0), sample()
    for _ in range(300):
        AUGMENTATIONS["mtlora_pascal"](photo, rng)
    angles, scales = np.degrees([a for a, _ in drawn]), np.array([s for _, s in drawn])
    assert (np.abs(angles).max(), scales.min(), scales.max()) == pytest.approx((20, 0.75, 1.25), abs=0.3)
    drawn.clear()
    for _ in range(60):
        AUGMENTATIONS["mtlora_nyud"](photo, rng)
    assert set(drawn) == {(0.0, 1.0), (0.0, 1.2), (0.0, 1.5)}


@pytest.mark.parametrize("kind", LABELS)
def test_no_label_is_no_label_through_every_change(kind: str) -> None:
    label = no_label(kind, (20, 30))
    assert not labelled(kind, label).any()
    changed = [
        LABELS[kind].mirrored(label),
        LABELS[kind].seen(label, np.eye(3), 0.5),
        LABELS[kind].resized(label, (7, 9)),
    ]
    assert not any(labelled(kind, one).any() for one in changed)
    assert not labelled(kind, planes(label), axis=0).any()
    assert np.array_equal(pixels(planes(label)), label)


def test_a_line_does_not_fall_into_dots_when_it_is_made_smaller() -> None:
    label = np.zeros((60, 90), np.uint8)
    label[31], label[:, 44], label[:3, :3] = 1, 1, 255
    small = LABELS["boundary"].resized(label, (20, 30))
    assert (small == 1).any(1).all()
    assert (small == 1).any(0).all()
    assert small[0, 0] == 255
    assert (small == 1).mean() < 0.15
    assert np.array_equal(LABELS["boundary"].resized(label, (60, 90)), label)
