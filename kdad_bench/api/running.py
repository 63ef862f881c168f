"""`kdad_bench.run`: the command of the same name as a function."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kdad_bench.api.keywords import fields_of, keywords, said_as_keywords
from kdad_bench.api.results import OF_A_FAILURE, Results, failure
from kdad_bench.harness.agenda import Agenda, agenda
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.config import options_and_file
from kdad_bench.harness.endings import hidden_failures, line, put_back, without_row
from kdad_bench.harness.executors import outcomes
from kdad_bench.harness.measuring import NotMeasured, measured, nobody, wanted
from kdad_bench.harness.options import RunOptions
from kdad_bench.harness.selection import refuse_contradictions
from kdad_bench.leaderboard.row import Row

if TYPE_CHECKING:
    from kdad_bench.harness.job import Job
    from kdad_bench.harness.on_ray import Ending

Path = str | os.PathLike[str]


def run(
    methods: str | Path | Sequence[str | Path] | None = None,
    datasets: str | Path | Sequence[str | Path] | None = None,
    categories: str | Sequence[str] | None = None,
    *,
    seeds: int | Sequence[int] | None = None,
    preset: str | None = None,
    device: str | None = None,
    out: Path | None = None,
    data_root: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    weights: Path | Mapping[str, Path] | None = None,
    progress: Callable[[str], object] | None = None,
    **options: Any,
) -> Results:
    """Train and evaluate: a row per job in the results folder `out` ("results"), as `kdad-bench run` does. What is
    finished stays.

    `methods` are names, `name:variant`, or files of methods; `datasets` names, `folder:PATH`, or files of data sets;
    without them, and without `categories` or `seeds`, all there are, or the preset's. An empty list is refused.
    `settings` go to all methods that have them; a mapping inside, under a method's name, goes to that one. `weights` is
    a file for every teacher, "random", or a mapping from teachers to files. Unless said here or in a `config` file,
    `device` is "auto" and `data_root` KDAD_DATA. Every other option of the command is a keyword of its name:
    `steps=100`, `hold_out=0.2`, `everything=True`. Jobs run one after another in this process unless `workers`,
    `executor` or `job_timeout` say otherwise.

    `progress` is called with one line as each job ends; nothing is printed otherwise. Jobs that failed are rows that
    say so (`Results.failed`), and one warning. Methods that nobody named and that cannot be run so are left out, with a
    warning for each reason.

    Raises SelectionError or DatasetError (ValueErrors) for what cannot be run, a results folder that cannot be written
    among it, before anything is run, and StoreError for one that cannot be read or is a file; each is one line with the
    remedy.
    """
    said = {
        "methods": methods, "datasets": datasets, "categories": categories, "seeds": seeds, "preset": preset,
        "device": device, "out": out, "data_root": data_root, "settings": settings, "weights": weights, **options,
    }  # fmt: skip
    if progress is not None and not callable(progress):
        raise SelectionError(f"progress={progress!r} is not callable; give a function that takes a line, as print")
    if options.get("executor") is None and options.get("workers") is None:
        said["workers"] = 1  # processes would run a caller's script anew
    with said_as_keywords():
        asked = options_and_file(fields_of(said), os.environ.get("KDAD_DATA") or None)
        refuse_contradictions(asked)
        found = agenda(asked)
        for remark in found.left_out:
            warnings.warn(keywords(remark), stacklevel=2)
        endings: list[tuple[Job, Ending]] = []
        try:
            with torch_as_it_was(), closing(outcomes(found.left, found.work, lambda _: None, asked)) as stream:
                for job, ended in stream:
                    endings.append((job, ended))
                    if progress is not None:
                        progress(line(job, ended))
        finally:  # also where the caller stops it: what ended well is kept
            put_back(endings, found.work)
        unmeasured = measure_speed(found, endings, asked, progress)
    put_back(endings, found.work)  # what was lost while speed was measured
    remarks = (*found.remarks, *found.left_out, *found.apart, *unmeasured)
    results = Results(found.work.out, jobs=[job.id for job in found.jobs], remarks=[keywords(one) for one in remarks])
    warn_of_failures(found, endings, results)
    return results


def measure_speed(
    found: Agenda,
    endings: Sequence[tuple[Job, Ending]],
    asked: RunOptions,
    progress: Callable[[str], object] | None,
) -> list[str]:
    """Measure what has no measurement yet, as the command does after its jobs; a line for each that has none then."""
    rows = [row for _, ended in endings if (row := ended if isinstance(ended, Row) else ended.row) is not None]
    todo, elsewhere = wanted(found, rows, asked)
    lines = [one.line for one in elsewhere]
    anew = bool(asked.measure_speed or found.work.force)
    for made in measured(todo, found.work.out, anew=anew, tell=progress or nobody):
        if isinstance(made, NotMeasured):
            lines.append(made.line)
        elif progress is not None:
            progress(f"{made.method} at {made.configuration.get('resolution')} px: speed measured")
    return lines


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """Jobs in this process choose threads and algorithms; afterwards they are the caller's again."""
    import torch

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)


def warn_of_failures(found: Agenda, endings: Sequence[tuple[Job, Ending]], results: Results) -> None:
    """One warning where jobs failed or have no row of this call, with the reason of the first."""
    rows = results.read(("job_id", *OF_A_FAILURE)).rows()
    there = {row["job_id"]: row["status"] for row in rows}
    without = without_row(found.jobs, endings, there)
    lines = [failure(row) for row in rows if row["status"] != "ok" and row["job_id"] not in without]
    lines += [failure(asdict(row)) for row in hidden_failures(endings, there)]
    lines += [f"{job.label}: no result: {without[job.id]}" for job in found.jobs if job.id in without]
    if lines:
        warnings.warn(
            f"{len(lines)} of {len(found.jobs)} jobs have no result; {lines[0]}; Results.failed has those that "
            "no earlier row hides, retry_failed=True runs them again",
            stacklevel=3,
        )
