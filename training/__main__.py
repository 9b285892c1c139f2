"""python -m training COMMAND: every command is one function with one configuration."""

import json
import os
import sys

import jsonargparse

from training.errors import TrainingError
from training.evaluate import EvaluateConfig, evaluate
from training.fit import FitConfig, fit
from training.pretrain import PretrainConfig, pretrain
from training.recipes import RECIPES, RecipesConfig, recipes, with_recipe

COMMANDS = {
    "pretrain": (PretrainConfig, pretrain, "distil teachers' features into a Swin on photos without labels"),
    "fit": (FitConfig, fit, "train on labelled photos: every weight, or adapters on a frozen backbone"),
    "recipes": (RecipesConfig, recipes, "list the named configurations, or print one as YAML"),
    "evaluate": (EvaluateConfig, evaluate, "print a checkpoint's figures on a split, as JSON"),
}


# Those that `--recipe` can configure.
RECIPE_COMMANDS = {recipe.command for recipe in RECIPES.values()}


def main() -> None:
    parser = jsonargparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subcommands(required=True)
    for name, (config, _, text) in COMMANDS.items():
        # Not argparse's own thirty lines of usage in front of every error; --help explains each option.
        sub = jsonargparse.ArgumentParser(
            description=text, usage=f"python -m training {name} [--config FILE] [options]"
        )
        sub.add_argument("--config", action="config", help="YAML file with any of the options below")
        if name == "recipes":
            sub.add_argument("name", nargs="?", default="", help="of the recipe to print")
        else:
            sub.add_class_arguments(config, as_group=False)
        if name in RECIPE_COMMANDS:
            sub.add_argument("--recipe", default="", help="a named configuration, under what other options say")
        commands.add_subcommand(name, sub, help=text)
    # Without defaults, which are the configuration's own: a recipe goes under what was said, not under what was not.
    arguments = parser.parse_args(defaults=False)
    name = arguments.subcommand
    config, run, _ = COMMANDS[name]
    options = dict(arguments[name])
    options.pop("config", None)
    try:
        if recipe := options.pop("recipe", ""):
            options = with_recipe(recipe, name, options)
        result = run(config(**options))
    except (TrainingError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from where it last saved\n")
        sys.exit(130)
    if os.environ.get("RANK", "0") == "0":  # not every process that torchrun started
        print(json.dumps(result, indent=2, allow_nan=False) if isinstance(result, dict) else result)


if __name__ == "__main__":
    main()
