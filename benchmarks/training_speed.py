"""How fast does PTSA train, against LoRA that all tasks share?

Whole steps: forward, the tasks' real losses, backward, AdamW, on random photos and labels; both models in turn,
medians. A step of PTSA computes more; how many times more is counted twice: in the maps of one photo as they are
deployed, and in the step itself, forward and backward. Where the step's own products decide alone, the ratio of speeds
is the inverse of that of the multiply-adds.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measurement import Measurement, alternate
from ptsa_serve.tasks import TASKS, Task
from training.accounting.account import account
from training.accounting.count import parse_tree
from training.network.model import ModelConfig, PTSAModel
from training.scoring.losses import task_loss

__all__ = ["measure_training_speed"]


def measure_training_speed(
    *, backbone: str, tree: str, batch: int, size: tuple[int, int], decoder: str, rank: int, threads: int, rounds: int
) -> Measurement:
    """Steps a second of both, and what they should be by the multiply-adds. Raises ConfigError for a tree that is
    none."""
    torch.set_num_threads(threads)
    groups = parse_tree(tree, list(TASKS))
    configs = {
        method: ModelConfig(backbone, groups, method, {"rank": rank}, decoder, tasks=tuple(TASKS.values()))
        for method in ("lora", "ptsa")
    }
    steps = {method: _step(config, batch, size) for method, config in configs.items()}
    ms = alternate(steps, rounds)
    inside = {method: _multiply_adds(step) for method, step in steps.items()}
    deployed = {method: account(config, size).multiply_adds for method, config in configs.items()}
    speed = ms["lora"] / ms["ptsa"]
    by_maps, by_step = deployed["lora"] / deployed["ptsa"], inside["lora"] / inside["ptsa"]
    figures = {
        **{f"{method}_steps_per_second": 1000 / ms[method] for method in configs},
        **{f"{method}_step_giga_multiply_adds": inside[method] / 1e9 for method in configs},
        "speed_ratio": speed,
        "multiply_adds_of_maps_ratio": by_maps,
        "multiply_adds_of_steps_ratio": by_step,
        "speed_against_maps_ratio": speed / by_maps,
        "speed_against_steps_ratio": speed / by_step,
    }
    conditions: dict[str, str | int | float] = {
        "backbone": backbone,
        "tree": tree,
        "batch": batch,
        "size": f"{size[1]}x{size[0]}",
        "decoder": decoder,
        "rank": rank,
        "precision": "fp32",
        "threads": threads,
        "rounds": rounds,
    }
    return Measurement("How fast does PTSA train, against LoRA that all tasks share?", figures, conditions)


def _step(config: ModelConfig, batch: int, size: tuple[int, int]) -> Callable[[], None]:
    """One step of training, always on the same photos."""
    torch.manual_seed(0)
    model = PTSAModel(config).train()
    model.freeze()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)
    labels = {name: _label(task, batch, size) for name, task in model.tasks.items()}

    def step() -> None:
        raw = model(images)
        losses = [task_loss(task, raw[name], labels[name]) for name, task in model.tasks.items()]
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _label(task: Task, batch: int, size: tuple[int, int]) -> Tensor:
    """A label at every pixel, as the data sets' are: (N, H, W), of vectors (N, 3, H, W)."""
    match task.kind:
        case "classes":
            return torch.randint(0, task.channels, (batch, *size), dtype=torch.uint8)
        case "metres":
            return 1 + 5 * torch.rand(batch, *size)
        case "unit_vectors":
            return torch.nn.functional.normalize(torch.randn(batch, 3, *size), dim=1)
        case _:
            return torch.randint(0, 2, (batch, *size), dtype=torch.uint8)


def _multiply_adds(step: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    # The counter counts a multiplication and an addition as two.
    return counter.get_total_flops() // 2
