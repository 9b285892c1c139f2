"""Several processes that train one model, started by `torchrun`: together they take the steps that one would.

Each takes its share of every batch. What a loss or a batch norm computes from a whole batch, and not photo by photo, it
computes from the batch of all processes, so gradients agree up to rounding. What layers draw (drop path, dropout) is
drawn a process: there the runs differ, as two seeds do.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from training.errors import ConfigError

__all__ = ["Share", "SharedBatchNorm", "gather", "one_voice", "share_batch_norms", "share_of"]


@contextmanager
def one_voice(fabric: Fabric) -> Iterator[None]:
    """Only the first process writes to the standard error; errors that are raised reach their caller in all."""
    try:
        with redirect_stderr(sys.stderr if fabric.is_global_zero else io.StringIO()):
            yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def share_of(batch: int, name: str, fabric: Fabric) -> int:
    """How many of `batch` samples one process takes. Raises ConfigError if they cannot all take as many."""
    if batch % fabric.world_size:
        raise ConfigError(
            f"{batch} photos of {name} make a step, which {fabric.world_size} processes cannot share evenly; "
            "take a multiple, or other --nproc_per_node"
        )
    return batch // fabric.world_size


class Share(Dataset[Any]):
    """The samples of `source` that this process takes, numbered without gaps: `batch / processes` of each batch."""

    def __init__(self, source: Any, batch: int, name: str, fabric: Fabric) -> None:
        self.size = share_of(batch, name, fabric)
        self._source, self._batch, self._rank = source, batch, fabric.global_rank

    def __len__(self) -> int:
        return len(self._source) // self._batch * self.size

    def __getitem__(self, index: int) -> Any:
        number, place = divmod(index, self.size)
        return self._source[number * self._batch + self._rank * self.size + place]


def gather(tensor: Tensor) -> Tensor:
    """`tensor` (N, ...) of every process, one after the other: (processes * N, ...); itself where there is one."""
    return _Gather.apply(tensor) if dist.is_available() and dist.is_initialized() else tensor  # pyright: ignore


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process computes the same from what was gathered: the sum of their gradients needs no exchange. The
        # mean over processes, which is taken of the weights' gradients, takes the factor off again.
        return gradients[0].chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, as each of them uses it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm whose mean and variance are of the batches of all processes, which must be of one size.

    torch's SyncBatchNorm does the same on GPUs alone. Arithmetic in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        count = x[:, 0].numel() * dist.get_world_size()
        mean: Tensor = _Sum.apply(x.sum((0, 2, 3))) / count  # pyright: ignore
        centred = x - mean.view(-1, 1, 1)
        variance: Tensor = _Sum.apply(centred.square().sum((0, 2, 3))) / count  # pyright: ignore
        self._remember(mean.detach(), variance.detach() * count / max(1, count - 1))
        scale = self.weight.float() * (variance + self.eps).rsqrt()
        return (centred * scale.view(-1, 1, 1) + self.bias.float().view(-1, 1, 1)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


def share_batch_norms(model: nn.Module, fabric: Fabric) -> None:
    """Make the batch norms of `model` share their statistics, if there are other processes."""
    if fabric.world_size > 1:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                # The same parameters under the same names: whoever holds them need not know.
                module.__class__ = SharedBatchNorm
