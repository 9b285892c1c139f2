"""What `python -m training similarity` takes, and what is wrong with it before anything is built."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.data import DATASETS
from training.options import number_faults, refuse
from training.similarity.measure import FEWEST
from training.similarity.record import Measure, Scope

__all__ = ["SimilarityConfig"]


@dataclass(frozen=True)
class SimilarityConfig:
    """What `python -m training similarity` takes. Raises ConfigError that names every fault at once.

    Args:
        data: folder of each data set, e.g. {nyu: data/nyu, ccp: data/ccp}.
        out: folder for similarity.json, heat maps and the tree.
        start: backbone weights (`pretrain` wrote them), as `fit` takes them.
        backbone: of the weights in `start`; `fit --help` lists them.
        tasks: which to compare; none = all that the data sets label.
        decoder: pyramid, or hrnet (MTLoRA's).
        width: channels of the pyramid decoders.
        batches: photos of each data set in a batch. A task's loss is that of the photos that have its labels.
        warm_up: steps that train the decoders on the frozen backbone first; gradients through random ones are noise.
        rate: peak learning rate of the warm-up.
        observations: batches to measure.
        measure: what decides on the tree; all three are measured: unit (element-wise normalised cosine of gradients
            of length 1), weighted (of gradients as training adds them up) or plain_cosine.
        scope: stage = each stage by its own gradients; global = all by those of all stages.
        counts: groups a stage, e.g. [1, 2, 2, 4]; without counts and limits, by the number of tasks.
        max_trainable: the best tree with at most so many trainable parameters.
        max_multiply_adds: the best tree with at most so many multiply-adds a photo. (`python -m export tree` takes
            milliseconds, measured on this machine's engine.)
        rank: of the adapters that trainable parameters are counted for, and options: others of PTSA's.
        training_steps, training_photos: steps of the training that follows and photos of each, for what share of it
            the search costs.
        scale: of the input's sides, 1 = as deployed.
        seed: decides which photos, in which order, and the decoders' initial weights.
        workers: processes that read photos, for each data set.
    """

    data: dict[str, Path]
    out: Path
    start: Path
    backbone: str = "swin_nano"
    tasks: list[str] | None = None
    decoder: str = "pyramid"
    width: int = 96
    batches: dict[str, int] = field(default_factory=lambda: {"nyu": 4, "ccp": 2})
    warm_up: int = 100
    rate: float = 1e-3
    observations: int = 32
    measure: Measure = "unit"
    scope: Scope = "stage"
    counts: list[int] | None = None
    max_trainable: int | None = None
    max_multiply_adds: int | None = None
    rank: int | list[int] = 16
    options: dict[str, Any] = field(default_factory=dict)
    training_steps: int = 1000
    training_photos: int = 16
    scale: float = 1.0
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        refuse([*number_faults(vars(self)), *_task_faults(self.tasks), *_measuring_faults(self), *_tree_faults(self)])

    @property
    def limits(self) -> dict[str, float]:
        """What may be spent, by what it is."""
        limits = {
            "trainable parameters": self.max_trainable,
            "multiply-adds": self.max_multiply_adds,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}


def _task_faults(tasks: list[str] | None) -> list[str]:
    if tasks is None:
        return []
    known = dict.fromkeys(task for data in DATASETS.values() for task in data.records)
    faults = [f"--tasks: {task!r} is unknown; known are {', '.join(known)}" for task in tasks if task not in known]
    if not tasks or len(set(tasks)) != len(tasks):
        faults.append(f"--tasks is {tasks}; name each task once, or leave the option out for all that are labelled")
    return faults


def _measuring_faults(config: SimilarityConfig) -> list[str]:
    faults = [
        f"data set {name!r} is unknown; known are {', '.join(DATASETS)}" for name in config.data if name not in DATASETS
    ]
    faults += [
        f"--batches has nothing for {name}; say how many of its photos"
        for name in config.data
        if config.batches.get(name, 0) < 1
    ]
    if not config.data:
        faults.append("--data names no data set; e.g. --data '{nyu: data/nyu, ccp: data/ccp}'")
    if not FEWEST <= config.observations <= 10**6:
        faults.append(f"--observations is {config.observations}; a similarity needs from {FEWEST} to 1000000 batches")
    if not 0 <= config.warm_up <= 10**9:
        faults.append(f"--warm_up is {config.warm_up}; it must be from 0 to 1000000000 steps")
    return faults


def _tree_faults(config: SimilarityConfig) -> list[str]:
    faults = [
        f"the limit of {limit} {name} allows nothing; give one above 0"
        for name, limit in config.limits.items()
        if not limit > 0
    ]
    counts = config.counts
    if counts is not None and config.limits:
        faults.append(f"--counts {counts} and a limit ({', '.join(config.limits)}) both decide; give one of them")
    if counts is not None and (len(counts) != 4 or counts != sorted(counts) or counts[0] < 1):
        faults.append(f"--counts is {counts}; it needs 4 numbers from 1 on that never fall, e.g. [1, 2, 2, 4]")
    return faults
