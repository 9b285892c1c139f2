import os
import signal

import pytest
from torch.utils.data import Dataset

from training.data.loading import load
from training.errors import DataError


class _Fatal(Dataset[int]):
    """Whoever reads a sample is killed, as the system does when memory ends."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_killed_process_that_reads_photos_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="was ended from outside, perhaps for want of memory; run again, with fewer"):
        list(load(_Fatal(), batch_size=1, num_workers=1))
