"""The graphs of an artifact as records, and the rule by which one is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ptsa_serve.errors import ArtifactError
from ptsa_serve.sizes import AnySize, Size, Sizes

__all__ = ["Branches", "Form", "Precision", "Variant", "Variants"]

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Branches = Literal["folded", "low_rank"]


@dataclass(frozen=True, slots=True)
class Form:
    """What is computed in which numbers: `precision` of the graph, and how it holds its branches.

    folded: a copy of a stage's weights for each group of tasks. low_rank: the frozen weights once, small factors for
    each group.
    """

    precision: Precision
    branches: Branches

    def __str__(self) -> str:
        return f"{self.precision} {self.branches}"


@dataclass(frozen=True, slots=True)
class Variant:
    """One graph. path, weights: files of the folder. size: (H, W), None = any that the rule allows."""

    path: str
    weights: str
    size: Size | None
    form: Form
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variants:
    """All graphs of an artifact. rule: what those without a size take."""

    all: tuple[Variant, ...]
    rule: AnySize | None = None

    @property
    def forms(self) -> tuple[Form, ...]:
        """Every form once, in the order of the manifest."""
        return tuple(dict.fromkeys(variant.form for variant in self.all))

    def form(self, precision: Precision | None = None, branches: Branches | None = None) -> Form:
        """The first form with `precision` (None: fp32 if there is one) and `branches` (None: folded if there is one).

        Raises ArtifactError, naming the forms that exist.
        """
        wanted = [f for f in self.forms if precision in (None, f.precision) and branches in (None, f.branches)]
        if not wanted:
            asked = " ".join(filter(None, [precision, branches]))
            raise ArtifactError(f"the model has no {asked} graph; it has {', '.join(map(str, self.forms))}")
        return min(wanted, key=lambda form: (form.precision != "fp32", form.branches != "folded"))

    def first(self, form: Form) -> Variant:
        """The first graph of `form`, which the artifact has: the only one that most services run."""
        return next(variant for variant in self.all if variant.form == form)

    def sizes(self, form: Form) -> Sizes:
        """What the graphs of `form` take."""
        own = [variant.size for variant in self.all if variant.form == form]
        return Sizes(tuple(dict.fromkeys(size for size in own if size)), self.rule if None in own else None)

    def choose(self, form: Form, size: Size, tasks: Sequence[str]) -> Variant:
        """The graph of `form` for images of `size` that has all `tasks` and the fewest beside them; one of that very
        size before one of any size. Raises ArtifactError, naming what exists.
        """
        fits = [
            variant
            for variant in self.all
            if variant.form == form and set(tasks) <= set(variant.tasks)
            if variant.size == size or (variant.size is None and self.rule and size in self.rule)
        ]
        if not fits:
            raise ArtifactError(f"the model has no {form} graph for {size}; it takes {self.sizes(form)}")
        return min(fits, key=lambda variant: (variant.size is None, len(variant.tasks)))
