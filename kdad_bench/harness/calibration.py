"""A few steps of jobs that this machine has not timed yet, on noise of their size: what a dry run estimates by."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

from kdad_bench.harness.estimate import JOB_SECONDS, kind_of, known_seconds, learning, planned_steps
from kdad_bench.harness.giving_way import computing_with
from kdad_bench.harness.job import Job
from kdad_bench.harness.material import count_of
from kdad_bench.harness.run import build, synchronise
from kdad_bench.methods.protocol import Fitting, Method

IMAGES = 4  # noise that is learnt from and scored
KIND_SECONDS = 2.0  # of one kind, ended at the next step
ALL_SECONDS = 10.0  # of all kinds; those that are left have no calibration


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
            with suppress(Exception):  # methods raise what they like; the job itself will say it in its row
                found[kind] = seconds_of(job, learns=learns)
    return found


def unknown_kinds(
    jobs: Sequence[Job], threads: int | None, learnt: Collection[str] = ()
) -> dict[str, tuple[Job, bool]]:
    """kind -> (its first job, whether that learns), of kinds without a history."""
    found: dict[str, tuple[Job, bool]] = {}
    timed = known_seconds()
    for job, learns in learning(jobs, learnt):
        kind = kind_of(job, threads, learns=learns)
        if kind not in timed:
            found.setdefault(kind, (job, learns))
    return found


def seconds_of(job: Job, *, learns: bool = True) -> float:
    """What the whole of `job` should take: building, learning if it does, scoring, and what every job has."""
    began = time.perf_counter()
    small = replace(job, settings=replace(job.settings, batch_size=min(job.settings.batch_size, IMAGES)))
    channels = 3 * len(job.category.modality.split("+"))
    images = torch.rand((IMAGES, channels, job.resolution, job.resolution), device=torch.device(job.device))
    method = build(small, images.device, images)
    built = time.perf_counter() - began
    fitting, scoring = fit_seconds(method, images, small, job), score_seconds(method, images)
    return built + fitting * learns + scoring * len(job.category.test) / IMAGES + JOB_SECONDS


def fit_seconds(method: Method, images: Tensor, small: Job, job: Job) -> float:
    """What learning from the job's images should take; twice if the first time, with cold caches, was short."""
    took, moments = timed_fit(method, images)
    if took < KIND_SECONDS / 3:
        took, moments = timed_fit(method, images)
    share = count_of(job) / IMAGES
    if not moments:  # it learns in no steps
        return took * share
    steps = [after - before for before, after in pairwise(moments)]
    step = median(steps) if steps else moments[0]
    batch = min(job.settings.batch_size, count_of(job))
    steps_of_job: float = planned_steps(job) * step * batch / small.settings.batch_size
    return (moments[0] - min(step, moments[0])) * share + steps_of_job


def timed_fit(method: Method, images: Tensor) -> tuple[float, list[float]]:
    """Seconds of a fit, and those at which steps ended, all after its start; given up once there are enough."""
    moments: list[float] = []
    began = time.perf_counter()

    def log(step: int, terms: Mapping[str, float]) -> None:
        moments.append(time.perf_counter() - began)
        if len(moments) >= 5 or moments[-1] > KIND_SECONDS:
            raise Enough

    with suppress(Enough):
        method.fit(images, Fitting(log=log, log_every=1))
        synchronise(images.device)
    return time.perf_counter() - began, moments


def score_seconds(method: Method, images: Tensor) -> float:
    """Seconds to score `images`, the second time."""
    method.module.eval()  # a training that was given up left it otherwise
    call: Callable[[], object] = lambda: method.score(images)  # noqa: E731
    with torch.inference_mode():
        call()
        began = time.perf_counter()
        call()
        synchronise(images.device)
    return time.perf_counter() - began
