"""DoRA: directions of low rank, and a length for each row."""

import pytest
import torch
from torch import Tensor

from training.errors import ConfigError
from training.methods.dora import Directed, Options
from training.network.layout import Stream
from training.network.slots import Slot, Weights, compute

SLOT = Slot("fc", "fc1", "linear", stage=0, tensors={"weight": "fc.weight", "bias": "fc.bias"})
TRUNK, TOOTH = Stream(("a", "b")), Stream(("a",), tooth=True)


def start() -> tuple[Directed, dict[str, Tensor]]:
    torch.manual_seed(0)
    base = {"weight": torch.randn(7, 5).double(), "bias": torch.randn(7).double()}
    return Directed(Options(dropout=0.0), base["weight"], [TRUNK, TOOTH], 2).double(), base


@torch.no_grad()
def trained() -> tuple[Directed, dict[str, Tensor]]:
    change, base = start()
    for parameter in change.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return change, base


def folded(change: Directed, base: dict[str, Tensor], stream: Stream) -> Tensor:
    found = change.effective(SLOT, base, stream)
    assert isinstance(found, Weights)
    return found.tensors["weight"]


def test_at_the_start_it_is_the_backbones_own_tensor() -> None:
    change, base = start()
    assert folded(change, base, TOOTH) is base["weight"]
    x = torch.randn(2, 3, 5).double()
    torch.testing.assert_close(change(SLOT, base, x, [TRUNK, TOOTH]), compute(SLOT, base, x), atol=1e-12, rtol=0)


@torch.no_grad()
def test_it_is_the_papers_equation() -> None:
    change, base = trained()
    for number, stream in enumerate((TRUNK, TOOTH)):
        turned = base["weight"] + 4.0 * change.up[number] @ change.down[number]
        length = change.length[number] * base["weight"].norm(dim=1)
        expected = length[:, None] * turned / turned.norm(dim=1, keepdim=True)
        torch.testing.assert_close(folded(change, base, stream), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_lengths_of_rows_are_what_was_learnt() -> None:
    change, base = trained()
    lengths = change.length[1].abs() * base["weight"].norm(dim=1)
    torch.testing.assert_close(folded(change, base, TOOTH).norm(dim=1), lengths, atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_tooth_has_its_own_factors_and_the_trunk_the_trunks() -> None:
    change, base = trained()
    x = torch.randn(1, 3, 5).double()
    both = change(SLOT, base, torch.cat([x, x]), [TRUNK, TOOTH])
    for number, stream in enumerate((TRUNK, TOOTH)):
        alone = compute(SLOT, {**base, "weight": folded(change, base, stream)}, x)
        torch.testing.assert_close(both[number : number + 1], alone, atol=1e-12, rtol=0)


def test_norms_a_group_are_refused_for_there_is_one_trunk() -> None:
    with pytest.raises(ConfigError, match="norms is 'per_group'; allowed are shared, frozen"):
        Options(norms="per_group")
