"""DiTASK: singular vectors stay, singular values are mapped by an increasing curve."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from training.errors import ConfigError
from training.methods.ditask import Options, Spectrum, spline
from training.network.layout import Stream
from training.network.slots import Slot, Weights, compute

TRUNK, TOOTH = Stream(("a", "b")), Stream(("a",), tooth=True)
MAPPINGS = ("value", "index")


def slot(kind: str = "fc1") -> Slot:
    return Slot("fc", kind, "linear", stage=0, tensors={"weight": "fc.weight"})  # pyright: ignore[reportArgumentType]


def made(kind: str = "fc1", **options) -> Spectrum:
    torch.manual_seed(0)
    change = Spectrum(Options(**options), slot(kind), [TRUNK, TOOTH]).double()
    for theta in change.theta:
        nn.init.normal_(theta)
    return change


def folded(change: Spectrum, weight: Tensor, stream: Stream) -> Tensor:
    found = change.effective(slot(), {"weight": weight}, stream)
    assert isinstance(found, Weights)
    return found.tensors["weight"]


thetas = st.lists(st.floats(-3, 3), min_size=1, max_size=9).map(lambda values: torch.tensor(values).double())


@given(thetas, st.integers(2, 40))
def test_the_map_rises_from_nought_to_one(theta: Tensor, places: int) -> None:
    x = torch.linspace(0, 1, places).double()
    y = spline(theta, x)
    assert (y.diff() > 0).all()
    torch.testing.assert_close(y[[0, -1]], x[[0, -1]], atol=1e-12, rtol=0)


@given(st.integers(1, 70), st.integers(2, 40))
def test_where_theta_is_nought_it_is_the_identity(cells: int, places: int) -> None:
    x = torch.linspace(0, 1, places).double()
    torch.testing.assert_close(spline(torch.zeros(cells).double(), x), x, atol=1e-12, rtol=0)


def test_the_map_is_smooth_across_its_knots() -> None:
    theta = torch.tensor([1.0, -2.0, 0.5]).double()
    for knot in (0.25, 0.5, 0.75):
        x = torch.tensor([knot - 1e-9, knot + 1e-9]).double().requires_grad_()
        (slopes,) = torch.autograd.grad(spline(theta, x).sum(), x)
        torch.testing.assert_close(slopes[0], slopes[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_at_the_start_it_is_the_backbones_own_tensor(mapping: str) -> None:
    change, weight = made(mapping=mapping), torch.randn(7, 5).double()
    for theta in change.theta:
        nn.init.zeros_(theta)
    assert folded(change, weight, TOOTH) is weight
    assert change.update(weight, 0).abs().max() < 1e-12


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_singular_vectors_stay_and_the_values_keep_their_order(mapping: str) -> None:
    change, weight = made(mapping=mapping), torch.randn(7, 5).double()
    u, sigma, v = torch.linalg.svd(weight, full_matrices=False)
    for stream in (TRUNK, TOOTH):
        core = u.T @ folded(change, weight, stream) @ v.T
        found = core.diagonal()
        torch.testing.assert_close(core, found.diag(), atol=1e-10, rtol=0)
        assert (found.diff() < 0).all()
        assert not torch.allclose(found, sigma)
        torch.testing.assert_close(found[0], sigma[0])
    # The paper's map knows no other end than 0; the code's keeps the smallest value too.
    assert (mapping == "index") == torch.allclose(found[-1], sigma[-1])


def test_queries_keys_and_values_are_three_weights_with_one_map() -> None:
    change, weight = made("qkv"), torch.randn(12, 4).double()
    whole = folded(change, weight, TRUNK)
    for part, own in zip(whole.chunk(3), weight.chunk(3), strict=True):
        alone = made()
        torch.testing.assert_close(part, folded(alone, own, TRUNK), atol=1e-10, rtol=0)


def test_a_tooth_maps_the_weight_as_it_was_pretrained() -> None:
    change, weight = made(), torch.randn(7, 5).double()
    before = folded(change, weight, TOOTH)
    nn.init.normal_(change.theta[0])
    assert torch.equal(folded(change, weight, TOOTH), before)


def test_another_weight_is_decomposed_again_and_the_same_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    change, x, calls = made(), torch.randn(1, 3, 5).double(), []
    original = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *given, **how: calls.append(1) or original(*given, **how))
    weight = nn.Parameter(torch.randn(7, 5).double(), requires_grad=False)

    def right(change: Spectrum, calls_by_now: int) -> None:
        y = change(slot(), {"weight": weight}, x, [TRUNK])
        assert len(calls) == calls_by_now
        torch.testing.assert_close(y, compute(slot(), {"weight": folded(change, weight, TRUNK)}, x))
        calls.pop()  # the fold's own

    right(change, 1)
    right(change, 1)
    weight.copy_(torch.randn(7, 5))
    right(change, 2)
    weight.data = torch.randn(7, 5).double()
    right(change, 3)
    right(copy.deepcopy(change), 4)


def test_gradients_reach_the_map_at_the_start() -> None:
    change = made()
    for theta in change.theta:
        nn.init.zeros_(theta)
    x = torch.randn(2, 3, 5).double()
    change(slot(), {"weight": torch.randn(7, 5).double()}, x, [TRUNK, TOOTH]).square().sum().backward()
    assert all(theta.grad is not None and theta.grad.all() for theta in change.theta[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": 1}, "cells is 1; allowed are 2, 3"),
        ({"mapping": "sigma"}, "mapping is 'sigma'; allowed are value, index"),
        ({"merge": "lora"}, "merge is 'lora'; allowed are train, frozen"),
        ({"tables": "per_group"}, "tables is 'per_group'; allowed are shared, frozen"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options(**options)
