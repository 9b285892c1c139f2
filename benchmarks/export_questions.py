"""The questions about export, as commands of `python -m benchmarks`."""

from pathlib import Path
from typing import Any

import click

from benchmarks.forms import FormsConfig, forms_table, measure_forms
from benchmarks.gpu import GpuConfig, gpu_table, measure_gpu
from benchmarks.large import LargeConfig, large_table, measure_large
from benchmarks.measurement import save
from benchmarks.options import DECODER, MODEL, OUT, RANK, ROUNDS, SIZE, THREADS, chosen_artifact, named_folders, work
from export.options import parse_batches, parse_sizes
from ptsa_serve.engines import ENGINES
from ptsa_serve.errors import EngineError
from training.backbones import known_backbones

__all__ = ["EXPORT_QUESTIONS"]


def _say(line: str) -> None:
    click.echo(line, err=True)


@click.command(help="What does each form of a model cost and lose? Exports all of them and runs each on every engine.")
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--sample", type=click.Path(path_type=Path, exists=True), required=True, help="JPEG of the shape of --size"
)
@click.option(
    "--data", multiple=True, required=True, callback=named_folders, help="NAME=FOLDER of a labelled set, for the gates"
)
@click.option(
    "--photos",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="for parity and calibration; may be repeated",
)
@click.option("--photo-count", default=100, show_default=True, help="labelled photos of each set, 0: all")
@click.option("--size", default="384x512", show_default=True, help="HxW of the graphs of a fixed size")
@work("runs/forms", "artifacts")
@THREADS
@ROUNDS
@OUT
def forms(data: dict[str, Path], size: str, out: Path | None, **options: Any) -> None:
    (only, *_) = parse_sizes(size)
    config = FormsConfig(data=data, size=only, **options)
    measurement = measure_forms(config, report=_say)
    click.echo(forms_table(measurement))
    save(measurement, out)


@click.command(help="What can a GPU do with this model? Every engine and form, and PyTorch; `make gpu-check`.")
@MODEL
@OUT
@click.option("--size", default="", help="HxW of the photos; default: the model's first size")
@click.option("--batch", default="1,4,8", show_default=True, help="photos of a run, by commas")
@click.option("--rounds", default=30, show_default=True, type=click.IntRange(min=1))
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="for PyTorch; default: random weights")
@work("runs/gpu-check", "plans")
def gpu(model: Path | None, out: Path | None, size: str, batch: str, **options: Any) -> None:
    artifact = chosen_artifact(model)
    chosen = parse_sizes(size)[0] if size else artifact.variants.first(artifact.variants.form()).size
    if chosen is None:
        raise click.UsageError("the model's first graph takes any size; say which with --size, as in --size 192x256")
    config = GpuConfig(artifact, size=chosen, batches=parse_batches(batch), **options)
    measurement, wrong = measure_gpu(config, report=_say)
    click.echo(gpu_table(measurement))
    save(measurement, out)
    if wrong:
        raise EngineError("; ".join(wrong))


@click.command(help="What does a large model take to export and to run, and what does one graph save against four?")
@click.option("--backbone", type=click.Choice(known_backbones()), default="swin_tiny", show_default=True)
@click.option("--trees", default="1-1-2-4,1-2-2-4", show_default=True, help="by commas")
@click.option("--engine", type=click.Choice(list(ENGINES)), default="onnxruntime", show_default=True)
@SIZE
@DECODER
@RANK
@work("runs/large", "artifacts")
@THREADS
@ROUNDS
@OUT
def large(trees: str, out: Path | None, **options: Any) -> None:
    config = LargeConfig(trees=trees.split(","), **options)
    measurement = measure_large(config, report=_say)
    click.echo(large_table(measurement))
    save(measurement, out)


EXPORT_QUESTIONS = (forms, gpu, large)
