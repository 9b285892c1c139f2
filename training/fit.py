"""Train a multi-task model on labelled photos: all of its weights, or adapters and decoders on a frozen backbone."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ptsa_serve.task_tree import TaskTree
from training.backbones.loading import HUB
from training.build import build, parameter_groups, whole
from training.data.evenly import evenly
from training.data.labels import LABELS
from training.data.mix import Mix, Source
from training.data.opening import check_labels, open_set
from training.data.photoset import PhotoSet
from training.data.transforms import AUGMENTATIONS, PublishedAugmentation, to_tensors
from training.errors import ConfigError
from training.evaluate import scaled
from training.fit_config import AUTO, WAYS_TO_SAY, FitConfig, label_faults, needs_labels, resolved
from training.network.checkpoint import save_checkpoint, sha256, write_whole
from training.network.model import PTSAModel
from training.options import MAY_CHANGE, refuse
from training.rules import Rule, build_rule, rule_options
from training.rules.base import Batch
from training.running.holdout import hold_out
from training.running.loop import Plan, Work, train
from training.running.parallel import Share, gather, one_voice, share_batch_norms, share_of
from training.running.resume import announce, claim, note, say_how_far, write_state
from training.running.stepping import Optimisation, make_fabric
from training.running.validation import Validation
from training.scoring.balance import balance
from training.scoring.losses import task_loss

__all__ = ["FitConfig", "fit", "photo_size"]

# In the output folder: the weights at the end, those of the best validation, and what a killed run continues from.
RESULT = "model.safetensors"
BEST = "best.safetensors"
RESUME = "resume.ckpt"
LOOK_AT = 32  # at full size 6,000 tokens of the last stage, for each set


@dataclass(frozen=True)
class _Run:
    """What a run consists of. settings: all that its result depends on, as JSON."""

    config: FitConfig
    optimisation: Optimisation
    rule: Rule
    validation: Validation | None
    settings: dict[str, Any]


def fit(config: FitConfig) -> Path:
    """Run or resume a training; returns the path of the checkpoint (`model.safetensors`).

    A folder `out` that holds this run is continued at the step it was saved, a finished run is left as it is: every
    sample and every random number of a step depends on the seed and the step's number alone, so the result is that of
    an unbroken run. Under `torchrun` it is that of one process but for what layers draw (`running.parallel`). With
    `accumulate`, each pass has batch norms of its own and losses that are means over its own labelled pixels (those of
    classes weighted by class, saliency's overlap a photo): their mean is that of one large batch only where all passes
    have as many.
    Raises TrainingError for settings, photos, weights or a folder that cannot be used and for losses or gradients that
    are not finite, OSError for files that cannot be read or written.
    """
    fabric = make_fabric(config.precision)
    with one_voice(fabric):
        return _fit(_with_tree(config, fabric), fabric)


def _with_tree(config: FitConfig, fabric: Fabric) -> FitConfig:
    """With the tree written out that was asked for as a file, or is to be found."""
    # The search trains its decoders by `fit`.
    from training.similarity.search import find_tree, read_tree, search_of

    if config.tree == AUTO:
        path = config.out / "similarity" / "tree.json"
        if not path.exists() and fabric.world_size > 1:
            raise ConfigError("--tree auto is found by one process: run `python -m training similarity` first")
        if not path.exists():
            sets = {name: open_set(name, root, "train") for name, root in config.data.items()}
            planned = resolved(config, {name: len(data) for name, data in sets.items()})
            note(find_tree(search_of(planned, path.parent), sets))
        return replace(config, tree=str(read_tree(path)))
    return replace(config, tree=str(read_tree(Path(config.tree)))) if config.tree.endswith(".json") else config


def _fit(config: FitConfig, fabric: Fabric) -> Path:
    fabric.seed_everything(config.seed, verbose=False)
    whole = _open(config)
    parts = {name: hold_out(data, config.hold_out, config.seed) for name, data in whole.items()}
    sets = {name: trained for name, (trained, _) in parts.items()}
    held = {name: (data, photo_size(config, data)) for name, (_, data) in parts.items() if data is not None}
    config = resolved(config, {name: len(data) for name, data in sets.items()})
    run = _prepare(config, fabric, sets, held)
    if state := claim(config.out, RESUME, RESULT, run.settings):
        _restore(run, state)
        say_how_far(config.out, run.optimisation.step, config.steps)
    if run.optimisation.step < config.steps:
        announce(run.settings)
        work = Work(
            batches=partial(_batches, config, sets, fabric),
            losses=partial(_losses, run, sets, _balance(run, sets)),
            weights=run.settings["loss_weights"],
            save=partial(_save, run),
            validate=partial(_validate, run) if run.validation else None,
            phases=cast(PTSAModel, run.optimisation.module).method.phases,
        )
        train(run.optimisation, run.rule, _plan(config), work)
    result = config.out / RESULT
    if fabric.is_global_zero:
        # Made from the state, again where a kill came between the two.
        _store(run, _answer(run), result)
        for name, text in run.rule.files().items():
            write_whole(config.out / name, text.encode())
    return result


def _balance(run: _Run, sets: dict[str, PhotoSet]) -> dict[str, Tensor]:
    return balance(sets, run.optimisation.module, run.optimisation.fabric.device) if needs_labels(run.config) else {}


def _plan(config: FitConfig) -> Plan:
    return Plan("fit", config.out, config.steps, config.warmup, config.seed, config.save_every, config.validate_every)


def _open(config: FitConfig) -> dict[str, PhotoSet]:
    """The training photos of each data set, after a look at them."""
    sets = {name: open_set(name, root, "train") for name, root in config.data.items()}
    if needs_labels(config):
        learnt = [task for task in TaskTree.parse(config.tree).tasks if task not in config.keep]
        refuse(label_faults(learnt, {name: data.tasks for name, data in sets.items()}))
    for data in sets.values():
        check_labels(data)
    return sets


def photo_size(config: FitConfig, data: PhotoSet) -> tuple[int, int]:
    """Height and width that the model sees a data set's photos at."""
    return (config.side, config.side) if config.side else scaled(data.size, config.scale)


def _prepare(config: FitConfig, fabric: Fabric, sets: dict[str, PhotoSet], held: dict[str, Any]) -> _Run:
    """Everything that is needed before the first step. Raises ConfigError for what several processes cannot do."""
    rule = build_rule(config.rule, config.rule_options)
    if fabric.world_size > 1 and rule.needs_task_grads:
        raise ConfigError(
            f"--rule {config.rule} needs gradients of each task, or passes side by side, which one process has: "
            "no torchrun"
        )
    for name, batch in config.batches.items():
        share_of(batch, name, fabric)
    # A run that goes on has what it saw in its state.
    model = build(config, () if (config.out / RESUME).exists() else _some_photos(config, sets))
    rule.bind(model, model.owners())
    share_batch_norms(model, fabric)
    settings = _settings(config, model, sets, fabric)
    if held:
        settings["held_out"] = {name: _described(data) for name, (data, _) in held.items()}
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=config.rate)
    optimisation = Optimisation(fabric, model, optimizer, max_norm=config.clip, ema=config.ema)
    validation = Validation(held, config.out) if held else None
    return _Run(config, optimisation, rule, validation, settings)


def _some_photos(config: FitConfig, sets: dict[str, PhotoSet]) -> Iterator[Tensor]:
    """At most `LOOK_AT` photos of every data set, evenly spread, one by one as the model sees them: (1, 3, H, W)."""
    for data in sets.values():
        for index in evenly(range(len(data)), LOOK_AT):
            yield to_tensors(data[index], photo_size(config, data), None)["image"][None]


def _restore(run: _Run, state: dict[str, Any]) -> None:
    run.optimisation.restore(state)
    run.rule.load_state_dict(state["rule"])
    if run.validation:
        run.validation.history = state["validations"]


def _save(run: _Run) -> None:
    state = run.optimisation.state() | {"rule": run.rule.state_dict()}
    if run.validation:
        state["validations"] = run.validation.history
    write_state(run.config.out / RESUME, state, run.settings)


def _answer(run: _Run) -> PTSAModel:
    """The model as it would be stored now, apart from the one that trains."""
    model = deepcopy(run.optimisation.result)
    run.rule.finalize(model)
    return cast(PTSAModel, model.eval())


def _validate(run: _Run, writer: SummaryWriter) -> None:
    """Judge the model, and keep it if it is the best so far."""
    assert run.validation is not None
    model = _answer(run)
    if run.validation(model, run.optimisation.step, writer):
        _store(run, model, run.config.out / BEST)


def _store(run: _Run, model: PTSAModel, path: Path) -> None:
    start = run.config.start
    info = {
        **run.settings,
        "start": {"file": start.name, "sha256": run.settings["start"]} if start else None,
        "step": run.optimisation.step,
        "weights": "averaged" if run.config.ema else "plain",
        "validation": run.validation.summary() if run.validation else None,
        "rule_report": run.rule.report(),
    }
    save_checkpoint(model, path, info=info)


def _batches(
    config: FitConfig, sets: dict[str, PhotoSet], fabric: Fabric, first: int, last: int
) -> Iterator[list[Batch]]:
    """The batches of each step: `accumulate` of each data set."""
    sources = {}
    augment = AUGMENTATIONS[config.augmentation]
    published = isinstance(augment, PublishedAugmentation)
    for name, data in sets.items():
        source = Source(data, size=photo_size(config, data), augment=augment, seed=config.seed, published=published)
        share = Share(source, config.batches[name], name, fabric)
        sources[name] = (cast(Source, share), share.size)
    passes = Mix(sources, workers=config.workers).steps(first * config.accumulate, last * config.accumulate)
    for _ in range(first, last):
        yield [
            Batch(f"{name} photos {', '.join(batch['name'])}", batch, 1 / config.accumulate)
            for batches in islice(passes, config.accumulate)
            for name, batch in batches.items()
        ]


def _losses(
    run: _Run,
    sets: dict[str, PhotoSet],
    weights: dict[str, Tensor],
    batch: dict[str, Any],
    wanted: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """The loss of each task to learn, or each that is wanted, that the batch has labels for, over all processes."""
    model, fabric = run.optimisation.model, run.optimisation.fabric
    known = model.tasks if wanted is None else wanted
    tasks = [task for task in batch if task in known and task not in run.config.keep]
    if not tasks:
        return {}
    raw = model(batch["image"].to(fabric.device), tasks)
    added = model.method.penalties(run.optimisation.step / run.config.steps)
    losses = {}
    for task in tasks:
        label = gather(batch[task].to(fabric.device))
        losses[task] = task_loss(model.tasks[task], gather(raw[task]), label, weights.get(task))
        if task in added:
            # Once a step, of however many sets a task is learnt.
            losses[task] = losses[task] + added[task] / sum(task in data.tasks for data in sets.values())
    return losses


def _settings(config: FitConfig, model: PTSAModel, sets: dict[str, Any], fabric: Fabric) -> dict[str, Any]:
    """All that the weights depend on, as JSON: compared when a run goes on, and written into its checkpoint."""
    unused = {"rank", "options"}
    unused |= set() if whole(config) or model.method.trained else {"backbone_rate"}
    unused |= {name for name in ("keep", "experts") if not getattr(config, name)}
    unused |= {*MAY_CHANGE, "rate_batch", *WAYS_TO_SAY.values()} - {"side"}  # `resolved` has said them otherwise
    settings = {name: value for name, value in asdict(config).items() if name not in unused}
    return settings | {
        "tree": str(model.config.tree),
        "options": dict(model.config.options),
        "rule_options": rule_options(config.rule, config.rule_options),
        "loss_weights": {t: LABELS[task.kind].weight for t, task in model.tasks.items()} | config.loss_weights,
        "batches": {name: config.batches[name] for name in sets},
        "start": sha256(config.start) if config.start else HUB[config.backbone] if config.pretrained else None,
        "data": {name: _described(data) for name, data in sets.items()},
        **({"experts": {task: sha256(path) for task, path in config.experts.items()}} if config.experts else {}),
        "device": fabric.device.type,
        "processes": fabric.world_size,
    }


def _described(data: Any) -> dict[str, Any]:
    names = "\n".join(data.photo_path(index).name for index in range(len(data)))
    return {"split": "train", "photos": len(data), "names_sha256": hashlib.sha256(os.fsencode(names)).hexdigest()}
