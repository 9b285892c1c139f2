"""`ptsa`: predict, info, serve. A mistake of the user ends with one sentence and exit status 1 or 2, no
traceback.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptsa_serve import __version__
from ptsa_serve.errors import PTSAError, RequestError

if TYPE_CHECKING:
    from ptsa_serve.predictor import Predictor
    from ptsa_serve.settings import Settings

__all__ = ["main"]

SERVICE = "ptsa_serve.service:Service"
_RENDERS = ("raw", "color", "overlay")


class _Group(click.Group):
    """Turns this package's errors into one line on the error output and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PTSAError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ptsa")
def main() -> None:
    """Every dense map of a photo - segmentation, depth, normals, saliency - from one pass of one model.

    \b
    ptsa predict photo.jpg maps/      maps of one photo, as PNG files
    ptsa serve                        the same over HTTP, with a page at /ui
    ptsa info                         what the model is and how good it is

    The PTSA_* variables (see docs) set the defaults of all three: PTSA_MODEL, PTSA_ENGINE, PTSA_THREADS, ...
    """


def _model_options(command: Any) -> Any:
    """Options of every command; each stands for the PTSA_* variable of its name."""
    for option in (
        click.option("--threads", type=click.IntRange(0, 1024), help="Threads of one run; 0: one a core."),
        click.option("--engine", help="Runtime: onnxruntime (default)."),
        click.option("--model", type=click.Path(path_type=Path), help="Folder of a model; default: the one shipped."),
    ):
        command = option(command)
    return command


@main.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
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

    One photo: straight into OUT. Several, or a folder: a folder each below OUT. Files of the same name are
    replaced.

    \b
    ptsa predict kitchen.jpg maps/
    ptsa predict holiday/ maps/ --tasks depth,normals --render raw
    ptsa predict *.jpg maps/ --format npz
    """
    from ptsa_serve.predict_files import explain, plan, predict_file

    if renders and form != "png":
        raise click.UsageError(f"--render is for --format png; {form} holds the values alone. Leave one of them out.")
    try:
        jobs = plan(photos, out)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if not jobs:
        raise click.ClickException(f"found no photo below {', '.join(map(str, photos))}; name files or another folder")
    predictor = _load(_settings(model_options))
    names = predictor.choose([name.strip() for name in tasks.split(",")] if tasks else None)
    failures = []
    with click.progressbar(jobs, label="photos", file=sys.stderr, hidden=len(jobs) == 1) as bar:
        for job in bar:
            try:
                predict_file(predictor, job, tasks=names, renders=renders or _RENDERS, form=form, size=size)
            except RequestError as error:
                failures.append(explain(job, error))
            except OSError as error:
                raise click.ClickException(f"cannot write to {job.out}: {error.strerror}") from None
    if failures:
        count = f"\n{len(failures)} of {len(jobs)} photos failed" if len(jobs) > 1 else ""
        raise click.ClickException("\n".join(failures) + count)
    click.echo(f"{out}: maps of {len(jobs)} photo{'s' * (len(jobs) > 1)} ({', '.join(names)})")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="The whole description, as /v1/models/{name} answers it.")
@_model_options
def info(as_json, **model_options) -> None:
    """Describe the model: tasks, tree of task groups, parameters, figures; check that it runs here."""
    settings = _settings(model_options)
    predictor = _load(settings)
    errors = predictor.verify()
    description = predictor.info()
    if as_json:
        click.echo(json.dumps({**description, "sample_error": errors}, indent=2))
        return
    for line in _lines(description, errors):
        click.echo(line)


def _lines(description: dict[str, Any], errors: dict[str, float]) -> list[str]:
    counts, engine = description["counts"], description["engine"]
    sizes = ", ".join(f"{width}x{height}" for height, width in description["input"]["sizes"])
    lines = [f"{description['name']}@{description['version']}, on {description['backbone']['name']}", "tasks"]
    for task in description["tasks"]:
        classes = f", {len(task['classes'])} classes" if task.get("classes") else ""
        lines.append(f"  {task['name']:<14}{task['kind']}{' in ' + task['unit'] if task.get('unit') else ''}{classes}")
    lines.append("tree (tasks that share an adapter, stage by stage)")
    for number, stage in enumerate(description["tree"]["stages"], 1):
        lines.append(f"  stage {number}       {' | '.join(', '.join(group) for group in stage)}")
    parts = ", ".join(f"{counts[key] / 1e6:.2f} M {key}" for key in ("frozen", "trainable", "deployed"))
    lines += [f"parameters      {parts}", f"grids           {sizes}"]
    lines += [f"multiply-adds   {number / 1e9:.2f} G at {size}" for size, number in counts["multiply_adds"].items()]
    for metric in description["metrics"]:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in metric.get("figures", {}).items())
        lines.append(f"figures         {metric.get('data')} {metric.get('split')}: {figures}")
    worst = max(errors.values())
    lines.append(f"engine          {engine['name']} {engine['version']}, reproduces the sample (worst {worst:.2g})")
    return lines


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@_model_options
def serve(host, port, **model_options) -> None:
    """Serve the model over HTTP: POST /v1/predict, a page at /ui, metrics at /metrics.

    Model, runtime, settings and port are checked first; then this process becomes `bentoml serve`.

    \b
    ptsa serve --port 8080
    curl -F image=@photo.jpg localhost:8080/v1/predict -o maps.zip
    """
    environ = _environ(model_options)
    settings = _settings(model_options)
    _check_port(host, port)
    _load(settings).engine.close()
    arguments = ["-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *arguments], environ)


def _environ(options: dict[str, Any]) -> dict[str, str]:
    """The environment with the flags that were given in place of their variables."""
    given = {f"PTSA_{name.upper()}": str(value) for name, value in options.items() if value is not None}
    # Both are read before our service is imported. BentoML's usage reports are opt-in here. glibc keeps a heap for each
    # thread, and on a busy machine the model's buffers wander through them: 608 MB resident with two heaps, 527 at
    # most in 2,000 requests with one; no slower by `python -m benchmarks requests` and `load`.
    return {"BENTOML_DO_NOT_TRACK": "true", "MALLOC_ARENA_MAX": "1", **os.environ, **given}


def _settings(options: dict[str, Any]) -> "Settings":
    from ptsa_serve.settings import Settings

    return Settings.load(_environ(options))


def _load(settings: "Settings") -> "Predictor":
    """The checked model on its engine. Raises ArtifactError, ManifestError, EngineError."""
    from ptsa_serve.artifact import Artifact, default_artifact
    from ptsa_serve.engines import load_engine
    from ptsa_serve.predictor import Predictor

    artifact = Artifact.open(settings.model or default_artifact())
    return Predictor(artifact, load_engine(settings.engine, artifact, settings.threads), settings.limits())


def _check_port(host: str, port: int) -> None:
    """Raise ClickException unless a server could listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise click.ClickException(f"{host!r} is no address of this machine; use 127.0.0.1 or 0.0.0.0") from None
    with socket.socket(family, kind, protocol) as probe:
        # As servers set it: a port in TIME_WAIT after a restart is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError:
            raise click.ClickException(f"port {port} is for the administrator; use one above 1023") from None
        except OSError as error:
            why = error.strerror or "it cannot be used"
            raise click.ClickException(f"cannot listen on {host}:{port} ({why}); choose another with --port") from None
