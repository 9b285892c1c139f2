"""What the frozen networks see in views of labelled photos, in files: computed once, learnt from many times."""

import io
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from training.data.labels import LABELS, LabelledPhoto, planes
from training.data.photoset import PhotoSet
from training.errors import DataError
from training.labelling.room_features import GRID, RoomFeatures, small_photo
from training.labelling.room_head import Projection
from training.network.checkpoint import write_whole
from training.teaching.views import view

__all__ = ["BYTES", "TASKS", "Cache", "Example", "Job"]

TASKS = ("segmentation", "depth", "normals")
BYTES = 3_100_000  # of a file
_LABELS = (4 * GRID[0], 4 * GRID[1])
_NORMALS = 127  # to a whole number: 8 bits know them to half a degree

Job = tuple[int, int]  # photo, view
Example = dict[str, Tensor]


class Cache(Dataset[str]):
    """Files of `folder`; `cache[i]` makes that of job i, if it is not there, and returns its name.

    networks: paths of `RoomFeatures`, opened by the process that needs them first. Raises DataError for a photo that is
    higher than wide: batches have one shape.
    """

    def __init__(
        self, folder: Path, data: PhotoSet, jobs: Sequence[Job], networks: Sequence[Path], projection: Projection
    ) -> None:
        self._folder, self._data, self._jobs = folder, data, jobs
        self._networks, self._projection = networks, projection
        self._features: RoomFeatures | None = None

    def __len__(self) -> int:
        return len(self._jobs)

    def missing(self) -> list[int]:
        """The numbers of the jobs whose files are not there."""
        return [number for number, job in enumerate(self._jobs) if not self.path(job).exists()]

    def path(self, job: Job) -> Path:
        """The file of a view of a photo."""
        photo, number = job
        return self._folder / f"{self._data.photo_path(photo).stem}-{number}.npz"

    def __getitem__(self, index: int) -> str:
        job = self._jobs[index]
        path = self.path(job)
        if not path.exists():
            if self._features is None:
                self._features = RoomFeatures(*self._networks)
            photo = self._data[job[0]]
            if photo.image.shape[0] > photo.image.shape[1]:
                raise DataError(
                    f"{self._data.photo_path(job[0])} is higher than wide; a teacher learns from wide photos"
                )
            write_whole(path, self._seen(view(photo, job[1], (job[0],))))
        return path.name

    @torch.no_grad()
    def _seen(self, photo: LabelledPhoto) -> bytes:
        assert self._features is not None
        features = self._features(photo.image)
        coarse, fine = self._projection(features.maps, features.fine)
        labels = {task: LABELS[photo.kinds[task]].resized(photo.labels[task], _LABELS) for task in TASKS}
        labels["depth"] = labels["depth"].astype(np.float16)
        labels["normals"] = np.rint(labels["normals"] * _NORMALS).astype(np.int8)
        image = Image.fromarray(photo.image).resize((_LABELS[1], _LABELS[0]), Image.Resampling.BILINEAR)
        file = io.BytesIO()
        seen = {"coarse": coarse.half().numpy(), "fine": fine.half().numpy(), "image": np.asarray(image)}
        np.savez(file, allow_pickle=False, **seen, **labels)
        return file.getvalue()

    def read(self, job: Job) -> Example:
        """coarse (928, 30, 40), fine (72, 60, 80), photo (3, 60, 80), and labels at (120, 160) as losses want them.

        Raises DataError for a damaged file.
        """
        path = self.path(job)
        try:
            # Opened here: of a damaged file NumPy would leave it open.
            with path.open("rb") as opened, np.load(opened) as file:
                seen = {name: file[name] for name in ("coarse", "fine", "image", *TASKS)}
        except (ValueError, KeyError, EOFError, BadZipFile):
            raise DataError(f"{path} is damaged; remove it, and run again") from None
        example = {name: torch.from_numpy(seen[name]).float() for name in ("coarse", "fine", "depth")}
        example["photo"] = small_photo(seen["image"])
        example["segmentation"] = torch.from_numpy(seen["segmentation"])
        normals = torch.from_numpy(planes(seen["normals"].astype(np.float32)).copy())
        example["normals"] = normals / normals.norm(dim=0).clamp_min(1)
        return example
