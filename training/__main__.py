"""python -m training COMMAND: every command is one function with one configuration."""

import json
import sys

import jsonargparse

from training.count import CountConfig, count, count_table
from training.errors import TrainingError
from training.evaluate import EvaluateConfig, evaluate
from training.fit import FitConfig, fit
from training.method_list import MethodsConfig, list_methods, methods_table
from training.pretrain import PretrainConfig, pretrain

COMMANDS = {
    "pretrain": (PretrainConfig, pretrain, "distil teachers' features into a Swin on photos without labels"),
    "fit": (FitConfig, fit, "train on labelled photos: every weight, or adapters on a frozen backbone"),
    "evaluate": (EvaluateConfig, evaluate, "print a checkpoint's figures on a split, as JSON"),
    "count": (CountConfig, count, "print what a model costs: parameters to train and to deploy, multiply-adds"),
    "methods": (MethodsConfig, list_methods, "list the methods: what they train, their options, their sources"),
}

# Commands whose result people want to read: without --json, this text of it.
TABLES = {"count": count_table, "methods": methods_table}


def main() -> None:
    parser = jsonargparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subcommands(required=True)
    for name, (config, _, text) in COMMANDS.items():
        # Not argparse's own thirty lines of usage in front of every error; --help explains each option.
        sub = jsonargparse.ArgumentParser(
            description=text, usage=f"python -m training {name} [--config FILE] [options]"
        )
        sub.add_argument("--config", action="config", help="YAML file with any of the options below")
        sub.add_class_arguments(config, as_group=False)
        if name in TABLES:
            sub.add_argument("--json", action="store_true", help="print JSON")
        commands.add_subcommand(name, sub, help=text)
    arguments = parser.parse_args([_underscored(argument) for argument in sys.argv[1:]])
    config, run, _ = COMMANDS[arguments.subcommand]
    options = dict(arguments[arguments.subcommand])
    options.pop("config", None)
    as_json = options.pop("json", True)
    try:
        result = run(config(**options))
    except (TrainingError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from where it last saved\n")
        sys.exit(130)
    if not as_json:
        result = TABLES[arguments.subcommand](result)  # pyright: ignore[reportArgumentType]
    print(json.dumps(result, indent=2, allow_nan=False) if isinstance(result, dict) else result)


def _underscored(argument: str) -> str:
    """`--image-size` is `--image_size`."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


if __name__ == "__main__":
    main()
