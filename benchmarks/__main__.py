"""python -m benchmarks QUESTION: what the server, the model, the methods and their training cost and can do."""

import sys
from pathlib import Path
from typing import Any

import click

from benchmarks.accuracy import measure_accuracy, measure_trivial
from benchmarks.export_questions import EXPORT_QUESTIONS
from benchmarks.graph import measure_graph
from benchmarks.measurement import Measurement, is_measurement, save, table
from benchmarks.methods import comparison, measure_methods, rows, summary, with_costs
from benchmarks.methods_plot import draw_methods
from benchmarks.options import (
    DATA,
    DECODER,
    MODEL,
    OUT,
    RANK,
    ROUNDS,
    SET,
    SIZE,
    SPLIT,
    THREADS,
    chosen_artifact,
    named_folders,
)
from benchmarks.parameters import beside_published, measure_parameters, parameters_table
from benchmarks.parameters_plot import draw_parameters
from benchmarks.picture import draw
from benchmarks.published import results_table
from benchmarks.service import measure_load, measure_memory, measure_requests
from benchmarks.steadiness import measure_steadiness
from benchmarks.suites import SUITES
from benchmarks.training_speed import measure_training_speed
from export.errors import ExportError
from export.photos import choose_photos
from ptsa_serve.errors import PTSAError
from ptsa_serve.files import replace_file
from ptsa_serve.loading import load_predictor
from ptsa_serve.predictor import Predictor
from ptsa_serve.settings import Settings
from training.backbones import known_backbones
from training.methods import METHODS
from training.similarity.search import read_tree


def _predictor(model: Path | None, threads: int) -> Predictor:
    return load_predictor(Settings.model_validate({"model": model, "threads": threads}))


def _report(measurement: Measurement, out: Path | None) -> None:
    print(table(measurement))
    save(measurement, out)


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command(help="How well does one graph use the machine, against a graph a task?")
@MODEL
@THREADS
@OUT
@click.option("--rounds", default=15, show_default=True)
def graph(model: Path | None, threads: int, out: Path | None, rounds: int) -> None:
    _report(measure_graph(chosen_artifact(model), threads=threads, rounds=rounds), out)


@main.command(help="What does the service add to the engine's own time?")
@MODEL
@THREADS
@OUT
@click.option("--rounds", default=30, show_default=True)
def requests(model: Path | None, threads: int, out: Path | None, rounds: int) -> None:
    _report(measure_requests(chosen_artifact(model), threads=threads, rounds=rounds), out)


@main.command(help="What does the service do under load, and when its queue is full?")
@MODEL
@THREADS
@OUT
@click.option("--clients", default=16, show_default=True)
@click.option("--requests", "count", default=200, show_default=True)
def load(model: Path | None, threads: int, out: Path | None, clients: int, count: int) -> None:
    _report(measure_load(chosen_artifact(model), threads=threads, clients=clients, requests=count), out)


@main.command(help="How much memory does the service take, and does it grow?")
@MODEL
@THREADS
@OUT
@click.option("--requests", "count", default=2000, show_default=True)
@click.option("--shapes", type=click.IntRange(1, 5), default=5, show_default=True, help="Aspect ratios of the photos.")
def memory(model: Path | None, threads: int, out: Path | None, count: int, shapes: int) -> None:
    _report(measure_memory(chosen_artifact(model), threads=threads, requests=count, shapes=shapes), out)


@main.command(help="Which server gives the most photos a second from the same graph? Needs the extra `rivals`.")
@MODEL
@THREADS
@OUT
@click.option("--clients", default=16, show_default=True)
@click.option("--requests", "count", default=48, show_default=True, help="of each server in a round that count")
@click.option("--only", default="", help="Servers by commas, as in ours,fastapi; default: all. The engine always.")
@ROUNDS
def rivals(model: Path | None, out: Path | None, count: int, only: str, **options: Any) -> None:
    from benchmarks.rivals.measure import measure_rivals

    names = [name.strip() for name in only.split(",") if name.strip()]
    _report(measure_rivals(chosen_artifact(model), requests=count, only=names, **options), out)


@main.command(help="How good are the served maps on a labelled split?")
@MODEL
@THREADS
@OUT
@DATA
@SET
@SPLIT
@click.option("--limit", default=0, type=click.IntRange(min=0), help="about so many photos, evenly spread; 0 = all")
def accuracy(model: Path | None, threads: int, out: Path | None, root: Path, name: str, split: str, limit: int) -> None:
    _report(measure_accuracy(_predictor(model, threads), name=name, root=root, split=split, limit=limit), out)


@main.command(help="Do maps change with the size of a photo, or when the camera moves by a few pixels?")
@MODEL
@THREADS
@OUT
@click.option("--photos", type=click.Path(path_type=Path), required=True, help="a photo, or a folder of JPEGs")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="photos, evenly spread")
def steadiness(model: Path | None, threads: int, out: Path | None, photos: Path, limit: int) -> None:
    _report(measure_steadiness(_predictor(model, threads), choose_photos([photos], limit)), out)


@main.command(help="How good is a predictor that does not look at the photo?")
@OUT
@DATA
@SET
@SPLIT
def trivial(out: Path | None, root: Path, name: str, split: str) -> None:
    _report(measure_trivial(name=name, root=root, split=split), out)


@main.command(help="Which method is best? Trains every arm of a suite; stop it and run it again as you like.")
@click.option("--suite", type=click.Choice(list(SUITES)), default="nyu-nano", show_default=True)
@click.option(
    "--data", multiple=True, required=True, callback=named_folders, help="NAME=FOLDER of a data set; may be repeated"
)
@click.option("--start", type=click.Path(path_type=Path), required=True, help="weights of the backbone, for every run")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/methods"), show_default=True)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("benchmarks/results/methods"),
    show_default=True,
    help="a small JSON file a run; those that are there are not run again",
)
@click.option("--only", default="", help="Arms to train, by semicolons; default: all.")
@click.option(
    "--graphs", type=click.Path(path_type=Path, file_okay=False), help="time the arms' graphs too, which are kept there"
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="picture of gains against costs to write")
@THREADS
@ROUNDS
@OUT
def methods(
    suite: str, data: dict[str, Path], start: Path, runs: Path, results: Path, only: str, out: Path | None,
    graphs: Path | None, plot: Path | None, **timing: int,
) -> None:  # fmt: skip
    names = [name.strip() for name in only.split(";") if name.strip()]
    chosen = SUITES[suite]
    found = measure_methods(chosen, data=data, start=start, runs=runs / suite, results=results / suite, only=names)
    table = with_costs(rows(found), chosen, read_tree(results / suite / "tree.json"), graphs, **timing)
    if plot is not None:
        replace_file(plot, draw_methods(table))
    print(comparison(table, chosen.tasks), "Published, of other data and backbones:", sep="\n\n")
    print(results_table("pascal"), results_table("nyud"), sep="\n\n")
    save(summary(suite, found), out)


@main.command(help="What do the maps look like? Writes a contact sheet.")
@MODEL
@THREADS
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="picture to write")
def picture(model: Path | None, threads: int, photos: tuple[Path, ...], out: Path) -> None:
    if out.exists() and any(photo.exists() and out.samefile(photo) for photo in photos):
        raise click.UsageError(f"--out {out} is one of the photos, which it would replace; name another file")
    draw(_predictor(model, threads), photos, out)


@main.command(help="What does each method cost? Writes parameters.json and parameters.png, and keeps graphs there.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="folder")
@click.option("--backbones", default="swin_nano,swin_tiny", show_default=True, help="by commas")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="by commas")
@SIZE
@DECODER
@RANK
@THREADS
@ROUNDS
@click.option("--without-latency", is_flag=True, help="count alone: seconds instead of minutes, and no picture")
def parameters(out: Path, backbones: str, methods: str, size: int, without_latency: bool, **options: Any) -> None:
    figures = out / "parameters.json"
    if figures.exists() and not is_measurement(figures):
        raise click.UsageError(f"{figures} holds no measurement and would be replaced; name another --out")
    measured = measure_parameters(
        backbones.split(","),
        methods.split(","),
        size=(size, size),
        graphs=None if without_latency else out / "graphs",
        **options,
    )
    print(parameters_table(measured), beside_published(measured), sep="\n\n")
    save(measured, figures)
    if not without_latency:
        replace_file(out / "parameters.png", draw_parameters(measured.figures, measured.conditions))


@main.command("training_speed", help="How fast does PTSA train, against LoRA that all tasks share?")
@OUT
@click.option("--backbone", type=click.Choice(known_backbones()), default="swin_nano", show_default=True)
@click.option("--tree", default="1-1-2-4", show_default=True)
@click.option("--batch", default=2, show_default=True, type=click.IntRange(min=1))
@SIZE
@DECODER
@RANK
@click.option("--threads", default=2, show_default=True, help="of torch")
@ROUNDS
def training_speed(out: Path | None, size: int, **options: Any) -> None:
    _report(measure_training_speed(size=(size, size), **options), out)


for command in EXPORT_QUESTIONS:
    main.add_command(command)


if __name__ == "__main__":
    try:
        main()
    except (PTSAError, ExportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
