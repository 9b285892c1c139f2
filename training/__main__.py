"""python -m training COMMAND: every command is one function with one configuration."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import jsonargparse

from ptsa_serve.errors import PTSAError
from training.accounting.count import CountConfig, count, count_table
from training.accounting.method_list import MethodsConfig, list_methods, methods_in_lines, methods_table
from training.data.check import CheckConfig, check
from training.errors import TrainingError
from training.evaluate import EvaluateConfig, evaluate
from training.fit import FitConfig, fit
from training.label import LabelConfig, label
from training.pretrain import PretrainConfig, pretrain
from training.recipes import RECIPES, RecipesConfig, recipes, with_recipe
from training.report import Report
from training.similarity.config import SimilarityConfig
from training.similarity.search import find_tree
from training.teach import TeachConfig, teach


@dataclass(frozen=True)
class Command:
    """One row of the table below.

    config: its options. run: from them to a dict, a path, a text or a Report. word: the option that is given without
    its name, what it is, and whether it may be left out. table: what people read in place of a dict, unless they say
    --json. more: what --help says below the options.
    """

    config: type
    run: Callable[[Any], Any]
    text: str
    word: tuple[str, str, bool] | None = None
    table: Callable[[Mapping[str, Any]], str] | None = None
    more: Callable[[], str] | None = None


# A name of two words is a command of a group.
COMMANDS: dict[str, Command] = {
    "pretrain": Command(PretrainConfig, pretrain, "distil teachers' features into a backbone on photos without labels"),
    "teach": Command(TeachConfig, teach, "train the heads of the room teacher that `label` asks, on labelled rooms"),
    "label": Command(LabelConfig, label, "write the labels of pre-trained teachers for folders of photos"),
    "fit": Command(FitConfig, fit, "train on labelled photos, by any method of the registry", more=methods_in_lines),
    "recipes": Command(
        RecipesConfig,
        recipes,
        "list the named configurations, or print one as YAML",
        word=("name", "of the recipe to print", True),
    ),
    "methods": Command(
        MethodsConfig,
        list_methods,
        "list the methods: what they train, their options, their sources",
        table=methods_table,
    ),
    "count": Command(
        CountConfig,
        count,
        "print what a model costs: parameters to train and to deploy, multiply-adds",
        table=count_table,
    ),
    "similarity": Command(
        SimilarityConfig, find_tree, "compare the tasks' gradients, and find the tree of groups that suits them"
    ),
    "evaluate": Command(EvaluateConfig, evaluate, "print a checkpoint's figures on a split, as JSON"),
    "data check": Command(
        CheckConfig,
        check,
        "say what a folder of photos and labels holds, and what is wrong in it",
        ("folder", "of a data set", False),
    ),
}
GROUPS = {"data": "commands on data sets"}
# Options that are given or not, of whichever command has them; others that are true or false take the word.
FLAGS = {"all": "leave out nothing to save time", "json": "print everything as JSON"}
# Those that `--recipe` can configure.
RECIPE_COMMANDS = {recipe.command for recipe in RECIPES.values()}


class _Help(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of what stands below the options."""


def main() -> None:
    name, options = _parse()
    command = COMMANDS[name]
    as_json = command.table is None or options.pop("json", False)
    try:
        if recipe := options.pop("recipe", ""):
            options = with_recipe(recipe, name, options)
        result = command.run(command.config(**options))
    except (TrainingError, PTSAError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from where it last saved\n")
        sys.exit(130)
    if isinstance(result, dict):
        result = json.dumps(result, indent=2, allow_nan=False) if as_json else (command.table or str)(result)
    if os.environ.get("RANK", "0") == "0":  # not every process that torchrun started
        print(result.text if isinstance(result, Report) else result)
    if isinstance(result, Report) and result.failed:
        sys.exit(1)


def _parse() -> tuple[str, dict[str, Any]]:
    """The command that was typed, and the options that were given."""
    usage = "python -m training COMMAND [options]"
    parser = jsonargparse.ArgumentParser(description=__doc__, usage=usage, formatter_class=_Help)
    groups = {"": parser.add_subcommands(required=True)}
    for group, text in GROUPS.items():
        inner = jsonargparse.ArgumentParser(usage=f"python -m training {group} COMMAND [options]")
        groups[""].add_subcommand(group, inner, help=text)
        groups[group] = inner.add_subcommands(required=True)
    for name, command in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        groups[group].add_subcommand(last, _parser(name, command), help=command.text)
    # Without defaults, which are the configuration's own: a recipe goes under what was said, not under what was not.
    arguments = [_underscored(argument) for argument in sys.argv[1:]]
    options, words = parser.parse_args(arguments, defaults=False), []
    while word := options.get("subcommand"):
        words.append(word)
        options = options[word]
    return " ".join(words), {key: value for key, value in options.items() if key != "config"}


def _parser(name: str, command: Command) -> jsonargparse.ArgumentParser:
    word, text, optional = command.word or ("", "", True)
    shown = f" [{word.upper()}]" if word and optional else f" {word.upper()}" if word else ""
    # Not argparse's own thirty lines of usage in front of every error; --help explains each option.
    usage = f"python -m training {name}{shown} [--config FILE] [options]"
    more = command.more() if command.more else None
    parser = jsonargparse.ArgumentParser(description=command.text, usage=usage, epilog=more)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    if word:
        how: dict[str, Any] = {"nargs": "?", "default": ""} if optional else {}
        parser.add_argument(word, type=get_type_hints(command.config)[word], help=text, **how)
    flags = [field.name for field in fields(command.config) if field.name in FLAGS]
    parser.add_class_arguments(command.config, as_group=False, skip={word, *flags})
    for flag in [*flags, *(["json"] if command.table else [])]:
        parser.add_argument(f"--{flag}", action="store_true", help=FLAGS[flag])
    if name in RECIPE_COMMANDS:
        parser.add_argument("--recipe", default="", help="a named configuration, under what other options say")
    return parser


def _underscored(argument: str) -> str:
    """`--image-size` is `--image_size`."""
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


if __name__ == "__main__":
    main()
