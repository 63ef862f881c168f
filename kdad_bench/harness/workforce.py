"""How many jobs run side by side, where, and with how many threads each.

A job on a CPU computes with one thread unless it is told otherwise, so that its numbers do not depend on how many cores
the machine has or on what runs beside it: sums that several threads make are rounded in another order. The cores are
used by jobs side by side, one on each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdad_bench import allowance
from kdad_bench.harness.estimate import makespan, rules_of_thumb
from kdad_bench.harness.job import Job, fused_late
from kdad_bench.harness.material import count_of
from kdad_bench.harness.options import RunOptions
from kdad_bench.methods.foreign import guarded

START_SECONDS = 6.0  # until worker processes have imported torch and all methods and take jobs, all cores busy with it
WORKER_BYTES = 1 << 30  # of a worker, before the images and the step of its job
LONG_SECONDS = 120.0  # of a run, by the rule of thumb, from which idle cores are worth a word
MOST_DRAWERS = 12  # of a job: FractalAD's samples of 256 px take some ten times what a fast GPU learns from them in
STEP_BYTES = 2048  # of each pixel of a training batch: activations, gradients and optimiser state of a ResNet


@dataclass(frozen=True, slots=True)
class Workforce:
    """Where the jobs of a run are carried out."""

    executor: str  # in-process, local or ray
    workers: int  # jobs at a time; of ray: what its cluster has room for, 0
    threads: int | None  # of each job; None: the share of the cores that torch or a worker takes
    drawers: int = 0  # processes that draw samples ahead of each training
    gpu_share: float | None = None  # of the GPU's memory, that each job may take; None: all of it

    @property
    def text(self) -> str:
        """One phrase for people; empty where there is nothing to tell."""
        if self.executor != "local" or self.workers == 1:
            return ""
        threads = " with one thread each" if self.threads == 1 else ""
        share = f" with {self.gpu_share:.3g} of the GPU's memory each" if self.gpu_share else ""
        return f"{self.workers} side by side{threads}{share}"


def workforce(jobs: Sequence[Job], options: RunOptions) -> Workforce:
    """Who carries out `jobs`, all on one device, as far as `options` leave it open."""
    on_cpu = not any(job.device.startswith("cuda") for job in jobs)
    return on_a_cpu(jobs, options) if on_cpu else on_a_gpu(jobs, options)


def on_a_gpu(jobs: Sequence[Job], options: RunOptions) -> Workforce:
    """The same for jobs on a GPU: one at a time, unless a number of workers or a share of the GPU is said."""
    share, threads = options.gpu_fraction, options.threads
    at_a_time = options.workers or min(jobs_on_a_gpu(share), max(1, len(jobs)))
    share = share or (1 / at_a_time if at_a_time > 1 else None)
    bound = share if share is not None and share < 1 else None
    drawers = drawers_beside(at_a_time) if options.drawers is None else options.drawers
    if options.executor == "ray":
        return Workforce("ray", 0, threads, drawers, bound)
    apart = options.executor == "local" or options.job_timeout is not None or at_a_time > 1 or bound is not None
    apart = apart or to_itself(jobs, options)
    return Workforce("local" if apart else "in-process", at_a_time, threads, drawers, bound)


def jobs_on_a_gpu(share: float | None) -> int:
    """How many jobs of so large a `share` one GPU holds."""
    return int(1 / (share or 1.0) + 1e-9)


def drawers_beside(jobs: int) -> int:
    """How many processes may draw samples for each of so many jobs on a GPU: each job needs a core of its own."""
    return max(0, min(MOST_DRAWERS, allowance.cores() // jobs - 1))


def on_a_cpu(jobs: Sequence[Job], options: RunOptions) -> Workforce:
    """The same for jobs on a CPU, which draw samples themselves unless it is said: the cores are used as it is."""
    found = cores_shared(jobs, options)
    return replace(found, drawers=options.drawers or 0)


def cores_shared(jobs: Sequence[Job], options: RunOptions) -> Workforce:
    """As many jobs at a time as there are cores and memory for, where that is worth the processes' start."""
    threads = options.threads or 1
    if options.executor == "ray":
        return Workforce("ray", 0, threads)
    processes = options.executor == "local" or options.job_timeout is not None  # only a process can be stopped
    processes = processes or to_itself(jobs, options)
    if options.executor == "in-process" or (options.workers == 1 and not processes):
        return Workforce("in-process", 1, threads)
    workers = options.workers or side_by_side(jobs, threads)
    if options.workers is None and not processes and not worth_it(jobs, workers):
        workers = 1
    return Workforce("local" if processes or workers > 1 else "in-process", workers, threads)


def to_itself(jobs: Sequence[Job], options: RunOptions) -> bool:
    """Whether a process of its own is for code from outside this package, which may end whatever process it is in,
    unless it is said where jobs run."""
    return options.executor is None and options.workers is None and any(job.code for job in jobs)


def hint(jobs: Sequence[Job], force: Workforce) -> str:
    """What a person may do about cores that a long run leaves idle; empty where it is short or leaves none."""
    left = allowance.cores() // max(1, force.workers)
    if force.threads != 1 or force.executor == "ray" or left < 2 or sum(rules_of_thumb(jobs)) < LONG_SECONDS:
        return ""
    return (
        f"jobs compute with one thread, so that their numbers are those of any run: --threads {left} is faster here "
        "and rounds sums otherwise"
    )


def side_by_side(jobs: Sequence[Job], threads: int) -> int:
    """As many workers as there are jobs, cores and memory for; at least one."""
    if not jobs:
        return 1
    room = allowance.memory_bytes() // max(map(bytes_of, jobs))
    return max(1, min(len(jobs), allowance.cores() // threads, room))


def bytes_of(job: Job) -> int:
    """About as much memory as a worker takes for `job` at most: itself, the images as floats twice, a step, and what
    its method keeps of the normal images, where that says it."""
    category, side = job.category, job.settings.image_size
    learnt = max(1, count_of(job) if job.together else len(category.train))
    images = max(learnt, len(category.test)) * len(category.modality.split("+"))
    batch = min(job.settings.batch_size, learnt)
    step: int = batch * side**2 * STEP_BYTES
    windows = 1 if job.view.plain else 4  # as many pixels in windows: what overlaps, and proportions up to 2 to 1
    whole: int = WORKER_BYTES + images * 3 * 4 * (windows * job.resolution**2 + side**2) + step
    along = -(-job.resolution // job.view.side(job.resolution))
    seen = learnt * windows * along**2  # squares that are learnt from
    # a late fusion has a detector for each modality
    return whole + kept_bytes(job, seen) * (len(job.category.modality.split("+")) if fused_late(job) else 1)


def kept_bytes(job: Job, images: int) -> int:
    """What the method says that it keeps of so many `images`; 0 of one from outside that says no number."""
    try:
        with guarded():
            return max(0, int(job.settings.kept_bytes(images)))
    except Exception:  # of code that is not ours: it is an estimate, and no run ends for it
        return 0


def worth_it(jobs: Sequence[Job], workers: int) -> bool:
    """Whether `workers` side by side end sooner than one after another, their start counted."""
    seconds = rules_of_thumb(jobs)
    return sum(seconds) > START_SECONDS + makespan(seconds, workers)
