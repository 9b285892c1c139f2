"""What `python -m training label` wrote: any photos with labels that teachers made, of up to four tasks."""

from collections.abc import Mapping
from pathlib import Path

from numpy.typing import NDArray

from ptsa_serve.tasks import TASKS, Task
from training.data.arrays import fitted
from training.data.nyu import NYU

__all__ = ["SETTINGS", "Labelled"]

SETTINGS = "labelled.json"  # how the labels were made; what the folder is known by


class Labelled(NYU):
    """As NYU, of photos of any size and shape, with labels of their shape; there is no split but `train`."""

    name = "labelled"
    records: Mapping[str, Task] = TASKS
    splits = ("train",)
    any_shape = True

    def read(self, task: str, path: Path, size: tuple[int, int] | None) -> NDArray:
        """See `PhotoSet.read`."""
        label = super().read(task, path, None)
        return label if size is None else fitted(path, label, size, self.records[task].kind)
