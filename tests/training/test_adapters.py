import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training.adapters import StreamLinear


def layer(streams: int, rank: int) -> StreamLinear:
    adapter = StreamLinear(nn.Linear(6, 5), streams=streams, rank=rank).eval()
    nn.init.normal_(adapter.up)
    return adapter


def test_at_the_start_it_is_the_frozen_layer() -> None:
    adapter = StreamLinear(nn.Linear(6, 5), streams=3, rank=2)
    x = torch.randn(6, 4, 6)
    assert torch.equal(adapter(x), adapter.frozen(x))


@given(streams=st.integers(1, 4), rank=st.integers(1, 8), photos=st.integers(1, 3))
def test_each_stream_equals_its_folded_layer(streams: int, rank: int, photos: int) -> None:
    adapter = layer(streams, rank)
    x = torch.randn(streams * photos, 7, 6)
    y = adapter(x).unflatten(0, (streams, photos))
    for g, part in enumerate(x.unflatten(0, (streams, photos))):
        folded = nn.functional.linear(part, adapter.folded(g), adapter.frozen.bias)
        torch.testing.assert_close(y[g], folded, atol=1e-5, rtol=1e-5)


def test_active_streams_use_their_own_adapters() -> None:
    adapter = layer(3, 2)
    x = torch.randn(3, 4, 6)
    whole = adapter(x)
    adapter.active = [2, 0]
    torch.testing.assert_close(adapter(x[[2, 0]]), whole[[2, 0]])


def test_dropout_touches_the_adapter_alone() -> None:
    adapter = StreamLinear(nn.Linear(6, 5), streams=1, rank=2, dropout=0.9).train()
    x = torch.randn(2, 6)
    assert torch.equal(adapter(x), adapter.frozen(x))
