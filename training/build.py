"""The model that `fit` trains, and the groups of its parameters."""

from collections.abc import Sequence

from training.checkpoint import as_stored
from training.fit_config import FitConfig
from training.model import ModelConfig, PTSAModel
from training.start import take_over
from training.tree import TaskTree

__all__ = ["build", "parameter_groups"]


def build(config: FitConfig) -> PTSAModel:
    """The model to train, with its starting weights and what is trainable set."""
    tree = TaskTree.parse(config.tree)
    adapted = config.train == "adapters"
    if not adapted:
        tree = TaskTree.shared(tree.tasks)
    ranks = tuple(config.ranks) if adapted else (0, 0, 0, 0)
    model_config = ModelConfig(config.backbone, tree, ranks, config.width)
    model = PTSAModel(model_config, drop_path=0.0 if adapted else config.drop_path)
    if config.start is not None:
        take_over(model, config.start)
    if adapted:
        model.freeze_backbone()
        for parameter in model.backbone.swin.parameters():
            # The shipped precision: nothing learnt on top is lost to rounding.
            parameter.data = as_stored(parameter.data).float()
    return model


def parameter_groups(model: PTSAModel, config: FitConfig) -> Sequence[dict]:
    """Parameter groups: backbone and the rest, each with decay for matrices only."""
    groups = []
    backbone = {id(p) for p in model.backbone.swin.parameters()}
    for where, peak in ((True, config.backbone_rate), (False, config.rate)):
        for matrices in (True, False):
            chosen = [
                p
                for name, p in model.named_parameters()
                if p.requires_grad
                and (id(p) in backbone and config.train == "all") == where
                and (p.ndim >= 2 and "relative_position" not in name) == matrices
            ]
            if chosen:
                groups.append(
                    {"params": chosen, "peak": peak, "weight_decay": config.weight_decay if matrices else 0.0}
                )
    return groups
