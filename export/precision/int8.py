"""A graph whose linear layers and convolutions take 8-bit integers, by ONNX Runtime's quantizer.

Q/DQ, symmetric, a scale for each output channel of the weights, one for activations, biases in float32: what ONNX
Runtime, OpenVINO and TensorRT all read. Convolutions have their outputs quantized too, since ONNX Runtime has no other
8-bit kernel for them; and only those are, behind which a ReLU stands: from the others, the first and the last among
them, maps suffer most, and OpenVINO 2026.4 computes other maps altogether. Products of two activations (attention) and
stacked factors stay as they are.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

__all__ = ["layers", "to_int8"]

_TYPES = ("MatMul", "Gemm", "Conv")


def layers(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Names of the nodes that can be quantized, by layer: those of a stage that do the same in every block and branch
    are one. Nodes must have names.

    Of the numbers in a weight's name the first is kept, which is the stage's: layers/2/blocks/3/mlp/fc1.0.weight.T
    belongs to "layers.2.blocks.mlp.fc1".
    """
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    users: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in _TYPES and node.input[1] in ranks:
            rank = ranks[node.input[1]]
            if users.get(node.output[0]) == {"Relu"} if node.op_type == "Conv" else rank == 2:
                found.setdefault(_layer(node.input[1]), []).append(node.name)
    return found


def to_int8(model: Path, out: Path, nodes: Sequence[str], photos: Sequence[np.ndarray], ranges: Path) -> None:
    """Write to `out` the graph of `model`, a file with all weights inside, with `nodes` quantized.

    photos: uint8 (H, W, 3) at the graph's size. ranges: file of what was measured on them; made if it is not there.
    """
    with _quietly():
        quantize_static(
            model,
            out,
            _Photos(photos),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_TYPES),
            nodes_to_quantize=list(nodes),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=ranges,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            },
        )


class _Photos(CalibrationDataReader):
    def __init__(self, photos: Sequence[np.ndarray]) -> None:
        self._left = iter(photos)

    def get_next(self) -> Any:
        photo = next(self._left, None)
        return None if photo is None else {"image": photo[None]}


def _layer(weight: str) -> str:
    kept, numbered = [], False
    for part in re.split(r"[./]", weight.removesuffix(".T").removesuffix(".weight")):
        if not (part.isdigit() and numbered):
            kept.append(part)
        numbered |= part.isdigit()
    return ".".join(kept)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the quantizer's advice on the root logger: the graph was optimised by our own passes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
