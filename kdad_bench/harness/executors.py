"""Where jobs run: in this process, in worker processes or on a Ray cluster; each job's ending comes as it ends."""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from kdad_bench import allowance, children, streams
from kdad_bench.harness.environment import memory_at_start_mb
from kdad_bench.harness.estimate import longest_first_at_the_end
from kdad_bench.harness.giving_way import computing_with, giving_way
from kdad_bench.harness.job import Job
from kdad_bench.harness.on_ray import ATTEMPTS, BUSY_RETRY_SECONDS, Ending, Outcomes, Started, on_ray, refuse_no_ray
from kdad_bench.harness.options import RunOptions
from kdad_bench.harness.output import Work
from kdad_bench.harness.perform import perform, reason_of, record_failure
from kdad_bench.harness.plain_warnings import say_plainly
from kdad_bench.harness.surroundings import NoResult
from kdad_bench.harness.workforce import Workforce, workforce
from kdad_bench.interrupts import AT_ONCE, by_a_person
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods import METHODS, entry
from kdad_bench.outside import OutsideError, text_of

LOOK_SECONDS = 0.2  # between two looks at the clock while workers say nothing
LOST_STARTS = 10  # workers in a row that may die before they are ready
LATE = ("pyarrow.compute", "pyarrow.parquet", "scipy.ndimage", "torch.utils.flop_counter")
COMPILER = "torch._dynamo"  # every optimiser imports it
UNSENT = "it cannot be sent to a process of its own"
UNREAD = "a process of its own cannot read it"
SENDABLE = "define the class of its settings at the top of its file, or give --executor in-process"
DYING_SECONDS = 30.0  # that a killed worker is waited for: a dead network drive may hold it for ever
CHILDREN: set[BaseProcess] = getattr(multiprocessing.process, "_children", set())  # of this process
READY = "ready"  # what a worker says once it can take a job
HELD = (signal.SIGINT, signal.SIGHUP)


def outcomes(
    jobs: Sequence[Job],
    work: Work,
    started: Started,
    options: RunOptions,
    force: Workforce | None = None,
    *,
    in_order: bool = False,
) -> Outcomes:
    """(job, its row or `NoResult`) of the executor that `options` choose; SelectionError if it is not there.

    `force` is what `workforce` made of both, where the caller has it already. `in_order`: worker processes begin the
    last jobs in their order too, not the longest first, as suits a run that is to be stopped before its end.
    """
    streams.hold()
    force = force or workforce(jobs, options)
    work = replace(work, drawers=force.drawers, gpu_share=force.gpu_share)
    if force.executor == "ray":
        refuse_no_ray(options.address)
        return on_ray(
            jobs, work, started, address=options.address,
            job_timeout=options.job_timeout, gpu_fraction=options.gpu_fraction or 1.0, threads=force.threads,
        )  # fmt: skip
    if force.executor == "local":
        return local(
            jobs, work, started,
            workers=force.workers, job_timeout=options.job_timeout, threads=force.threads, in_order=in_order,
            measured_after=options.measure_speed is not False and not options.time_every_job,
        )  # fmt: skip
    return in_process(jobs, work, started, force.threads)


def in_process(jobs: Sequence[Job], work: Work, started: Started, threads: int | None = None) -> Outcomes:
    """Run the jobs one after another here. A job that another runner is busy with is waited for at the end."""
    waiting = deque(jobs)
    with computing_with(threads), giving_way():
        while waiting:
            busy: deque[Job] = deque()
            for job in waiting:
                started(job)
                row = perform(job, work)
                if row is None:
                    busy.append(job)
                else:
                    yield job, row
            if len(busy) == len(waiting):
                time.sleep(BUSY_RETRY_SECONDS)
            waiting = busy


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block has ended; a process that is started inside holds it until it handles it."""
    resource_tracker.ensure_running()  # started later, it would let interrupts through again
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


@dataclass
class Worker:
    """One worker process, the pipe to it, and the job it holds."""

    process: BaseProcess
    pipe: Connection
    ready: bool = False  # it has imported what it needs and waits for jobs
    job: Job | None = None
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker that will not answer: why, and whether its job is worth another try."""

    why: str
    again: bool


@dataclass(frozen=True, slots=True)
class Unread:
    """A job that its worker could not read: why. The worker lives."""

    why: str


@dataclass
class Pool:
    """Spawned workers, one per device share; a dead or hanging one is replaced and its job retried or failed.

    Only a worker that said it is ready gets a job: what kills a starting or idle one costs no job a try, and the time
    it takes to start counts against none.
    """

    work: Work
    workers: int
    job_timeout: float | None
    started: Started
    waiting: deque[Job]
    late: Sequence[str] = LATE  # modules that workers import before they take a job
    threads: int | None = None  # of each worker; None: its share of the cores
    running: list[Worker] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    not_before: dict[str, float] = field(default_factory=dict)
    lost_starts: int = 0  # workers in a row that died before they were ready, or could not be started
    refused: str = ""  # why the last of those could not be started; nothing where it died

    @property
    def busy(self) -> int:
        """Jobs that a worker holds."""
        return sum(worker.job is not None for worker in self.running)

    @property
    def ending(self) -> bool:
        """Whether a core is idle from now on: nothing waits, and the last jobs are fewer than the workers."""
        return not self.waiting and self.busy < self.workers

    def step(self) -> Iterator[tuple[Job, Ending]]:
        """Start workers, hand out jobs, hear what happened; the jobs that ended."""
        self.fill()
        yield from self.hand_out()
        for worker, answer in self.answers():
            yield from self.settle(worker, answer)
        if self.lost_starts >= LOST_STARTS and not any(worker.ready for worker in self.running):
            yield from self.give_up()

    def fill(self) -> None:
        """Have as many workers as there is work for."""
        while len(self.running) < min(self.workers, len(self.waiting) + self.busy) and self.lost_starts < LOST_STARTS:
            try:
                self.spawn()
            except OSError as error:  # killed before it had read what it is to do, or no process can be made
                self.refused = "" if isinstance(error, BrokenPipeError) else error.strerror or str(error)
                if self.running:  # those there are go on; the next look tries again
                    return
                self.lost_starts += 1
                time.sleep(LOOK_SECONDS)  # a limit of processes or files may be gone by then

    def spawn(self) -> Worker:
        """Start one worker with its share of the cores; raises OSError."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        threads = self.threads or max(1, allowance.cores() // self.workers)
        process = context.Process(target=serve, args=(theirs, self.work, threads, os.getpid(), self.late), daemon=True)
        try:
            with interrupts_held(), children.spawning():  # a starting worker would answer Ctrl-C with a traceback
                process.start()
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = Worker(process=process, pipe=ours)
        self.running.append(worker)
        return worker

    def hand_out(self) -> Iterator[tuple[Job, Ending]]:
        """Give each worker that waits the first job that may run now; those that cannot be given have failed."""
        for worker in [worker for worker in self.running if worker.ready and worker.job is None]:
            now = time.monotonic()
            job = next((job for job in self.waiting if self.not_before.get(job.id, 0.0) <= now), None)
            if job is None:
                return
            try:
                message = ForkingPickler.dumps(job)
            except Exception as error:  # settings are of a person's class
                self.waiting.remove(job)
                yield job, record_failure(job, self.work, f"{UNSENT} ({reason_of(error)}); {SENDABLE}")
            else:
                if self.give(worker, job, message):
                    self.waiting.remove(job)

    def give(self, worker: Worker, job: Job, message: memoryview) -> bool:
        """Hand `job`, as `message` says it, to an idle worker; false if that one is dead: its pipe ends, and `answers`
        says so."""
        try:
            worker.pipe.send_bytes(message)
        except OSError:  # a broken pipe
            return False
        worker.job, worker.since = job, time.monotonic()
        self.attempts[job.id] = self.attempts.get(job.id, 0) + 1
        self.started(job)
        return True

    def retire(self, worker: Worker) -> None:
        """Kill a worker and forget it; one that hangs in the kernel is left behind, to die once that lets it go."""
        if worker.process.is_alive():
            worker.process.kill()
        worker.process.join(DYING_SECONDS)
        if worker.process.is_alive():
            CHILDREN.discard(worker.process)  # else Python would wait for it at its own end
        worker.pipe.close()
        self.running.remove(worker)

    def answers(self) -> Iterator[tuple[Worker, Ending | Unread | Gone | str | None]]:
        """(worker, READY, how its job ended, None when another runner holds that, `Unread` or `Gone`), as far as there
        are."""
        pipes = {worker.pipe: worker for worker in self.running}
        for ready in wait(list(pipes), timeout=LOOK_SECONDS):
            worker = pipes[ready]  # type: ignore[index]
            yield worker, heard(worker)
        if self.job_timeout is None:
            return
        for worker in [w for w in self.running if w.job and time.monotonic() - w.since > self.job_timeout]:
            yield worker, Gone(f"it ran longer than --job-timeout {self.job_timeout:g} s", again=False)

    def settle(self, worker: Worker, answer: Ending | Unread | Gone | str | None) -> Iterator[tuple[Job, Ending]]:
        """What follows from an answer: the job that ended, if one did."""
        job, worker.job = worker.job, None
        if isinstance(answer, Gone):
            self.retire(worker)
            if not worker.ready:
                self.lost_starts, self.refused = self.lost_starts + 1, ""
            if job is not None:
                yield from self.lost(job, answer)
        elif answer == READY:
            worker.ready, self.lost_starts = True, 0
        elif job is not None and isinstance(answer, Row | NoResult):
            yield job, answer
        elif job is not None and isinstance(answer, Unread):
            yield job, record_failure(job, self.work, answer.why)
        elif job is not None:
            self.attempts[job.id] -= 1  # it was not tried: another runner holds it
            self.not_before[job.id] = time.monotonic() + BUSY_RETRY_SECONDS
            self.waiting.append(job)

    def lost(self, job: Job, gone: Gone) -> Iterator[tuple[Job, Ending]]:
        """Another try for a job whose worker died, or its failed row."""
        if gone.again and self.attempts[job.id] < ATTEMPTS:
            self.waiting.append(job)
        else:
            yield job, record_failure(job, self.work, gone.why)

    def give_up(self) -> Iterator[tuple[Job, Ending]]:
        """No worker lives long enough to take a job."""
        self.lost_starts = 0
        died = f"{LOST_STARTS} worker processes in a row died as they started"
        why = f"no worker process can be started ({self.refused}); try a smaller --workers" if self.refused else died
        while self.waiting:
            yield self.waiting.popleft(), NoResult(why)


def heard(worker: Worker) -> Any:
    """The next message of a worker whose pipe has something to say; `Gone` where that is its end."""
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):  # OSError: in the middle of a message
        worker.process.join(timeout=5)
        return Gone(f"its worker process died ({death(worker.process.exitcode)})", again=True)


def local(
    jobs: Sequence[Job],
    work: Work,
    started: Started,
    *,
    workers: int,
    job_timeout: float | None,
    threads: int | None = None,
    in_order: bool = False,
    measured_after: bool = False,
) -> Outcomes:
    """Run the jobs in `workers` spawned processes, each with `threads` or its share of the cores.

    Where speed is `measured_after` them in this process, it imports what it needs for that while the last jobs leave a
    core idle; nothing of it runs any more when the last has ended.

    A worker that dies (kill -9, out of memory) costs only its own job, which is tried once more and then recorded as
    failed; one that holds a job for more than `job_timeout` seconds is killed and its job recorded as failed at once.
    """
    waiting = jobs if in_order else longest_first_at_the_end(jobs, workers, threads)
    late = imported_late(jobs)
    pool = Pool(
        work=work, workers=workers, job_timeout=job_timeout, started=started, threads=threads,
        waiting=deque(waiting), late=late,
    )  # fmt: skip
    ahead: threading.Thread | None = None
    try:
        while pool.waiting or pool.busy:
            if measured_after and ahead is None and pool.ending:
                ahead = threading.Thread(target=warm_up_quietly, args=(late,))
                ahead.start()
            yield from pool.step()
        if ahead is not None:
            ahead.join()
    finally:
        for worker in list(pool.running):
            pool.retire(worker)


def death(exitcode: int | None) -> str:
    """`signal SIGKILL`, `signal 40` where it has no name, or `exit code 3`."""
    if exitcode is None:
        return "no exit code"
    if exitcode < 0:
        named = {int(one): one.name for one in signal.Signals}
        return f"signal {named.get(-exitcode, -exitcode)}"
    return f"exit code {exitcode}"


def serve(pipe: Connection, work: Work, threads: int, parent: int, late: Sequence[str]) -> None:
    """A worker's life: jobs in, rows out, until the pipe closes. It never outlives the runner that started it."""
    children.spawned()
    sys.stderr = streams.lasting(sys.stderr, streams.STDERR)
    for number in HELD:  # Ctrl-C is the runner's to handle, and the end of the terminal nobody's
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=die_with, args=(parent,), daemon=True).start()
    say_plainly()
    import torch

    torch.set_num_threads(threads)
    warm_up(late)
    memory_at_start_mb("cpu")
    with contextlib.suppress(EOFError, OSError), giving_way():  # the runner is gone, and with it whom to answer
        pipe.send(READY)
        while True:
            pipe.send(answered(pipe.recv_bytes(), work))


def answered(message: bytes, work: Work) -> Ending | Unread | None:
    """How the job ended that `message` says, None when another runner holds it.

    A method's file is run as its job is read, and may raise anything in a process that is not the one of the plan.
    """
    try:
        job: Job = ForkingPickler.loads(message)
    except BaseException as error:
        if by_a_person(error):
            raise
        why = text_of(error) if isinstance(error, OutsideError) else reason_of(error)
        return Unread(f"{UNREAD} ({why}); give --executor in-process")
    return perform(job, work)


def imported_late(jobs: Sequence[Job]) -> tuple[str, ...]:
    """The modules that the first of `jobs` would import as it goes; without torch's compiler (1.5 s) where all of them
    are floors and yardsticks of this package, which have no optimiser."""
    trained = any(job.code or entry(job.method).family not in ("floor", "yardstick") for job in jobs)
    return (*LATE, COMPILER) if trained else LATE


def warm_up(late: Sequence[str]) -> None:
    """Import all methods and the modules `late`: these seconds are no job's."""
    for name in METHODS:
        entry(name)
    for module in late:
        import_module(module)


def warm_up_quietly(late: Sequence[str]) -> None:
    """The same ahead of its time: what cannot be imported says so where it is needed."""
    with contextlib.suppress(Exception):
        warm_up(late)


def die_with(parent: int) -> None:
    """End this process once its parent is gone, so that a killed runner leaves no worker computing for nobody."""
    while os.getppid() == parent:
        time.sleep(0.5)
    AT_ONCE(1)
