"""The model that `fit` trains, and the groups of its parameters."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from ptsa_serve.task_tree import TaskTree
from ptsa_serve.tasks import Task
from training.backbones.loading import pretrained
from training.data import DATASETS
from training.data.records import task_records
from training.errors import ConfigError
from training.fit_config import FitConfig
from training.methods import METHODS
from training.network.checkpoint import as_stored, read_config
from training.network.experts import adopt
from training.network.model import ModelConfig, PTSAModel
from training.network.start import take_over

__all__ = ["build", "parameter_groups", "whole"]


def whole(config: FitConfig) -> bool:
    """Whether the backbone is trained as a whole."""
    return METHODS[config.method].kind == "full"


def build(config: FitConfig, photos: Iterable[Tensor] = ()) -> PTSAModel:
    """The model to train, with its starting weights and what is trainable set.

    photos: images (N, 3, H, W), 0...255, for methods that begin with what a backbone answers to them.
    """
    tree, options = TaskTree.parse(config.tree), config.method_options
    tasks = tuple(task_records(tree.tasks, [_brought(config), *(DATASETS[n].records for n in config.data)]).values())
    model_config = ModelConfig(config.backbone, tree, config.method, options, config.decoder, config.width, tasks)
    model = PTSAModel(model_config, drop_path=config.drop_path or 0.0)
    if config.start is not None:
        take_over(model, config.start, photos)
    if config.pretrained:
        pretrained(model.backbone)
        model.method.start(map(model.normalised, photos))
    model.freeze()
    _hold(model, config)
    _round(model.backbone.trunk.parameters())
    if config.experts:
        adopt(model, config.experts)
    _round(model.method.buffers())
    return model


def _round(tensors: Iterable[Tensor]) -> None:
    """Bring what does not train to the precision that it is shipped in: nothing learnt on top is lost to rounding."""
    for tensor in tensors:
        if tensor.is_floating_point() and not tensor.requires_grad:
            tensor.data = as_stored(tensor.data).float()


def _brought(config: FitConfig) -> dict[str, Task]:
    """The tasks that checkpoints define: those kept, and those of experts. Raises ConfigError for what is not there."""
    if config.experts and (missing := set(TaskTree.parse(config.tree).tasks) - set(config.experts)):
        raise ConfigError(f"--experts names none for {', '.join(sorted(missing))}; name one for each task of --tree")
    files = {task: config.start for task in config.keep if config.start} | config.experts
    stored = {path: {task.name: task for task in read_config(path).tasks} for path in set(files.values())}
    for task, path in files.items():
        if task not in stored[path]:
            option = "--keep" if task in config.keep else "--experts"
            raise ConfigError(f"{option} names {task}, but {path} has {', '.join(stored[path])}; take one of these")
    return {task: stored[path][task] for task, path in files.items()}


def _hold(model: PTSAModel, config: FitConfig) -> None:
    """Freeze what the kept tasks have. Raises ConfigError if they share some of it with others."""
    keep = frozenset(config.keep)
    for name, tasks in model.owners().items():
        if shared := tasks & keep:
            if tasks - keep:
                raise ConfigError(
                    f"--keep {', '.join(sorted(shared))}: --method {config.method} trains {name} for "
                    f"{', '.join(sorted(tasks - keep))} too; take one whose tasks share nothing, e.g. rcm"
                )
            model.get_parameter(name).requires_grad_(False)


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
