"""`kdad-bench predict`: a saved model on new images."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from kdad_bench.cli import BadInput, Number
from kdad_bench.cli.parameters import METHOD_OF_MODEL, LocalPath, refuse_both
from kdad_bench.files import FULL
from kdad_bench.leaderboard.text import printable

if TYPE_CHECKING:
    from kdad_bench.harness.predict import Prediction, Predictions

VERDICTS = {None: "", True: "  ANOMALOUS", False: "  normal"}


@click.command(context_settings={"show_default": True})
@click.argument("model", type=LocalPath(file_okay=False))
@click.argument("images", nargs=-1, required=True)
@METHOD_OF_MODEL
@click.option("--threshold", type=Number(), help="Call an image anomalous above this score.")
@click.option("--normals", type=LocalPath(), help="Folder of normal images, not trained on, to fit it on.")
@click.option(
    "--false-alarms",
    type=Number(min=0.0, max=1.0, min_open=True, max_open=True),
    show_default="0.1; of an exported MODEL, that of its export",
    help="False-alarm rate that the fitted threshold is to keep.",
)
@click.option("--out", type=LocalPath(), help="Folder for overlay PNGs and predictions.json.")
@click.option("--device", default="auto", help="auto, cpu or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def predict(model: Path, images: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Score IMAGES (files, folders or globs) with the saved MODEL, a folder under models/ of a run.

    The decision threshold comes from --threshold, from the normal images in --normals, or from normals that the model
    never saw: a validation split of its data set, or what `run --save-models --hold-out SHARE` kept from it. Without
    any of them only scores are given.

    An image that cannot be read is named, the others are scored, and the exit code is 1 (2 if none could be scored).
    Hidden files, masks and scans beside photographs, and the overlays of earlier calls are no images.
    """
    from kdad_bench.harness import predict as harness
    from kdad_bench.harness.choices import SelectionError
    from kdad_bench.harness.decision import DecisionError
    from kdad_bench.harness.scoring import ScoreError
    from kdad_bench.methods.checkpoint import ModelError
    from kdad_bench.methods.foreign import guarded

    refuse_both("--threshold", "--false-alarms")
    with folder_for(given["out"]):
        try:
            with guarded():
                found = harness.predict(model, images, **given)
        except (DecisionError, ModelError, ScoreError, SelectionError) as error:
            raise BadInput(str(error)) from error
        except OSError as error:
            if error.errno in FULL:
                raise
            where = error.filename or given["out"]
            raise BadInput(f"{where}: cannot be written ({error.strerror}); choose --out") from error
    show(found, as_json=as_json)
    sys.exit(0 if not found.failed else 1 if found.images else 2)


@contextlib.contextmanager
def folder_for(out: Path | None) -> Iterator[None]:
    """Make the folder for pictures, if one was named, before anything takes long; an error takes it away again, empty.

    Raises BadInput where it cannot be made.
    """
    try:
        new = [one for one in (out, *out.parents) if not one.exists()] if out is not None else []
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out}: no folder can be made there ({error.strerror}); choose --out") from error
    try:
        yield
    except BaseException:
        for one in new:
            with contextlib.suppress(OSError):  # it holds something by now
                one.rmdir()
        raise


def show(found: Predictions, *, as_json: bool) -> None:
    """The answer on stdout; what failed, and what was not used, on stderr."""
    failed = (*found.normals_failed, *found.failed)
    for line in (*found.not_used, *(one.reason for one in failed)):
        click.echo(f"kdad-bench: {printable(line)}", err=True)
    if as_json:
        click.echo(found.as_json)
    elif found.images:
        for one in found.images:
            say(one)
        for line in (found.threshold_from, *found.notes):
            click.echo(line, err=True)


def say(one: Prediction) -> None:
    """One line: score, verdict, file."""
    click.echo(f"{one.score:.6g}{VERDICTS[one.anomalous]}  {printable(one.image)}")
