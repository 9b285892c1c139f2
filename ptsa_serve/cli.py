"""`ptsa`: predict, info, serve. A mistake of the user ends with one sentence and exit status 1 or 2, no
traceback.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ptsa_serve import __version__
from ptsa_serve.errors import PTSAError, RequestError

if TYPE_CHECKING:
    from ptsa_serve.settings import Settings

__all__ = ["main"]

SERVICE = "ptsa_serve.service:Service"
_RENDERS = ("raw", "color", "overlay")


class _Group(click.Group):
    """Turns this package's errors and the system's into one line on the error output and exit status 1."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().main(*arguments, **options)
        except OSError as error:  # also of what is written before a command is called: --help to a full disk
            click.ClickException(_reason(error)).show()
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PTSAError as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            raise click.exceptions.Exit(128 + signal.SIGINT) from None


class _Out(click.Path):
    """A folder to write to. An empty name, as of a variable that is not set, would be the current one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("the name is empty; name a folder", param, ctx)
        return super().convert(value, param, ctx)


def _reason(error: OSError) -> str:
    where = f"{click.format_filename(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ptsa")
def main() -> None:
    """Every dense map of a photo - segmentation, depth, normals, saliency - from one pass of one model.

    \b
    ptsa predict photo.jpg maps/      maps of one photo, as PNG files
    ptsa serve                        the same over HTTP, with a page at /ui
    ptsa info                         what the model is and how good it is
    ptsa tune                         which engine is the fastest on this machine

    PTSA_* variables set the defaults of all (PTSA_MODEL, PTSA_ENGINE, PTSA_THREADS, ...); `ptsa serve --help`
    lists them.
    """


def _model_options(command: Any) -> Any:
    """Options of every command; each stands for the PTSA_* variable of its name."""
    for option in (
        click.option("--prefer", help="What counts more: speed (default), or memory, at the cost of time."),
        click.option("--threads", type=click.IntRange(0, 1024), help="Threads of one run; 0: one a core."),
        click.option("--branches", help="Form of the model's branches: folded or low_rank; default: the fastest here."),
        click.option("--precision", help="Numbers to compute in: fp32, fp16, bf16 or int8; default: the fastest here."),
        click.option("--engine", help="Runtime, as `ptsa tune` lists them; auto (default): the fastest here."),
        click.option("--model", type=click.Path(path_type=Path), help="Folder of a model; default: the one shipped."),
    ):
        command = option(command)
    return command


@main.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=_Out(file_okay=False, path_type=Path))
@click.option("--tasks", help="Maps to write, comma-separated; default: all of the model's.")
@click.option(
    "--render",
    "renders",
    multiple=True,
    type=click.Choice(_RENDERS),
    help="PNG files to write, may be repeated; default: all three. raw: values; color, overlay: for the eye.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["png", "npz", "zip"]),
    default="png",
    show_default=True,
    help="Files: PNG a map, one maps.npz with the arrays, or one maps.zip with the raw PNGs.",
)
@click.option(
    "--size",
    type=click.Choice(["photo", "model"]),
    default="photo",
    show_default=True,
    help="Grid of the maps: the photo's, or the model's own (smaller, faster).",
)
@_model_options
def predict(photos, out, tasks, renders, form, size, **model_options) -> None:
    """Write the maps of PHOTOS (files or folders) to the folder OUT.

    One photo: straight into OUT. Several, or a folder: a folder each below OUT, named as the photo. Files
    of the same name there are replaced, but never a photo of this run. Photos in folders are known by their suffix
    (.jpg, .png, .webp, ...); what was skipped is told. Exit status 1 when a photo failed; the others are done all the
    same.

    \b
    One photo, all maps as values and as pictures:
      ptsa predict kitchen.jpg maps/
    A folder, two tasks, values alone:
      ptsa predict holiday/ maps/ --tasks depth,normals --render raw
    Arrays for NumPy, one maps.npz a photo:
      ptsa predict *.jpg maps/ --format npz
    Quick look, at the model's own size, on one core:
      ptsa predict kitchen.jpg look/ --render overlay --size model --threads 1

    \b
    OUT holds, for each task:
      depth.png           values: depth in millimetres, 16 bits; segmentation class indices; normals as RGB;
                          saliency 0 to 255
      depth.color.png     the same in colours
      depth.overlay.png   the colours over the photo
      meta.json           model, photo, and what was found in each map
    """
    from ptsa_serve.artifact import default_artifact
    from ptsa_serve.images import SUFFIXES
    from ptsa_serve.loading import load_predictor
    from ptsa_serve.photo_folders import shown
    from ptsa_serve.predict_files import check_outputs, explain, file_names, plan, predict_file

    if renders and form != "png":
        raise click.UsageError(f"--render is for --format png; {form} holds the values alone. Leave one of them out.")
    settings = _settings(model_options)
    chosen = {"renders": renders or _RENDERS, "form": form}
    jobs = plan(photos, out, report=lambda line: click.echo(line, err=True))
    if not jobs:
        where = ", ".join(map(shown, photos))
        known = ", ".join(sorted(SUFFIXES))
        raise click.ClickException(f"found no photo below {where}; name files, or a folder that holds some ({known})")
    predictor = load_predictor(settings)
    names = predictor.choose([name.strip() for name in tasks.split(",")] if tasks else None)
    check_outputs(jobs, file_names(names, **chosen), settings.model or default_artifact())
    failures = []
    bar = click.progressbar(jobs, label="photos", file=sys.stderr, hidden=len(jobs) == 1)
    # Closed before the interpreter takes itself apart: a signal has ended ONNX Runtime in a crash otherwise, once.
    with closing(predictor.engine), _unwound_when_ended(), bar:
        for job in bar:
            try:
                predict_file(predictor, job, tasks=names, size=size, **chosen)
            except RequestError as error:
                failures.append(explain(job, error))
            except OSError as error:
                raise click.ClickException(f"cannot write to {shown(job.out)}: {error.strerror}") from None
    if failures:
        count = f"\n{len(failures)} of {len(jobs)} photos failed" if len(jobs) > 1 else ""
        raise click.ClickException("\n".join(failures) + count)
    click.echo(f"{shown(out)}: maps of {len(jobs)} photo{'s' * (len(jobs) > 1)} ({', '.join(names)})")


@contextmanager
def _unwound_when_ended() -> Iterator[None]:
    """Let SIGTERM end the body as an exception does, so that a half-written file is taken away."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="The whole description, as /v1/models/{name} answers it.")
@_model_options
def info(as_json, **model_options) -> None:
    """Describe the model: tasks, tree of task groups, parameters, figures; check that it runs here."""
    from ptsa_serve.describe import model_lines
    from ptsa_serve.loading import load_predictor

    predictor = load_predictor(_settings(model_options))
    errors = predictor.verify()
    description = predictor.info()
    if as_json:
        click.echo(json.dumps({**description, "sample_error": errors}, indent=2))
        return
    for line in model_lines(description, errors):
        click.echo(line)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, the fastest first.")
@click.option("--seconds", type=click.FloatRange(0), default=8.0, show_default=True, help="To measure for, in all.")
@_model_options
def tune(as_json, seconds, **model_options) -> None:
    """Time every engine that is installed, in every form of the model, and remember the fastest for `auto`: of those
    within 5 %, the one with the fewest bits.

    Each must reproduce the model's sample first. `ptsa serve` does this by itself at its first start on a machine.
    """
    from ptsa_serve.describe import timing_line
    from ptsa_serve.loading import engine_options, open_artifact
    from ptsa_serve.selection import candidates, fastest, remember, time_engines

    settings = _settings(model_options)
    artifact = open_artifact(settings)
    found = candidates(artifact, engine_options(settings))
    timings = time_engines(artifact, found, seconds=seconds)
    if as_json:
        click.echo(json.dumps([asdict(timing) for timing in timings], indent=2))
        return
    for timing in timings:
        click.echo(timing_line(timing))
    remember(artifact, found, taken := fastest(timings))
    click.echo(f"PTSA_ENGINE=auto takes {taken}")


class _Serve(click.Command):
    """Lists the settings below the options."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from ptsa_serve.settings_help import rows

        with formatter.section("Settings (environment variables)"):
            formatter.write_dl(rows())


@main.command(cls=_Serve)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address or name to listen on; 0.0.0.0: all of this machine."
)
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@_model_options
def serve(host, port, **model_options) -> None:
    """Serve the model over HTTP: POST /v1/predict, a page at /ui, metrics at /metrics.

    Model, runtime, settings and address are checked first; then this process becomes `bentoml serve`.

    \b
    ptsa serve --port 8080
    curl -F image=@photo.jpg localhost:8080/v1/predict -o maps.zip
    PTSA_API_KEY=a-long-secret PTSA_QUEUE=16 ptsa serve --host 0.0.0.0
    """
    from ptsa_serve.launch import command, environment, find_address
    from ptsa_serve.loading import load_predictor

    settings = _settings(model_options)
    arguments = command(SERVICE, find_address(host, port), port)
    environ = environment(_environ(model_options), settings)
    load_predictor(settings).engine.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *arguments], environ)


def _environ(options: dict[str, Any]) -> dict[str, str]:
    """The environment with the flags that were given in place of their variables."""
    return {
        **os.environ,
        **{f"PTSA_{name.upper()}": str(value) for name, value in options.items() if value is not None},
    }


def _settings(options: dict[str, Any]) -> "Settings":
    from ptsa_serve.settings import Settings

    return Settings.load(_environ(options))
