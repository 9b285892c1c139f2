"""Figures of quality from a JSON file, checked before a manifest takes them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.errors import ExportError

__all__ = ["read_figures", "read_json"]


def read_figures(path: Path) -> Sequence[dict[str, Any]]:
    """The list of records in `path`, each with `figures`, numbers by name, as `ptsa info` prints them.

    Raises ExportError that says which record is wrong, OSError if the file cannot be read.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise ExportError(f'{path} holds no list; write [{{"data": ..., "split": ..., "figures": {{...}}}}]')
    for number, record in enumerate(records, 1):
        figures = record.get("figures") if isinstance(record, dict) else None
        if not isinstance(figures, dict) or not all(map(_is_number, figures.values())):
            raise ExportError(f'{path}: record {number} needs "figures": {{name: number, ...}}, found {record!r:.100}')
    return records


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ExportError for anything else, NaN and Infinity among it."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not JSON ({error})") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
