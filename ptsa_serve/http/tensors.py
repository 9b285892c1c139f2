"""Requests and answers of the Open Inference Protocol: JSON, with the binary tensor extension."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from pydantic_core import from_json, to_json

from ptsa_serve.encoding.archive import Piece
from ptsa_serve.errors import BadParameter
from ptsa_serve.sizes import Sizes

__all__ = ["HEADER", "INPUT", "Infer", "answer", "bytes_per_pixel", "datatype", "parse"]

# The header that says how many bytes of a body are JSON; tensors follow behind them.
HEADER = "Inference-Header-Content-Length"
INPUT = "image"

# Numbers that become text at once.
_BLOCK = 65_536

_NAMES = {"uint8": "UINT8", "float32": "FP32"}


@dataclass(frozen=True, slots=True)
class Infer:
    """One request: images uint8 (N, H, W, 3), the outputs wanted in order, those of them wanted as bytes."""

    images: np.ndarray
    outputs: tuple[str, ...]
    binary: frozenset[str]
    request_id: str | None


def datatype(dtype: np.dtype | str) -> str:
    """The protocol's name of a NumPy type of ours."""
    return _NAMES[str(dtype)]


def parse(body: bytes, json_length: str | None, sizes: Sizes, tasks: Sequence[str]) -> Infer:
    """The request in `body`, whose first `json_length` bytes (all where None) are JSON.

    Raises:
        BadParameter: not the protocol, another input than `image` UINT8 [N, H, W, 3] of one of `sizes` (H, W), or an
            output that is none of `tasks`.
    """
    if json_length is not None and not (json_length.isdecimal() and int(json_length) <= len(body)):
        _refuse(HEADER, f"{HEADER} is {json_length[:32]!r}; use the bytes of the JSON part, within the body")
    end = len(body) if json_length is None else int(json_length)
    try:
        request = from_json(body[:end])
    except ValueError:
        request = None
    if not isinstance(request, dict):
        _refuse("body", "the body is no JSON object; see the Open Inference Protocol, version 2")
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        _refuse("inputs", f"inputs must be a list of one tensor, {INPUT!r}")
    outputs, binary = _outputs(request, tasks)
    request_id = request.get("id")
    return Infer(
        _images(inputs[0], body[end:], sizes), outputs, binary, None if request_id is None else str(request_id)
    )


def answer(infer: Infer, maps: Mapping[str, np.ndarray], model: str, version: str) -> tuple[list[Piece], int | None]:
    """The body of the answer in pieces, and how many bytes of it are JSON (None: all)."""
    head = {"model_name": model, "model_version": version}
    text: list[Piece] = [to_json(head if infer.request_id is None else head | {"id": infer.request_id})[:-1]]
    tensors: list[Piece] = []
    for name in infer.outputs:
        values = np.ascontiguousarray(maps[name])
        output: dict[str, Any] = {"name": name, "shape": list(values.shape), "datatype": datatype(values.dtype)}
        text.append(b',"outputs":[' if name == infer.outputs[0] else b",")
        if name in infer.binary:
            tensors.append(values.data.cast("B"))
            output["parameters"] = {"binary_data_size": values.nbytes}
            text.append(to_json(output))
        else:
            text += [to_json(output)[:-1], b',"data":[', *_listed(values), b"]}"]
    text.append(b"]}")
    return [*text, *tensors], sum(len(piece) for piece in text) if tensors else None


def bytes_per_pixel(infer: Infer) -> int:
    """What one pixel of the images takes at the most: maps of single images and of the batch, numbers as text."""
    return 45 if infer.binary.issuperset(infer.outputs) else 145


def _listed(values: np.ndarray) -> Iterator[bytes]:
    """The members of a JSON list, some at a time: as Python's objects they take eight times the array's bytes."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = to_json(flat[start : start + _BLOCK].tolist())[1:-1]
        yield b"," + block if start else block


def _images(tensor: dict[str, Any], rest: bytes, sizes: Sizes) -> np.ndarray:
    shape = tensor.get("shape")
    known = isinstance(shape, list) and len(shape) == 4 and all(type(side) is int and side > 0 for side in shape)
    named = tensor.get("name") == INPUT and tensor.get("datatype") == "UINT8"
    if not named or not isinstance(shape, list) or not known or tuple(shape[1:3]) not in sizes or shape[3] != 3:
        found = f"{tensor.get('name')!r} {tensor.get('datatype')} {json.dumps(shape)}"[:200]
        _refuse("inputs", f"the input is {found}; send {INPUT!r} UINT8 [N, H, W, 3], RGB, HxW one of {sizes}")
    size = _parameters(tensor).get("binary_data_size")
    if size is not None:
        values = np.frombuffer(rest, np.uint8)
        found = f"binary_data_size is {size!r} and {len(rest)} bytes follow the JSON part"
    else:
        values = _numbers(tensor.get("data"))
        found = f"data has {values.size} values"
    if values.size != math.prod(shape) or size not in (None, values.size):
        _refuse("inputs", f"{found}; the shape {json.dumps(shape)} needs {math.prod(shape)}")
    return values.reshape(shape)


def _numbers(data: Any) -> np.ndarray:
    try:
        values = np.asarray(data)
    except ValueError:
        values = np.empty(0)
    if values.dtype.kind not in "iu" or (values.size and not 0 <= values.min() <= values.max() <= 255):
        _refuse("inputs", "data must be whole numbers from 0 to 255")
    return values.ravel().astype(np.uint8)


def _outputs(request: dict[str, Any], tasks: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    listed: Any = request.get("outputs") or [{"name": task} for task in tasks]
    if not isinstance(listed, list) or not all(isinstance(output, dict) for output in listed):
        _refuse("outputs", "outputs must be a list of objects with a name")
    default = bool(_parameters(request).get("binary_data_output", False))
    binary: set[str] = set()
    for output in listed:
        if output.get("name") not in tasks:
            name = str(output.get("name"))[:64]
            detail = f"there is no output {name!r}; use {', '.join(tasks)}"
            raise BadParameter(detail, parameter="outputs", allowed=tasks)
        if _parameters(output).get("binary_data", default):
            binary.add(output["name"])
    return tuple(output["name"] for output in listed), frozenset(binary)


def _parameters(part: dict[str, Any]) -> dict[str, Any]:
    found = part.get("parameters")
    if found is not None and not isinstance(found, dict):
        _refuse("parameters", "parameters must be an object")
    return found or {}


def _refuse(parameter: str, detail: str) -> NoReturn:
    raise BadParameter(detail, parameter=parameter)
