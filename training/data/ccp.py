"""Clothing Co-Parsing (Yang, Luo, Lin, CVPR 2014): saliency of the one person in each street photo.

Layout: `{train,val}/NNNN.{jpg,png}`; a label other than 0 is the person. One clear object a photo: an easy set.
"""

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from training.data.labels import LabelledPhoto, check_size, read_image

__all__ = ["CCP"]


class CCP(Dataset[LabelledPhoto]):
    """`CCP(root, split)[i]`: a photo about 320 wide and 480 high with its saliency. Raises FileNotFoundError."""

    tasks: Sequence[str] = ("saliency",)
    size = (512, 384)

    def __init__(self, root: Path, split: str) -> None:
        self._folder = Path(root) / split
        self._names = sorted(p.stem for p in self._folder.glob("*.jpg"))
        if not self._names:
            raise FileNotFoundError(f"{self._folder}: no photos; expected {split}/NNNN.jpg and NNNN.png")

    def __len__(self) -> int:
        return len(self._names)

    def photo_path(self, index: int) -> Path:
        """The photo's file."""
        return self._folder / f"{self._names[index]}.jpg"

    def __getitem__(self, index: int) -> LabelledPhoto:
        name = self._names[index]
        image = read_image(self.photo_path(index), "RGB")
        path = self._folder / f"{name}.png"
        stored = read_image(path)
        check_size(path, stored, image)
        return LabelledPhoto(name, image, {"saliency": (stored != 0).astype("uint8")})
