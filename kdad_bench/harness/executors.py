"""Where jobs run: in this process, in local worker processes, or on a Ray cluster; (job, row) come as they end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.job import Job
from kdad_bench.harness.options import RunOptions
from kdad_bench.harness.output import Work
from kdad_bench.harness.perform import perform, record_failure
from kdad_bench.leaderboard.row import Row
from kdad_bench.leaderboard.store import StoreError

ATTEMPTS = 2  # how often a job is tried when its worker dies under it
BUSY_RETRY_SECONDS = 1.0  # a job that another runner holds is looked at again after this long
CONNECT_SECONDS = 10.0  # for a Ray cluster to answer
Started = Callable[[Job], None]
Outcomes = Generator[tuple[Job, Row], None, None]


def outcomes(jobs: Sequence[Job], work: Work, started: Started, options: RunOptions) -> Outcomes:
    """The (job, row) stream of the executor that `options` choose; raises SelectionError for one that is not there."""
    if options.threads:  # a worker takes its own
        import torch

        torch.set_num_threads(options.threads)
    if options.executor == "ray":
        refuse_no_ray(options.address)
        return on_ray(
            jobs, work, started,
            address=options.address, job_timeout=options.job_timeout, gpu_fraction=options.gpu_fraction,
        )  # fmt: skip
    if options.executor == "local" or options.job_timeout or options.workers > 1:  # only a process can be stopped
        return local(
            jobs, work, started,
            workers=options.workers, job_timeout=options.job_timeout, threads=options.threads,
        )  # fmt: skip
    return in_process(jobs, work, started)


def refuse_no_ray(address: str | None) -> None:
    """Raises SelectionError without the package, or without a cluster at `address`."""
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError as error:
        raise SelectionError("--executor ray needs Ray: pip install 'kdad-bench[ray]'") from error
    if address:
        refuse_silence(address)


def refuse_silence(address: str) -> None:
    """Raises SelectionError if nobody listens at the address of a Ray cluster: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        if address in ("auto", "local"):
            return
        raise SelectionError(f"--address {address}: not HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise SelectionError(
            f"--address {address}: nobody answers there ({error}); is the Ray cluster running?"
        ) from error


def in_process(jobs: Sequence[Job], work: Work, started: Started) -> Outcomes:
    """Run the jobs one after another here. A job that another runner is busy with is waited for at the end."""
    waiting = deque(jobs)
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
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@dataclass
class Worker:
    """One worker process, the pipe to it, and the job it holds."""

    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    since: float = 0.0


@dataclass
class Pool:
    """Spawned workers, one per device share; a dead or hanging one is replaced and its job retried or failed."""

    work: Work
    workers: int
    job_timeout: float | None
    started: Started
    threads: int | None = None  # of each worker; None: its share of the cores
    running: list[Worker] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)

    def spawn(self) -> Worker:
        """Start one worker with its share of the cores."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        threads = self.threads or max(1, (os.cpu_count() or 1) // self.workers)
        process = context.Process(target=serve, args=(theirs, self.work, threads, os.getpid()), daemon=True)
        with interrupts_held():  # a starting worker would answer Ctrl-C with a traceback
            process.start()
        theirs.close()
        worker = Worker(process=process, pipe=ours)
        self.running.append(worker)
        return worker

    def give(self, worker: Worker, job: Job) -> None:
        """Hand `job` to an idle worker."""
        worker.job, worker.since = job, time.monotonic()
        self.attempts[job.id] = self.attempts.get(job.id, 0) + 1
        self.started(job)
        with contextlib.suppress(
            BrokenPipeError, ConnectionResetError
        ):  # it is dead: its pipe ends, and `answers` says so
            worker.pipe.send(job)

    def retire(self, worker: Worker) -> None:
        """Kill a worker and forget it."""
        if worker.process.is_alive():
            worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        self.running.remove(worker)

    def answers(self) -> Iterator[tuple[Worker, Job, Row | str | StoreError | None]]:
        """(worker, its job, its row, or None when another runner holds the job, or why the worker is gone)."""
        pipes = {worker.pipe: worker for worker in self.running if worker.job}
        for ready in wait(list(pipes), timeout=0.2):
            worker = pipes[ready]  # type: ignore[index]
            assert worker.job is not None
            try:
                yield worker, worker.job, worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join(timeout=5)
                yield worker, worker.job, f"its worker process died ({death(worker.process.exitcode)})"
        if self.job_timeout is None:
            return
        for worker in [w for w in self.running if w.job and time.monotonic() - w.since > self.job_timeout]:
            assert worker.job is not None
            yield worker, worker.job, f"it ran longer than --job-timeout {self.job_timeout:g} s"


def local(
    jobs: Sequence[Job],
    work: Work,
    started: Started,
    *,
    workers: int,
    job_timeout: float | None,
    threads: int | None = None,
) -> Outcomes:
    """Run the jobs in `workers` spawned processes, each with `threads` or its share of the cores.

    A worker that dies (kill -9, out of memory) costs only its own job, which is tried once more and then recorded as
    failed; a worker that outlives `job_timeout` seconds is killed and its job recorded as failed at once.
    """
    pool = Pool(work=work, workers=workers, job_timeout=job_timeout, started=started, threads=threads)
    waiting = deque(jobs)
    not_before: dict[str, float] = {}
    try:
        while waiting or any(worker.job for worker in pool.running):
            now = time.monotonic()
            while len(pool.running) < min(workers, len(waiting) + sum(1 for w in pool.running if w.job)):
                pool.spawn()
            for worker in [worker for worker in pool.running if worker.job is None]:
                job = next((job for job in waiting if not_before.get(job.id, 0.0) <= now), None)
                if job is None:
                    break
                waiting.remove(job)
                pool.give(worker, job)
            if not any(worker.job for worker in pool.running):
                time.sleep(0.2)
            for worker, job, answer in pool.answers():
                worker.job = None
                if isinstance(answer, str):
                    pool.retire(worker)
                    if pool.attempts[job.id] < ATTEMPTS and "--job-timeout" not in answer:
                        waiting.append(job)
                    else:
                        yield job, record_failure(job, work, answer)
                elif isinstance(answer, StoreError):
                    raise answer
                elif answer is None:
                    pool.attempts[job.id] -= 1  # it was not tried: another runner holds it
                    not_before[job.id] = time.monotonic() + BUSY_RETRY_SECONDS
                    waiting.append(job)
                else:
                    yield job, answer
    finally:
        for worker in list(pool.running):
            pool.retire(worker)


def death(exitcode: int | None) -> str:
    """`signal SIGKILL` or `exit code 3`."""
    if exitcode is None:
        return "no exit code"
    if exitcode < 0:
        return f"signal {signal.Signals(-exitcode).name}"
    return f"exit code {exitcode}"


def serve(pipe: Connection, work: Work, threads: int, parent: int) -> None:
    """A worker's life: jobs in, rows out, until the pipe closes. It never outlives the runner that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's to handle
    threading.Thread(target=die_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(perform(job, work))
        except StoreError as error:  # a row cannot be written: the runner stops and says why
            pipe.send(error)


def die_with(parent: int) -> None:
    """End this process once its parent is gone, so that a killed runner leaves no worker computing for nobody."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def on_ray(
    jobs: Sequence[Job],
    work: Work,
    started: Started,
    *,
    address: str | None,
    job_timeout: float | None,
    gpu_fraction: float = 1.0,
) -> Outcomes:
    """Run the jobs on a Ray cluster (extra `ray`); Ray reruns a job whose worker or node dies.

    Raises ModuleNotFoundError where Ray is not installed. Without `address` a cluster of this machine alone is started,
    bound to loopback. Each CUDA job takes `gpu_fraction` of a GPU.
    """
    import ray

    if not ray.is_initialized():
        local_only: dict[str, Any] = (
            {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if not address else {}
        )
        ray.init(address=address, log_to_driver=False, configure_logging=False, **local_only)
    needs_gpu = any(job.device.startswith("cuda") for job in jobs)
    remote = ray.remote(perform).options(
        max_retries=ATTEMPTS - 1, num_cpus=1, num_gpus=gpu_fraction if needs_gpu else 0
    )
    waiting = deque(jobs)
    running: dict[Any, tuple[Job, float]] = {}
    room = max(1, int(ray.cluster_resources().get("CPU", 1)))
    try:
        while waiting or running:
            while waiting and len(running) < room:
                job = waiting.popleft()
                started(job)
                running[remote.remote(job, work)] = (job, time.monotonic())
            done, _ = ray.wait(list(running), timeout=0.5)
            for reference in done:
                job, _since = running.pop(reference)
                try:
                    row = ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield job, record_failure(job, work, f"Ray gave it up: {type(error).__name__}: {first_line(error)}")
                    continue
                if row is None:
                    waiting.append(job)
                    time.sleep(BUSY_RETRY_SECONDS)
                else:
                    yield job, row
            for reference, (job, since) in list(running.items()):
                if job_timeout is not None and time.monotonic() - since > job_timeout:
                    del running[reference]
                    ray.cancel(reference, force=True)
                    yield job, record_failure(job, work, f"it ran longer than --job-timeout {job_timeout:g} s")
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if not address:
            ray.shutdown()


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
