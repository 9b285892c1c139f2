"""Samples read by worker processes, with errors as plain as if they were read here."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from training.errors import DataError

__all__ = ["load"]


def load(data: Any, **options: Any) -> Iterator[Any]:
    """What `DataLoader(data, **options)` yields.

    A worker's OSError or ValueError arrives as it was raised: DataLoader's own way puts the worker's traceback into
    the message, and a user's wrong file would show it. Raises DataError if a worker was ended from outside.
    """
    batches = iter(DataLoader(_Caught(data), collate_fn=_collate, **options))
    try:
        while True:
            batch = next(batches)
            if isinstance(batch, Exception):
                raise batch
            yield batch
    except StopIteration:
        return
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            "a process that reads photos was ended from outside, perhaps for want of memory; run again, with fewer "
            "--workers: training goes on from where it last saved"
        ) from None
    finally:
        del batches  # ends the workers now: an error that is kept would keep them, and they are waited for at the end


class _Caught(Dataset[Any]):
    """`data`, with what reading a sample raises as its value."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        try:
            return self._data[index]
        except (OSError, ValueError) as error:
            return error


def _collate(samples: Any) -> Any:
    """A batch of a list of samples; one sample (`batch_size=None`) and an error as they are."""
    if not isinstance(samples, list):
        return samples
    return next((sample for sample in samples if isinstance(sample, Exception)), None) or default_collate(samples)
