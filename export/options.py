"""What the text of an option means, or what is wrong with it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from export.errors import ExportError
from export.precision.gate import ALLOWED
from ptsa_serve.sizes import Size
from ptsa_serve.variants import Precision
from training.network.model import STRIDE

__all__ = ["parse_batches", "parse_data", "parse_graph_sizes", "parse_precisions", "parse_settings", "parse_sizes"]


def parse_batches(text: str) -> tuple[int, ...]:
    """Read "1,4,8" as (1, 4, 8). Raises ExportError for anything else, and for repetitions."""
    if not re.fullmatch(r"[1-9]\d{0,2}(,[1-9]\d{0,2})*", text) or len(set(text.split(","))) != len(text.split(",")):
        raise ExportError(f"batches are {text!r}; write numbers from 1 to 999, each once, like 1,4,8")
    return tuple(sorted(map(int, text.split(","))))


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Read "384x512,448x448" as ((384, 512), (448, 448)). Raises ExportError for anything else, and for repetitions."""
    if not re.fullmatch(r"\d{1,4}x\d{1,4}(,\d{1,4}x\d{1,4})*", text):
        raise ExportError(f"sizes are {text!r}; write heights and widths like 384x512,448x448")
    sizes = tuple((int(h), int(w)) for h, w in (size.split("x") for size in text.split(",")))
    wrong = [size for size in sizes if min(size) == 0 or size[0] % STRIDE or size[1] % STRIDE]
    if wrong or len(set(sizes)) != len(sizes):
        raise ExportError(f"sizes are {text!r}; each once, and every side a multiple of {STRIDE}")
    return sizes


def parse_graph_sizes(text: str) -> tuple[Size | None, ...]:
    """As `parse_sizes`; "dynamic", once among them or alone, is None, and comes last."""
    names = text.split(",")
    if "dynamic" not in names:
        return parse_sizes(text)
    names.remove("dynamic")
    return (*(parse_sizes(",".join(names)) if names else ()), None)


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """Read "fp16,int8" as ("fp16", "int8"). Raises ExportError for anything else, and for repetitions."""
    found: tuple[Precision, ...] = tuple(
        precision for name in text.split(",") for precision in ALLOWED if precision == name
    )
    if found != tuple(text.split(",")) or len(set(found)) != len(found):
        raise ExportError(f"--precision is {text!r}; write some of {', '.join(ALLOWED)}, each once, by commas")
    return found


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Read ("preference={depth: 1}",) as {"preference": {"depth": 1}}: values are YAML. Raises ExportError."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals) or name in found:
            raise ExportError(f"--set is {text!r}; write each setting once, as NAME=VALUE")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ExportError(f"--set is {text!r}; {value!r} is no YAML, write it like {{depth: 1}}") from None
    return found


def parse_data(texts: Sequence[str]) -> dict[str, Path]:
    """Read ("nyu=data/nyu",) as {"nyu": Path("data/nyu")}. Raises ExportError for anything else, or a name twice."""
    found = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder) or name in found:
            raise ExportError(f"--data is {text!r}; write each data set once, as NAME=DIR like nyu=data/nyu")
        found[name] = Path(folder)
    return found
