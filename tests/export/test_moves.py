"""Windows of a map as the exporter writes them, and what the passes make of them."""

import functools
import warnings
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import nn

from export.emit import OPSET
from export.passes import FewerRows, GatherRows, MergeReshapes, quicken
from export.passes.linear import linears
from export.passes.shapes import photo_shapes
from training.backbones import swin

WIDTH, HEADS = 16, 2


class Block(nn.Module):
    """Attention within windows: all of a Swin block but its norms and its MLP."""

    def __init__(self, shift: int, size: tuple[int, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(1, HEADS, 49, 49))
        self._shift, self._size = shift, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.qkv(swin._to_windows(x, shift=self._shift))
        scores = swin._scores(h, heads=HEADS) + self.bias
        h = self.proj(swin._attend(scores, h, shift=self._shift, size=self._size))
        return x + swin._from_windows(h, shift=self._shift, size=self._size)


@functools.cache
def _exported(shift: int, size: tuple[int, int]) -> bytes:
    with warnings.catch_warnings():
        # As in export/emit.py.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.onnx.export(
            Block(shift, size).eval(),
            (torch.zeros(2, *size, WIDTH),),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={"x": {0: torch.export.Dim("N")}},
            input_names=["x"],
            output_names=["y"],
            verbose=False,
        )
    assert program is not None
    return ir.to_proto(program.model).SerializeToString()


def exported(shift: int, size: tuple[int, int]) -> ir.Model:
    return ir.from_proto(onnx.load_model_from_string(_exported(shift, size)))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def costly(model: ir.Model) -> Counter[str]:
    """Operators that depend on the input, but for Reshape."""
    reached, found = {*model.graph.inputs}, Counter()
    for node in model.graph:
        if reached & set(node.inputs):
            reached |= set(node.outputs)
            found[node.op_type] += 1
    del found["Reshape"]
    return found


# A map that is padded on both axes, one on neither, and one that is a single window high.
@pytest.mark.parametrize(("shift", "size"), [(3, (12, 16)), (0, (14, 14)), (3, (6, 9))])
def test_windows_cost_three_gathers_there_and_one_back(shift: int, size: tuple[int, int]) -> None:
    model = exported(shift, size)
    x = np.random.default_rng(0).normal(size=(3, *size, WIDTH)).astype(np.float32)
    before = run(model, x)
    quicken(model)
    assert np.abs(run(model, x) - before).max() < 1e-5
    moves = {name: costly(model)[name] for name in ("Gather", "Pad", "Transpose", "Slice", "Concat", "Split")}
    # q, k and v, and the way back; a row of zeros for what is no part of the map; k turned for the product.
    padded = any(side % 7 for side in size)
    assert moves == {"Gather": 4, "Pad": int(padded), "Transpose": 1, "Slice": 0, "Concat": 0, "Split": 0}


def test_linear_layers_see_no_padding() -> None:
    model = exported(3, (12, 16))
    quicken(model)
    shapes = photo_shapes(model)
    rows = [shapes[layer.y] for layer in linears(model.graph)]
    # 6 windows have 294 tokens; the one row beside the map stands for all padding.
    assert rows == [(1, 12 * 16 + 1, 3 * WIDTH), (1, 12 * 16, WIDTH)]


def test_the_numbers_of_rows_take_no_room_in_the_file() -> None:
    model = exported(3, (12, 16))
    quicken(model)
    constants = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    assert max(tensor.size for tensor in constants if tensor.dtype.is_integer() and "mask" not in tensor.name) < 20


def moved(*nodes: tuple[str, list, dict], shape: tuple[int, ...]) -> ir.Model:
    """A graph x -> Relu -> nodes -> Relu; a node's inputs behind its first are arrays."""
    x = ir.Value(name="x", shape=ir.Shape(["N", *shape]), type=ir.TensorType(ir.DataType.FLOAT))
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [y], nodes=[], opset_imports={"": 20}, name="moves")
    graph.append(ir.node("Relu", [x]))
    for number, (operator, arrays, attributes) in enumerate(nodes):
        inputs = [graph[-1].outputs[0]]
        for i, array in enumerate(arrays):
            tensor = ir.tensor(np.array(array), name=f"c{number}_{i}")
            inputs.append(ir.Value(name=tensor.name, const_value=tensor))
            graph.register_initializer(inputs[-1])
        graph.append(ir.node(operator, inputs, attributes=attributes))
    graph.append(ir.Node("", "Relu", [graph[-1].outputs[0]], outputs=[y]))
    return ir.Model(graph, ir_version=10)


REVERSED = ("Slice", [[-1], [-99], [1], [-1]], {})
TURNED = ("Transpose", [], {"perm": [0, 2, 1, 3]})


def test_any_chain_that_keeps_rows_whole_is_one_gather() -> None:
    model = moved(REVERSED, TURNED, ("Pad", [[0, 1, 0, 0, 0, 0, 2, 0]], {}), shape=(3, 4, 8))
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
    before = run(model, x)
    assert GatherRows()(model).modified
    RemoveUnusedNodesPass()(model)
    assert costly(model) == {"Relu": 2, "Pad": 1, "Gather": 1}
    assert np.array_equal(run(model, x), before)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_chain_may_end_in_any_part_of_a_split(part: int) -> None:
    model = moved(TURNED, ("Split", [[1, 2, 1]], {"axis": 1}), shape=(3, 4, 8))
    split, last = model.graph[-2], model.graph[-1]
    more = [ir.Value(name=f"part{i}", type=split.outputs[0].type) for i in range(3)]
    node = ir.Node("", "Split", split.inputs, attributes=dict(split.attributes), outputs=more)
    model.graph.insert_after(split, node)
    last.replace_input_with(0, more[part])
    model.graph.remove(split, safe=True)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
    before = run(model, x)
    assert GatherRows()(model).modified
    assert np.array_equal(run(model, x), before)


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([("Transpose", [], {"perm": [0, 3, 1, 2]})], "rows are cut"),
        ([("Slice", [[0], [4], [3]], {}), TURNED], "rows are cut"),
        ([("Transpose", [], {"perm": [1, 0, 2, 3]})], "photos change places"),
        ([("Reshape", [[-1, 8]], {})], "nothing is moved"),
    ],
)
def test_another_chain_stays(nodes: list, why: str) -> None:
    assert not GatherRows()(moved(*nodes, shape=(3, 4, 8))).modified, why


def test_a_chain_of_unknown_size_stays() -> None:
    model = moved(TURNED, REVERSED, shape=(3, 4, 8))
    model.graph.inputs[0].shape = ir.Shape(["N", "h", "w", 8])
    assert not GatherRows()(model).modified
    assert not FewerRows()(model).modified


def test_reshapes_in_a_row_are_one() -> None:
    model = moved(("Reshape", [[-1, 12, 8]], {}), ("Reshape", [[-1, 4, 24]], {}), shape=(3, 4, 8))
    assert MergeReshapes()(model).modified
    RemoveUnusedNodesPass()(model)
    assert [node.op_type for node in model.graph] == ["Relu", "Reshape", "Relu"]


def test_a_reshape_that_copies_a_side_keeps_what_it_reads() -> None:
    model = moved(("Reshape", [[-1, 12, 8]], {}), ("Reshape", [[0, 24, 4]], {}), shape=(3, 4, 8))
    assert not MergeReshapes()(model).modified
