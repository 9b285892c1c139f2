"""manifest.json, format "ptsa/1": all that a server must know of a model, parsed once into frozen records.

Unknown fields, at any level, are kept and written back, so that a newer export can say more to a newer
server.
"""

import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ptsa_serve.errors import ManifestError
from ptsa_serve.plans import PlanRecord
from ptsa_serve.sizes import AnySize
from ptsa_serve.task_tree import TaskTree
from ptsa_serve.tasks import Color, Kind, Task
from ptsa_serve.variants import Branches, Form, Precision, Variant, Variants

__all__ = [
    "FORMAT",
    "AnySizeRecord",
    "Backbone",
    "Counts",
    "FileRecord",
    "FormCounts",
    "InputSpec",
    "Manifest",
    "Role",
    "TaskRecord",
    "Tree",
]

FORMAT = "ptsa/1"
Role = Literal["graph", "weights", "sample-photo", "sample-maps", "plan", "other"]
_AGAIN = "make the folder again with `python -m export`"


class _Record(BaseModel):
    """A frozen JSON object that keeps the fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="allow")


class AnySizeRecord(_Record):
    """Sides that graphs without a size take: multiples of `multiple`, up to `pixels` in all."""

    multiple: int = Field(ge=1)
    pixels: int = Field(ge=1)


class InputSpec(_Record):
    """What the graphs take: `sizes` are (H, W) of images with graphs of their own, `any_size` the rule for the others;
    the batch axis is dynamic.
    """

    name: str = "image"
    layout: Literal["NHWC"] = "NHWC"
    dtype: Literal["uint8"] = "uint8"
    color: Literal["RGB"] = "RGB"
    sizes: tuple[tuple[int, int], ...] = ()
    any_size: AnySizeRecord | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.sizes and self.any_size is None:
            raise ValueError("neither sizes nor any_size: the model takes no image")
        return self


class TaskRecord(_Record):
    """A `Task` as JSON."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    kind: Kind
    channels: int = Field(ge=1)
    unit: str | None = None
    classes: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()

    @classmethod
    def of(cls, task: Task) -> Self:
        """The record of `task`."""
        return cls(
            name=task.name,
            kind=task.kind,
            channels=task.channels,
            unit=task.unit,
            classes=task.classes,
            colors=task.colors,
        )

    def task(self) -> Task:
        """The task of this record."""
        return Task(self.name, self.kind, self.channels, self.unit, self.classes, self.colors)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "metres" and self.unit != "m":
            raise ValueError(f"unit is {self.unit!r}, a task in metres needs 'm'")
        if self.kind == "classes" and not len(self.classes) == len(self.colors) == self.channels <= 256:
            found = f"{self.channels} channels, {len(self.classes)} classes, {len(self.colors)} colors"
            raise ValueError(f"found {found}; they must be equal, and at most 256")
        if any(not 0 <= value <= 255 for color in self.colors for value in color):
            raise ValueError("colors must be (red, green, blue) of 0 to 255")
        return self


class Tree(_Record):
    """Which tasks share an adapter at which stage: for each stage the groups of tasks."""

    version: Literal[1] = 1
    tasks: tuple[str, ...]
    stages: tuple[tuple[tuple[str, ...], ...], ...]

    @classmethod
    def of(cls, tree: TaskTree) -> Self:
        """The record of `tree`."""
        return cls.model_validate(tree.to_json(), strict=False)

    def tree(self) -> TaskTree:
        """The tree of this record."""
        return TaskTree(self.tasks, self.stages)

    @model_validator(mode="after")
    def _refines(self) -> Self:
        self.tree()  # TreeError is a ValueError: a fault of the manifest
        return self


class Backbone(_Record):
    """The frozen network under the adapters; `sha256` of its weights file."""

    name: str
    sha256: str


class FileRecord(_Record):
    """One file of the folder.

    Of a graph: `height` and `width`, its entry of `InputSpec.sizes`, or neither for one of any size; its form; the
    outputs that it has, unless all of the model's; the file of its weights, unless there is but one. Of a plan: its
    form and outputs, and `plan`.
    """

    path: str
    role: Role
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    height: int | None = None
    width: int | None = None
    precision: Precision | None = None
    branches: Branches | None = None
    tasks: tuple[str, ...] | None = None
    weights: str | None = None
    plan: PlanRecord | None = None

    @model_validator(mode="after")
    def _inside(self) -> Self:
        path = PurePosixPath(self.path)
        if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in self.path or ":" in self.path:
            raise ValueError(f"path is {self.path!r}; it must be relative and stay inside the folder")
        if (self.role == "plan") != (self.plan is not None):
            raise ValueError(f"role is {self.role!r}; a plan, and nothing else, has the field plan")
        return self


class FormCounts(_Record):
    """What one form of the branches costs: parameters; bytes of its large tensors in memory; multiply-adds by "HxW"."""

    parameters: int = Field(ge=0)
    bytes: int = Field(ge=0)
    multiply_adds: dict[str, int]


class Counts(_Record):
    """Parameters (numbers) and, by "HxW", multiply-adds of one forward pass of all tasks.

    forms: by form of the branches, see `Branches`; `deployed` and `multiply_adds` are the first one's.
    """

    frozen: int = Field(ge=0)
    trainable: int = Field(ge=0)
    deployed: int = Field(ge=0)
    multiply_adds: dict[str, int]
    forms: dict[Branches, FormCounts] = {}


class Manifest(_Record):
    """All of manifest.json. Build it with `files=()` and let `write_artifact` fill them in."""

    format: Literal["ptsa/1"] = FORMAT
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")
    input: InputSpec
    tasks: tuple[TaskRecord, ...] = Field(min_length=1)
    tree: Tree
    backbone: Backbone
    files: tuple[FileRecord, ...] = ()
    counts: Counts
    metrics: tuple[dict[str, Any], ...] = ()
    parity: dict[str, dict[str, Any]] = {}
    notes: tuple[str, ...] = ()  # sentences for whoever reads the maps: what they are not good for
    provenance: dict[str, Any] = {}

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse manifest.json.

        Raises ManifestError that names every fault at once, or the format where it is not "ptsa/1".
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise ManifestError(f"manifest.json is not JSON ({error}); {_AGAIN}") from None
        found = document.get("format") if isinstance(document, dict) else None
        if found != FORMAT:
            hint = "install the ptsa-serve that reads it, or " + _AGAIN
            raise ManifestError(f"manifest.json has format {found!r}, this ptsa-serve reads {FORMAT!r}; {hint}")
        try:
            # Strict: "448" is not 448. Only the JSON form of strictness takes an array for a tuple.
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(str(part) for part in fault['loc']) or 'manifest'}: {fault['msg']}"
                for fault in error.errors(include_url=False)
            )
            raise ManifestError(f"manifest.json has {error.error_count()} faults: {faults}; {_AGAIN}") from None

    def to_json(self) -> str:
        """The text of manifest.json: the fields in the order of this class, two spaces a level, one newline
        at the end.
        """
        return (
            json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False, allow_nan=False)
            + "\n"
        )

    def variants(self) -> Variants:
        """The graphs among `files`."""
        weights = next((record.path for record in self.files if record.role == "weights"), "")
        rule = self.input.any_size
        graphs = tuple(
            Variant(
                record.path,
                record.weights or weights,
                (record.height, record.width) if record.height and record.width else None,
                Form(record.precision or "fp32", record.branches or "folded"),
                record.tasks or tuple(task.name for task in self.tasks),
            )
            for record in self.files
            if record.role == "graph"
        )
        return Variants(graphs, AnySize(rule.multiple, rule.pixels) if rule else None)

    def task_table(self) -> dict[str, Task]:
        """The tasks by name, in the model's order."""
        return {record.name: record.task() for record in self.tasks}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        names = [record.name for record in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"tasks repeat a name: {names}")
        if sorted(self.tree.tasks) != sorted(names):
            raise ValueError(f"tree.tasks are {list(self.tree.tasks)}, tasks are {names}; they must be the same")
        paths = [record.path for record in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError(f"files repeat a path: {sorted(paths)}")
        return self

    @model_validator(mode="after")
    def _graphs_agree(self) -> Self:
        if not self.files:
            return self
        variants = self.variants()
        found = {variant.size for variant in variants.all}
        wanted = {*self.input.sizes, *([None] if self.input.any_size else [])}
        if found != wanted:
            raise ValueError(f"graphs are there for sizes {_text(found)}, input.sizes are {_text(wanted)}")
        names = {record.name for record in self.tasks}
        for variant in variants.all:
            if not set(variant.tasks) <= names:
                raise ValueError(f"{variant.path} has tasks {list(variant.tasks)}, the model has {sorted(names)}")
        return self


def _text(sizes: Iterable[tuple[int, int] | None]) -> str:
    return ", ".join(sorted("any" if size is None else f"{size[0]}x{size[1]}" for size in sizes))
