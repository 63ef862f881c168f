"""Methods that nobody named and that the settings, the view or the data of a run refuse: left out, and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from kdad_bench.harness.choices import PRESETS, SelectionError
from kdad_bench.harness.job import Job, TeacherWeights
from kdad_bench.harness.lone_batch import refuse_lone_batches
from kdad_bench.harness.one_lot import refuse_shares_of_one_lot
from kdad_bench.harness.plan import configuration, every_job, names_of, preset_of
from kdad_bench.harness.selection import Selection
from kdad_bench.harness.teachers import problem_at, refuse_weights_that_do_not_reach
from kdad_bench.harness.view import refuse_what_cannot_be_seen

Refusals = dict[str, SelectionError]  # method -> why


def without_refused(selection: Selection) -> tuple[Selection, tuple[str, ...]]:
    """`selection` without the methods that refuse its settings, its preset or its view; a line for each reason.

    Methods that were chosen by name, or were given settings of their own, stay: `plan` refuses them, as it does a
    setting that no method has. Raises SelectionError where nothing is left, and for a setting that all who have it
    refuse: then the setting is wrong.
    """
    refused = {method: why for method, _ in selection.methods if (why := refusal(selection, method)) is not None}
    for name in selection.overrides or {}:
        raise_if_all(holders(selection, name), refused)
    raise_if_all([method for method, _ in selection.methods], refused)
    kept = tuple(one for one in selection.methods if one[0] not in refused)
    return replace(selection, methods=kept), lines(refused)


def refusal(selection: Selection, method: str) -> SelectionError | None:
    """Why a method that nobody named cannot be run as `selection` asks; None where it can, or is insisted on."""
    if selection.insists_on(method):
        return None
    resolution = selection.resolution or PRESETS[selection.preset].resolution
    refuse_what_cannot_be_seen(selection.view, resolution)  # by any method
    try:
        refuse_what_cannot_be_seen(selection.view, resolution, [method])
        configuration(selection, method, "")
    except SelectionError as error:
        return error
    return None


def holders(selection: Selection, name: str) -> list[str]:
    """The selected methods that have a setting of that name and use it."""
    from kdad_bench.methods import entry

    there = [method for method, _ in selection.methods if selection.preset in entry(method).presets]
    if name == "teacher":
        there = [method for method in there if entry(method).needs_teacher]
    return [method for method in there if name in names_of(preset_of(method, selection.preset))]


def planned(selection: Selection, weights: Mapping[str, TeacherWeights]) -> tuple[list[Job], tuple[str, ...]]:
    """The jobs of `selection` but for methods that nobody named and that the data or their weights refuse; a line each.

    Raises SelectionError and DatasetError as `plan` does, and where nothing is left.
    """
    jobs, refused = every_job(selection, weights), Refusals()
    refuse_shares_of_one_lot(jobs)
    problem_of = cache(problem_at)  # of this call alone: by the next one the file may be another
    asked = set[tuple[str, str]]()
    for job in jobs:
        if job.method in refused:
            continue
        try:
            if job.code and (job.method, job.variant) not in asked:
                asked.add((job.method, job.variant))
                refuse_what_no_row_can_say(job)
            refuse_weights_that_do_not_reach(job, problem_of)
            refuse_lone_batches(job)
        except SelectionError as error:
            if selection.insists_on(job.method):
                raise
            refused[job.method] = error
    raise_if_all([method for method, _ in selection.methods], refused)
    return [job for job in jobs if job.method not in refused], lines(refused)


def refuse_what_no_row_can_say(job: Job) -> None:
    """Raises SelectionError where a method's own words on its settings fail, or no row takes them: before a training,
    not after it."""
    from kdad_bench.harness.perform import reason_of
    from kdad_bench.harness.run import columns_of
    from kdad_bench.leaderboard.row import Row
    from kdad_bench.methods.foreign import guarded

    try:
        with guarded():
            Row.failed(reason="none yet", **columns_of(job))
    except Exception as error:  # code of others raises anything
        raise SelectionError(
            f"method '{job.method}': no row can be made of its settings ({reason_of(error)}); look at its READINGS, "
            "SETTLED and DEPARTURES"
        ) from error


def raise_if_all(methods: Sequence[str], refused: Refusals) -> None:
    """Raises the first refusal where there are methods and all are refused."""
    if methods and all(method in refused for method in methods):
        raise refused[methods[0]]


def lines(refused: Refusals) -> tuple[str, ...]:
    """`left out: stfpm, rd4ad: why`, one for each reason."""
    reasons: dict[str, list[str]] = {}
    for method, error in refused.items():
        why = str(error).removeprefix(f"method '{method}'").removeprefix(method).lstrip(": ")
        reasons.setdefault(why, []).append(method)
    return tuple(f"left out: {', '.join(methods)}: {why}" for why, methods in reasons.items())
