"""`kdad-bench evaluate`: anomaly maps of any other code, judged as ours are, in rows that say where they come from."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from kdad_bench.cli import SIDE, BadInput
from kdad_bench.cli.parameters import (
    DataRoot,
    LocalPath,
    Place,
    complete_category,
    complete_dataset,
    refuse_rows_in_memory,
)
from kdad_bench.leaderboard.text import counted, printable

if TYPE_CHECKING:
    from kdad_bench.harness.evaluate import Evaluation
    from kdad_bench.leaderboard.row import Row

MOST_LINES = 40  # on maps that cannot be used
# of a row in `--json`: what `run --json` says of one, and what only such a row needs to say
TOLD = (
    "job_id", "status", "reason", "method", "variant", "dataset", "category", "seed", "preset", "device",
    "image_auroc", "pixel_auroc", "aupro_30", "latency_ms", "speed_key", "train_seconds", "total_seconds",
    "origin", "resolution",
)  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.argument("maps", type=LocalPath())
@click.option("--name", required=True, help="What the results are called in tables: letters, digits and . _ + -")
@click.option(
    "--dataset",
    "-d",
    required=True,
    metavar="NAME",
    shell_complete=complete_dataset,
    help="mvtec_ad, visa, ..., folder:PATH, tabular:TABLE.",
)
@click.option(
    "--category",
    "-c",
    "categories",
    multiple=True,
    shell_complete=complete_category,
    help="A category. Repeatable.  [default: all]",
)
@click.option("--scores", type=LocalPath(dir_okay=False), help="CSV or Parquet file with the columns image, score.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Seed of the training, for repeats.")
@click.option("--resolution", type=SIDE, default=256, help="Side at which maps and masks are compared, px.")
@click.option(
    "--fit",
    metavar="squash|short-side|pad",
    default="squash",
    help="What --resolution is: the side of a square, or the shorter or the longer side with proportions kept.",
)
@click.option(
    "--modality", type=click.Choice(["rgb", "depth", "rgb+depth"]), default="rgb", help="What the method saw."
)
@click.option("--data-root", type=DataRoot(), envvar="KDAD_DATA", show_envvar=True, help="Folder that holds data sets.")
@click.option("--out", type=Place(), default="results", help="Results folder, local or any fsspec URL.")
@click.option("--pictures/--no-pictures", default=True, help="A contact sheet per category in pictures/.")
@click.option("--dry-run", is_flag=True, help="Read and check everything, say what matched, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object per category on stdout; words on stderr.")
def evaluate(
    maps: Path, name: str, dataset: str, scores: Path | None, seed: int, pictures: bool, dry_run: bool, as_json: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Judge the anomaly MAPS that other code made of the test images: a row per category, flagged as external.

    MAPS is a folder that mirrors the data set (`[CATEGORY/]test/DEFECT/STEM.tiff`; .tiff, .npy, .npz or .png), a CSV
    or Parquet index with the columns image, map and perhaps score, or one .npz file with the arrays maps and names.
    """
    from kdad_bench.datasets import DatasetError
    from kdad_bench.harness.choices import SelectionError
    from kdad_bench.harness.evaluate import EvaluationError, keep
    from kdad_bench.harness.evaluate import evaluate as judged
    from kdad_bench.harness.known_maps import Asked
    from kdad_bench.harness.options import options_from
    from kdad_bench.leaderboard.store import StoreError
    from kdad_bench.metrics import MetricError

    refuse_rows_in_memory(given["out"])
    try:
        said = {key: value for key, value in given.items() if value not in (None, ())}
        options = options_from({**said, "datasets": (dataset,)})
        asked = Asked(maps=maps, name=name, options=options, scores=scores, seed=seed, pictures=pictures)
        with remarks_said():
            found = judged(asked, dry_run=dry_run)
        for line in found.said:
            click.echo(printable(line), err=as_json)
        if not dry_run:
            with remarks_said():
                keep(found, options.out)
        if as_json:
            say_as_json(found)
        if dry_run:
            click.echo("dry run: nothing was judged or written", err=as_json)
            return
        say((one.row for one in found.judged), options.out, as_json=as_json)
    except EvaluationError as error:
        refuse(error.lines)
    except (DatasetError, MetricError, SelectionError, StoreError) as error:
        raise BadInput(str(error)) from error


@contextmanager
def remarks_said() -> Iterator[None]:
    """What reading and judging warn of goes to stderr, a line each, also where it ends in an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for line in dict.fromkeys(str(one.message) for one in caught):
                click.echo(printable(line), err=True)


def refuse(lines: tuple[str, ...]) -> None:
    """Say each fault in a line, and exit with 2."""
    say_some([f"kdad-bench: {' '.join(line.split())}" for line in lines], "kdad-bench: ")
    sys.exit(2)


def say_some(lines: Sequence[str], begin: str = "") -> None:
    """The first lines on stderr, and how many there are more."""
    for line in lines[:MOST_LINES]:
        click.echo(printable(line), err=True)
    if len(lines) > MOST_LINES:
        click.echo(f"{begin}and {counted(len(lines) - MOST_LINES, 'more line')} like these", err=True)


def say_as_json(found: Evaluation) -> None:
    """One object for each category: what matched, and its row; of a dry run the `status` is `none`."""
    rows: dict[int, Row] = {number: one.row for number, one in enumerate(found.judged)}
    for number, match in enumerate(found.matches):
        row = rows.get(number)
        told = {name: getattr(row, name, None) for name in TOLD} | match._asdict()
        click.echo(json.dumps(told if row else {**told, "status": "none"}, allow_nan=False))


def say(rows: Iterable[Row], out: str, *, as_json: bool = False) -> None:
    """One line for each row, and where the pages are; on stderr where stdout is for programs."""
    from kdad_bench.leaderboard.metric import HEADLINE, METRICS
    from kdad_bench.leaderboard.pages import draw_pages

    for row in rows:
        values = {METRICS[metric].label: getattr(row, metric) for metric in HEADLINE}
        told = ", ".join(f"{label} {value:.4f}" for label, value in values.items() if value is not None)
        click.echo(printable(f"{row.job_id}  {row.dataset}/{row.category}: {told}"), err=as_json)
    if "://" in out:
        click.echo(f"rows: {out}", err=as_json)
        return
    draw_pages(out, Path(out))
    pages = ", ".join(os.path.relpath(Path(out) / f"leaderboard.{kind}") for kind in ("md", "html"))
    click.echo(printable(f"external, protocol not verified; leaderboard: {pages}"), err=as_json)
