"""How long jobs and plans should take: by what this machine has timed, by a calibration run, by a rule of thumb."""

from __future__ import annotations

import contextlib
import heapq
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median

from kdad_bench.files import CacheError, cache_folder, read_json, write_text_whole
from kdad_bench.harness.job import Job
from kdad_bench.harness.material import count_of
from kdad_bench.leaderboard.text import counted

KEPT = 10  # durations remembered per kind of job
JOB_SECONDS = 1.0  # of any job, beside its training and scoring: reading, metrics, picture, row
LAST = 8  # jobs for each worker at the end of a run, the longest of which begin first
PIXEL_SECONDS = 0.7e-6  # of a training step for each pixel of its batch, one thread, by the rule of thumb


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected seconds of a plan, or None where nothing alike has been timed, and what that rests on."""

    seconds: float | None
    basis: str
    workers: int = 1  # side by side; 0: as many as a cluster has room for, whose jobs are counted one after another

    @property
    def text(self) -> str:
        """One phrase for people."""
        if self.seconds is None:
            return f"no estimate: {self.basis}"
        one = "one after another"
        how = {0: f"{one}, less by what Ray does side by side", 1: one}.get(
            self.workers, f"{self.workers} side by side"
        )
        return f"about {duration(self.seconds)} {how} ({self.basis})"


def estimate(
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    threads: int | None = None,
    start_seconds: float = 0.0,
    calibrated: Mapping[str, float] | None = None,
    learnt: Collection[str] = (),
) -> Estimate:
    """What `jobs` should take, `workers` of them at a time (0: as in `Estimate`) in this order, each with `threads`.

    A job takes the median of this machine's earlier jobs of its kind, else what a calibration run found (`calibrated`,
    kind -> seconds), else the rule of thumb, on the scale of those that learn in steps; with nothing at all there is no
    estimate. `learnt` are the ids of trainings whose model is there.
    """
    if not jobs:
        return Estimate(0.0, "nothing to do")
    kinds = [kind_of(job, threads, learns=learns) for job, learns in learning(jobs, learnt)]
    rules = rules_of_thumb(jobs, learnt)
    timed, tried = known_seconds(), dict(calibrated or {})
    found = [timed.get(kind, tried.get(kind)) for kind in kinds]
    if found.count(None) == len(found):
        return Estimate(None, "no job of these kinds has been timed on this machine yet", workers)
    scaled = scale_of(rules, found)
    whole = [rule * scaled if one is None else one for one, rule in zip(found, rules, strict=True)]
    seconds = makespan(whole, workers) + start_seconds
    sources = {
        "of a kind timed here before": sum(kind in timed for kind in kinds),
        "by a calibration run of a few steps": sum(kind in tried and kind not in timed for kind in kinds),
        "of unknown kinds, by a rule of thumb on the scale of the others": found.count(None),
    }
    said = [f"{count} {words}" for words, count in sources.items() if count]
    return Estimate(seconds, f"{counted(len(jobs), 'job')}: " + ", ".join(said), workers)


def scale_of(rules: Sequence[float], found: Sequence[float | None]) -> float:
    """How many times the rule of thumb the jobs take that learn in steps, of which the seconds are known; 1 of none.

    What other jobs take, loading and scoring alone, tells nothing of the length of a step.
    """
    pairs = [(one, rule) for one, rule in zip(found, rules, strict=True) if one is not None and rule > JOB_SECONDS]
    return sum(one for one, _ in pairs) / sum(rule for _, rule in pairs) if pairs else 1.0


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last of the jobs ends that `workers` take in this order."""
    free = [0.0] * max(1, workers)
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def learning(jobs: Sequence[Job], learnt: Collection[str] = ()) -> Iterator[tuple[Job, bool]]:
    """(job, whether it is the one that learns): of those that share a model the first, unless it is there already."""
    seen = {*learnt}
    for job in jobs:
        yield job, job.training not in seen
        if job.together:
            seen.add(job.training)


def rules_of_thumb(jobs: Sequence[Job], learnt: Collection[str] = ()) -> list[float]:
    """Seconds of each job from its steps and the pixels of a batch: enough to choose how to run it, not to be told
    alone.

    It is the same on every machine and day, so that the same command runs in the same way. A method without a teacher
    is taken to learn nothing in steps.
    """
    return [rule_of_thumb(job) if learns else JOB_SECONDS for job, learns in learning(jobs, learnt)]


def rule_of_thumb(job: Job) -> float:
    """The same of a job that learns."""
    if job.weights is None:
        return JOB_SECONDS
    batch = min(job.settings.batch_size, max(1, count_of(job)))
    seconds: float = planned_steps(job) * batch * job.settings.image_size**2 * PIXEL_SECONDS
    return JOB_SECONDS + seconds


def planned_steps(job: Job) -> int:
    """Optimiser steps of a job of a method that learns in steps."""
    images = max(1, count_of(job))
    per_epoch = ceil(images / min(job.settings.batch_size, images))
    return int(job.settings.steps or job.settings.epochs * per_epoch)


def longest_first_at_the_end(jobs: Sequence[Job], workers: int, threads: int | None) -> list[Job]:
    """`jobs` in their order, but for the last LAST of each worker, of which the longest come first.

    So no core waits at the end for a long job that began late. How long one takes tell this machine's earlier jobs of
    its kind, else the rule of thumb.
    """
    timed, begins = known_seconds(), max(0, len(jobs) - LAST * workers) if workers > 1 else len(jobs)
    last = sorted(jobs[begins:], key=lambda job: -timed.get(kind_of(job, threads), rule_of_thumb(job)))
    return [*jobs[:begins], *last]


def remember(job: Job, seconds: float, threads: int | None, *, learns: bool = True) -> None:
    """Add a duration to this machine's history; a cache folder that cannot be written only costs later estimates."""
    history, kind = read_history(), kind_of(job, threads, learns=learns)
    history[kind] = [*history.get(kind, []), round(seconds, 2)][-KEPT:]
    with contextlib.suppress(OSError, CacheError):
        write_text_whole(history_path(), json.dumps(history, indent=0))


def known_seconds() -> dict[str, float]:
    """kind -> the median of its latest jobs here."""
    return {kind: median(values) for kind, values in read_history().items() if values}


def read_history() -> dict[str, list[float]]:
    """kind -> seconds of its latest jobs; without what is damaged, as it is only a cache."""
    try:
        content = read_json(history_path(), dict)
    except (OSError, ValueError):  # a cache folder that cannot be made and a damaged file are ValueErrors
        return {}
    return {kind: values for kind, values in content.items() if isinstance(values, list) and all(map(is_time, values))}


def is_time(value: object) -> bool:
    """Whether a number of seconds may be a job's: finite, not negative, at most ten years."""
    return type(value) in (int, float) and 0 <= value <= 315_576_000  # type: ignore[operator]


def history_path() -> Path:
    """Where the history lies."""
    return cache_folder() / "durations.json"


def kind_of(job: Job, threads: int | None, *, learns: bool = True) -> str:
    """Jobs of one kind take about as long: same method, budget, resolution, modality, device, threads and data set.

    A job whose model another one has learnt is of a kind of its own.
    """
    device = job.device.partition(":")[0]
    where = f"{device}*{threads}" if device == "cpu" and threads else device
    modality = "" if job.category.modality == "rgb" else f"|{job.category.modality}"
    judged = "" if learns else "|judged"
    return f"{job.name}|{job.preset}|{job.resolution}|{where}|{job.category.dataset}{modality}{judged}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
