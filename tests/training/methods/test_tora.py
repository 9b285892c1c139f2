"""ToRA: the updates of all tasks at a layer are one tensor in Tucker form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.errors import ConfigError
from training.methods.tora import Options, Tucker
from training.network.layout import Stream
from training.network.slots import Slot, Weights

SLOT = Slot("fc", "fc1", "linear", stage=0, tensors={"weight": "fc.weight"})
STREAMS = [Stream((task,)) for task in "abc"]


def tucker(rank: int, task_rank: int) -> Tucker:
    groups = [stream.tasks for stream in STREAMS]
    change = Tucker(Options(task_rank=task_rank), torch.randn(3, 4), groups, rank).double()
    torch.nn.init.normal_(change.core)
    return change


def update(change: Tucker, stream: Stream) -> torch.Tensor:
    found = change.effective(SLOT, {"weight": torch.zeros(3, 4, dtype=torch.float64)}, stream)
    assert isinstance(found, Weights)
    return found.tensors["weight"]


@given(rank=st.integers(1, 3), task_rank=st.integers(1, 3), seed=st.integers(0, 9))
@torch.no_grad()
def test_it_is_the_sum_over_the_core(rank: int, task_rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    change = tucker(rank, task_rank)
    for number, stream in enumerate(STREAMS):
        expected = torch.zeros(3, 4, dtype=torch.float64)
        for p in range(rank):
            for q in range(rank):
                for v in range(task_rank):
                    weight = change.core[p, q, v] * change.tasks[number][v]
                    expected += 0.5 * weight * torch.outer(change.outputs[:, q], change.inputs[:, p])
        torch.testing.assert_close(update(change, stream), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_exchanging_tasks_exchanges_their_vectors_alone() -> None:
    change = tucker(2, 2)
    first, second = update(change, STREAMS[0]), update(change, STREAMS[1])
    change.tasks[0].data, change.tasks[1].data = change.tasks[1].data.clone(), change.tasks[0].data.clone()
    assert torch.equal(update(change, STREAMS[0]), second)
    assert torch.equal(update(change, STREAMS[1]), first)


def test_while_the_core_is_zero_the_layer_is_the_backbones_own() -> None:
    change, weight = tucker(2, 2), torch.randn(3, 4)
    torch.nn.init.zeros_(change.core)
    found = change.effective(SLOT, {"weight": weight}, STREAMS[0])
    assert isinstance(found, Weights)
    assert found.tensors["weight"] is weight


def test_a_tensor_without_a_rank_along_tasks_is_refused() -> None:
    with pytest.raises(ConfigError, match="task_rank is 0; allowed are 1, 2"):
        Options(task_rank=0)
