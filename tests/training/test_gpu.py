"""Training on a real GPU, with what goes wrong there alone: tensors left on the CPU, fp16 that overflows."""

from dataclasses import replace

import pytest
import torch

from training.fit import FitConfig, fit
from training.network.checkpoint import read_info

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_killed_run_goes_on_to_the_end(fit_config: FitConfig, kill_in_step, precision) -> None:
    config = replace(fit_config, precision=precision, ema=0.9, hold_out=0.2, accumulate=2)
    kill_in_step(3, lambda: fit(config))
    assert read_info(fit(config))["device"] == "cuda"
