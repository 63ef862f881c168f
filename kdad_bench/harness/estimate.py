"""How long a plan should take, from the jobs that this machine has timed before."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdad_bench.files import CacheError, cache_folder, read_json, write_text_whole
from kdad_bench.harness.job import Job

KEPT = 10  # durations remembered per kind of job


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected seconds of a plan, or None where nothing alike has been timed, and what that rests on."""

    seconds: float | None
    basis: str

    @property
    def text(self) -> str:
        """One phrase for people."""
        if self.seconds is None:
            return f"no estimate: {self.basis}"
        return f"about {duration(self.seconds)} one after another ({self.basis})"


def estimate(jobs: Sequence[Job]) -> Estimate:
    """What `jobs` should take one after another: the median of this machine's earlier jobs of the same kind.

    Kinds never timed here take the mean of those that were; with none at all there is no estimate.
    """
    if not jobs:
        return Estimate(0.0, "nothing to do")
    history = read_history()
    known = {kind: sorted(values)[len(values) // 2] for kind, values in history.items() if values}
    hits = [known[kind_of(job)] for job in jobs if kind_of(job) in known]
    if not hits:
        return Estimate(None, "no job of these kinds has been timed on this machine yet")
    seconds = sum(hits) / len(hits) * len(jobs)
    return Estimate(seconds, f"{len(hits)} of {len(jobs)} jobs are of a kind timed here before")


def remember(job: Job, seconds: float) -> None:
    """Add a duration to this machine's history; a cache folder that cannot be written only costs later estimates."""
    history = read_history()
    history[kind_of(job)] = [*history.get(kind_of(job), []), round(seconds, 2)][-KEPT:]
    with contextlib.suppress(OSError, CacheError):
        write_text_whole(history_path(), json.dumps(history, indent=0))


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


def kind_of(job: Job) -> str:
    """Jobs of one kind take about as long: same method, budget, resolution, device and amount of data."""
    return f"{job.name}|{job.preset}|{job.resolution}|{job.device.partition(':')[0]}|{job.category.dataset}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
