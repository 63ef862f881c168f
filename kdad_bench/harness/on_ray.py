"""Jobs on a Ray cluster: one that is there, or one of this machine alone, which nobody else can reach or outlives."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import count
from typing import Any, TypeAlias

import psutil

from kdad_bench import children
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.giving_way import computing_with
from kdad_bench.harness.job import Job
from kdad_bench.harness.output import Work
from kdad_bench.harness.perform import perform, record_failure
from kdad_bench.harness.surroundings import NoResult
from kdad_bench.harness.workforce import jobs_on_a_gpu
from kdad_bench.leaderboard.row import Row

ATTEMPTS = 2  # how often a job is tried when its worker dies under it
BUSY_RETRY_SECONDS = 1.0  # a job that another runner holds is looked at again after this long
CONNECT_SECONDS = 10.0  # for a Ray cluster to answer
LOOPBACK = "127.0.0.1"
OWN = "local"  # what Ray calls the address of a cluster that it is to start
TOKEN = secrets.token_hex(32)  # one for this process: Ray keeps the first that it reads
Ending: TypeAlias = Row | NoResult
Started: TypeAlias = Callable[[Job], None]
Outcomes: TypeAlias = Generator[tuple[Job, Ending], None, None]


def refuse_no_ray(address: str | None) -> None:
    """Raises SelectionError without the package, or without a cluster at `address`."""
    if find_spec("ray") is None:
        raise SelectionError("--executor ray needs Ray: pip install 'kdad-bench[ray]'")
    if not is_own(address):
        refuse_silence(str(address))


def is_own(address: str | None) -> bool:
    """Whether a run that is given `address` starts a cluster of its own; so does Ray where it reads `local`."""
    return address in (None, "", OWN)


def refuse_silence(address: str) -> None:
    """Raises SelectionError if nobody listens at the address of a Ray cluster: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        if address == "auto":
            return
        raise SelectionError(f"--address {address}: not HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()  # [::1] of IPv6
    except (OSError, OverflowError) as error:
        raise SelectionError(
            f"--address {address}: nobody answers there ({error}); is the Ray cluster running?"
        ) from error


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address` or to one of this machine alone that ends with it.

    A caller's connection is used as it is. Raises SelectionError where there is no cluster at `address`, or none can
    be started: on a machine that is very busy Ray gives up.
    """
    with to_itself() if is_own(address) else contextlib.nullcontext():
        import ray

        if ray.is_initialized():
            yield ray
        elif is_own(address):
            yield from started_here(ray)
        else:
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
            except Exception as error:  # Ray raises plain ones
                why = first_line(error)
                raise SelectionError(f"--address {address}: no Ray cluster to work with ({why})") from error
            yield ray


@contextlib.contextmanager
def to_itself() -> Iterator[None]:
    """Inside, a cluster asks for a token that this process alone knows, and tells nobody that it runs. Ray reads that
    as it is imported; what it starts inherits it."""
    own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def started_here(ray: Any) -> Iterator[Any]:
    """`ray` with a cluster of this machine alone, whatever RAY_ADDRESS says; it ends with the generator."""
    try:
        with on_loopback():
            ray.init(
                address=OWN, include_dashboard=False, _node_ip_address=LOOPBACK, log_to_driver=False,
                configure_logging=False,
            )  # fmt: skip
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

    These are names of Ray's inside (2.40 to 2.60). Without them the token of `to_itself` still keeps others out.
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
    command = children.command("-m", "kdad_bench.harness.reaper", *born)
    surroundings = {**os.environ, "PYTHONPATH": children.search_path()}
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=surroundings, start_new_session=True)


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

    Raises ModuleNotFoundError where Ray is not installed. Each CUDA job takes `gpu_fraction` of a GPU. `job_timeout`
    counts from the moment at which a process of Ray's begins with the job: none fails for waiting its turn.
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
    share = gpu_fraction if any(job.device.startswith("cuda") for job in waiting) else 0.0
    cpus = cpus_of_a_job(ray, threads)
    remote = ray.remote(performed).options(max_retries=ATTEMPTS - 1, num_cpus=cpus, num_gpus=share)
    begun = None if job_timeout is None else ray.remote(Begun).options(num_cpus=0).remote()
    running: dict[Any, tuple[Job, int]] = {}
    room, numbers = room_for(ray.cluster_resources(), cpus, share), count()
    try:
        while waiting or running:
            while waiting and len(running) < room:
                job, number = waiting.popleft(), next(numbers)
                started(job)
                running[remote.remote(job, work, threads, begun, number)] = (job, number)
            done, _ = ray.wait(list(running), timeout=0.5)
            for reference in done:
                job, _ = running.pop(reference)
                ended = answer_of(ray, reference, job, work)
                if ended is None:
                    waiting.append(job)
                    time.sleep(BUSY_RETRY_SECONDS)
                else:
                    yield job, ended
            late = overdue(ray, begun, job_timeout)
            for reference, (job, number) in list(running.items()):
                if number in late:
                    del running[reference]
                    ray.cancel(reference, force=True)
                    yield job, record_failure(job, work, f"it ran longer than --job-timeout {job_timeout:g} s")
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def cpus_of_a_job(ray: Any, threads: int | None) -> int:
    """How many CPUs a job of so many threads takes: one for each, as far as a machine of the cluster has them."""
    largest = max((int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"]), default=1)
    return max(1, min(threads or 1, largest))


def room_for(resources: Mapping[str, float], cpus: int, share: float) -> int:
    """How many jobs of so many CPUs and such a share of a GPU a cluster with these resources holds; at least one."""
    room = int(resources.get("CPU", 1)) // cpus
    if share:
        room = min(room, int(resources.get("GPU", 0)) * jobs_on_a_gpu(share))
    return max(1, room)


class Begun:
    """For how long jobs have run, by the clock of one process; it runs on the cluster, where each job tells it."""

    def __init__(self) -> None:
        self.since: dict[int, float] = {}

    def note(self, number: int) -> None:
        """The job that was handed out under that number begins now, perhaps for another time."""
        self.since[number] = time.monotonic()

    def seconds(self) -> dict[int, float]:
        """Number of a job -> seconds since it began."""
        now = time.monotonic()
        return {number: now - since for number, since in self.since.items()}


def overdue(ray: Any, begun: Any, job_timeout: float | None) -> set[int]:
    """The numbers of the jobs that began more than `job_timeout` seconds ago; none where nobody can tell."""
    if begun is None or job_timeout is None:
        return set()
    try:
        seconds = ray.get(begun.seconds.remote(), timeout=CONNECT_SECONDS)
    except ray.exceptions.RayError:  # its machine is gone or busy
        return set()
    return {number for number, took in seconds.items() if took > job_timeout}


def performed(job: Job, work: Work, threads: int | None, begun: Any = None, number: int = 0) -> Ending | None:
    """`perform` in a process of Ray's, with so many threads; None: as many as Ray lets it have.

    `begun`: the `Begun` that is told, under that number.
    """
    if begun is not None:
        begun.note.remote(number)
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
