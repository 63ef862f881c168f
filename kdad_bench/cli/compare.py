"""`kdad-bench compare`: what changed between two methods or two results folders; for people and for CI."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click
from click.core import ParameterSource

from kdad_bench.cli import BadInput, Number
from kdad_bench.cli.left_out import whole
from kdad_bench.cli.parameters import Place, spelt
from kdad_bench.leaderboard.metric import ACCURACY, HEADLINE, METRICS
from kdad_bench.leaderboard.text import printable

if TYPE_CHECKING:
    import pyarrow as pa

    from kdad_bench.leaderboard.compare import Difference


@click.command()
@click.argument("first", type=Place(), metavar="FIRST")
@click.argument("second", type=Place(), metavar="SECOND")
@click.option(
    "--results",
    type=Place(),
    default="results",
    show_default=True,
    help="Results folder, when FIRST and SECOND are methods.",
)
@click.option(
    "--metric", "metrics", multiple=True, help=f"Column to compare, repeatable.  [default: {', '.join(HEADLINE)}]"
)
@click.option(
    "--tolerance",
    type=Number(min=0),
    default=0.005,
    show_default=True,
    help="A change of an accuracy up to this is none (costs: 10 %).",
)
@click.option("--all", "everything", is_flag=True, help="Also the categories without a sure change.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_context
def compare(
    context: click.Context,
    first: str,
    second: str,
    results: str,
    metrics: tuple[str, ...],
    tolerance: float,
    everything: bool,
    as_json: bool,
) -> None:
    """Compare SECOND with FIRST: two methods (`stfpm rd4ad`, `stfpm stfpm:held_out`) or two results folders.

    Jobs are paired by category and seed, and as in the leaderboard by the scores of their images where the rows have
    them, else by seeds alone. A change counts if it is larger than the tolerance and the 95 % interval of the
    difference, where there is one, excludes zero. Regressions come first. Exit code 1 if there are any. Jobs and
    figures that one side has alone are no regressions; stderr names them. A method of which a job ran away to values
    that are not finite is not judged, as the mean of its other jobs flatters it; stderr names those, too.
    """
    from kdad_bench.datasets.category import suggestion
    from kdad_bench.leaderboard import compare as comparison
    from kdad_bench.leaderboard.board import DRAWN, boards
    from kdad_bench.leaderboard.store import StoreError, read

    wanted = tuple(dict.fromkeys(metrics)) or HEADLINE
    for name in wanted:
        if name not in METRICS:
            raise BadInput(f"--metric {spelt(name, METRICS)}: no such column; have: {', '.join(METRICS)}")
    folders = _is_folder(first) and _is_folder(second)
    if folders and context.get_parameter_source("results") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--results is for two methods; FIRST and SECOND are results folders")
    for name in (first, second):
        if os.sep in name and not _is_folder(name):
            raise BadInput(f"{name}: no such results folder")
    table: pa.Table | None = None
    columns = (*DRAWN, *(name for name in wanted if name not in DRAWN))
    try:
        if folders:
            before, after = (whole(read(one, columns)).table for one in (first, second))
            found = comparison.of_folders(before, after, wanted, tolerance)
            alone = comparison.one_sided_of_folders(before, after, wanted)
            away = comparison.ran_away_of_folders(before, after)
        else:
            table = whole(read(results, columns)).table
            found = comparison.of_methods(table, first, second, wanted, tolerance)
            alone = comparison.one_sided_of_methods(table, first, second, wanted)
            away = comparison.ran_away_of_methods(table, first, second)
    except (StoreError, comparison.NothingToCompare) as error:
        if _is_folder(first) != _is_folder(second):
            folder, other = (first, second) if _is_folder(first) else (second, first)
            raise BadInput(
                f"{other}: no such results folder, as {folder} is; give two folders or two methods"
            ) from error
        known = {key for board in boards(table) for key in board.rows} if table is not None else set[str]()
        unknown = [name for name in (first, second) if not {name, f"external:{name}"} & known]
        hints = [f"; {spelt(name, known)}" for name in unknown if suggestion(name, known)]
        raise BadInput(f"{error}{''.join(hints)}") from error
    worse = sum(one.verdict == "worse" for one in found)
    if as_json:
        click.echo(_as_json(found))
    else:
        _say(
            [one for one in found if everything or one.verdict != "same" or one.category.startswith("mean of ")]
            or found
        )
        for words in _limits(found):
            click.echo(f"\n{words}")
        better, unjudged = (sum(one.verdict in of for one in found) for of in (["better"], comparison.UNJUDGED))
        rest = len(found) - worse - better - unjudged
        told = f", {unjudged} not judged" if unjudged else ""
        click.echo(f"\n{worse} worse, {better} better, {rest} without a sure change{told}")
    for line in (*away, *alone):
        click.echo(f"kdad-bench: {printable(line)}", err=True)
    context.exit(1 if worse else 0)


def _limits(found: list[Difference]) -> Iterator[str]:
    """What the judgements do not rest on, a line for each kind."""
    from kdad_bench.leaderboard.compare import UNJUDGED  # loads numpy
    from kdad_bench.leaderboard.images import METRICS as IMAGE_METRICS
    from kdad_bench.leaderboard.spread import SEEDS

    found = [one for one in found if one.verdict not in UNJUDGED]
    by_image = [one for one in found if one.metric in IMAGE_METRICS]
    if any(one.evidence == SEEDS for one in by_image):
        yield (
            "Judged by seeds: these rows do not hold the scores of the same images on both sides (or hold too few), so "
            "that other test images may turn the difference round."
        )
    if any(one.evidence == SEEDS and one.metric in ACCURACY for one in found if one not in by_image):
        yield "Figures of pixels are judged by seeds: rows hold nothing of them for single images."
    if any(not one.evidence and one.difference for one in found):
        yield "Judged by the tolerance alone: neither seeds nor the scores of images tell how far chance moves these."


def _as_json(found: list[Difference]) -> str:
    lines = [{**dataclasses.asdict(one), "difference": one.difference} for one in found]
    return json.dumps(lines, indent=1, allow_nan=False)


def _is_folder(name: str) -> bool:
    return "://" in name or Path(name).is_dir()


def _say(found: list[Difference]) -> None:
    """One aligned table per board and pair, regressions at the top of each."""
    groups: dict[tuple[str, str], list[Difference]] = {}
    for one in found:
        groups.setdefault((one.board, one.method), []).append(one)
    for (board, method), members in groups.items():
        click.echo(f"\n{printable(method)}\n{printable(board)}")
        lines = [("", "metric", "category", "first", "second", "difference", "95 % interval", "jobs", "judged by")]
        for one in members:
            around = "none" if one.low is None else f"[{one.low:+.4f}, {one.high:+.4f}]"
            lines.append((
                one.verdict if one.verdict != "same" else "", one.metric, one.category, f"{one.first:.4f}",
                f"{one.second:.4f}", f"{one.difference:+.4f}", around, str(one.pairs),
                one.judged_by,
            ))  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = [
                cell.rjust(w) if 3 <= i < 8 else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ]
            click.echo(printable("  ".join(cells).rstrip()))
