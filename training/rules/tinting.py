"""Learn from experts of each task instead of labels (Model Tinting, arXiv 2412.19098): photos alone are enough.

Every photo, of whichever set, teaches every task: one pass of the model serves all of their losses (ours; published are
photos of one task after another, with a step after each). What an expert says takes the place of the label, in the
loss of the task's kind. Where kinds have a confidence (classes, saliency, boundaries) a pixel counts if model and
expert agree or the expert is at least as sure ("++"); depths and normals count all. After each step the coefficients
are brought back into 0...1.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ptsa_serve.tasks import Task
from training.data.labels import IGNORE
from training.errors import ConfigError
from training.network.heads import finish, upsample
from training.rules.base import Turn
from training.rules.weighted_sum import WeightedSum

__all__ = ["Tinting", "expert_label"]


class Tinting(WeightedSum):
    """The weighted sum of the losses against the experts' maps. Nothing is remembered: the experts are in the model."""

    needs_labels = False

    def bind(self, model: Any, owners: Mapping[str, frozenset[str]]) -> None:
        own = {task: model.method.expert(task) for task in model.tasks}
        if not all(own.values()):
            raise ConfigError(
                f"--rule tinting learns from an expert of each task, and --method {model.config.method} holds none; "
                "take --method tinting with --experts, or another rule"
            )
        self._bounded = [f"method.{name}" for name in next(iter(own.values()))]
        # What trains of a decoder is the expert's as long as nothing was learnt.
        trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        self._experts = {
            task: {f"method.{name}": tensor for name, tensor in parameters.items()}
            | {name: tensor for name, tensor in trained.items() if name.startswith(f"decoders.{task}.")}
            for task, parameters in own.items()
        }

    def step(self, turn: Turn) -> dict[str, float]:
        for batch in turn.batches:
            labels = self._labels(turn.model, batch.content["image"])
            content = {"name": batch.content["name"], "image": batch.content["image"], **labels}
            losses = turn.losses(replace(batch, content=content))
            turn.backward(torch.stack([turn.weights[task] * loss for task, loss in losses.items()]).sum())
        turn.clip_and_step()
        with torch.no_grad():
            for name in self._bounded:
                turn.model.get_parameter(name).clamp_(0, 1)
        return turn.values

    @torch.no_grad()
    def _labels(self, model: Any, images: Tensor) -> dict[str, Tensor]:
        """Task -> label at half the images' sides, as data sets give them."""
        images = images.to(model.mean.device)
        size = (images.shape[-2] // 2, images.shape[-1] // 2)
        model.eval()
        own = model(images)
        found = {}
        for task, record in model.tasks.items():
            parameters = {name: tensor.to(images.device) for name, tensor in self._experts[task].items()}
            said = functional_call(model, parameters, (images, [task]))[task]
            found[task] = expert_label(record, said, own[task], size)
        model.train()
        return found


def expert_label(task: Task, expert: Tensor, model: Tensor, size: tuple[int, int]) -> Tensor:
    """What an expert says, as a label (N, h, w) or (N, 3, h, w) of `size`; IGNORE where it is not to be believed.

    expert, model: raw planes (N, C, *, *) of both.
    """
    if task.kind == "metres":
        return finish(task, expert, size)
    if task.kind == "unit_vectors":
        return finish(task, expert, size).permute(0, 3, 1, 2)
    (sure, says), (own_sure, own_says) = (_decided(task, upsample(raw.float(), size)) for raw in (expert, model))
    return says.where((says == own_says) | (sure >= own_sure), IGNORE)


def _decided(task: Task, planes: Tensor) -> tuple[Tensor, Tensor]:
    """How sure each pixel is, and of which class: (N, h, w) each."""
    if task.kind == "classes":
        sure, says = planes.softmax(1).max(1)
        return sure, says
    p = planes[:, 0].sigmoid()
    return torch.maximum(p, 1 - p), (p > 0.5).long()
