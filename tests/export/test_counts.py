from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from export import counts
from export.fold import fold
from export.manifest import describe
from ptsa_serve.task_tree import TaskTree
from training.accounting.account import account
from training.methods import METHODS
from training.network.checkpoint import save_checkpoint
from training.network.decoders import DECODERS
from training.network.model import ModelConfig, PTSAModel

BRANCHED = TaskTree.of_counts(("segmentation", "depth", "normals", "saliency"), (1, 2, 2, 4))


def test_frozen_trainable_and_deployed_add_up(random_model: Callable[..., PTSAModel]) -> None:
    # One group everywhere: folding takes the adapters away and the batch norms' two vectors become one bias.
    model = random_model(TaskTree.shared(("depth",)))
    decoder = sum(parameter.numel() for parameter in model.decoders.parameters())
    norms = sum(module.num_features for module in model.modules() if hasattr(module, "running_mean"))
    assert counts.frozen(model) + counts.trainable(model) == sum(p.numel() for p in model.parameters())
    assert counts.deployed(fold(model).network) == counts.frozen(model) + decoder - norms


def test_trainable_is_what_freezing_leaves(model: PTSAModel) -> None:
    model.freeze()
    assert counts.trainable(model) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_all_of_a_model_without_adapters_was_trained(random_model: Callable[..., PTSAModel], tmp_path: Path) -> None:
    """It is what `fit --method multi_task` makes: the manifest must not say that its backbone was left alone."""
    model = random_model(TaskTree.shared(("depth",)), method="multi_task")
    save_checkpoint(model, tmp_path / "model.safetensors", info={})
    manifest = describe(tmp_path / "model.safetensors", model, [(64, 96)], name="tuned", version="1")
    assert manifest.counts.frozen == 0
    assert manifest.counts.trainable == sum(parameter.numel() for parameter in model.parameters())


def test_multiply_adds_follow_the_branches(random_model: Callable[..., PTSAModel], model: PTSAModel) -> None:
    """A linear layer of stage s has 12 C^2 multiply-adds a token; a closed form, per branch."""
    size = (224, 224)  # no window is padded at strides 4 to 32
    shared = random_model(TaskTree.shared(model.config.tree.tasks))
    one, tree = (counts.multiply_adds(fold(m).network, size) for m in (shared, model))
    tokens, heads = {2: 14 * 14, 3: 7 * 7}, 49
    block = {s: n * 12 * (12 * 2**s) ** 2 + 2 * n * heads * 12 * 2**s for s, n in tokens.items()}
    merging = tokens[3] * 8 * (12 * 2**2) ** 2
    assert tree - one == block[2] + 3 * block[3] + merging


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_counted_beforehand_is_what_is_compiled(method: str, decoder: str, tiny_swin: None) -> None:
    """`training count` sees shapes alone; every tensor of this model is different."""
    torch.manual_seed(0)
    small = {"rank": 2, "start": 1.0}  # of adapters; of gates, which noise shall not shut
    options = {name: value for name, value in small.items() if name in METHODS[method].options.__dataclass_fields__}
    config = ModelConfig("swin_export_test", BRANCHED, method, options, decoder, width=8)
    model = PTSAModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    network = fold(model).network
    counted = account(config, (64, 96))
    assert counted.trainable == counts.trainable(model)
    assert counted.folded == counts.deployed(network)
    assert counted.low_rank == counts.deployed(fold(model, branches="low_rank").network)
    assert counted.multiply_adds == counts.multiply_adds(network, (64, 96))
