"""What `kdad-bench run` tells at its end: the table, the leaderboard, what failed and what has no row."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from kdad_bench.leaderboard.text import counted, printable

if TYPE_CHECKING:
    from kdad_bench.harness.agenda import Agenda
    from kdad_bench.harness.job import Job
    from kdad_bench.harness.on_ray import Ending
    from kdad_bench.harness.output import Work
    from kdad_bench.leaderboard.store import Results


class PlainConsole(Console):
    """A console whose texts steer no terminal: names of files, categories and settings are input."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As Console.print, with every character that does not show as itself written as an escape."""
        safe = ("\n".join(map(printable, one.split("\n"))) if isinstance(one, str) else one for one in objects)
        super().print(*safe, **options)


def stopped(total: int, console: Console, endings: Sequence[tuple[Job, Ending]] = (), *, force: bool = False) -> int:
    """Say what of the `endings` is kept and how to go on; exit code 130. With `force` the same call redoes all."""
    from kdad_bench.harness.surroundings import NoResult

    for job, ended in endings:
        if isinstance(ended, NoResult):
            console.print(f"no result: {job.label}: {ended.reason}", markup=False)
    command = shlex.join(["kdad-bench", *sys.argv[1:]])
    how = "run all of them again with" if force else "go on with"
    console.print(f"Stopped. Finished jobs are kept ({total} were to run); {how}: {command}", markup=False)
    return 130


def report(
    found: Agenda, endings: Sequence[tuple[Job, Ending]], restored: int, console: Console, seconds: float, as_json: bool
) -> int:
    """The summary table, the leaderboard files, the failures. `restored`: how many rows were written again.

    Exit code 1 if a planned job has failed or has no row of this run where it was to make one, or a method that nobody
    named was left out.
    """
    from kdad_bench.cli.summary_table import summary_table
    from kdad_bench.harness.endings import hidden_failures, without_row

    ids = {job.id for job in found.jobs}
    results = what_is_there(found)
    ours = [row for row in results.rows() if row["job_id"] in ids] if results else []
    if not as_json and ours:
        console.print(summary_table(ours))
    where, complete = drawn(found.work, results)
    console.print(f"{counted(len(endings), 'job')} run in {seconds:.0f} s; {where}", markup=False)
    if restored:
        lost = f"{counted(restored, 'row')} of this run had no place in {found.work.out} at first, or left it"
        console.print(f"{lost}: written there again", markup=False)
    there = {row["job_id"]: row["status"] for row in ours}
    without, hidden = without_row(found.jobs, endings, there), hidden_failures(endings, there)
    failed = [row for row in ours if row["status"] != "ok" and row["job_id"] not in without]
    say_failures(failed, len(ids), console, "retry them with --retry-failed")
    redone = [{**asdict(row), "reason": f"{row.reason} (its earlier row stays)"} for row in hidden]
    say_failures(redone, len(ids), console, "redo them with --force")
    say_without_row(without, there, found, console)
    for line in (*found.left_out, *found.apart):
        console.print(line, markup=False)
    return 1 if failed or hidden or without or found.left_out or not complete else 0


def what_is_there(found: Agenda) -> Results | None:
    """What the results folder holds now; None where it cannot be read."""
    from kdad_bench.leaderboard import store
    from kdad_bench.leaderboard.board import DRAWN

    try:
        return store.read(found.work.out, DRAWN)
    except store.StoreError:
        return None


def say_failures(failed: Sequence[Mapping[str, Any]], planned: int, console: Console, remedy: str) -> None:
    """A line for each failed row, and the remedy."""
    for row in failed:
        console.print(
            f"failed: {row['method']} {row['dataset']}/{row['category']} seed {row['seed']}: {row['reason']}",
            markup=False,
        )
    if failed:
        console.print(f"{len(failed)} of {planned} jobs failed; {remedy}", markup=False)


def say_without_row(without: Mapping[str, str], there: Mapping[str, str], found: Agenda, console: Console) -> None:
    """A line for each job that has no row of this run, and the remedy; `there`: the status of each row, by job."""
    for job in found.jobs:
        if job.id in without:
            console.print(f"no result: {job.label}: {without[job.id]}", markup=False)
    if without:
        earlier = [there[job] for job in without if job in there]
        but = f", {len(earlier)} of them but an earlier one" if earlier else ""
        how = " with --force" if "ok" in earlier else " with --retry-failed" if earlier else ""
        many = f"{len(without)} of {len(found.jobs)} jobs have no row in {found.work.out}{but}"
        console.print(f"{many}; run them again{how}", markup=False)


def drawn(work: Work, results: Results | None) -> tuple[str, bool]:
    """Draw the leaderboard beside rows on this machine; (where it is, or the rows are, or why not, whether it is)."""
    from kdad_bench.leaderboard.pages import draw_pages
    from kdad_bench.leaderboard.store import StoreError

    if results is None:
        return f"no leaderboard: {work.out} cannot be read", False
    if work.beside is None:
        return f"rows: {work.out}", True
    try:
        draw_pages(work.out, work.beside, found=results)
    except StoreError as error:
        return f"no leaderboard: {error}", False
    pages = (os.path.relpath(work.beside / f"leaderboard.{kind}") for kind in ("md", "html"))
    return f"leaderboard: {', '.join(pages)}", True
