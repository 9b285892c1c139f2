"""python -m training COMMAND: every command is one function with one configuration."""

import json
import sys

import jsonargparse

from training.evaluate import EvaluateConfig, evaluate
from training.fit import FitConfig, fit
from training.pretrain import PretrainConfig, pretrain

COMMANDS = {
    "pretrain": (PretrainConfig, pretrain, "distil teachers' features into a Swin on photos without labels"),
    "fit": (FitConfig, fit, "train on labelled photos: every weight, or adapters on a frozen backbone"),
    "evaluate": (EvaluateConfig, evaluate, "print a checkpoint's figures on a split, as JSON"),
}


def main() -> None:
    parser = jsonargparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subcommands(required=True)
    for name, (config, _, text) in COMMANDS.items():
        sub = jsonargparse.ArgumentParser(description=text)
        sub.add_argument("--config", action="config", help="YAML file with any of the options below")
        sub.add_class_arguments(config, as_group=False)
        commands.add_subcommand(name, sub, help=text)
    arguments = parser.parse_args()
    config, run, _ = COMMANDS[arguments.subcommand]
    options = dict(arguments[arguments.subcommand])
    options.pop("config", None)
    try:
        result = run(config(**options))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result, indent=2) if isinstance(result, dict) else result)


if __name__ == "__main__":
    main()
