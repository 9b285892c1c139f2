"""Named configurations: what a recipe says is asked for unless an option says otherwise.

`python -m training recipes` lists them, `python -m training recipes NAME` prints one as YAML that `--config` reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from training.errors import ConfigError
from training.fit_config import WAYS_TO_SAY

__all__ = ["RECIPES", "Recipe", "RecipesConfig", "recipes", "with_recipe"]


@dataclass(frozen=True)
class Recipe:
    """Options of one command, and where they come from."""

    command: str
    text: str
    options: Mapping[str, Any]


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        "fit",
        "The protocol of MTLoRA (arXiv 2403.20320), which PTSA is measured in; needs a GPU.\n"
        "AdamW with betas 0.9 and 0.999, cosine to a hundredth of the peak, 16-bit floats. Nothing is held out and\n"
        "the last weights are the result: --hold_out deviates from it, as do other weights than ImageNet-1k's.\n"
        "Not in here, because they go by the data: --data, --tree and --augmentation (mtlora_pascal, mtlora_nyud).",
        {
            "method": "ptsa",
            "backbone": "swin_tiny",
            "decoder": "hrnet",
            "epochs": 300,
            "side": 448,
            "batch_each": 32,
            "rate": 5e-4,
            "backbone_rate": 5e-4,
            "rate_batch": 512,
            "warmup_epochs": 20,
            "weight_decay": 0.05,
            "clip": 5.0,
            "drop_path": 0.2,
            "loss_weights": {
                "segmentation": 1,
                "human_parts": 2,
                "saliency": 5,
                "normals": 10,
                "depth": 1,
                "edges": 50,
            },
            "precision": "16-mixed",
        },
    ),
    "nano-pretrain": Recipe(
        "pretrain",
        "The backbone of the shipped model, distilled.",
        {"backbone": "swin_nano", "steps": 1100, "batch": 32, "size": 224, "rate": 8e-4, "precision": "bf16-mixed"},
    ),
    "nano-half": Recipe(
        "fit",
        "All weights at half size on real labels, from a pre-trained backbone.",
        {
            "method": "multi_task",
            "backbone": "swin_nano",
            "scale": 0.5,
            "batches": {"nyu": 14, "ccp": 2},
            "steps": 3600,
            "rate": 1e-3,
            "backbone_rate": 5e-4,
            "precision": "bf16-mixed",
        },
    ),
    "nano-labelled": Recipe(
        "fit",
        "All weights at half size with the labels of teachers, from nano-half: most of what the shipped model learnt.",
        {
            "method": "multi_task",
            "backbone": "swin_nano",
            "scale": 0.5,
            "batches": {"nyu": 4, "ccp": 2, "horses": 2, "labelled": 10},
            "steps": 3000,
            "rate": 1e-3,
            "backbone_rate": 5e-4,
            "ema": 0.999,
            "precision": "bf16-mixed",
        },
    ),
    "nano-ptsa": Recipe(
        "fit",
        "Adapters and decoders on the frozen backbone of nano-labelled: the shipped model.",
        {
            "method": "ptsa",
            "backbone": "swin_nano",
            "rank": 16,
            "options": {"merge": "frozen", "norms": "frozen", "tables": "frozen", "patch": "frozen"},
            "scale": 0.5,
            "batches": {"nyu": 4, "ccp": 2, "horses": 2, "labelled": 10},
            "steps": 60,
            "rate": 2e-4,
            "ema": 0.95,
            "precision": "bf16-mixed",
        },
    ),
}


def with_recipe(name: str, command: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a recipe, under those that were given. Raises ConfigError for a recipe that `command` lacks.

    Where one thing is said in two ways, e.g. steps and epochs, what was given takes the recipe's word for it away.
    """
    known = [other for other, recipe in RECIPES.items() if recipe.command == command]
    if name not in known:
        raise ConfigError(f"--recipe {name!r} is unknown; {command} has {', '.join(known)}")
    twins = WAYS_TO_SAY | {second: first for first, second in WAYS_TO_SAY.items()}
    said = {twins[option] for option in given if option in twins}
    return {option: value for option, value in RECIPES[name].options.items() if option not in said} | dict(given)


@dataclass(frozen=True)
class RecipesConfig:
    """What `python -m training recipes` takes.

    Args:
        name: of the recipe to print; all are listed when it is left out.
    """

    name: str = ""


def recipes(config: RecipesConfig) -> str:
    """A recipe as YAML, or a line on each. Raises ConfigError for one that is not known."""
    if not config.name:
        return "\n".join(f"{name:<15} {r.command:<9} {r.text.splitlines()[0]}" for name, r in RECIPES.items())
    if config.name not in RECIPES:
        raise ConfigError(f"recipe {config.name!r} is unknown; known are {', '.join(RECIPES)}")
    recipe = RECIPES[config.name]
    text = "\n".join(f"# {line}" for line in recipe.text.splitlines())
    options = yaml.safe_dump(dict(recipe.options), sort_keys=False)
    return f"{text}\n# python -m training {recipe.command} --recipe {config.name} ...\n{options}".rstrip()
