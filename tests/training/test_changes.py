import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from training.methods.base import Change
from training.network.changes import Copies, LowRank
from training.network.layout import Stream
from training.network.slots import Slot, Weights, compute

SLOT = Slot("fc", "fc1", "linear", stage=0, tensors={"weight": "fc.weight", "bias": "fc.bias"})
NAMES = ("a", "b", "c", "d")


def base() -> dict[str, Tensor]:
    return {"weight": torch.randn(5, 6), "bias": torch.randn(5)}


def low_rank(own: dict[str, Tensor], groups: int, rank: int, dropout: float = 0.0) -> LowRank:
    return LowRank(own["weight"], [(name,) for name in NAMES[:groups]], rank=rank, scale=4.0, dropout=dropout)


def streams(*names: str) -> list[Stream]:
    return [Stream((name,)) for name in names]


def test_at_the_start_it_is_the_frozen_layer() -> None:
    own = base()
    x = torch.randn(6, 4, 6)
    for change in (low_rank(own, 3, 2), Copies(own, [("a",), ("b",), ("c",)])):
        assert torch.equal(change(SLOT, own, x, streams("a", "b", "c")), compute(SLOT, own, x))


def same_as_folded(change: Change, own: dict[str, Tensor], groups: int, photos: int) -> None:
    here = streams(*NAMES[:groups])
    x = torch.randn(groups * photos, 7, 6)
    y = change(SLOT, own, x, here).unflatten(0, (groups, photos))
    for number, part in enumerate(x.unflatten(0, (groups, photos))):
        found = change.effective(SLOT, own, here[number])
        assert isinstance(found, Weights)
        torch.testing.assert_close(y[number], compute(SLOT, found.tensors, part), atol=1e-5, rtol=1e-5)


@given(groups=st.integers(1, 4), rank=st.integers(1, 8), photos=st.integers(1, 3))
def test_each_stream_equals_its_folded_layer(groups: int, rank: int, photos: int) -> None:
    own = base()
    change = low_rank(own, groups, rank)
    copies = Copies(own, [stream.tasks for stream in change.streams])
    for parameter in (*change.up, *copies.parameters()):
        nn.init.normal_(parameter)
    same_as_folded(change, own, groups, photos)
    same_as_folded(copies, own, groups, photos)


def test_streams_use_the_adapters_of_their_groups_in_any_order() -> None:
    own = base()
    change = low_rank(own, 3, 2)
    for up in change.up:
        nn.init.normal_(up)
    x = torch.randn(3, 4, 6)
    whole = change(SLOT, own, x, streams("a", "b", "c"))
    torch.testing.assert_close(change(SLOT, own, x[[2, 0]], streams("c", "a")), whole[[2, 0]])
    torch.testing.assert_close(change(SLOT, own, x[[1]], streams("b")), whole[[1]])


def test_dropout_touches_the_adapter_alone() -> None:
    own = base()
    change = low_rank(own, 1, 2, dropout=0.9).train()
    x = torch.randn(2, 6)
    assert torch.equal(change(SLOT, own, x, streams("a")), compute(SLOT, own, x))


def test_what_learnt_nothing_folds_to_the_backbones_own_tensor() -> None:
    own = base()
    found = low_rank(own, 1, 2).effective(SLOT, own, Stream(("a",)))
    assert isinstance(found, Weights)
    assert found.tensors["weight"] is own["weight"]
