"""What `python -m training similarity` takes, and what is wrong with it before anything is built."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from training.data import DATASETS
from training.options import number_faults, refuse
from training.similarity.measure import FEWEST
from training.similarity.record import Measure, Scope

__all__ = ["DEAR", "SimilarityConfig", "affordable"]

# More than this share of the training that it serves, and a search is not cheap any more.
DEAR = 0.05

# Without numbers of its own a search takes these, or as much of them as is cheap.
WARM_UP, OBSERVATIONS = 100, 32
# Decoders that learnt less are random still.
LEAST_WARM_UP = 10

# What a photo costs at most, in photos of the training. Measured on Swin nano and tiny, two and four tasks, one core:
# 0.2 to 0.4 in the warm-up, which has no backward pass through the backbone, and 0.5 to 0.9 a task where gradients
# are compared, which are those of whole weights.
WARM_UP_COST = 0.5
TASK_COST = 1.0


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
            Left out: 100, or fewer where that were more than 5 % of the training that follows.
        rate: peak learning rate of the warm-up.
        observations: batches to measure. Left out: 32, or fewer as with the warm-up.
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
        side: in place of `scale`, height and width of all photos in pixels, as `fit` takes it.
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
    warm_up: int | None = None
    rate: float = 1e-3
    observations: int | None = None
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
    side: int = 0
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


def affordable(config: SimilarityConfig, tasks: int) -> SimilarityConfig:
    """With batches of the data sets that are there, and with what was asked for or `DEAR` of the training pays for.

    A training of less than about 250 steps pays for no search: it gets the least that says anything.
    """
    batches = {name: config.batches[name] for name in config.data}
    budget = DEAR * config.training_steps * config.training_photos / sum(batches.values())
    observation = TASK_COST * tasks
    share = min(1.0, budget / (WARM_UP_COST * WARM_UP + observation * OBSERVATIONS))
    observations = config.observations or max(FEWEST, int(share * OBSERVATIONS))
    left = int((budget - observation * observations) / WARM_UP_COST)
    warm_up = config.warm_up or min(WARM_UP, max(LEAST_WARM_UP, left))
    return replace(config, batches=batches, warm_up=warm_up, observations=observations)


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
    if config.observations is not None and not FEWEST <= config.observations <= 10**6:
        faults.append(f"--observations is {config.observations}; a similarity needs from {FEWEST} to 1000000 batches")
    if config.warm_up is not None and not 1 <= config.warm_up <= 10**9:
        faults.append(f"--warm_up is {config.warm_up}; it must be from 1 to 1000000000 steps")
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
