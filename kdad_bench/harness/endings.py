"""What came of the jobs of one call: each in a line, and the rows that found no place at first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kdad_bench.harness.job import Job
from kdad_bench.harness.on_ray import Ending
from kdad_bench.harness.output import Work
from kdad_bench.harness.perform import kept
from kdad_bench.harness.surroundings import NoResult
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import Row

LINE_METRICS = (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC"), ("aupro_30", "AUPRO"))


def line(job: Job, row: Row | NoResult) -> str:
    """`stfpm synthetic/weave seed 0: image AUROC 0.981, pixel AUROC 0.962, AUPRO 0.911, 7.3 s`."""
    if isinstance(row, NoResult):
        return f"{job.label}: NO RESULT: {row.reason}"
    if row.status != "ok":
        return f"{job.label}: FAILED: {row.reason}"
    numbers = [f"{label} {value(getattr(row, name))}" for name, label in LINE_METRICS]
    took = [] if row.total_seconds is None else [f"{row.total_seconds:.1f} s"]
    return f"{job.label}: {', '.join([*numbers, *took])}"


def value(number: float | None) -> str:
    """Three digits, or a dash for what cannot be measured (no masks)."""
    return "-" if number is None else f"{number:.3f}"


def put_back(endings: list[tuple[Job, Ending]], work: Work) -> int:
    """How many rows of this call had to be written again, and were; `endings` then say how each job stands now.

    A folder that was moved or emptied meanwhile, or was full for a while, gets the rows that are still in memory. An
    older row of the job is none of this call.
    """
    try:
        gone = store.lost([ended for _, ended in endings if isinstance(ended, Row)], work.out)
    except store.StoreError:  # it cannot be looked into: what was written there may be there
        gone = []
    lost = {row.job_id for row in gone}
    restored = 0
    for place, (job, ended) in enumerate(endings):
        row = ended.row if isinstance(ended, NoResult) else ended if job.id in lost else None
        if row is not None:
            again = kept(row, job, work)
            endings[place] = job, again
            restored += isinstance(again, Row)
    return restored


def without_row(jobs: Iterable[Job], endings: Sequence[tuple[Job, Ending]], there: Mapping[str, str]) -> dict[str, str]:
    """job id -> why a job has no row of this call; `there`: the status of each row that the folder holds now, by job.

    An older row of a job that this call was to do again is none.
    """
    reasons = {job.id: str(ended.reason) for job, ended in endings if isinstance(ended, NoResult)}
    return {job.id: reasons.get(job.id, "its row is gone") for job in jobs if job.id in reasons or job.id not in there}


def hidden_failures(endings: Sequence[tuple[Job, Ending]], there: Mapping[str, str]) -> list[Row]:
    """The failed rows of this call that count for nobody, as an older row of their job that is ok stays."""
    rows = (ended for _, ended in endings if isinstance(ended, Row))
    return [row for row in rows if row.status != "ok" and there.get(row.job_id) == "ok"]
