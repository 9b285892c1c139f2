"""python -m export COMMAND: from a checkpoint to an artifact, and back to a standard ONNX folder."""

import json
import re
from pathlib import Path

import click

from export.annotate import annotate, entry
from export.compile import FORMS, CompileConfig, compile_artifact
from export.errors import ExportError
from export.figures import read_figures, read_json
from export.graphs import SIZES
from export.manifest import MOST_PIXELS
from export.outputs import refuse_unwritable
from export.photos import choose_photos
from export.tree import TreeConfig, choose
from export.verify import verify_artifact
from ptsa_serve.artifact import Artifact
from ptsa_serve.errors import PTSAError
from ptsa_serve.sizes import Size
from training.errors import TrainingError
from training.network.model import STRIDE
from training.trees.text import tree_text

# What a user can cause; anything else is a fault of ours and shows its traceback.
MISTAKES = (ExportError, TrainingError, PTSAError, OSError)

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
PHOTOS = click.option(
    "--photos", multiple=True, required=True, type=click.Path(exists=True, path_type=Path),
    help="Photo, or folder of photos, for the parity gate; may be repeated.",
)  # fmt: skip
PHOTO_COUNT = click.option("--photo-count", default=4, show_default=True, type=click.IntRange(min=1))


class Commands(click.Group):
    """A group whose commands answer a user's mistake with one line instead of a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MISTAKES as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """From a checkpoint to an artifact that ptsa_serve opens."""


@main.command("compile")
@click.argument("checkpoint", type=FILE)
@click.argument("out", type=FOLDER)
@click.option("--sample", required=True, type=FILE, help="JPEG that ships in the artifact.")
@PHOTOS
@PHOTO_COUNT
@click.option(
    "--sizes",
    default=",".join(f"{h}x{w}" for h, w in SIZES),
    show_default=True,
    help='HxW by commas, a graph each; "dynamic" among them: one graph for all multiples of 32, slower than those.',
)
@click.option(
    "--max-pixels",
    default=MOST_PIXELS,
    show_default=True,
    type=click.IntRange(min=STRIDE**2),
    help="Of a photo as the dynamic graph runs it.",
)
@click.option(
    "--branches",
    default="folded",
    show_default=True,
    type=click.Choice(list(FORMS)),
    help="folded: a copy of a layer for each group of tasks. low_rank: the layer once, and small factors a group. "
    "both: graphs of either. auto: both are timed here, and the faster is kept.",
)
@click.option(
    "--max-slowdown",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="With --branches auto: keep the smaller form if it takes at most so many times as long as the faster.",
)
@click.option("--name", default="ptsa-nano", show_default=True)
@click.option("--version", default="1", show_default=True)
@click.option("--metrics", type=FILE, help="JSON list of figures for the manifest.")
@click.option("--licence", default="", help="What the manifest says about the use of weights and data.")
def compile_command(out: Path, sizes: str, metrics: Path | None, **options) -> None:
    """Write the artifact of CHECKPOINT to the folder OUT, if it passes the parity gate."""
    figures = read_figures(metrics) if metrics else ()
    config = CompileConfig(out=out, sizes=parse_sizes(sizes, dynamic=True), metrics=figures, **options)
    artifact = compile_artifact(config, report=_report)
    total = sum(path.stat().st_size for path in artifact.folder.iterdir())
    click.echo(f"wrote {out}: {total / 2**20:.1f} MiB")
    click.echo(json.dumps(artifact.manifest.parity, indent=2))


@main.command()
@click.argument("checkpoint", type=FILE)
@click.argument("artifact", type=FOLDER)
@PHOTOS
@PHOTO_COUNT
def verify(checkpoint: Path, artifact: Path, photos: tuple[Path, ...], photo_count: int) -> None:
    """Compare ARTIFACT with the CHECKPOINT that it was made from, on photos."""
    parity = verify_artifact(checkpoint, artifact, choose_photos(photos, photo_count), report=_report)
    click.echo(json.dumps(parity, indent=2))


@main.command()
@click.argument("artifact", type=FOLDER)
@click.argument("out", type=FOLDER)
def unpack(artifact: Path, out: Path) -> None:
    """Write ARTIFACT's graphs and one model.onnx.data to the new folder OUT, for any ONNX runtime."""
    if out.exists():
        raise ExportError(f"{out} exists; name a new folder")
    refuse_unwritable(out)
    Artifact.open(artifact).write_external_data(out)
    click.echo(f"wrote {out}")


@main.command("tree")
@click.argument("search", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--max-ms", type=click.FloatRange(min=0, min_open=True), help="A photo, on this machine's engine.")
@click.option("--max-multiply-adds", type=click.IntRange(min=1), help="A photo.")
@click.option("--max-trainable", type=click.IntRange(min=1), help="Parameters, decoders among them.")
@click.option("--rank", default=16, show_default=True, help="Of the adapters, for --max-trainable.")
@click.option("--size", default="448x448", show_default=True, help="HxW of the photos.")
@click.option("--threads", default=2, show_default=True, help="Of the engine.")
def tree_command(size: str, **options) -> None:
    """Choose the best tree within a budget, for the folder SEARCH that `python -m training similarity` wrote."""
    (only,) = filter(None, parse_sizes(size)[:1])
    choice = choose(TreeConfig(size=only, **options), report=_report)
    click.echo(f"{tree_text(choice.tree)}\n\ntree: {choice.tree}\ncost J: {choice.objective:.4f}")
    for name, cost in choice.costs.items():
        click.echo(f"{name}: {cost:,.10g}")


@main.command("annotate")
@click.argument("artifact", type=FOLDER)
@click.argument("measurements", nargs=-1, required=True, type=FILE)
def annotate_command(artifact: Path, measurements: tuple[Path, ...]) -> None:
    """Write figures into ARTIFACT's manifest, from files of `python -m benchmarks accuracy --out FILE`."""
    annotate(artifact, [entry(read_json(path)) for path in measurements])
    click.echo(f"wrote {len(measurements)} measurements into {artifact / 'manifest.json'}")


def parse_sizes(text: str, *, dynamic: bool = False) -> tuple[Size | None, ...]:
    """Read "384x512,448x448" as ((384, 512), (448, 448)), and "dynamic" as None where that is allowed.

    Raises ExportError for anything else, and for repetitions.
    """
    other = "|dynamic" if dynamic else ""
    if not re.fullmatch(rf"(\d{{1,4}}x\d{{1,4}}{other})(,(\d{{1,4}}x\d{{1,4}}{other}))*", text):
        raise ExportError(f"sizes are {text!r}; write heights and widths like 384x512,448x448{' or dynamic' * dynamic}")
    sizes = [None if size == "dynamic" else _size(size) for size in text.split(",")]
    wrong = [size for size in sizes if size and (min(size) == 0 or size[0] % STRIDE or size[1] % STRIDE)]
    if wrong or len(set(sizes)) != len(sizes):
        raise ExportError(f"sizes are {text!r}; each once, and every side a multiple of {STRIDE}")
    return tuple(sizes)


def _size(text: str) -> Size:
    height, width = text.split("x")
    return int(height), int(width)


def _report(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main(prog_name="python -m export")
