"""The model that `fit` trains, and the groups of its parameters."""

from collections.abc import Sequence

from ptsa_serve.task_tree import TaskTree
from training.backbones.loading import pretrained
from training.data import DATASETS
from training.data.records import task_records
from training.fit_config import FitConfig
from training.methods import METHODS
from training.network.checkpoint import as_stored
from training.network.model import ModelConfig, PTSAModel
from training.network.start import take_over

__all__ = ["build", "parameter_groups", "whole"]


def whole(config: FitConfig) -> bool:
    """Whether the backbone is trained as a whole."""
    return METHODS[config.method].kind == "full"


def build(config: FitConfig) -> PTSAModel:
    """The model to train, with its starting weights and what is trainable set."""
    tree, options = TaskTree.parse(config.tree), config.method_options
    tasks = tuple(task_records(tree.tasks, [DATASETS[name].records for name in config.data]).values())
    model_config = ModelConfig(config.backbone, tree, config.method, options, config.decoder, config.width, tasks)
    model = PTSAModel(model_config, drop_path=config.drop_path or 0.0)
    if config.start is not None:
        take_over(model, config.start)
    if config.pretrained:
        pretrained(model.backbone)
        model.method.start()
    model.freeze()
    for parameter in model.backbone.trunk.parameters():
        if not parameter.requires_grad:
            # The shipped precision: nothing learnt on top is lost to rounding.
            parameter.data = as_stored(parameter.data).float()
    return model


def parameter_groups(model: PTSAModel, config: FitConfig) -> Sequence[dict]:
    """Parameter groups: backbone and the rest, each with decay for matrices only."""
    groups = []
    # Copies of the backbone's weights are its weights.
    backbone = {id(p) for p in (model if whole(config) else model.backbone).parameters()}
    backbone -= {id(p) for p in model.decoders.parameters()}
    for where, peak in ((True, config.backbone_rate), (False, config.rate)):
        for matrices in (True, False):
            chosen = [
                p
                for name, p in model.named_parameters()
                if p.requires_grad
                and (id(p) in backbone) == where
                and (p.ndim >= 2 and not name.endswith("table")) == matrices
            ]
            if chosen:
                groups.append(
                    {"params": chosen, "peak": peak, "weight_decay": config.weight_decay if matrices else 0.0}
                )
    return groups
