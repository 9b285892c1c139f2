"""The file of weights: what its recipes make."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from ptsa_serve.errors import ArtifactError
from ptsa_serve.weights import Recipe, WeightsFile, in_steps, metadata

HALF = np.zeros((2, 2), np.float16)


def made(folder: Path, tensors: dict[str, np.ndarray], recipes: object) -> dict[str, np.ndarray]:
    """Every tensor of a file with these recipes, as JSON."""
    path = folder / "weights.safetensors"
    path.write_bytes(save(tensors, metadata={"initializers": json.dumps(recipes)}))
    file = WeightsFile.open(path)
    return file.make(file.recipes)


@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 9),
    into=st.integers(1, 9),
    rank=st.integers(1, 4),
    scale=st.floats(-4, 4, width=16),
    transpose=st.booleans(),
    seed=st.integers(0, 99),
)
def test_folded_is_base_plus_scale_times_up_times_down(
    tmp_path_factory: pytest.TempPathFactory, out: int, into: int, rank: int, scale: float, transpose: bool, seed: int
):
    random = np.random.default_rng(seed)
    shapes = {"b": (out, into), "u": (out, rank), "d": (rank, into)}
    parts = {key: random.standard_normal(shape).astype(np.float16) for key, shape in shapes.items()}
    recipe = {"base": "b", "up": "u", "down": "d", "scale": scale, "transpose": transpose}
    arrays = made(tmp_path_factory.mktemp("fold"), parts, {"w": recipe, "plain": {"base": "b"}})
    wide = {key: values.astype(np.float64) for key, values in parts.items()}
    expected = wide["b"] + scale * wide["u"] @ wide["d"]
    assert np.allclose(arrays["w"], expected.T if transpose else expected, rtol=1e-5, atol=1e-5)
    assert arrays["w"].dtype == np.float32
    assert arrays["w"].flags.c_contiguous
    assert np.array_equal(arrays["plain"], parts["b"].astype(np.float32))


def test_a_stack_has_a_new_first_axis_and_every_matrix_is_transposed(tmp_path: Path):
    tensors = {name: np.random.default_rng(i).standard_normal((2, 3)).astype(np.float16) for i, name in enumerate("ab")}
    recipe = {"stack": ["a", "b", "a"], "transpose": True, "dtype": "float16"}
    array = made(tmp_path, tensors, {"s": recipe})["s"]
    assert array.dtype == np.float16
    assert array.flags.c_contiguous
    assert np.array_equal(array, np.stack([tensors["a"].T, tensors["b"].T, tensors["a"].T]))


@given(seed=st.integers(0, 99), axis=st.integers(0, 1))
def test_int8_is_within_half_a_step_of_each_channel(seed: int, axis: int):
    values = np.random.default_rng(seed).standard_normal((5, 7)).astype(np.float32)
    steps = np.abs(values).max(axis=1 - axis) / 127
    found = in_steps(values, steps, axis)
    wide = np.expand_dims(steps, 1 - axis)
    assert found.dtype == np.int8
    assert np.all(np.abs(found * wide - values) <= wide / 2 + 1e-6)


def test_a_recipe_counts_what_it_made(tmp_path: Path):
    tensors = {"b": np.array([[1, -2], [3, 4]], np.float16), "s": np.array([1, 0.5], np.float32)}
    recipe = {"base": "b", "transpose": True, "steps": "s", "axis": 1}
    assert made(tmp_path, tensors, {"q": recipe})["q"].tolist() == [[1, 6], [-2, 8]]


def test_whole_numbers_stay_whole_numbers(tmp_path: Path):
    assert made(tmp_path, {"q": np.full((2, 2), -7, np.int8)}, {"q": {"base": "q"}})["q"].dtype == np.int8


def test_equal_recipes_share_one_array(tmp_path: Path):
    arrays = made(tmp_path, {"b": HALF}, {"x": {"base": "b"}, "y": {"base": "b"}})
    assert arrays["x"] is arrays["y"]


def test_what_is_written_is_what_is_read(tmp_path: Path):
    recipes = {"w": Recipe("b", "u", "d", 0.5, transpose=True), "s": Recipe(stack=("u", "d"), dtype="float16")}
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save({"b": HALF}, metadata=metadata(recipes)))
    assert WeightsFile.open(path).recipes == recipes


def test_a_file_over_another_names_the_tensors_of_both_and_its_own_first(tmp_path: Path):
    below, over = tmp_path / "weights.safetensors", tmp_path / "weights-int8.safetensors"
    below.write_bytes(save({"b": HALF + 4, "s": HALF}, metadata=metadata({"w": Recipe("b")})))
    recipes = {"q": Recipe("b", steps="s", axis=1)}
    over.write_bytes(save({"s": np.array([1, 2], np.float32)}, metadata=metadata(recipes, over=below.name)))
    file = WeightsFile.open(over)
    assert file.make(["q"])["q"].tolist() == [[4, 2], [4, 2]]
    with pytest.raises(ArtifactError, match="export"):
        file.make(["w"])
    below.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        file.make(["q"])


@pytest.mark.parametrize(
    "recipes",
    [
        {"x": {"base": "missing"}},
        [],
        {"x": 3},
        {"x": {}},
        {"x": {"base": "b", "stack": ["b"]}},
        {"x": {"base": "b", "up": "b"}},
        {"x": {"base": "b", "colour": "red"}},
        {"x": {"base": "b", "dtype": "float17"}},
    ],
)
def test_weights_that_cannot_be_read_say_what_to_do(tmp_path: Path, recipes: object):
    with pytest.raises(ArtifactError, match="export"):
        made(tmp_path, {"b": HALF}, recipes)


def test_damaged_weights_are_an_artifact_error(tmp_path: Path):
    (tmp_path / "weights.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ArtifactError, match="cannot be read"):
        WeightsFile.open(tmp_path / "weights.safetensors")
