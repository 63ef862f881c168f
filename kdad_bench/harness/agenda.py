"""What one call of `run` has to do: its jobs, those that have a row already, and where results go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kdad_bench.harness.job import Job
from kdad_bench.harness.options import RunOptions
from kdad_bench.harness.output import Work, work_of
from kdad_bench.harness.plan import plan
from kdad_bench.harness.selection import Selection, selected
from kdad_bench.harness.teachers import weights_for
from kdad_bench.leaderboard.store import Finished, finished


@dataclass(frozen=True, kw_only=True, slots=True)
class Agenda:
    """The jobs of one call, in the order in which they run."""

    selection: Selection
    work: Work
    jobs: tuple[Job, ...]
    left: tuple[Job, ...]  # to be run
    kept: Mapping[str, Finished]  # job id -> the row that stays


def agenda(options: RunOptions) -> Agenda:
    """What `options` ask for; raises SelectionError, DatasetError or StoreError with one line."""
    selection = selected(options)
    jobs = plan(selection, weights_for(selection, options))
    work = work_of(options)
    done = finished(work.out)
    left = tuple(job for job in jobs if work.redoes(done[job.id].status if job.id in done else None))
    again = {job.id for job in left}
    kept = {job.id: done[job.id] for job in jobs if job.id not in again}
    return Agenda(selection=selection, work=work, jobs=tuple(jobs), left=left, kept=kept)
