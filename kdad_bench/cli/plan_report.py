"""What a run tells before it begins: what lies in the data, what is about to happen, or, of a dry run, the plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import rich_click as click
from rich.console import Console

from kdad_bench.leaderboard.text import counted

if TYPE_CHECKING:
    from kdad_bench.harness.agenda import Agenda
    from kdad_bench.harness.estimate import Estimate
    from kdad_bench.harness.options import RunOptions
    from kdad_bench.harness.workforce import Workforce


def say_remarks(found: Agenda, console: Console) -> None:
    """What lies in the data and is not used, or lacks, which methods are left out or on a board of their own, a line
    each."""
    for remark in (*found.remarks, *found.left_out, *found.apart):
        console.print(remark, markup=False)


def say_plan(found: Agenda, force: Workforce, console: Console) -> None:
    """The remarks on the data, and one line on what is about to happen."""
    say_remarks(found, console)
    methods = counted(len({job.name for job in found.jobs}), "method")
    places = {(job.category.dataset, job.category.name) for job in found.jobs}
    selection, skipped = found.selection, len(found.jobs) - len(found.left)
    categories, seeds = counted(len(places), "category"), counted(len(selection.seeds), "seed")
    points = f" x {counted(len(selection.axes), 'point')}" if len(selection.axes) > 1 else ""
    rest = f", {skipped} already finished" if skipped else ""
    shared = len({job.training for job in found.jobs if job.together})
    points += f", one model for the categories of a data set ({counted(shared, 'training')})" if shared else ""
    how = f", {force.text}" if force.text else ""
    console.print(
        f"{counted(len(found.jobs), 'job')}: {methods} x {categories} x {seeds}{points}, "
        f"preset {selection.preset}, {selection.device}{rest}{how}",
        markup=False,
    )


def say_that_it_is_busy(busy: float, console: Console) -> None:
    """Tell that times will be too long where other work holds much of the machine."""
    from kdad_bench.harness.environment import MOST_BUSY

    if busy > MOST_BUSY:
        console.print(
            f"other work keeps {busy:.0%} of the processors busy: times will be too long, accuracies stay the same",
            markup=False,
        )


def say(words: str, console: Console) -> None:
    """A line, if there is anything to say."""
    if words:
        console.print(words, markup=False)


def say_what_is_not_redone(found: Agenda, console: Console) -> None:
    """Tell what finished jobs lack of what this call asks for: other code ran them, or they left no model or maps."""
    from kdad_bench.harness.environment import git_state
    from kdad_bench.harness.output import lacking

    known = [(row.git_commit, row.git_dirty) for row in found.kept.values() if row.git_commit]
    own = git_state() if known else (None, None)
    others = sum(state != own for state in known) if own[0] else 0
    if others:
        console.print(f"{others} of the finished jobs were run by another state of the code; --force redoes them")
    for what, without in lacking(found.kept, found.work).items():
        if without:
            console.print(f"{without} of the finished jobs have no saved {what}; --force redoes them")


def show_plan(found: Agenda, options: RunOptions, console: Console) -> None:
    """Print what would run and how long it should take."""
    ids = {job.id for job in found.left}
    failed = {job.id for job in found.failed}
    for job in found.jobs:
        if options.as_json:
            plan = {"job_id": job.id, "label": job.label, "preset": job.preset, "run": job.id in ids}
            click.echo(json.dumps({**plan, "failed": job.id in failed}))
            continue
        mark = "run " if job.id in ids else "fail" if job.id in failed else "done"
        console.print(f"{mark}  {job.id}  {job.label}  [{job.preset}]", markup=False)
        if job.id in ids and job.weights and job.weights.problem:
            fate = "needs" if job.weights.to_come else "will fail"
            console.print(f"      {fate}: {job.weights.problem}", markup=False)
    guess = expected(found, options, console)
    jobs, left = len(found.jobs), len(found.left)
    if options.as_json:
        total = {"jobs": jobs, "to_run": left, "estimate_seconds": guess.seconds, "basis": guess.basis}
        click.echo(json.dumps({**total, "workers": guess.workers or None}))
        return
    trainings = len({job.training for job in found.left if job.together})
    shared = f" with {counted(trainings, 'shared model')}" if trainings else ""
    console.print(f"{counted(jobs, 'job')}, {jobs - left} finished, {left} to run{shared}; {guess.text}", markup=False)
    if failed:
        console.print(f"{len(failed)} of the finished jobs failed; retry them with --retry-failed", markup=False)


def expected(found: Agenda, options: RunOptions, console: Console) -> Estimate:
    """How long what is left should take; kinds of jobs that were never timed here are tried for a few seconds."""
    from kdad_bench.harness import together
    from kdad_bench.harness.calibration import ALL_SECONDS, calibrations, unknown_kinds
    from kdad_bench.harness.estimate import estimate
    from kdad_bench.harness.on_ray import refuse_no_ray
    from kdad_bench.harness.workforce import START_SECONDS, workforce

    force = workforce(found.left, options)
    if force.executor == "ray":
        refuse_no_ray(options.address)
    learnt = {job.training for job in found.left if together.kept(job, found.work) is not None}
    unknown = len(unknown_kinds(found.left, force.threads, learnt))
    if unknown:
        console.print(f"trying a few steps of {counted(unknown, 'kind')} of jobs, about {ALL_SECONDS:.0f} s")
    return estimate(
        found.left,
        workers=force.workers,
        threads=force.threads,
        start_seconds=START_SECONDS if force.executor == "local" else 0.0,
        calibrated=calibrations(found.left, force.threads, learnt),
        learnt=learnt,
    )
