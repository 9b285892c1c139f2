"""One optimiser step: on which device, in which precision, and what happens when gradients are not finite."""

import logging
import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from timm.utils import ModelEmaV3  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from training.errors import ConfigError, DivergedError

__all__ = ["Optimisation", "Precision", "make_fabric", "remedy"]

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

# The scale of fp16 gradients starts at 2^16 and halves with every overflow: after so many it is far below 1.
PATIENCE = 25


def make_fabric(precision: Precision) -> Fabric:
    """Lightning's Fabric on the GPU if there is one; under `torchrun` one of several processes, which have found each
    other. Raises ConfigError for a precision that the device lacks.
    """
    if precision == "16-mixed" and not torch.cuda.is_available():
        raise ConfigError("--precision 16-mixed needs a GPU; on a CPU take bf16-mixed or 32-true")
    if not TorchElasticEnvironment.detect():
        return Fabric(accelerator="auto", devices=1, precision=precision)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # it would introduce itself in every process
    fabric = Fabric(
        accelerator="auto",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        num_nodes=int(os.environ["GROUP_WORLD_SIZE"]),
        # A step of several data sets is several passes, none of which reaches the decoders of the other sets.
        strategy=DDPStrategy(find_unused_parameters=True),
        precision=precision,
    )
    fabric.launch()
    return fabric


class Optimisation:
    """A model, its optimiser, the average of its weights and how far they have come: all that a run resumes from."""

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        max_norm: float,
        ema: float = 0.0,
    ) -> None:
        self.fabric = fabric
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.step = 0
        # At step n the decay is at most 1 - n^(-2/3), so that a short run does not average in where it began.
        self._average = ModelEmaV3(self.module, decay=ema, use_warmup=True) if ema else None
        self._max_norm = max_norm
        self._overflows = 0

    @property
    def module(self) -> nn.Module:
        """The model without what Fabric puts around it."""
        return self.model.module

    @property
    def result(self) -> nn.Module:
        """The model whose weights are the run's result: averaged over the steps, if they are."""
        return self.module if self._average is None else self._average.module

    @property
    def scale(self) -> float:
        """What the losses, and so the gradients in the model, are multiplied by: not 1 in fp16 alone."""
        scaler = getattr(self._precision, "scaler", None)
        return 1.0 if scaler is None else scaler.get_scale()

    def clip_and_step(self, photos: str, before: Callable[[float], None] | None = None) -> None:
        """Clip and apply the gradients that lie in the model, and clear them; `photos` says whose they are.

        before: called before the optimiser's step, where it will be taken, with the factor that clipping took.

        A step whose fp16 gradients overflow is left out, and the scaler lowers its scale. Raises DivergedError for
        gradients that are not finite in any other precision, or in fp16 `PATIENCE` times in a row.
        """
        norm = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self._max_norm, error_if_nonfinite=False)
        assert norm is not None
        finite = bool(norm.isfinite())
        scaled = bool(self._precision.state_dict())  # only fp16 has a scaler, and with it a state
        self._overflows = 0 if finite else self._overflows + 1
        if not finite and (not scaled or self._overflows >= PATIENCE):
            often = f" in {PATIENCE} steps in a row, whatever their scale" if scaled else ""
            raise DivergedError(f"the gradients of {photos} are not finite{often}; {remedy()}")
        if finite and before is not None:
            # As torch clips.
            before(min(1.0, self._max_norm / (norm.item() + 1e-6)))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def count(self) -> None:
        """One more step is done, in however many steps of the optimiser: average, and count it."""
        self.step += 1
        if self._average is not None:
            self._average.update(self.module, self.step)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` wants back."""
        return {
            "model": self.module.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._precision.state_dict(),
            "step": self.step,
            "overflows": self._overflows,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken, on whichever device this is."""
        self.module.load_state_dict(state["model"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._precision.load_state_dict(state["scaler"])
        self.step = state["step"]
        self._overflows = state["overflows"]

    @property
    def _precision(self) -> Any:
        return self.fabric.strategy.precision


def remedy() -> str:
    """What to do when training has diverged. Not "lower --rate and go on": a run keeps its settings."""
    return "look at these photos and their labels, or start again in a new --out folder with a lower --rate"
