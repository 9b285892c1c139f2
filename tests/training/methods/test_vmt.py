"""VMT-Adapter: one trunk whose MLPs are wider, and read-outs that go no further."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.fold import FoldedNetwork, fold
from ptsa_serve.task_tree import TaskTree
from training.errors import ConfigError
from training.methods.vmt import Beside, Options, ReadOut
from training.network.layout import Stream
from training.network.model import ModelConfig, PTSAModel
from training.network.slots import Op, Slot, Weights

FORMS = ["vmt", "vmt_lite"]
FC1 = Slot("fc1", "fc1", "linear", stage=0, tensors={})
FC2 = Slot("fc2", "fc2", "linear", stage=0, tensors={}, last=True)
TRUNK, A, B = Stream(("a", "b")), Stream(("a",), tooth=True), Stream(("b",), tooth=True)


def random(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def shared(*tasks: str) -> TaskTree:
    return TaskTree.shared(tasks, 4)


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_each_stream_has_its_read_out_of_one_hidden(tied: bool) -> None:
    base = {
        "fc1": {"weight": torch.randn(24, 8).double(), "bias": torch.randn(24).double()},
        "fc2": {"weight": torch.randn(8, 24).double(), "bias": torch.randn(8).double()},
    }
    beside = Beside(base["fc1"]["weight"], ("a", "b"), 4).double()
    read = ReadOut(base["fc2"]["weight"], beside, ("a", "b"), 0.5, tied=tied).double()
    random(nn.ModuleList([beside, read]))
    h = torch.randn(2, 5, 8, dtype=torch.double)
    streams = [TRUNK, A, B]
    wide = F.gelu(beside(FC1, base["fc1"], h, [TRUNK])).repeat(3, 1, 1)
    found = read(FC2, base["fc2"], wide, streams).unflatten(0, (3, -1))
    mlp = F.linear(F.gelu(F.linear(h, **base["fc1"])), **base["fc2"])
    z = F.gelu(F.linear(h, beside.down, beside.bias))
    up = read.up[:, None] * beside.down.T if tied else read.up
    for stream, y in zip(streams, found, strict=True):
        own = read.gain[stream.tasks[0]] * z + read.shift[stream.tasks[0]] if stream.tooth else z
        torch.testing.assert_close(y, mlp + 0.5 * (own @ up.T + read.bias))


def folded(model: PTSAModel) -> FoldedNetwork:
    return fold(model).network


def maps(network: FoldedNetwork) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return network(torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8))


@pytest.mark.parametrize("backbone", ["swin_test", "pvt_test"])
@pytest.mark.parametrize("method", FORMS)
def test_the_trunk_runs_once_and_tasks_read_it_at_the_ends_of_stages(backbone: str, method: str) -> None:
    tasks = ("segmentation", "depth", "normals", "saliency")
    model = PTSAModel(ModelConfig(backbone, shared(*tasks), method, width=8)).eval()
    random(model.method)
    network = folded(model)
    counts = {slot.name: len(network.plan[slot.name]) for slot in model.backbone.slots}
    for slot in model.backbone.slots:
        ends = slot.kind == "stage_norm" or (
            slot.last and slot.kind in ("fc2", "after_mlp", "skip", "tap", "after_tap")
        )
        assert counts[slot.name] == (1 + len(tasks) if ends else 1), slot.name
        stream = network.plan[slot.name][-1].stream
        kept = slot.kind == "fc2" and slot.last
        assert isinstance(model.method.effective(slot, stream), Op if kept else Weights)
    blocks = {(slot.stage, slot.block) for slot in model.backbone.slots if slot.block is not None}
    fc1 = Counter(slot.kind for slot in model.backbone.slots for _ in network.plan[slot.name])["fc1"]
    assert fc1 == len(blocks)


@torch.no_grad()
@pytest.mark.parametrize("method", FORMS)
def test_scale_one_and_shift_zero_read_the_trunk(method: str) -> None:
    model = PTSAModel(ModelConfig("swin_test", shared("depth", "saliency"), method, width=8)).eval()
    for name, parameter in model.method.named_parameters():
        if ".gain." not in name and ".shift." not in name:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    network = folded(model)
    assert {len(nodes) for nodes in network.plan.values()} == {1}


@torch.no_grad()
@pytest.mark.parametrize("method", FORMS)
def test_another_task_leaves_the_outputs_of_the_old_ones_bit_for_bit(method: str) -> None:
    def model(*tasks: str) -> PTSAModel:
        return PTSAModel(ModelConfig("swin_test", shared(*tasks), method, width=8)).eval()

    old = model("depth", "saliency")
    random(old.method)
    new = model("depth", "saliency", "normals")
    own = new.state_dict()
    new.load_state_dict(own | old.state_dict())
    for name, parameter in new.method.named_parameters():
        if name.endswith(".normals"):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    before, after = maps(folded(old)), maps(folded(new))
    assert set(after) - set(before) == {"normals"}
    assert all(torch.equal(before[task], after[task]) for task in before)


@pytest.mark.parametrize(
    ("options", "message"), [({"ratio": 0}, "ratio is 0"), ({"scale": 0.0}, "scale is 0.0; allowed is what is more")]
)
def test_options_that_make_no_adapter_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options(**options)
