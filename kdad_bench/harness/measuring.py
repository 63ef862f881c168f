"""After the jobs of a run: the speed of each configuration that has no measurement yet, one after the other, here."""

from __future__ import annotations

import contextlib
import fcntl
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kdad_bench.files import CacheError, cache_folder
from kdad_bench.harness.agenda import Agenda
from kdad_bench.harness.environment import MOST_BUSY
from kdad_bench.harness.job import Job
from kdad_bench.harness.material import count_of
from kdad_bench.harness.options import RunOptions
from kdad_bench.harness.perform import locked, reason_of
from kdad_bench.harness.speed import LEARNT_FROM, measure
from kdad_bench.harness.speed_key import configuration, key_of, learns_its_cost
from kdad_bench.leaderboard import measurement, store
from kdad_bench.leaderboard.folder import MissingFolder, open_folder
from kdad_bench.leaderboard.measurement import Measurement
from kdad_bench.leaderboard.row import Row, instant
from kdad_bench.leaderboard.store import Finished
from kdad_bench.methods.foreign import guarded

SHARING = 4  # the first version of the schema whose rows share measurements


class Known(NamedTuple):
    """What decides whether a finished row needs a measurement."""

    schema_version: int
    speed_key: str | None
    preset: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A measurement to be made, or one to be kept that is to speak for more rows."""

    job: Job  # whose method is timed
    key: str
    covers: tuple[str, ...] = ()  # rows with figures of their own that it replaces
    kept: Measurement | None = None
    images: int | None = None  # that the middling row it speaks for has learnt from, where that decides the cost


@dataclass(frozen=True, kw_only=True, slots=True)
class NotMeasured:
    """A configuration whose speed could not be measured, in one line that names it."""

    key: str
    method: str
    reason: str

    @property
    def line(self) -> str:
        """What a person is told."""
        return f"speed not measured: {self.method}: {self.reason}"


@dataclass(slots=True)
class Group:
    """The finished jobs of one configuration on this machine."""

    jobs: list[Job] = field(default_factory=list)
    named: bool = False  # a row names the measurement
    own: list[str] = field(default_factory=list)  # rows with figures of their own
    old: list[str] = field(default_factory=list)  # those among them that knew no measurement

    def typical(self, images: int | None) -> Job:
        """The job whose method is timed: of methods that keep what they learn from, the one that is nearest to so many
        images, or that of a middling category."""
        if not learns_its_cost(self.jobs[0]):
            return self.jobs[0]
        if images is not None:
            return min(self.jobs, key=lambda job: abs(count_of(job) - images))
        return sorted(self.jobs, key=lambda job: len(job.category.train))[(len(self.jobs) - 1) // 2]


def wanted(found: Agenda, rows: Sequence[Row], options: RunOptions) -> tuple[list[Wanted], list[NotMeasured]]:
    """(what to measure for the finished jobs of a run, a line for rows of other machines). Raises StoreError.

    `rows` are those of this run; what was kept is looked up. Without a word about it, rows with figures of their own
    get a measurement only where those were taken on a busy machine.
    """
    if options.measure_speed is False or (options.time_every_job and not options.measure_speed):
        return [], []
    known = {id: known_of(row) for id, row in found.kept.items() if row.status == "ok"}
    known |= {row.job_id: known_of(row) for row in rows if row.status == "ok"}
    try:
        there = measurement.found(open_folder(found.work.out))[0]
    except MissingFolder:  # lost, with the rows that were kept in it
        if not rows:
            return [], []
        there = {}
    groups, strange = grouped([job for job in found.jobs if job.id in known], known)
    if not options.measure_speed:
        keep_quiet_ones(groups, found.work.out, there)
    anew, again = bool(options.measure_speed), found.work.force
    learning = {key for key, group in groups.items() if key in there and learns_its_cost(group.jobs[0])}
    images = middling(found.work.out, learning) if learning else {}
    made = [
        one
        for key, group in groups.items()
        for one in of_group(key, group, there.get(key), images.get(key), anew=anew, again=again)
    ]
    return made, [elsewhere(key, method) for key, method in strange.items() if key not in there]


def known_of(row: Row | Finished) -> Known:
    """What a row tells of its job's speed."""
    return Known(row.schema_version, row.speed_key, row.preset)


def grouped(jobs: Sequence[Job], known: Mapping[str, Known]) -> tuple[dict[str, Group], dict[str, str]]:
    """(key -> its jobs, key that a row has from another machine -> its method)."""
    groups: dict[str, Group] = {}
    strange: dict[str, str] = {}
    for asked in jobs:
        row = known[asked.id]
        job = asked if asked.preset == row.preset else replace(asked, preset=row.preset)  # a twin of the same settings
        key = key_of(job)
        if row.speed_key not in (None, key):
            strange.setdefault(str(row.speed_key), job.name)
            continue
        group = groups.setdefault(key, Group())
        group.jobs.append(job)
        if row.speed_key is not None:
            group.named = True
        else:
            group.own.append(job.id)
            group.old += [job.id] if row.schema_version < SHARING else []
    return groups, strange


def keep_quiet_ones(groups: Mapping[str, Group], out: str, there: Mapping[str, Measurement]) -> None:
    """Leave rows with figures of their own alone, unless they are old and some of their configuration were disturbed.

    Old rows were timed as they ran, whatever ran beside them; those of `--time-every-job` were meant to be.
    """
    covered = {job for made in there.values() for job in made.covers}
    unknown = {id for group in groups.values() for id in group.old if id not in covered}
    names = {id: str(configuration(group.jobs[0])["device_name"]) for group in groups.values() for id in group.old}
    disturbed, ours = timings(out, unknown, names) if unknown else (set[str](), set[str]())
    for group in groups.values():
        group.old = [id for id in group.old if id in ours or id in covered]
        group.own = group.old if any(id in disturbed or id in covered for id in group.old) else []


def timings(out: str, ids: set[str], names: Mapping[str, str]) -> tuple[set[str], set[str]]:
    """(rows among `ids` that were timed on a busy machine, those that were timed on the device of `names`)."""
    lines = store.read(out, ("job_id", "device_name", "threads", "environment")).rows()
    mine = [line for line in lines if line["job_id"] in ids and line["device_name"] == names[line["job_id"]]]
    busy = {line["job_id"] for line in mine if was_busy(line["environment"], line["threads"])}
    return busy, {line["job_id"] for line in mine}


def was_busy(environment: str | None, threads: int | None) -> bool:
    """Whether the load average that a row noted is that of more than its own threads."""
    said = json.loads(environment or "{}")
    load, cores = said.get("load_1min"), said.get("cores")
    if not isinstance(load, (int, float)) or not isinstance(cores, int):
        return False
    return load - (threads or 1) > MOST_BUSY * cores


def middling(out: str, keys: Set[str]) -> dict[str, int]:
    """Key -> images that the middling row of a results folder with that key learnt from: of each category and seed the
    newest row, whichever of them a run was asked for."""
    columns = ("dataset", "category", "seed", "status", "created_at", "speed_key", "train_images")
    newest: dict[str, dict[tuple[object, ...], int]] = {}
    for row in sorted(store.read(out, columns).rows(), key=lambda row: instant(row["created_at"])):
        if row["status"] == "ok" and row["speed_key"] in keys and row["train_images"] is not None:
            newest.setdefault(row["speed_key"], {})[row["dataset"], row["category"], row["seed"]] = row["train_images"]
    return {key: statistics.median_low(counts.values()) for key, counts in newest.items()}


def of_group(
    key: str, group: Group, made: Measurement | None, images: int | None, *, anew: bool, again: bool
) -> Iterator[Wanted]:
    """What to do for one configuration: nothing, a measurement, or more rows for the one that is there.

    `images`: of `middling`. A call for one small category must not replace what speaks for all, also where its jobs
    run `again`; only where somebody asks to measure `anew`.
    """
    covers = set(group.own)
    before = set(made.covers) if made else set()
    job = group.typical(images)
    due = (again or (made is not None and outgrown(made, images))) and alike(count_of(job), images)
    if made is not None and not anew and not due:
        if covers - before:
            yield Wanted(job=job, key=key, kept=replace(made, covers=tuple(sorted(covers | before))), images=images)
    elif group.named or covers:
        yield Wanted(job=job, key=key, covers=tuple(sorted(covers | before)), images=images)


def outgrown(made: Measurement, images: int | None) -> bool:
    """Whether a measurement is of a method that had learnt from less than half or more than twice as many `images`,
    where what is kept of them decides the cost. Older ones do not say how many."""
    count = made.environment.get(LEARNT_FROM)
    return isinstance(count, int) and not alike(count, images)


def alike(count: int, images: int | None) -> bool:
    """Whether the two differ by less than a factor of two; also where `images` decide nothing."""
    return images is None or images / 2 <= count <= images * 2


def elsewhere(key: str, method: str) -> NotMeasured:
    """Rows that another machine made, or another state of this one."""
    reason = f"its jobs ran on another machine or other versions; run this there with the same --out (key {key})"
    return NotMeasured(key=key, method=method, reason=reason)


def nobody(line: str) -> None:
    """Nobody is told that it waits."""


def measured(
    todo: Sequence[Wanted], out: str, *, anew: bool = False, tell: Callable[[str], object] = nobody
) -> Iterator[Measurement | NotMeasured]:
    """Make each measurement and write it; what stops one is told and stops no other.

    No other run of this package measures on the machine meanwhile; what one has measured while this one waited stays.
    `tell` is given a line where it waits.
    """
    for one in todo:
        with machine(tell):
            made = made_or_not(one, out, anew=anew)
        yield made


def made_or_not(one: Wanted, out: str, *, anew: bool) -> Measurement | NotMeasured:
    """The measurement, written, unless another run has made it by now; or what stopped it."""
    try:
        with guarded():
            there = None if anew else measurement.read(out).get(one.key)
            if there is not None and outgrown(there, one.images):
                there = None
            made = one.kept or there or measure(one.job, one.covers)
            if made is not there:
                measurement.write(made, out)
        return made
    except Exception as error:  # of a method, its data, its device or the disk: no job has failed
        return NotMeasured(key=one.key, method=one.job.name, reason=reason_of(error))


@contextlib.contextmanager
def machine(tell: Callable[[str], object]) -> Iterator[None]:
    """Wait until no other run measures on this machine, and `tell` so; without a cache folder or its locks there is no
    waiting. What `tell` raises is its caller's."""
    try:
        file = (cache_folder() / "speed.lock").open("a")
    except (OSError, CacheError):
        yield
        return
    with file:
        if not locked(file.fileno()):
            tell("another run measures speed on this machine; waiting for it")
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
