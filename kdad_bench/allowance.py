"""What of the machine this process may use: cores by affinity and quota, memory by what is free and by limit."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
STAT = Path("/proc/stat")


def cores() -> int:
    """Cores that this process may use: its affinity, and the quota of the control groups it is in; at least one."""
    quota = cpu_quota()
    return max(1, min(len(cpus()), math.ceil(quota) if quota else len(cpus())))


def cpus() -> frozenset[int]:
    """The numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def processor_seconds() -> tuple[float, float]:
    """(seconds of the processors that this process may run on, since the machine's start; those they worked in)."""
    import psutil

    times = psutil.cpu_times(percpu=True)
    numbers = numbers_of_lines(len(times))
    allowed = cpus() & {*numbers} or {*numbers}  # a container may count its own from 0, whatever theirs are
    total = idle = 0.0
    for number, one in zip(numbers, times, strict=True):
        if number in allowed:
            spent = one._asdict()
            # a guest's are in `user` already
            total += sum(seconds for name, seconds in spent.items() if not name.startswith("guest"))
            idle += spent["idle"] + spent.get("iowait", 0.0)
    return total, total - idle


def numbers_of_lines(count: int) -> list[int]:
    """The numbers of the processors whose times the system lists, ascending; some may be offline."""
    found = [int(line.split()[0][3:]) for line in lines(STAT) if re.match(r"cpu\d+ ", line)]
    return found if len(found) == count else list(range(count))


def cpu_quota() -> float | None:
    """Cores' worth of time that the control groups allow; None without a limit (containers have one)."""
    found = [*map(quota_of_v2, groups("")), *map(quota_of_v1, groups("cpu"))]
    return min((one for one in found if one is not None), default=None)


def quota_of_v2(group: Path) -> float | None:
    """`cpu.max` of a group: `max 100000` or `150000 100000`, in microseconds."""
    parts = words(group / "cpu.max")
    return ratio(*parts) if len(parts) == 2 else None


def quota_of_v1(group: Path) -> float | None:
    """`cpu.cfs_quota_us` of a group, -1 without a limit."""
    parts = [*words(group / "cpu.cfs_quota_us"), *words(group / "cpu.cfs_period_us")]
    return ratio(*parts) if len(parts) == 2 else None


def ratio(quota: str, period: str) -> float | None:
    """Cores' worth; None for what is no limit."""
    if not (quota.isdecimal() and period.isdecimal()) or int(quota) == 0 or int(period) == 0:
        return None
    return int(quota) / int(period)


def memory_bytes() -> int:
    """Memory that is free for new work on this machine and within the control groups."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limits = [memory_left(group) for controller in ("", "memory") for group in groups(controller)]
    return max(0, min([free, *(one for one in limits if one is not None)]))


def memory_left(group: Path) -> int | None:
    """What a group may still take; None without a limit. Files that it has cached count as free."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        ends = [*words(group / limit), *words(group / used)]
        if len(ends) == 2 and all(one.isdecimal() for one in ends):
            kept = words(group / "memory.stat")
            reclaimable = int(kept[kept.index(cached) + 1]) if cached in kept else 0
            return int(ends[0]) - int(ends[1]) + reclaimable
    return None


def groups(controller: str) -> Iterator[Path]:
    """The control group of this process and those it lies in, of version 2 ("") or of a controller of version 1."""
    for line in lines(MEMBERSHIP):
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if controller in names.split(","):
            root = CGROUPS / controller if controller else CGROUPS
            place = Path(path.lstrip("/"))
            yield from (root / one for one in (place, *place.parents))


def words(file: Path) -> list[str]:
    """What stands in a file of the kernel; nothing where there is none."""
    return " ".join(lines(file)).split()


def lines(file: Path) -> list[str]:
    """The lines of a file of the kernel; none where it is not there."""
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []
