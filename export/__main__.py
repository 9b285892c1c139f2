"""python -m export COMMAND: from a checkpoint to an artifact, and back to a standard ONNX folder."""

import json
from pathlib import Path
from typing import get_args

import click

from export.annotate import annotate, entry
from export.compile import FORMS, CompileConfig, compile_artifact
from export.errors import ExportError
from export.figures import read_figures, read_json
from export.graphs import SIZES
from export.lower import LowerConfig, lower_artifact
from export.manifest import MOST_PIXELS
from export.options import (
    parse_batches,
    parse_data,
    parse_graph_sizes,
    parse_precisions,
    parse_settings,
    parse_sizes,
)
from export.outputs import refuse_unwritable
from export.photos import choose_photos
from export.plans import FLAVOURS, PlansConfig, build_plans
from export.recompile import recompile
from export.tensorrt import BuildOptions
from export.tree import TreeConfig, choose
from export.triton import Backend, TritonConfig, write_repository
from export.verify import verify_artifact
from ptsa_serve.artifact import Artifact
from ptsa_serve.errors import PTSAError
from ptsa_serve.variants import Branches, Precision
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

PRECISION = click.option("--precision", type=click.Choice(get_args(Precision)), help="Default: fp32 where it is there.")
BRANCHES = click.option("--branches", type=click.Choice(get_args(Branches)), help="Default: folded where it is there.")


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
@click.option(
    "--set",
    "settings",
    multiple=True,
    help="NAME=VALUE, what the checkpoint's method leaves to be chosen, like 'preference={depth: 2, normals: 1}'; "
    "`python -m training methods` names it. May be repeated.",
)
@click.option("--name", default="ptsa-nano", show_default=True)
@click.option("--version", default="1", show_default=True)
@click.option("--metrics", type=FILE, help="JSON list of figures for the manifest.")
@click.option(
    "--note",
    "notes",
    multiple=True,
    help="A sentence on what the maps are not good for: every answer has it, and the page shows it. May be repeated.",
)
@click.option("--licence", default="", help="What the manifest says about the use of weights and data.")
def compile_command(out: Path, sizes: str, metrics: Path | None, settings: tuple[str, ...], **options) -> None:
    """Write the artifact of CHECKPOINT to the folder OUT, if it passes the parity gate."""
    figures = read_figures(metrics) if metrics else ()
    config = CompileConfig(
        out=out, sizes=parse_graph_sizes(sizes), metrics=figures, settings=parse_settings(settings), **options
    )
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


@main.command("lower")
@click.argument("artifact", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--precision", required=True, metavar="LIST", help="fp16, bf16, int8: one, or several by commas.")
@click.option(
    "--data", multiple=True, required=True, metavar="NAME=DIR",
    help="Labelled data set for the gate, like nyu=data/nyu; may be repeated.",
)  # fmt: skip
@click.option("--split", default="val", show_default=True)
@click.option(
    "--photo-count", default=100, show_default=True, type=click.IntRange(min=0),
    help="Labelled photos of each data set that are measured; 0: all.",
)  # fmt: skip
@click.option(
    "--photos", multiple=True, type=click.Path(exists=True, path_type=Path),
    help="Photo, or folder of photos, that int8 is calibrated on; may be repeated.",
)  # fmt: skip
@click.option("--calibration-count", default=16, show_default=True, type=click.IntRange(min=1))
def lower_command(precision: str, data: tuple[str, ...], **options) -> None:
    """Write ARTIFACT and its graphs in lower precision to the folder OUT, if they pass the gate.

    Each task's own metric may lose 1 % by fp16 or bf16, 2 % by int8. In int8, layers that the maps suffer most from are
    found and left in fp32.
    """
    config = LowerConfig(precisions=parse_precisions(precision), data=parse_data(data), **options)
    artifact = lower_artifact(config, report=_report)
    total = sum(path.stat().st_size for path in artifact.folder.iterdir())
    click.echo(f"wrote {config.out}: {total / 2**20:.1f} MiB")
    click.echo(json.dumps(artifact.manifest.provenance["precisions"], indent=2))


@main.command("recompile")
@click.argument("artifact", type=FOLDER)
@click.argument("out", type=FOLDER)
@PHOTOS
@PHOTO_COUNT
def recompile_command(artifact: Path, out: Path, photos: tuple[Path, ...], photo_count: int) -> None:
    """Write ARTIFACT to the folder OUT with graphs that today's passes made faster, if they say the same on photos.

    Its weights stay byte for byte. OUT may be ARTIFACT.
    """
    recompile(artifact, out, photos, photo_count, report=_report)
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
    (only,) = parse_sizes(size)[:1]
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


@main.command("tensorrt")
@click.argument("artifact", type=FOLDER)
@click.option("--runtime", type=click.Choice(list(FLAVOURS)), default=next(iter(FLAVOURS)), show_default=True)
@click.option("--size", "sizes", help="HxW, by commas; default: every size that has a graph of its own.")
@click.option(
    "--batch", "batches", default="1,4,8", show_default=True, help="Photos of a run that it is made fast for."
)
@PRECISION
@BRANCHES
@click.option("--tasks", default="", help="Outputs, by commas; default: all. A plan of fewer is smaller and faster.")
@click.option("--workspace", default=0, type=click.IntRange(min=0), help="MiB for a layer at most; default: no limit.")
@click.option("--level", default=3, show_default=True, type=click.IntRange(0, 5), help="How long to look for speed.")
@click.option("--tf32", is_flag=True, help="fp32 products in TF32: faster, to three digits.")
@click.option("--device", default=0, show_default=True, type=click.IntRange(min=0), help="GPU to build on.")
def tensorrt_command(sizes: str | None, batches: str, tasks: str, workspace: int, level: int, tf32: bool, **options):
    """Build plans of ARTIFACT's graphs for the GPU of this machine, into ARTIFACT.

    A plan runs with the runtime's version and on the kind of GPU that built it, so build where you serve. What is there
    already is not built again. tensorrt_rtx builds on any machine, for RTX cards from Ampere on.

    \b
    python -m export tensorrt runs/model --size 384x512 --batch 1,8
    PTSA_ENGINE=tensorrt ptsa serve --model runs/model
    """
    config = PlansConfig(
        sizes=parse_sizes(sizes) if sizes else (),
        batches=parse_batches(batches),
        tasks=tuple(task.strip() for task in tasks.split(",") if task.strip()),
        options=BuildOptions(workspace_mib=workspace, level=level, tf32=tf32),
        **options,
    )
    build_plans(config, report=_report)


@main.command("triton")
@click.argument("artifact", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option(
    "--backend", type=click.Choice(get_args(Backend)), default="onnxruntime", show_default=True,
    help="onnxruntime: graphs, on any machine. tensorrt: plans that `python -m export tensorrt` built.",
)  # fmt: skip
@click.option("--max-batch", default=8, show_default=True, type=click.IntRange(min=1), help="Photos of one run.")
@click.option(
    "--delay-us", default=0, show_default=True, type=click.IntRange(min=0), help="Longest wait for more photos."
)
@PRECISION
@BRANCHES
def triton_command(**options) -> None:
    """Write ARTIFACT as a model repository of Triton Inference Server to the new folder OUT.

    A model for each size, NAME_HEIGHTxWIDTH. Input `image`: uint8 (N, H, W, 3), RGB, upright, already of that size;
    outputs by the names of the tasks. Resizing, colours and files stay with `ptsa serve`.

    \b
    python -m export triton ptsa_serve/models/ptsa-nano repository
    docker run --gpus all -p 8000:8000 -v $PWD/repository:/models nvcr.io/nvidia/tritonserver:RELEASE-py3 \\
        tritonserver --model-repository=/models
    curl localhost:8000/v2/models/ptsa-nano_192x256/config
    """
    names = write_repository(TritonConfig(**options))
    click.echo(f"wrote {options['out']}: {', '.join(names)}")


def _report(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main(prog_name="python -m export")
