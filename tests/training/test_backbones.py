"""What holds for every backbone: sizes of the published networks, timm's outputs, slots in the order of the walk."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.backbones import Backbone, build_backbone
from training.backbones.loading import HUB
from training.backbones.swin import _between_regions, _known_mask
from training.errors import ConfigError
from training.network.slots import Slot, compute

# Published networks without a classifier and, for Swin, without the norm in front of it (Liu et al. 2021, table 7;
# Wang et al. 2022, table 1, whose 3.7, 14.0 and 25.4 M have a classifier of 1000 classes).
PARAMETERS = {
    "swin_tiny": 27_517_818,
    "swin_small": 48_835_722,
    "swin_base": 86_741_176,
    "swin_large": 194_992_404,
    "pvt_v2_b0": 3_409_760,
    "pvt_v2_b1": 13_496_000,
    "pvt_v2_b2": 24_849_856,
}
TINY = ("swin_test", "pvt_test")


class Recorded:
    """A flow of one stream that writes down the slots that it comes to, and what is tapped."""

    def __init__(self, backbone: Backbone) -> None:
        self.slots: list[str] = []
        self.taps: dict[str, list[Tensor]] = {"stage": [], "merged": []}
        self._backbone = backbone

    def slot(self, slot: Slot, *values: Any) -> Any:
        self.slots.append(slot.name)
        self._slot = slot
        y = self.again(values[0])
        return [y, *values[1:]] if len(values) > 1 else y

    def again(self, value: Any) -> Any:
        return compute(self._slot, self._backbone.tensors(self._slot), value)

    def each(self, function: Any, *values: Any) -> Any:
        return function(*values)

    def residual(self, x: Any, update: Any, drop_path: float) -> Any:
        return x + update

    def tap(self, place: Any, stage: int, x: Tensor) -> None:
        assert stage == len(self.taps[place])
        self.taps[place].append(x)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_networks_have_their_parameters(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
        published: Any = timm.create_model(HUB[name], num_classes=0)
    own = {key: tensor.shape for key, tensor in backbone.trunk.state_dict().items()}
    assert sum(shape.numel() for shape in own.values()) == PARAMETERS[name]
    assert own == {key: t.shape for key, t in published.state_dict().items() if not key.startswith("norm.")}


def timm_maps(backbone: Backbone, images: Tensor) -> list[Tensor]:
    trunk: Any = backbone.trunk
    if backbone.name.startswith("swin"):
        trunk.set_input_size(img_size=tuple(images.shape[-2:]), window_size=7, always_partition=True)
    return [planes.permute(0, 2, 3, 1) for planes in trunk.forward_intermediates(images, intermediates_only=True)]


@pytest.mark.parametrize("name", TINY)
def test_stage_outputs_are_timms_at_every_size(name: str) -> None:
    backbone = build_backbone(name).double().eval()
    for parameter in backbone.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)

    @given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 2))
    @settings(max_examples=12, deadline=None)
    @torch.no_grad()
    def law(rows: int, columns: int, photos: int) -> None:
        images = torch.randn(photos, 3, 32 * rows, 32 * columns, dtype=torch.float64)
        for own, expected in zip(backbone.maps(images), timm_maps(backbone, images), strict=True):
            torch.testing.assert_close(own, expected, atol=1e-10, rtol=1e-10)

    law()


@pytest.mark.parametrize("name", TINY)
def test_a_walk_comes_to_each_slot_once_and_in_order(name: str) -> None:
    backbone = build_backbone(name).eval()
    flow = Recorded(backbone)
    backbone.walk(torch.zeros(1, 3, 64, 96), flow)
    assert flow.slots == [slot.name for slot in backbone.slots]
    for place in ("stage", "merged"):
        assert tuple(x.shape[-1] for x in flow.taps[place]) == backbone.tap_widths(place)
    sides = {"stage": (4, 8, 16, 32), "merged": (8, 16, 32, 32)}
    for place, strides in sides.items():
        assert [x.shape[1:3] for x in flow.taps[place]] == [(64 // s, 96 // s) for s in strides]


@pytest.mark.parametrize("name", TINY)
def test_each_parameter_is_in_one_slot(name: str) -> None:
    backbone = build_backbone(name)
    held = [parameter for slot in backbone.slots for parameter in slot.tensors.values()]
    assert sorted(held) == sorted(name for name, _ in backbone.trunk.named_parameters())


def test_an_unknown_backbone_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"backbone 'resnet' is unknown; known are swin_nano, .*pvt_v2_b2"):
        build_backbone("resnet")


@pytest.mark.parametrize("size", [(1, 9), (7, 14), (8, 15), (20, 33)])
def test_masks_computed_in_a_graph_are_those_of_a_size_that_is_known(size: tuple[int, int]) -> None:
    assert np.array_equal(_between_regions(*size, torch).numpy(), _known_mask(*size))
