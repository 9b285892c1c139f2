"""python -m training COMMAND: every command is one function with one configuration."""

import json
import sys
from dataclasses import fields
from typing import Any

import jsonargparse

from training.data.check import CheckConfig, check
from training.errors import TrainingError
from training.evaluate import EvaluateConfig, evaluate
from training.fit import FitConfig, fit
from training.pretrain import PretrainConfig, pretrain
from training.report import Report

# A name of two words is a command of a group.
COMMANDS = {
    "pretrain": (PretrainConfig, pretrain, "distil teachers' features into a Swin on photos without labels"),
    "fit": (FitConfig, fit, "train on labelled photos: every weight, or adapters on a frozen backbone"),
    "evaluate": (EvaluateConfig, evaluate, "print a checkpoint's figures on a split, as JSON"),
    "data check": (CheckConfig, check, "say what a folder of photos and labels holds, and what is wrong in it"),
}
# Commands that take what they need without its name.
PLAIN = {"data check"}
# Options that are given or not, of whichever command has them; others that are true or false take the word.
FLAGS = {"all": "leave out nothing to save time", "json": "print everything as JSON"}


def main() -> None:
    name, options = _parse()
    config, run, _ = COMMANDS[name]
    try:
        result = run(config(**options))
    except (TrainingError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from where it last saved\n")
        sys.exit(130)
    if isinstance(result, Report):
        print(result.text)
        sys.exit(int(result.failed))
    print(json.dumps(result, indent=2, allow_nan=False) if isinstance(result, dict) else result)


def _parse() -> tuple[str, dict[str, Any]]:
    """The command that was typed, and its options."""
    parser = jsonargparse.ArgumentParser(prog="python -m training", description=__doc__)
    groups = {"": parser.add_subcommands(required=True)}
    for name, (config, _, text) in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if group not in groups:
            inner = jsonargparse.ArgumentParser(usage=f"python -m training {group} COMMAND [options]")
            groups[""].add_subcommand(group, inner, help="commands on data sets")
            groups[group] = inner.add_subcommands(required=True)
        # Not argparse's own thirty lines of usage in front of every error; --help explains each option.
        usage = f"python -m training {name} {'FOLDER ' if name in PLAIN else ''}[--config FILE] [options]"
        sub = jsonargparse.ArgumentParser(description=text, usage=usage)
        sub.add_argument("--config", action="config", help="YAML file with any of the options below")
        flags = [field.name for field in fields(config) if field.name in FLAGS]
        sub.add_class_arguments(config, as_group=False, as_positional=name in PLAIN, skip={*flags})
        for flag in flags:
            sub.add_argument(f"--{flag}", action="store_true", help=FLAGS[flag])
        groups[group].add_subcommand(last, sub, help=text)
    options, words = parser.parse_args(), []
    while word := options.get("subcommand"):
        words.append(word)
        options = options[word]
    return " ".join(words), {key: value for key, value in options.items() if key != "config"}


if __name__ == "__main__":
    main()
