import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from training.errors import ConfigError, DivergedError
from training.similarity.measure import FEWEST, measure
from training.similarity.measures import MEASURES
from training.similarity.record import Similarity, Skipped, read_similarity, write_similarity

TASKS = ("depth", "normals", "edges")
WEIGHTS = {"depth": 1.0, "normals": 32.0, "edges": 0.5}


class Net(nn.Module):
    """Two frozen stages, a head a task; dropout and batch norm, which eval mode must still."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5))
        self.second = nn.Linear(5, 4)
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})
        for part in (self.first, self.second):
            part.requires_grad_(False)

    def stages(self) -> list[list[nn.Parameter]]:
        return [[self.first[0].weight], [self.second.weight]]

    def losses(self, batch: Tensor) -> dict[str, Tensor | None]:
        features = self.second(self.first(batch))
        return {task: (head(features) - 1).square().mean() for task, head in self.heads.items()}


@pytest.fixture
def net() -> Net:
    return Net().train()


@pytest.fixture
def batches() -> list[Tensor]:
    return list(torch.randn(FEWEST + 2, 3, 6, generator=torch.Generator().manual_seed(0)))


def run(net: Net, batches: list[Tensor], losses: Callable | None = None, tasks: tuple[str, ...] = TASKS) -> Similarity:
    return measure(net, batches, losses or net.losses, net.stages(), tasks=tasks, loss_weights=WEIGHTS)


def spoilt(net: Net, task: str, change: Callable[[Tensor], Tensor | None], times: int) -> Callable:
    """The losses of `net`, that of `task` changed in the first batches."""
    seen: list[int] = []

    def losses(batch: Tensor) -> Mapping[str, Tensor | None]:
        seen.append(1)
        found = net.losses(batch)
        return found | {task: change(found[task])} if len(seen) <= times else found  # pyright: ignore

    return losses


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def element_wise(a: np.ndarray, b: np.ndarray) -> float:
    m = np.abs(a) + np.abs(b)
    return cosine(a[m > 0] / m[m > 0], b[m > 0] / m[m > 0])


def test_means_and_errors_are_those_of_the_batches(net: Net, batches: list[Tensor]) -> None:
    found = run(net, batches)
    net.eval().requires_grad_(True)
    expected: dict[str, list] = {name: [] for name in MEASURES}
    for batch in batches:
        gradients = {}
        for task, loss in net.losses(batch).items():
            net.zero_grad()
            (WEIGHTS[task] * loss).backward(retain_graph=True)  # pyright: ignore
            parts = [stage[0].grad.flatten().numpy().astype(np.float64) for stage in net.stages()]  # pyright: ignore
            gradients[task] = [part.copy() for part in (*parts, np.concatenate(parts))]
        pairs = list(zip(gradients["depth"], gradients["normals"], strict=True))
        units = [(a / np.linalg.norm(a), b / np.linalg.norm(b)) for a, b in pairs]
        expected["unit"].append([element_wise(*pair) for pair in units])
        expected["weighted"].append([element_wise(*pair) for pair in pairs])
        expected["plain_cosine"].append([cosine(*pair) for pair in pairs])
    for name in MEASURES:
        values = np.array(expected[name])
        np.testing.assert_allclose(found.mean[name][:, 0, 1], values.mean(0), atol=1e-6)
        error = values.std(0, ddof=1) / math.sqrt(len(batches))
        np.testing.assert_allclose(found.error[name][:, 0, 1], error, atol=1e-6)


def test_matrices_are_symmetric_with_a_diagonal_of_one_and_counts_of_all(net: Net, batches: list[Tensor]) -> None:
    found = run(net, batches)
    assert (found.count == len(batches)).all()
    assert found.batches == len(batches)
    assert found.seconds > 0
    assert found.skipped == dict.fromkeys(TASKS, Skipped())
    for name in MEASURES:
        for matrices in (found.mean[name], found.error[name]):
            np.testing.assert_array_equal(matrices, matrices.transpose(0, 2, 1))
        assert (found.mean[name].diagonal(axis1=1, axis2=2) == 1).all()
        assert (found.error[name].diagonal(axis1=1, axis2=2) == 0).all()
        assert (found.error[name][:, 0, 1] > 0).all()


def test_the_model_is_as_it_was_and_dropout_and_batch_norm_are_still(net: Net, batches: list[Tensor]) -> None:
    net.first[1].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first, second = run(net, batches), run(net, batches)
    assert first.mean["unit"].tolist() == second.mean["unit"].tolist()
    assert net.training
    assert net.first[3].training
    assert not net.first[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for stage in net.stages() for p in stage)


def test_gradients_are_those_of_weighted_losses(net: Net, batches: list[Tensor]) -> None:
    one = measure(net, batches, net.losses, net.stages(), tasks=TASKS, loss_weights=dict.fromkeys(TASKS, 1.0))
    other = run(net, batches)
    np.testing.assert_allclose(one.mean["unit"], other.mean["unit"], atol=1e-6)
    np.testing.assert_allclose(one.mean["plain_cosine"], other.mean["plain_cosine"], atol=1e-6)
    assert abs(one.mean["weighted"] - other.mean["weighted"]).max() > 0.01


@pytest.mark.parametrize(
    ("change", "skipped"),
    [
        (lambda loss: None, Skipped(unlabelled=1)),
        (lambda loss: loss * 0, Skipped(zero=1)),
        (lambda loss: torch.zeros(()), Skipped(zero=1)),
        (lambda loss: loss * torch.nan, Skipped(not_finite=1)),
        (lambda loss: (loss - loss.detach()).sqrt(), Skipped(not_finite=1)),  # 0, with an infinite slope
    ],
    ids=["no label", "zero gradient", "no path", "loss not finite", "gradient not finite"],
)
def test_a_batch_without_a_gradient_counts_nothing_for_that_task(
    net: Net, batches: list[Tensor], change: Callable, skipped: Skipped
) -> None:
    found = run(net, batches, spoilt(net, "normals", change, 1))
    assert found.skipped == {"depth": Skipped(), "normals": skipped, "edges": Skipped()}
    without = [[len(batches), len(batches) - 1], [len(batches) - 1] * 2]
    assert (found.count[:, :2, :2] == without).all()
    rest = run(net, batches[1:])
    np.testing.assert_allclose(found.mean["unit"][:, 1], rest.mean["unit"][:, 1], atol=1e-12)
    everything = run(net, batches)
    np.testing.assert_allclose(found.mean["unit"][:, 0, 2], everything.mean["unit"][:, 0, 2], atol=1e-12)


def test_too_few_batches_name_the_pair_and_what_was_missing(net: Net, batches: list[Tensor]) -> None:
    losses = spoilt(net, "normals", lambda loss: None, 3)
    with pytest.raises(ConfigError, match=r"depth and normals have gradients in 7 of 10 .*needs 8.*normals: 3 without"):
        run(net, batches, losses)
    with pytest.raises(ConfigError, match="depth and normals have gradients in 0 of 0 batches"):
        run(net, [])


def test_more_than_a_tenth_of_gradients_that_are_not_finite_is_divergence(net: Net, batches: list[Tensor]) -> None:
    with pytest.raises(DivergedError, match="edges are infinite or NaN in 2 of 10"):
        run(net, batches, spoilt(net, "edges", lambda loss: loss * torch.inf, 2))
    assert not any(parameter.requires_grad for stage in net.stages() for parameter in stage)


def test_one_task_is_like_itself(net: Net, batches: list[Tensor]) -> None:
    assert run(net, batches, tasks=("depth",)).mean["unit"].tolist() == [[[1.0]]] * 3


def test_only_one_batch_is_asked_for_at_a_time(net: Net, batches: list[Tensor]) -> None:
    handed: list[int] = []

    def stream() -> Iterator[Tensor]:
        for number, batch in enumerate(batches):
            handed.append(number)
            yield batch

    def losses(batch: Tensor) -> dict[str, Tensor | None]:
        assert torch.equal(batch, batches[handed[-1]])
        return net.losses(batch)

    measure(net, stream(), losses, net.stages(), tasks=TASKS, loss_weights=WEIGHTS)
    assert len(handed) == len(batches)


class Adapted(Net):
    """With low-rank factors beside the second stage as they are at the start: `up` is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.zeros(4, 2))

    def losses(self, batch: Tensor) -> dict[str, Tensor | None]:
        x = self.first(batch)
        features = self.second(x) + x @ self.down.T @ self.up.T
        return {task: (head(features) - 1).square().mean() for task, head in self.heads.items()}


def test_adapters_at_their_start_are_rejected(batches: list[Tensor]) -> None:
    net = Adapted()
    for factor in (net.down, net.up):
        with pytest.raises(ValueError, match="wants the frozen weights"):
            measure(net, batches, net.losses, [[factor]], tasks=TASKS, loss_weights=WEIGHTS)
    # Frozen or not: their gradient is zero in every batch.
    net.down.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"in 0 of 10 batches.*depth: 0 without a label, 10 with a zero gradient"):
        measure(net, batches, net.losses, [[net.down]], tasks=TASKS, loss_weights=WEIGHTS)


def test_half_precision_and_stages_without_weights_are_rejected(net: Net, batches: list[Tensor]) -> None:
    half = nn.Parameter(torch.ones(3, dtype=torch.float16), requires_grad=False)
    with pytest.raises(ValueError, match=r"weights are torch\.float16"):
        measure(net, batches, net.losses, [[half]], tasks=TASKS, loss_weights=WEIGHTS)
    with pytest.raises(ValueError, match="every stage needs weights"):
        measure(net, batches, net.losses, [net.stages()[0], []], tasks=TASKS, loss_weights=WEIGHTS)


def test_frozen_weights_of_swin_blocks_are_measured_at_every_stage() -> None:
    swin = SwinTransformer(
        img_size=64, window_size=2, embed_dim=12, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 3), num_classes=0
    )
    swin.requires_grad_(False)
    stages = [
        [m.weight for name, m in stage.blocks.named_modules() if name.endswith(("qkv", "proj", "fc1", "fc2"))]  # pyright: ignore
        for stage in swin.layers  # pyright: ignore
    ]
    assert [len(stage) for stage in stages] == [4, 4, 8, 4]
    heads = {task: nn.Linear(96, 3) for task in TASKS}
    # Two tasks want the same, the third the opposite of the first.
    heads["edges"].load_state_dict(heads["depth"].state_dict())
    target = torch.randn(3)

    def losses(batch: Tensor) -> dict[str, Tensor | None]:
        x = swin.forward_features(batch)
        depth = F.mse_loss(heads["depth"](x), target.expand(*x.shape[:3], 3))
        return {"depth": depth, "normals": heads["normals"](x).square().mean(), "edges": -depth}

    photos = torch.randn(FEWEST, 2, 3, 64, 64)
    found = measure(swin, photos, losses, stages, tasks=TASKS, loss_weights=WEIGHTS)
    assert found.count.tolist() == [[[FEWEST] * 3] * 3] * 5
    for name in ("unit", "plain_cosine"):
        np.testing.assert_allclose(found.mean[name][:, 0, 2], -1, atol=1e-6)
        np.testing.assert_allclose(found.mean[name][:, 0, 1], -found.mean[name][:, 1, 2], atol=1e-6)
        assert (abs(found.mean[name][:, 0, 1]) < 0.99).all()


def test_json_round_trip_keeps_everything(net: Net, batches: list[Tensor], tmp_path: Path) -> None:
    found = run(net, batches, spoilt(net, "edges", lambda loss: None, 1))
    path = tmp_path / "run" / "similarity.json"
    write_similarity(path, found)
    back = read_similarity(path)
    assert back.to_json() == found.to_json()
    assert (back.tasks, back.skipped) == (found.tasks, found.skipped)
    assert (back.stages("plain_cosine") == found.mean["plain_cosine"][:2]).all()
    assert (back.errors("unit", "global") == found.error["unit"][[2, 2]]).all()
    assert [file.name for file in path.parent.iterdir()] == ["similarity.json"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 1}', '{"version": 2}', "nan", "shape", "task"])
def test_a_damaged_file_is_a_config_error_that_says_what_to_do(
    net: Net, batches: list[Tensor], tmp_path: Path, damage: str
) -> None:
    data = run(net, batches).to_json()
    if damage == "nan":
        data["similarity"]["unit"]["stage 1"]["mean"][0][1] = math.nan
    elif damage == "shape":
        data["count"]["stage 1"] = data["count"]["stage 2"] = data["count"]["all stages"] = [[1]]
    elif damage == "task":
        data["tasks"] = ["depth", "normals"]
    text = damage if damage[0] in "[{" else json.dumps(data)
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ConfigError, match=r"s\.json does not hold similarities.*measure them again"):
        read_similarity(tmp_path / "s.json")


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="python -m training similarity"):
        read_similarity(tmp_path / "none.json")
