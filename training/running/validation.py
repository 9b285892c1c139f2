"""Figures on held-out photos on the way: which checkpoint is the best one, `metrics.json`, pictures to look at."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from training.data.photoset import PhotoSet
from training.evaluate import figures
from training.network.checkpoint import write_whole
from training.running.pictures import pictures

__all__ = ["Validation", "improvement"]

Results = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # data set -> task -> figure -> value

DECIDES = (
    "score: by how many per cent the errors are smaller than at the first validation, averaged over the tasks of all "
    "data sets. The error of a task is its first figure, or 100 minus it where it is a percentage."
)


def improvement(first: Results, now: Results) -> float:
    """By how many per cent the errors of `now` are smaller than those of `first`, averaged over tasks; 0 if none is.

    Errors, not figures: 2 % of mIoU where there was 1 % are no progress of 100 %, and must not outweigh the other
    tasks; an error never starts near 0. A figure that nothing had a label for does not count.
    """
    changes = []
    before, after = dict(_errors(first)), dict(_errors(now))
    for name in sorted(before.keys() & after.keys()):
        old, new = before[name], after[name]
        changes.append((old - new) / old if old else -float(new > 0))
    return 100 * sum(changes) / len(changes) if changes else 0.0


def _errors(results: Results) -> Iterator[tuple[str, float]]:
    """`set/task` and its error, of each task that has one."""
    for name, tasks in results.items():
        for task, values in tasks.items():
            figure, value = next(iter(values.items()))
            if value is not None:
                yield f"{name}/{task}", 100 - value if figure.endswith("_percent") else value


class Validation:
    """The validations of a run so far: `history` is part of what it resumes from.

    sets: held-out photos of each data set, with the size (H, W) that the model sees them at. out: folder of the run.
    """

    def __init__(self, sets: Mapping[str, tuple[PhotoSet, tuple[int, int]]], out: Path) -> None:
        self.history: list[dict[str, Any]] = []
        self._sets = sets
        self._out = out

    def __call__(self, model: Any, step: int, writer: SummaryWriter) -> bool:
        """Add the figures of `model`, in float32, after `step` steps; returns whether they are the best so far."""
        results = {name: figures(model, data, size) for name, (data, size) in self._sets.items()}
        score = improvement(self.history[0]["figures"], results) if self.history else 0.0
        self.history.append({"step": step, "score": score, "figures": results})
        writer.add_scalar("validation/score", score, step)
        for name, tasks in results.items():
            for task, values in tasks.items():
                for figure, value in values.items():
                    if value is not None:
                        writer.add_scalar(f"validation/{name}/{task}/{figure}", value, step)
        for name, (data, size) in self._sets.items():
            for tag, picture in pictures(model, data, size):
                writer.add_image(f"{name}/{tag}", picture, step, dataformats="HWC")
        self._write()
        return self.best is self.history[-1]

    @property
    def best(self) -> dict[str, Any]:
        """The first of those with the highest score."""
        return max(self.history, key=lambda entry: entry["score"])

    def summary(self) -> dict[str, Any]:
        """Last and best, for whoever reads the result."""
        return {"last": self.history[-1], "best": self.best}

    def _write(self) -> None:
        text = json.dumps({"decides": DECIDES, **self.summary(), "history": self.history}, indent=1, allow_nan=False)
        write_whole(self._out / "metrics.json", f"{text}\n".encode())
