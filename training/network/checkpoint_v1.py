"""Checkpoints of version 1, which knew one method on one backbone, as those of today."""

import re
from typing import Any

from torch import Tensor

__all__ = ["upgraded_config", "upgraded_tensors"]

_ADAPTER = re.compile(r"backbone\.swin\.(.+)\.(up|down)")
_OTHERS = re.compile(r"backbone\.swin\.(.+?)(?:\.frozen)?\.(\w+)$")


def upgraded_config(model: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint of version 1 says of its model, in today's words. Raises KeyError for what it must say."""
    frozen = dict.fromkeys(("merge", "norms", "tables", "patch"), "frozen")
    # The first of them do not name the scale: there was one.
    options = {"rank": list(model["ranks"]), "scale": model.get("scale", 4.0), **frozen}
    adapted = any(model["ranks"])
    return {
        "backbone": model["backbone"],
        "tree": model["tree"],
        "width": model["width"],
        "method": "ptsa" if adapted else "multi_task",
        "options": options if adapted else {},
    }


def upgraded_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under today's names, the factors of each group apart; those of today stay as they are."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if adapter := _ADAPTER.fullmatch(name):
            path, factor = adapter.groups()
            names = [f"method.changes.{path.replace('.', '/')}.{factor}.{group}" for group in range(len(tensor))]
            found |= dict(zip(names, tensor, strict=True))
        else:
            found[_OTHERS.sub(r"backbone.trunk.\1.\2", name)] = tensor
    return found
