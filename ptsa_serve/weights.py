"""The file of weights: kept compact (fp16 mostly, low-rank factors apart), made as the graphs name them.

A graph's large tensor has a recipe: base + scale * up @ down, or several tensors stacked along a new first axis. The
recipes stand in the file's own metadata; this module writes and reads them, nothing else does. A file may lie over
another, whose tensors its recipes name as well: graphs of a lower precision add hardly a byte.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open

from ptsa_serve.errors import ArtifactError

__all__ = ["Recipe", "WeightsFile", "in_steps", "metadata"]

_AGAIN = "copy the folder again, or make it again with `python -m export`"
_METADATA_KEY, _OVER_KEY = "initializers", "over"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a tensor of a graph is made from tensors of the file; keys name those.

    base (out, in) + scale * up (out, r) @ down (r, in), or `stack` (n tensors along a new first axis); computed in
    float32, then the last two axes exchanged for `transpose`, then `dtype`. "" as dtype: float32, and integers stay.
    steps (n,): int8 as multiples of these, one for each of the n channels along `axis`.
    """

    base: str = ""
    up: str = ""
    down: str = ""
    scale: float = 1.0
    transpose: bool = False
    stack: tuple[str, ...] = ()
    dtype: str = ""
    steps: str = ""
    axis: int = 0

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Raises TypeError or ValueError for fields that are unknown or contradict each other."""
        recipe = cls(**{**fields, "stack": tuple(fields.get("stack", ()))})
        if bool(recipe.base) == bool(recipe.stack) or bool(recipe.up) != bool(recipe.down):
            raise ValueError(f"a recipe needs a base or a stack, and up with down, found {dict(fields)}")
        return recipe

    def to_json(self) -> dict[str, Any]:
        """The fields that say something."""
        empty = Recipe()
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) != getattr(empty, name)}


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights whose recipes were read; tensors are made when they are asked for. over: the file below it."""

    path: Path
    recipes: Mapping[str, Recipe]
    over: Path | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises ArtifactError if it cannot be read, or is no file of weights."""
        try:
            with safe_open(path, framework="numpy") as weights:
                said = weights.metadata() or {}
            fields, over = json.loads(said[_METADATA_KEY]), said.get(_OVER_KEY)
            recipes = {name: Recipe.from_json(entry) for name, entry in fields.items()}
            return cls(path, recipes, path.with_name(over) if over else None)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}); {_AGAIN}") from error

    def make(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The tensors `names`, C-contiguous; two of one recipe share one array.

        Raises ArtifactError for a name without a recipe, or a file that cannot be read.
        """
        made: dict[Recipe, np.ndarray] = {}
        try:
            with ExitStack() as stack:
                files = [stack.enter_context(safe_open(p, framework="numpy")) for p in (self.path, self.over) if p]
                places = {key: file for file in reversed(files) for key in file.keys()}  # noqa: SIM118
                for name in names:
                    recipe = self.recipes[name]
                    if recipe not in made:
                        made[recipe] = _make(lambda key: places[key].get_tensor(key), recipe)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{self.path} cannot be read ({error}); {_AGAIN}") from error
        return {name: made[self.recipes[name]] for name in names}


def metadata(recipes: Mapping[str, Recipe], over: str = "") -> dict[str, str]:
    """What a safetensors file's metadata must hold for `WeightsFile`. over: name of the file below it, if any."""
    entries = {name: recipe.to_json() for name, recipe in recipes.items()}
    said = {"format": "pt", _METADATA_KEY: json.dumps(entries, separators=(",", ":"))}
    return {**said, _OVER_KEY: over} if over else said


def _make(tensor: Callable[[str], np.ndarray], recipe: Recipe) -> np.ndarray:
    parts = [_float32(tensor(key)) for key in recipe.stack or (recipe.base,)]
    made = np.stack(parts) if recipe.stack else parts[0]
    if recipe.up:
        up, down = (_float32(tensor(key)) for key in (recipe.up, recipe.down))
        made = made + np.float32(recipe.scale) * (up @ down)
    if recipe.transpose:
        made = made.swapaxes(-1, -2)
    if recipe.steps:
        made = in_steps(made, tensor(recipe.steps), recipe.axis)
    return np.ascontiguousarray(made.astype(recipe.dtype, copy=False) if recipe.dtype else made)


def in_steps(values: np.ndarray, steps: np.ndarray, axis: int) -> np.ndarray:
    """int8: float32 `values` as multiples, -127 to 127, of `steps` (n,) along `axis`, to the nearest, ties to even."""
    shape = [1] * values.ndim
    shape[axis] = -1
    return np.clip(np.rint(values / steps.reshape(shape)), -127, 127).astype(np.int8)


def _float32(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32, copy=False) if tensor.dtype.kind == "f" else tensor
