"""What one call of `run` has to do: its jobs, those that have a row already, and where results go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from kdad_bench.datasets import leaks, remarks_on, under_known_names
from kdad_bench.harness.job import Job
from kdad_bench.harness.left_out import planned, without_refused
from kdad_bench.harness.material import copied
from kdad_bench.harness.options import RunOptions
from kdad_bench.harness.output import Work, work_of
from kdad_bench.harness.selection import Selection, selected
from kdad_bench.harness.teachers import from_elsewhere, weights_for, with_teachers_at_hand
from kdad_bench.leaderboard.store import Finished, finished

FEW = 4  # methods that a line names


@dataclass(frozen=True, kw_only=True, slots=True)
class Agenda:
    """The jobs of one call, in the order in which they run."""

    selection: Selection
    work: Work
    jobs: tuple[Job, ...]
    left: tuple[Job, ...]  # to be run
    kept: Mapping[str, Finished]  # job id -> the row that stays
    remarks: tuple[str, ...]  # on the data: what is not used, what lies in two splits
    left_out: tuple[str, ...]  # methods that nobody named and that cannot be run so, a line for each reason

    @property
    def failed(self) -> tuple[Job, ...]:
        """The jobs whose row is a failure and stays."""
        return tuple(job for job in self.jobs if job.id in self.kept and self.kept[job.id].status == "failed")

    @property
    def apart(self) -> tuple[str, ...]:
        """A line where settings that were set put methods of one data set on several boards; none elsewhere.

        Points of an axis are boards, too, and have the same methods each: one of them tells.
        """
        of = {job.name: job for job in reversed(self.jobs)}
        labels: dict[str, list[str]] = {}
        for job in self.jobs:
            if (job.category, job.axes) == (of[job.name].category, of[job.name].axes):
                labels.setdefault(job.preset, []).append(job.name)
        if len(labels) < 2:
            return ()
        boards = "; ".join(f"{label} ({_few(dict.fromkeys(names))})" for label, names in labels.items())
        own = "; a preset in a method's own file needs no --set" if any(job.code for job in self.jobs) else ""
        return (f"settings put the methods on {len(labels)} boards, which are not compared: {boards}{own}",)

    @property
    def incomplete(self) -> bool:
        """Whether the plan tells that this run will not do all that it was asked for."""
        lost = any(
            job.category.faults or (job.weights and job.weights.problem and not job.weights.to_come)
            for job in self.left
        )
        return bool(self.left_out or self.failed or lost)


def agenda(options: RunOptions) -> Agenda:
    """What `options` ask for; raises SelectionError, DatasetError or StoreError with one line."""
    selection, unfit = without_refused(selected(options))
    beside = remarks_on(selection.categories, options.data_root)  # by the names that say where the data lie now
    done = finished(options.out)
    selection = with_known_names(selection, done.values())
    selection, weights, replaced = with_teachers_at_hand(selection, weights_for(selection, options), options)
    jobs, alone = planned(selection, weights)
    work = work_of(options)
    looked = {(job.category.dataset, job.category.name): job.category for job in jobs}.values()
    remarks = (
        *beside,
        *(f"{line}: until then every job of {one.name} fails" for one in looked for line in one.faults),
        *(line for one in looked for line in leaks(one)),
        *copied(jobs),
        *replaced,
        *from_elsewhere(weights, options),
    )
    left = tuple(job for job in jobs if work.redoes(done[job.id].status if job.id in done else None))
    again = {job.id for job in left}
    kept = {job.id: done[job.id] for job in jobs if job.id not in again}
    return Agenda(
        selection=selection,
        work=work,
        jobs=tuple(jobs),
        left=left,
        kept=kept,
        remarks=remarks,
        left_out=(*unfit, *alone),
    )


def _few(names: Iterable[str]) -> str:
    """The first four of them."""
    every = list(names)
    return ", ".join(every[:FEW]) + (", ..." if len(every) > FEW else "")


def with_known_names(selection: Selection, rows: Iterable[Finished]) -> Selection:
    """The selection with the names that `rows` have for the same data: a moved folder keeps its own."""
    known = {(row.category, row.data_fingerprint): row.dataset for row in rows if row.data_fingerprint is not None}
    return replace(selection, categories=under_known_names(selection.categories, known))
