"""A few steps of jobs that this machine has not timed yet, on noise of their size: what a dry run estimates by."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log

import torch
from torch import Tensor

from kdad_bench.harness.estimate import JOB_SECONDS, kind_of, known_seconds, learning, planned_steps, rules_of_thumb
from kdad_bench.harness.giving_way import computing_with
from kdad_bench.harness.job import Job
from kdad_bench.harness.material import count_of
from kdad_bench.harness.run import build, synchronise
from kdad_bench.methods.foreign import guarded
from kdad_bench.methods.protocol import Fitting, Method

SIZES = (4, 16, 48)  # images of noise that are learnt from, as far as the time of a kind goes
SCORED = 2  # of them are scored
STEPS = 4  # of a training, in which each of its stages has its share
FIT_SECONDS = 2.0  # of one fit, ended at the next step
NEXT_SECONDS = 4.0  # that a fit of the next size may be expected to take
STEEPEST = 2.0  # exponent of the number of images that a time is taken to grow with
ALL_SECONDS = 20.0  # of all kinds; those that are left have no calibration


class Enough(Exception):
    """Ends a training whose steps have been timed."""


def calibrations(
    jobs: Sequence[Job], threads: int | None, learnt: Collection[str] = (), seconds: float = ALL_SECONDS
) -> dict[str, float]:
    """kind -> expected seconds of one job, of the kinds among `jobs` never timed here, as far as `seconds` go.

    `learnt`: ids of trainings whose model is there. A job that fails at once is of a kind without an estimate.
    """
    found: dict[str, float] = {}
    ends = time.perf_counter() + seconds
    with computing_with(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noise is no data: what a method says of it is for nobody
        for kind, (job, learns) in unknown_kinds(jobs, threads, learnt).items():
            if time.perf_counter() > ends:
                break
            with suppress(Exception), guarded():  # methods raise what they like; the job itself will say it in its row
                found[kind] = seconds_of(job, learns=learns)
    return found


def unknown_kinds(
    jobs: Sequence[Job], threads: int | None, learnt: Collection[str] = ()
) -> dict[str, tuple[Job, bool]]:
    """kind -> (its first job, whether that learns), of kinds without a history; first those of which all jobs together
    should take longest, by the rule of thumb."""
    found: dict[str, tuple[Job, bool]] = {}
    whole: dict[str, float] = {}
    timed, rules = known_seconds(), rules_of_thumb(jobs, learnt)
    for (job, learns), rule in zip(learning(jobs, learnt), rules, strict=True):
        kind = kind_of(job, threads, learns=learns)
        if kind not in timed:
            found.setdefault(kind, (job, learns))
            whole[kind] = whole.get(kind, 0.0) + rule
    return {kind: found[kind] for kind in sorted(found, key=lambda kind: -whole[kind])}


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What a few images cost, in seconds of `now`."""

    images: int
    batch: int
    building: float
    beside: float  # of the fit beside its steps: before the first, between two stages, after the last
    step: float | None  # of one step; None: it learns in none
    score: float  # of one image

    @property
    def whole(self) -> float:
        """All of it but for the steps, which cost the next size no more than this one."""
        return self.building + self.beside + self.score * SCORED


def seconds_of(job: Job, *, learns: bool = True) -> float:
    """What the whole of `job` should take: building, learning if it does, scoring, and what every job has.

    On a CPU trials are timed by what the processors work, as small differences count, and the sum is stretched by how
    much longer than that the trials took: what other work holds of the cores is in it once.
    """
    build(job, torch.device(job.device), noise(1, job))  # what a process loads once is no part of a job
    began, own = time.perf_counter(), now(job)
    count = max(1, count_of(job))
    trials = list(tried(job, count))
    scoring = score_of_one(trials, job, count) * len(job.category.test)
    found = trials[-1].building + learns * fit_seconds(trials, job, count) + scoring
    worked = now(job) - own
    stretched = (time.perf_counter() - began) / worked if worked > 0 else 1.0
    return (found + JOB_SECONDS) * stretched


def now(job: Job) -> float:
    """Seconds of the clock for `job`: with a GPU the wall's, else those in which processors worked for this process."""
    return time.perf_counter() if job.device.startswith("cuda") else time.process_time()


def score_of_one(trials: Sequence[Trial], job: Job, count: int) -> float:
    """Seconds to score one image after learning from `count`: as in a trial, unless it learns in no steps, as then what
    is kept of the images may decide; of one trial alone the settings have to say that."""
    last = trials[-1]
    if last.step is not None:
        return last.score
    compared: Callable[[int], int] = job.settings.compared
    if not compared(count):
        return beyond([(one.images, one.score) for one in trials], count, 0.0)
    points = [(compared(one.images), one.score) for one in trials]
    return beyond(points, compared(count), last.score / points[-1][0])


def fit_seconds(trials: Sequence[Trial], job: Job, count: int) -> float:
    """What learning from the job's `count` images should take.

    Where a trial took so long that it is the only one, most of it is taken to be the same for any number of images:
    one more costs at most what it takes to score it.
    """
    last = trials[-1]
    besides = [(one.images, one.beside) for one in trials]
    beside = beyond(besides, count, min(last.beside / last.images, last.score))
    if last.step is None:
        return max(beside, by_a_power(besides, count))
    batch = min(job.settings.batch_size, count)
    steps = [(one.batch, one.step or 0.0) for one in trials]
    return beside + planned_steps(job) * beyond(steps, batch, last.step / last.batch)


def beyond(points: Sequence[tuple[int, float]], at: int, each: float) -> float:
    """What `at` images should take by what fewer took, (images, seconds) ascending: on the line through the last two;
    with one number of images only, `each` for every image more."""
    (fewer, less), (last, seconds) = (points[0], *points)[-2:]
    slope = each if fewer == last else max(0.0, seconds - less) / (last - fewer)
    return seconds + slope * max(0, at - last)


def by_a_power(points: Sequence[tuple[int, float]], at: int) -> float:
    """The same on the power through the last two: what compares images with each other is more than a line."""
    (fewer, less), (last, seconds) = (points[0], *points)[-2:]
    if at <= last or not 0 < less < seconds:
        return seconds
    rises: float = min(STEEPEST, log(seconds / less) / log(last / fewer))
    found: float = seconds * (at / last) ** rises
    return found


def tried(job: Job, count: int) -> Iterator[Trial]:
    """Trials with more and more images, until the next would take long or tells nothing more of a job with `count`."""
    for size, larger in zip(SIZES, (*SIZES[1:], None), strict=True):
        found = trial(job, size)
        yield found
        enough = size >= count or larger is None or (found.step is not None and size > SIZES[0])
        if enough or found.whole * larger / size > NEXT_SECONDS:  # type: ignore[operator]
            return


def trial(job: Job, count: int) -> Trial:
    """Build the method of `job`, let it learn from `count` images of noise, and score a few."""
    batch = min(job.settings.batch_size, count)
    short = replace(job.settings, batch_size=batch, steps=min(STEPS, max(1, planned_steps(job))))
    images = noise(count, job)
    began = now(job)
    method = build(replace(job, settings=short), images.device, images)
    built = now(job) - began
    moments = timed_fit(method, images, job)
    beside, step = parted(moments)
    return Trial(
        images=count, batch=batch, building=built, beside=beside, step=step, score=score_seconds(method, images, job)
    )


def noise(count: int, job: Job) -> Tensor:
    """So many images [count, 3 M, R, R] in [0, 1], of the size and on the device of the job's."""
    channels = 3 * len(job.category.modality.split("+"))
    return torch.rand((count, channels, job.resolution, job.resolution), device=torch.device(job.device))


def parted(moments: Sequence[float]) -> tuple[float, float | None]:
    """(seconds of a fit beside its steps, seconds of a step or None) from when each step and then the fit ended.

    A step lasts as long as the shorter of it and the one after it, of the last the one before: what a stage begins with
    is none of it.
    """
    steps = [after - before for before, after in pairwise((0.0, *moments[:-1]))]
    if not steps:
        return moments[-1], None
    plain = [min(pair) for pair in pairwise((*steps, steps[-2:][0]))]
    return max(0.0, moments[-1] - sum(plain)), sum(plain) / len(plain)


def timed_fit(method: Method, images: Tensor, job: Job) -> list[float]:
    """Seconds from the start of a fit to the end of each of its steps, and to its own; given up once it takes long."""
    moments: list[float] = []
    began = now(job)

    def log_step(step: int, terms: Mapping[str, float]) -> None:
        moments.append(now(job) - began)
        if len(moments) > 1 and moments[-1] > FIT_SECONDS:
            raise Enough

    with suppress(Enough):
        method.fit(images, Fitting(log=log_step, log_every=1))
        synchronise(images.device)
    return [*moments, now(job) - began]


def score_seconds(method: Method, images: Tensor, job: Job) -> float:
    """Seconds to score one of `images`, the second time unless the first was long."""
    method.module.eval()  # a training that was given up left it otherwise
    taken = 0.0
    with torch.inference_mode():
        for _ in range(2):
            began = now(job)
            method.score(images[:SCORED])
            synchronise(images.device)
            taken = now(job) - began
            if taken > FIT_SECONDS / 4:
                break
    return taken / SCORED
