"""`kdad-bench export`: a saved model as a graph that runs elsewhere, checked against the model at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich_click as click

from kdad_bench.cli import BadInput, Number
from kdad_bench.cli.parameters import METHOD_OF_MODEL, DataRoot, LocalPath
from kdad_bench.files import FULL
from kdad_bench.leaderboard.text import printable

if TYPE_CHECKING:
    from kdad_bench.harness.export import Report


@click.command(context_settings={"show_default": True})
@click.argument("model", type=LocalPath(file_okay=False))
@click.option("--to", "target", type=click.Choice(["torch", "onnx", "openvino"]), required=True, help="The runtime.")
@click.option("--int8", is_flag=True, help="Convolutions in 8 bits (OpenVINO); needs nncf.")
@click.option("--out", type=LocalPath(), help="Folder to write.  [default: one in MODEL, called as the runtime]")
@click.option(
    "--check-on",
    multiple=True,
    metavar="IMAGES",
    help="A file, folder or glob of images, or DATASET/CATEGORY for its test images. Repeatable.",
)
@METHOD_OF_MODEL
@click.option("--data-root", type=DataRoot(), envvar="KDAD_DATA", show_envvar=True, help="Data folder.")
@click.option(
    "--false-alarms",
    type=Number(min=0.0, max=1.0, min_open=True, max_open=True),
    default=0.1,
    help="False-alarm rate that the threshold is to keep.",
)
@click.option(
    "--tolerance", type=Number(min=0.0), help="Relative difference that is accepted.  [default: 1e-3; int8: 0.3]"
)
@click.option("--json", "as_json", is_flag=True, help="export.json on stdout.")
def export(as_json: bool, **given: Any) -> None:
    """Write the saved MODEL, a folder under models/ of a run, as one graph: images in, scores and maps out.

    The graph is run at once on the held-out normals of MODEL, on the images of --check-on and on a few drawn ones, one
    by one and in batches. If a score or map differs from MODEL's by more than the tolerance, or a decision is another,
    nothing is written and the exit code is 1. `kdad-bench predict` takes the folder as it takes MODEL.
    """
    from kdad_bench.datasets import DatasetError
    from kdad_bench.harness.choices import SelectionError
    from kdad_bench.harness.decision import DecisionError
    from kdad_bench.harness.export import Refused, Wanted
    from kdad_bench.harness.export import export as exported
    from kdad_bench.harness.scoring import ScoreError
    from kdad_bench.methods.checkpoint import ModelError
    from kdad_bench.methods.foreign import guarded

    try:
        with guarded():
            found = exported(Wanted(**given))
    except Refused as error:
        raise click.ClickException(str(error)) from error
    except (DatasetError, DecisionError, ModelError, ScoreError, SelectionError) as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        if error.errno in FULL:
            raise
        where = error.filename or given["out"] or given["model"]
        raise BadInput(f"{where}: cannot be written ({error.strerror}); choose --out") from error
    if found.aside:
        click.echo(printable(f"not compared on the model's held-out normals: {found.aside}"), err=True)
    if as_json:
        click.echo(found.exported.model_dump_json(indent=2))
    else:
        say(found)


def say(found: Report) -> None:
    """Where the graph is, and how near it is to its model."""
    exported, certificate = found.exported, found.exported.certificate
    size = sum(file.bytes for file in exported.graph.values()) / 1e6
    click.echo(
        printable(f"{found.folder}  {exported.target} {exported.precision}, {size:.1f} MB, {found.seconds:.0f} s")
    )
    seen = ", ".join(f"{one.count} {one.what}" for one in certificate.images)
    batches = " and ".join(map(str, certificate.batches))
    click.echo(printable(f"compared on {seen}; batch {batches}"))
    limit = "stated only" if certificate.map_tolerance is None else f"{certificate.map_tolerance:g}"
    click.echo(
        f"scores differ by at most {certificate.score_difference:.2g} (tolerance {certificate.score_tolerance:g}), "
        f"maps by {certificate.map_difference:.2g} ({limit})"
    )
    made = certificate.decisions
    if made is None:
        click.echo("decisions not compared: the model has no threshold; train with `run --save-models --hold-out 0.2`")
        return
    tied = f", {made.at_threshold} at the threshold itself" if made.at_threshold else ""
    click.echo(f"{made.flipped} of {made.compared} decisions flipped{tied}; threshold {made.own_threshold:g}")
