"""`kdad-bench bench`: this harness against the same work written as official codes write it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdad_bench.cli import COUNT, SIDE, BadInput
from kdad_bench.cli.parameters import METHOD_OF_MODEL, DataRoot, LocalPath, complete_dataset
from kdad_bench.cli.tables import show
from kdad_bench.leaderboard.text import printable

if TYPE_CHECKING:
    from kdad_bench.harness.end_to_end import Comparison

SHOWN = ("image_auroc", "pixel_auroc", "aupro_30")


@click.group()
def bench() -> None:
    """Time the harness beside a plain PyTorch loop, and a saved model in each runtime that it can be exported to."""


@bench.command(name="end-to-end")
@click.option("--category", default=None, help="A category.  [default: the first]")
@click.option(
    "--dataset", default="synthetic", show_default=True, shell_complete=complete_dataset, help="The data set."
)
@click.option("--data-root", type=DataRoot(), envvar="KDAD_DATA", show_envvar=True, help="Data folder.")
@click.option("--steps", type=COUNT, default=60, show_default=True, help="Optimiser steps.")
@click.option("--size", type=SIDE, default=128, show_default=True, help="Side of the images, px.")
@click.option("--batch-size", type=COUNT, default=16, show_default=True, help="Training batch.")
@click.option("--teacher", default="efficientnet_lite0", show_default=True, help="The teacher of both.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="The seed of both.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def end_to_end(as_json: bool, **given: Any) -> None:
    """Train and evaluate STFPM on one category, once by a plain loop and once by this harness; print the ratios.

    Same method, data, teacher, number of steps, batch and optimiser, on the CPU, one after the other in this process.
    The plain loop decodes each image each time, runs the teacher at each step, evaluates one image at a time, and
    computes its metrics with scikit-learn and a loop over 200 thresholds. Needs scikit-learn.
    """
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise BadInput("bench end-to-end needs scikit-learn: pip install 'kdad-bench[bench]'") from error
    from kdad_bench.harness.choices import SelectionError
    from kdad_bench.harness.end_to_end import Task, compare

    try:
        found = compare(Task(**given))
    except SelectionError as error:
        raise BadInput(str(error)) from error
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    console = Console(highlight=False)
    show(table_of(found))
    for name in SHOWN:
        console.print(f"{name}: plain loop {found.plain_metrics[name]:.4f}, kdad-bench {found.metrics[name]:.4f}")
    console.print(found.environment, markup=False)


@bench.command(name="export")
@click.argument("model", type=LocalPath(file_okay=False))
@METHOD_OF_MODEL
@click.option("--rounds", type=COUNT, default=100, show_default=True, help="Calls of each runtime.")
@click.option("--data-root", type=DataRoot(), envvar="KDAD_DATA", show_envvar=True, help="Data folder.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def export(model: Path, method: str | None, rounds: int, data_root: Path | None, as_json: bool) -> None:
    """Time the saved MODEL in each runtime that it can be exported to: median ms per image, batch 1, on the CPU.

    All run in this process and take turns, from the pixels of an image (uint8, decoded and reduced) to its score and
    map. What is not installed is said and left out.
    """
    from kdad_bench.harness.choices import SelectionError
    from kdad_bench.harness.decision import DecisionError
    from kdad_bench.harness.export_speed import speeds_of
    from kdad_bench.methods.checkpoint import ModelError

    try:
        found = speeds_of(model, method=method, rounds=rounds, data_root=data_root)
    except (DecisionError, ModelError, SelectionError) as error:
        raise BadInput(str(error)) from error
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    console = Console(highlight=False)
    title = f"{escape(found.method)}, {found.side} px, median of {found.rounds} calls"
    table = Table("runtime", "ms/image", "times as fast", title=title, title_justify="left")
    for one in found.timings:
        if one.ms is not None:
            table.add_row(one.runtime, f"{one.ms:.2f}", f"{one.ratio:.2f}x")
    show(table)
    for one in found.timings:
        if one.why:
            click.echo(printable(f"{one.runtime}: not measured ({one.why})"))
    console.print(found.environment, markup=False)


def table_of(found: Comparison) -> Table:
    """Seconds of both sides and their ratio, by part."""
    from kdad_bench.harness.end_to_end import PARTS

    table = Table("part", "plain loop, s", "kdad-bench, s", "ratio", title=escape(found.what), title_justify="left")
    parts = {part: (found.plain[part], found.ours[part]) for part in PARTS}
    inference, metrics = parts["inference"], parts["metrics"]
    parts["evaluation (inference + metrics)"] = (inference[0] + metrics[0], inference[1] + metrics[1])
    for part, (plain, ours) in parts.items():
        table.add_row(part, f"{plain:.3f}", f"{ours:.3f}", f"{plain / ours:.1f}x")
    return table
