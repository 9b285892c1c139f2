"""A run's curves, for TensorBoard."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

__all__ = ["curves"]


@contextmanager
def curves(folder: Path, *, first: int) -> Iterator[SummaryWriter]:
    """A writer to `folder`; what an earlier run wrote from step `first` on is void. Raises OSError that names it."""
    hook = threading.excepthook
    # The writer's thread would print its traceback; the same error arrives here, with the next value or at the end.
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else hook(args)
    try:
        with SummaryWriter(folder, purge_step=first) as writer:
            yield writer
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise  # it says which file it is about, and was not the writer's
        raise OSError(f"{folder} cannot be written ({error.strerror}); make room, then run again") from error
    finally:
        threading.excepthook = hook
