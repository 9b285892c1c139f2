"""A turned view of a scene whose geometry is known: labels must be those that the new camera would measure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptsa_serve.tasks import TASKS
from training.data.camera import rays, turn
from training.data.labels import LabelledPhoto
from training.data.transforms import flip

HEIGHT, WIDTH = 60, 80
ANGLE = st.floats(-0.2, 0.2)


def plane(normal: tuple[float, float, float], distance: float) -> LabelledPhoto:
    """A plane as NYU would label it; normal: x right, y up, z towards the camera."""
    unit = np.array(normal) / np.linalg.norm(normal)
    depth = -distance / (rays(HEIGHT, WIDTH) @ (unit * [1, -1, -1]))
    assert (depth > 0).all()
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    image = np.stack([x * 3, y * 4, np.full_like(x, 99)], -1).astype(np.uint8)
    labels = {
        "depth": depth.astype(np.float32),
        "normals": np.broadcast_to(unit, (HEIGHT, WIDTH, 3)).astype(np.float32),
        "segmentation": ((x > 30).astype(np.uint8)),
    }
    return LabelledPhoto("plane", image, labels, {task: TASKS[task].kind for task in labels})


@settings(max_examples=25, deadline=None)
@given(pan=ANGLE, tilt=ANGLE, roll=ANGLE, zoom=st.floats(1, 1.6))
def test_depth_and_normals_of_a_turned_plane_are_of_one_plane(pan, tilt, roll, zoom) -> None:
    turned = turn(plane((0.3, 0.5, 1), 2.0), pan=pan, tilt=tilt, roll=roll, zoom=zoom).labels
    seen = turned["depth"] > 0
    assert seen.mean() > 0.5
    normal = turned["normals"][seen][0]
    np.testing.assert_allclose(turned["normals"][seen], np.broadcast_to(normal, (seen.sum(), 3)), atol=1e-5)
    points = (rays(HEIGHT, WIDTH) * turned["depth"][..., None])[seen]
    offsets = points @ (normal * [1, -1, -1])
    # Nearest neighbours are up to half a pixel off, a hundredth of the depth.
    assert np.ptp(offsets) < 0.03 * abs(offsets.mean())


@pytest.mark.parametrize(
    ("turned", "goes"),
    [({"pan": 0.1}, (1, 0)), ({"tilt": 0.1}, (0, -1)), ({"roll": 0.1}, (0, 0)), ({"zoom": 1.5}, (0, 0))],
)
def test_the_camera_turns_the_way_that_is_said(turned: dict[str, float], goes: tuple[int, int]) -> None:
    view = turn(plane((0, 0, 1), 2.0), **({"pan": 0.0, "tilt": 0.0, "roll": 0.0, "zoom": 1.0} | turned))
    x, y = view.image[HEIGHT // 2, WIDTH // 2, :2] / [3.0, 4.0]
    assert np.sign(np.round((x - WIDTH / 2) / 3)) == goes[0]
    assert np.sign(np.round((y - HEIGHT / 2) / 3)) == goes[1]


def test_to_a_camera_that_looks_up_a_wall_faces_upwards() -> None:
    normal = turn(plane((0, 0, 1), 2.0), pan=0, tilt=0.1, roll=0, zoom=1).labels["normals"][HEIGHT // 2, WIDTH // 2]
    np.testing.assert_allclose(normal, (0, np.sin(0.1), np.cos(0.1)), atol=1e-6)


def test_a_longer_lens_brings_the_scene_nearer() -> None:
    near = turn(plane((0, 0, 1), 2.0), pan=0, tilt=0, roll=0, zoom=1.25).labels["depth"]
    np.testing.assert_allclose(near, 2.0 / 1.25, rtol=1e-6)


def test_not_turning_changes_nothing() -> None:
    photo = plane((0.1, 0.2, 1), 3.0)
    same = turn(photo, pan=0, tilt=0, roll=0, zoom=1)
    assert np.array_equal(same.image, photo.image)
    for task, label in photo.labels.items():
        np.testing.assert_allclose(same.labels[task], label, atol=1e-6)


def test_where_the_camera_saw_nothing_there_is_no_label() -> None:
    labels = turn(plane((0, 0, 1), 2.0), pan=0.2, tilt=0, roll=0, zoom=1).labels
    assert (labels["segmentation"][:, -5:] == 255).all()
    assert (labels["depth"][:, -5:] == 0).all()
    assert (labels["normals"][:, -5:] == 0).all()


@settings(max_examples=20, deadline=None)
@given(pan=ANGLE, tilt=ANGLE, roll=ANGLE)
def test_turning_the_mirror_image_is_mirroring_the_turn(pan, tilt, roll) -> None:
    photo = plane((0.3, 0.2, 1), 2.0)
    one = flip(turn(photo, pan=pan, tilt=tilt, roll=roll, zoom=1.1)).labels
    two = turn(flip(photo), pan=-pan, tilt=tilt, roll=-roll, zoom=1.1).labels
    both = (one["depth"] > 0) & (two["depth"] > 0)
    assert both.mean() > 0.5
    np.testing.assert_allclose(one["normals"][both], two["normals"][both], atol=1e-5)
    assert np.mean(one["segmentation"] != two["segmentation"]) < 0.03
