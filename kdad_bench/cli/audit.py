"""`kdad-bench audit`: how much a choice of the checkpoint on test images would have flattered each method."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import rich_click as click

from kdad_bench.cli import BadInput
from kdad_bench.cli.parameters import LocalPath
from kdad_bench.leaderboard.markdown_parts import table_of
from kdad_bench.leaderboard.numbers import MISSING
from kdad_bench.leaderboard.text import counted, printable

SHORT = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro_30": "AUPRO@0.3"}
GROUP = ("dataset", "modality", "preset", "resolution", "point", "device")  # what is never averaged with another
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

    try:
        found = [one | {"gaps": gaps(one)} for one in read_audits(results)]
    except (AuditError, DamagedError) as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        raise BadInput(f"{error.filename}: cannot be read ({error.strerror or error})") from error
    if as_json:
        for one in found:
            click.echo(json.dumps(one, allow_nan=False))
        return
    click.echo(SAID)
    for place, members in grouped(found, GROUP).items():
        click.echo(f"\n{printable(title(place))}\n")
        for line in table(members).splitlines():
            click.echo(printable(line))
    unfinished = sum(one["kept"] is None for one in found)
    if unfinished:
        of = "is of a job that has" if unfinished == 1 else "are of jobs that have"
        click.echo(f"\n{unfinished} of {counted(len(found), 'audit')} {of} not ended; not counted")


def grouped(
    audits: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """The finished audits by their values of `names`, in order."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in audits:
        if one["kept"] is not None:
            found.setdefault(tuple(one.get(name) for name in names), []).append(one)
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


def title(place: tuple[Any, ...]) -> str:
    """What all jobs of a table share."""
    dataset, modality, preset, resolution, point, device = place
    return ", ".join(filter(None, (dataset, modality, f"preset {preset}", f"{resolution} px", point, device)))


def table(audits: Sequence[Mapping[str, Any]]) -> str:
    """One line per method, in the order of their names."""
    header = ("method", "jobs", "points of a curve", *SHORT.values())
    lines = []
    for (method,), members in grouped(audits, ("method",)).items():
        counts = sorted({len(one["curve"]) for one in members})
        points = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        lines.append((method, str(len(members)), points, *(cell(members, name) for name in SHORT)))
    return table_of(header, lines, left=(0,))


def cell(audits: Sequence[Mapping[str, Any]], name: str) -> str:
    """`+0.012 (+0.030)`: mean and largest gap of a figure over the jobs that have it."""
    values = [one["gaps"][name] for one in audits if name in one["gaps"]]
    return f"{mean(values):+.3f} ({max(values):+.3f})" if values else MISSING
