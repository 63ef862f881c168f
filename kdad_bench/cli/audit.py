"""`kdad-bench audit`: how much a choice of the checkpoint on test images would have flattered each method."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import rich_click as click

from kdad_bench.cli import BadInput
from kdad_bench.cli.left_out import whole
from kdad_bench.cli.parameters import LocalPath
from kdad_bench.leaderboard.markdown_parts import table_of
from kdad_bench.leaderboard.numbers import MISSING
from kdad_bench.leaderboard.text import counted, printable

SHORT = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro_30": "AUPRO@0.3"}
NOWHERE = {"table": None, "entrant": None}  # of a job that no table counts
SAID = (
    "No ranking: by how much the best of a training's points on its own test set beats the state that is kept, which\n"
    "alone is in a row. Each figure has a best point of its own. Mean over jobs (largest)."
)


@click.command()
@click.argument("results", type=LocalPath(), default=Path("results"))
@click.option("--json", "as_json", is_flag=True, help="The curves with their gaps, a JSON object per job.")
def audit(results: Path, as_json: bool) -> None:
    """Show by how much the best checkpoint on the test set beats the one that is kept, per method.

    RESULTS is a folder that `run --audit` wrote to; rankings and comparisons know nothing of what is shown here.
    """
    from kdad_bench.files import DamagedError
    from kdad_bench.harness.audit import AuditError, gaps, read_audits
    from kdad_bench.leaderboard.store import StoreError

    try:
        found = [one | {"gaps": gaps(one)} for one in read_audits(results)]
        places = entrants(results)
    except (AuditError, DamagedError, StoreError) as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        raise BadInput(f"{error.filename}: cannot be read ({error.strerror or error})") from error
    found = [one | places.get(one["job"], NOWHERE) for one in found]
    if as_json:
        for one in found:
            click.echo(json.dumps(one, allow_nan=False))
        return
    click.echo(SAID)
    finished = [one for one in found if one["kept"] is not None]
    known = [one for one in finished if one["table"] is not None]
    for title, members in grouped(known, "table").items():
        click.echo(f"\n{printable(title)}\n")
        for line in table(members).splitlines():
            click.echo(printable(line))
    left_out = {
        ("is of a job that has not ended", "are of jobs that have not ended"): len(found) - len(finished),
        ("is of a job without a row that tables count", "are of jobs without a row that tables count"): (
            len(finished) - len(known)
        ),
    }
    for (of_one, of_several), number in left_out.items():
        if number:
            click.echo(
                f"\n{number} of {counted(len(found), 'audit')} {of_one if number == 1 else of_several}; not counted"
            )


def entrants(results: Path) -> dict[str, dict[str, Any]]:
    """job id -> the table and the line of it that its row counts in, of each row that counts.

    Only what these average may be averaged: a job with other teacher weights, say, is another entrant.
    """
    from kdad_bench.leaderboard.board import boards
    from kdad_bench.leaderboard.pages import rows_of

    return {
        row["job_id"]: {"table": board.title, "entrant": key}
        for board in boards(whole(rows_of(results)).table)
        for key, rows in board.rows.items()
        for row in rows
        if row["preset"] == board.group.preset  # a result of another preset's as well is in two tables
    }


def grouped(audits: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[Mapping[str, Any]]]:
    """The audits by their value of `name`, in order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in audits:
        found.setdefault(one[name], []).append(one)
    return dict(sorted(found.items()))


def table(audits: Sequence[Mapping[str, Any]]) -> str:
    """One line per entrant, in the order of their names."""
    header = ("method", "jobs", "points of a curve", *SHORT.values())
    lines = []
    for entrant, members in grouped(audits, "entrant").items():
        counts = sorted({len(one["curve"]) for one in members})
        points = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        lines.append((entrant, str(len(members)), points, *(cell(members, name) for name in SHORT)))
    return table_of(header, lines, left=(0,))


def cell(audits: Sequence[Mapping[str, Any]], name: str) -> str:
    """`+0.012 (+0.030)`: mean and largest gap of a figure over the jobs that have it."""
    values = [one["gaps"][name] for one in audits if name in one["gaps"]]
    return f"{mean(values):+.3f} ({max(values):+.3f})" if values else MISSING
