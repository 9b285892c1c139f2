"""Which graph is run, at which size, cut to which tasks."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ptsa_serve.errors import ArtifactError
from ptsa_serve.graphs import cut
from ptsa_serve.sizes import AnySize, Sizes
from ptsa_serve.variants import Form, Variant, Variants

FIXED = ((384, 512), (512, 384), (448, 448), (320, 576), (576, 320))
RULE = AnySize(32, 384 * 512)
FOLDED, HALF, LOW_RANK = Form("fp32", "folded"), Form("fp16", "folded"), Form("fp32", "low_rank")


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, 0), (640, 480, 1), (99, 100, 2), (1080, 1920, 3), (1920, 1080, 4), (10, 4000, 3), (4000, 10, 4)],
)
def test_nearest_aspect_ratio_is_chosen(height: int, width: int, expected: int):
    assert Sizes(FIXED).choose(height, width) == FIXED[expected]


@given(height=st.integers(1, 9000), width=st.integers(1, 9000))
def test_turning_the_photo_turns_the_size(height: int, width: int):
    assert Sizes(FIXED).choose(width, height)[::-1] == Sizes(FIXED).choose(height, width)


@given(height=st.integers(1, 9000), width=st.integers(1, 9000))
def test_the_rule_gives_a_size_that_it_takes(height: int, width: int):
    assert RULE.choose(height, width) in RULE
    assert RULE.choose(height, width) in Sizes((), RULE)


@given(height=st.integers(300, 3000), width=st.integers(300, 3000))
def test_the_rule_squashes_little_and_uses_its_pixels(height: int, width: int):
    rows, columns = RULE.choose(height, width)
    assert 1 / 1.3 < (height * columns) / (width * rows) < 1.3
    assert rows * columns > 0.7 * RULE.pixels


def test_where_both_are_there_only_odd_photos_follow_the_rule():
    both = Sizes(FIXED, RULE)
    assert all(both.choose(h, w) in FIXED for h, w in ((480, 640), (768, 1024), (1080, 1920), (600, 600)))
    assert both.choose(500, 2000) not in FIXED


def test_sizes_read_well():
    assert str(Sizes(FIXED[:2])) == "384x512 or 512x384"
    assert str(Sizes(FIXED[:2], RULE)) == "384x512, 512x384 or multiples of 32 up to 196,608 pixels"
    assert str(Sizes((), RULE)) == "multiples of 32 up to 196,608 pixels"


def variant(path: str, size: tuple[int, int] | None, form: Form = FOLDED, tasks: str = "abc") -> Variant:
    return Variant(path, "weights.safetensors", size, form, tuple(tasks))


ALL = Variants(
    (
        variant("low", (32, 64), LOW_RANK),
        variant("any", None),
        variant("half", (32, 64), HALF),
        variant("fixed", (32, 64)),
        variant("a", (32, 64), tasks="a"),
    ),
    AnySize(32, 32 * 64),
)


@pytest.mark.parametrize(
    ("form", "size", "tasks", "path"),
    [
        (FOLDED, (32, 64), "abc", "fixed"),
        (FOLDED, (32, 64), "b", "fixed"),
        (FOLDED, (32, 64), "a", "a"),
        (FOLDED, (64, 32), "a", "any"),
        (HALF, (32, 64), "ab", "half"),
        (LOW_RANK, (32, 64), "c", "low"),
    ],
)
def test_graph_of_that_size_with_the_fewest_tasks(form: Form, size: tuple[int, int], tasks: str, path: str):
    assert ALL.choose(form, size, tuple(tasks)).path == path


@pytest.mark.parametrize(("form", "size"), [(FOLDED, (64, 64)), (FOLDED, (33, 62)), (HALF, (64, 32))])
def test_size_without_a_graph_is_named_with_those_that_have(form: Form, size: tuple[int, int]):
    with pytest.raises(ArtifactError, match=r"no .* graph for .*; it takes 32x64"):
        ALL.choose(form, size, ("a",))


def test_form_is_the_asked_one_or_the_safest():
    assert ALL.forms == (LOW_RANK, FOLDED, HALF)
    assert ALL.form() == FOLDED
    assert ALL.form("fp16") == HALF
    assert ALL.form(branches="low_rank") == LOW_RANK
    with pytest.raises(ArtifactError, match="no int8 graph; it has fp32 low_rank, fp32 folded, fp16 folded"):
        ALL.form("int8")


def two_headed() -> bytes:
    """x (N, 3) -> shared product (3 x 8) -> `a` (8 x 2), `b` (8 x 5); `wb` lies outside."""
    arrays = {"w": (3, 8), "wa": (8, 2), "wb": (8, 5)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "wa"], ["a"]),
        helper.make_node("MatMul", ["h", "wb"], ["b"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "two",
        [value("x", TensorProto.FLOAT, ["N", 3])],
        [value("a", TensorProto.FLOAT, ["N", 2]), value("b", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in arrays.items()],
    )
    outside = graph.initializer[2]
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="model.onnx.data")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_a_cut_graph_keeps_what_its_outputs_need():
    found = cut(two_headed(), ["a"])
    part = onnx.load_model_from_string(found.data)
    onnx.checker.check_model(part)
    assert [output.name for output in part.graph.output] == ["a"]
    assert {tensor.name for tensor in part.graph.initializer} == {"w", "wa"}
    assert (found.tasks, found.weights) == (("a",), ())


def test_a_graph_of_which_nothing_is_cut_stays_byte_for_byte():
    found = cut(two_headed(), ["b", "a"])
    assert found.data == two_headed()
    assert (found.tasks, found.weights) == (("a", "b"), ("wb",))


def test_other_bytes_are_no_graph():
    with pytest.raises(ValueError, match="no ONNX graph"):
        cut(b"\xff" * 9, ["a"])
