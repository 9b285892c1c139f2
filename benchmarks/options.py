"""Options that several questions share."""

from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.measurement import is_measurement
from ptsa_serve.artifact import Artifact, default_artifact
from training.data import DATASETS
from training.network.decoders import DECODERS
from training.network.model import STRIDE

__all__ = [
    "DATA",
    "DECODER",
    "MODEL",
    "OUT",
    "RANK",
    "ROUNDS",
    "SET",
    "SIZE",
    "SPLIT",
    "THREADS",
    "chosen_artifact",
    "named_folders",
    "work",
]


def named_folders(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, Path]:
    found = {name: Path(folder) for name, _, folder in (text.partition("=") for text in texts)}
    if wrong := [text for text in texts if "=" not in text or text.partition("=")[0] not in DATASETS]:
        raise click.BadParameter(f"{wrong[0]!r}; write NAME=FOLDER with one of {', '.join(DATASETS)}", ctx, param)
    return found


def chosen_artifact(model: Path | None) -> Artifact:
    return Artifact.open(model or default_artifact())


def _new_or_measurement(ctx: click.Context, param: click.Parameter, out: Path | None) -> Path | None:
    """Before anything is measured: `--out` must not cost anybody a file of another kind."""
    if out is not None and out.exists() and not is_measurement(out):
        raise click.BadParameter(f"{out} exists and holds no measurement; name a new file", ctx, param)
    return out


def _side(ctx: click.Context, param: click.Parameter, side: int) -> int:
    if side < STRIDE or side % STRIDE:
        raise click.BadParameter(f"{side} is no multiple of {STRIDE} from {STRIDE} on", ctx, param)
    return side


def work(folder: str, what: str) -> Callable:
    """The option of a measurement that keeps what it makes."""
    text = f"folder for the {what}, which a second run finds there"
    path = click.Path(path_type=Path, file_okay=False)
    return click.option("--work", type=path, default=Path(folder), show_default=True, help=text)


MODEL = click.option("--model", type=click.Path(path_type=Path), help="artifact folder; default: the shipped one")
THREADS = click.option("--threads", default=2, show_default=True, help="of the engine")
OUT = click.option(
    "--out",
    type=click.Path(path_type=Path),
    callback=_new_or_measurement,
    help="also write the figures to this JSON file",
)
ROUNDS = click.option("--rounds", default=9, show_default=True, type=click.IntRange(min=1))
DATA = click.option("--data", "root", type=click.Path(path_type=Path), required=True, help="folder of the data set")
SET = click.option("--set", "name", type=click.Choice(list(DATASETS)), required=True)
SPLIT = click.option("--split", default="val", show_default=True)
DECODER = click.option("--decoder", type=click.Choice(list(DECODERS)), default="hrnet", show_default=True)
RANK = click.option("--rank", default=16, show_default=True, type=click.IntRange(min=0, max=1024))
SIZE = click.option("--size", default=448, show_default=True, callback=_side, help="height and width of the photo")
