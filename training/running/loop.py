"""The loop that every training runs in: rates, seeds, progress, curves and saving. What is learnt, its callers say."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from training.phases import Phase
from training.rules.base import Batch, Rule
from training.running.log import curves
from training.running.progress import Progress
from training.running.schedule import warmup_cosine
from training.running.stepping import Optimisation
from training.running.turn import LossFunction, StepTurn

__all__ = ["Plan", "Work", "train"]


@dataclass(frozen=True)
class Plan:
    """How long a run is, in steps, and when it does what.

    name: for the progress. out: folder of the run. warmup: steps before the cosine. seed: of what layers draw.
    save_every, validate_every: steps between two calls of `Work.save` and `Work.validate`; the last step has both.
    """

    name: str
    out: Path
    steps: int
    warmup: int
    seed: int
    save_every: int
    validate_every: int = 0


@dataclass(frozen=True)
class Work:
    """What a command lends the loop.

    batches: from a first step up to a last one, the batches of each; a step's depend on its number alone.
    losses: task -> mean loss of a batch's content. weights: of the losses in their sum, by task.
    save: writes what a killed run goes on from. validate: judges the weights as they are. Both are called in the first
    process alone. phases: those of what is trained, for so many steps, beside the rule's.
    """

    batches: Callable[[int, int], Iterator[Sequence[Batch]]]
    losses: LossFunction
    weights: Mapping[str, float]
    save: Callable[[], None]
    validate: Callable[[SummaryWriter], None] | None = None
    phases: Callable[[int], Sequence[Phase]] = lambda steps: [Phase("train", steps)]


def train(run: Optimisation, rule: Rule, plan: Plan, work: Work) -> None:
    """From `run.step` to the last step, saving on the way and at the end.

    The optimiser's groups have their highest learning rate as `peak`. Raises DivergedError for losses or gradients
    that are not finite, and what reading and writing raise.
    """
    phases = _Phases(run.module, plan.steps, rule.phases(plan.steps), work.phases(plan.steps))
    leads = run.fabric.is_global_zero
    with (
        curves(plan.out / "logs", first=run.step + 1) if leads else nullcontext() as writer,
        Progress(plan.name, plan.steps, start=run.step) as progress,
    ):
        run.model.train()
        for batches in work.batches(run.step, plan.steps):
            step = run.step
            phase = phases.enter(step)
            torch.manual_seed(_seed(plan.seed, step, run.fabric.global_rank))
            for group in run.optimizer.param_groups:
                peak = phases.rate * group["peak"]
                group["lr"] = warmup_cosine(step, plan.steps, peak=peak, warmup=plan.warmup)
            values = rule.step(StepTurn(run, batches, work.losses, work.weights, phase))
            # Counted here, not where the optimiser steps: a rule may step it several times, or itself.
            run.count()
            progress.update(run.step, **{name: value for name, value in values.items() if "/" not in name})
            if writer is not None:
                for name, value in values.items():
                    writer.add_scalar(name if "/" in name else f"loss/{name}", value, run.step)
                _due(run.step, plan, work, writer)


def _due(step: int, plan: Plan, work: Work, writer: SummaryWriter) -> None:
    """Validate and save, where it is time to; in this order, so that what was saved knows what was found."""
    last = step == plan.steps
    if work.validate and (last or (plan.validate_every and step % plan.validate_every == 0)):
        work.validate(writer)
    if last or step % plan.save_every == 0:
        work.save()


def _seed(seed: int, step: int, rank: int) -> int:
    """Of what layers draw in one step of one process: dropout and drop path. Both are below 2^52."""
    return seed * 1_000_003 + step + (rank << 52)


class _Phases:
    """Which phases a step is in, the rule's first, and what trains in all of them."""

    def __init__(self, model: nn.Module, steps: int, *plans: Sequence[Phase]) -> None:
        self._plans = [(phases, list(accumulate(phase.steps for phase in phases))) for phases in plans]
        for _, ends in self._plans:
            if not ends or ends[-1] != steps:
                raise ValueError(f"the phases have {ends} steps, the run has {steps}")
        self._model = model
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._now: list[Phase] = []

    @property
    def rate(self) -> float:
        """Of the learning rates, in the phases that were entered last."""
        return math.prod(phase.rate for phase in self._now)

    def enter(self, step: int) -> str:
        """Name of the rule's phase of `step`; where one is new, the parameters are set to train."""
        now = []
        for phases, ends in self._plans:
            phase, end = next((p, end) for p, end in zip(phases, ends, strict=True) if step < end)
            phase.begin(step - end + phase.steps)
            now.append(phase)
        if any(phase is not before for phase, before in zip_longest(now, self._now)):
            for name, parameter in self._trained.items():
                parameter.requires_grad_(all(phase.trains(name) for phase in now))
            for part, module in self._model.named_children():
                own = [p for name, p in self._trained.items() if name.startswith(f"{part}.")]
                module.train(not own or any(p.requires_grad for p in own))
            self._now = now
        return now[0].name
