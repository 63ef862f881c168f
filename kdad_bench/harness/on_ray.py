"""Jobs on a Ray cluster: one that is there, or one of this machine alone, which nobody else can reach or outlives."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeAlias

import psutil

from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.giving_way import computing_with
from kdad_bench.harness.job import Job
from kdad_bench.harness.output import Work
from kdad_bench.harness.perform import perform, record_failure
from kdad_bench.harness.surroundings import NoResult
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods.foreign import set_environment

ATTEMPTS = 2  # how often a job is tried when its worker dies under it
BUSY_RETRY_SECONDS = 1.0  # a job that another runner holds is looked at again after this long
CONNECT_SECONDS = 10.0  # for a Ray cluster to answer
LOOPBACK = "127.0.0.1"
Ending: TypeAlias = Row | NoResult
Started: TypeAlias = Callable[[Job], None]
Outcomes: TypeAlias = Generator[tuple[Job, Ending], None, None]


def refuse_no_ray(address: str | None) -> None:
    """Raises SelectionError without the package, or without a cluster at `address`.

    A cluster of our own asks for a token that this process alone knows, and tells nobody that it runs. Ray reads that
    as it is imported.
    """
    before = dict(os.environ)
    if not address:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError as error:
        set_environment(before)
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


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address` or to one of this machine alone that ends with it.

    Raises SelectionError where that one does not start: on a machine that is very busy it gives up.
    """
    import ray

    if address or ray.is_initialized():
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        yield ray
        return
    try:
        with on_loopback():
            ray.init(include_dashboard=False, _node_ip_address=LOOPBACK, log_to_driver=False, configure_logging=False)
    except Exception as error:  # Ray raises plain ones; its parts wait seconds for one another
        ray.shutdown()
        why = first_line(error)
        raise SelectionError(f"Ray started no cluster here ({why}); try again, or --executor local") from error
    reaper = start_reaper()
    try:
        yield ray
    finally:
        ray.shutdown()
        reaper.communicate()  # its stdin ends, and with it what Ray has left


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Have Ray listen where it is told to: it replaces a loopback address by one that other machines can reach.

    These are names of Ray's inside (2.40 to 2.60). Without them the token of `refuse_no_ray` still keeps others out.
    """
    from ray._private import services

    stand_ins: dict[str, Callable[..., str]] = {
        "resolve_ip_for_localhost": lambda host: str(host),
        "get_node_ip_address": lambda address=None: LOOPBACK,
    }
    own = {name: getattr(services, name) for name in stand_ins if hasattr(services, name)}
    for name in own:
        setattr(services, name, stand_ins[name])
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(services, name, function)


def start_reaper() -> subprocess.Popen[bytes]:
    """A process that ends those of Ray once this one is gone, however it ends: some of them outlive a killed one."""
    born = [f"{child.pid}:{created(child)}" for child in psutil.Process().children(recursive=True)]
    command = [sys.executable, "-m", "kdad_bench.harness.reaper", *born]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def created(process: psutil.Process) -> float:
    """When a process began; 0 if it is gone."""
    try:
        return float(process.create_time())
    except psutil.NoSuchProcess:
        return 0.0


def on_ray(
    jobs: Sequence[Job],
    work: Work,
    started: Started,
    *,
    address: str | None,
    job_timeout: float | None,
    gpu_fraction: float = 1.0,
    threads: int | None = None,
) -> Outcomes:
    """Run the jobs on a Ray cluster (extra `ray`); Ray reruns a job whose worker or node dies.

    Raises ModuleNotFoundError where Ray is not installed. Each CUDA job takes `gpu_fraction` of a GPU. Here
    `job_timeout` counts from the moment at which Ray is given the job: its workers tell no other.
    """
    with cluster(address) as ray:
        yield from shared_out(ray, deque(jobs), work, started, job_timeout, gpu_fraction, threads)


def shared_out(
    ray: Any,
    waiting: deque[Job],
    work: Work,
    started: Started,
    job_timeout: float | None,
    gpu_fraction: float,
    threads: int | None,
) -> Outcomes:
    """Keep the cluster busy with the jobs that are waiting."""
    needs_gpu = any(job.device.startswith("cuda") for job in waiting)
    remote = ray.remote(performed).options(
        max_retries=ATTEMPTS - 1, num_cpus=1, num_gpus=gpu_fraction if needs_gpu else 0
    )
    running: dict[Any, tuple[Job, float]] = {}
    room = max(1, int(ray.cluster_resources().get("CPU", 1)))
    try:
        while waiting or running:
            while waiting and len(running) < room:
                job = waiting.popleft()
                started(job)
                running[remote.remote(job, work, threads)] = (job, time.monotonic())
            done, _ = ray.wait(list(running), timeout=0.5)
            for reference in done:
                job, _since = running.pop(reference)
                ended = answer_of(ray, reference, job, work)
                if ended is None:
                    waiting.append(job)
                    time.sleep(BUSY_RETRY_SECONDS)
                else:
                    yield job, ended
            for reference, (job, since) in list(running.items()):
                if job_timeout is not None and time.monotonic() - since > job_timeout:
                    del running[reference]
                    ray.cancel(reference, force=True)
                    yield job, record_failure(job, work, f"it ran longer than --job-timeout {job_timeout:g} s")
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def performed(job: Job, work: Work, threads: int | None) -> Ending | None:
    """`perform` in a process of Ray's, with so many threads; None: as many as Ray lets it have."""
    with computing_with(threads):
        return perform(job, work)


def answer_of(ray: Any, reference: Any, job: Job, work: Work) -> Ending | None:
    """How a job ended; None where another runner holds it."""
    try:
        ended: Ending | None = ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error  # an error in a task is told by a page of Ray's own lines
        return record_failure(job, work, f"Ray gave it up: {type(cause).__name__}: {first_line(cause)}")
    return ended


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
