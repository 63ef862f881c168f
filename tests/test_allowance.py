"""Cores and memory that this process may use: affinity, quotas of both kinds of control groups, their limits."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from kdad_bench import allowance
from kdad_bench.cli import doctor
from kdad_bench.datasets import cache
from kdad_bench.harness import environment
from kdad_bench.metrics.exact import threads_for


def groups(folder: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str]) -> None:
    """A machine whose control groups are `files`."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "membership").write_text(membership)
    monkeypatch.setattr(allowance, "CGROUPS", folder / "cgroup")
    monkeypatch.setattr(allowance, "MEMBERSHIP", folder / "membership")
    monkeypatch.setattr(allowance, "cpus", lambda: frozenset(range(8)))


V1 = "4:memory:/pod\n3:cpu,cpuacct:/pod\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {}, 8),
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "300000 100000"}, 2),
        ("0::/\n", {"cpu.max": "words\n"}, 8),
        ("0::/\n", {"cpu.max": "0 0\n"}, 8),
        (V1, {"cpu/pod/cpu.cfs_quota_us": "250000", "cpu/pod/cpu.cfs_period_us": "100000"}, 3),
        (V1, {"cpu/pod/cpu.cfs_quota_us": "-1", "cpu/pod/cpu.cfs_period_us": "100000"}, 8),
    ],
    ids=str,
)
def test_cores_are_those_of_affinity_and_quota(
    membership: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups(tmp_path, monkeypatch, membership, files)
    assert allowance.cores() == cores


def test_whoever_starts_threads_keeps_to_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By affinity alone a container of two of 64 cores had 16 threads decode and 8 count, which its quota stopped."""
    groups(tmp_path, monkeypatch, "0::/\n", {"cpu.max": "200000 100000\n"})
    assert (threads_for(None), cache.workers()) == (2, 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert doctor.cores_in_words() == "8 cores, 2 of them for this process"
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert doctor.cores_in_words() == "2 cores"


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        ("0::/\n", {}, 10**9),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5\n"}, 10**9),
        ("0::/\n", {"memory.max": "1000\n", "memory.current": "400\n"}, 600),
        ("0::/\n", {"memory.max": "1000", "memory.current": "400", "memory.stat": "anon 7\ninactive_file 50\n"}, 650),
        ("0::/\n", {"memory.max": "1000", "memory.current": "4000"}, 0),
        ("0::/a\n", {"a/memory.max": "max", "a/memory.current": "1", "memory.max": "90", "memory.current": "1"}, 89),
        (V1, {"memory/pod/memory.limit_in_bytes": "500", "memory/pod/memory.usage_in_bytes": "100"}, 400),
    ],
    ids=str,
)
def test_memory_is_what_is_free_within_every_limit(
    membership: str, files: dict[str, str], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups(tmp_path, monkeypatch, membership, files)
    now = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: now._replace(available=10**9))
    assert allowance.memory_bytes() == left


def test_only_the_processors_that_this_process_may_use_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Times = namedtuple("Times", ("user", "system", "idle", "iowait", "guest", "guest_nice"))
    every = [Times(100, 0, 0, 0, 50, 5), Times(3, 1, 5, 1, 2, 0), Times(2, 0, 8, 0, 0, 0), Times(100, 0, 0, 0, 0, 0)]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: every)
    monkeypatch.setattr(allowance, "cpus", lambda: frozenset({1, 2}))
    assert allowance.processor_seconds() == (20, 6)
    # lines of a machine two of whose processors are offline; of a container that counts its own from 0
    for listed, mine, seconds in (("0256", {2, 5}, (20, 6)), ("0123", {64, 65}, (220, 206)), ("", {1}, (10, 4))):
        (tmp_path / "stat").write_text("cpu  1 2\n" + "".join(f"cpu{one} 1 2\n" for one in listed) + "intr 5\n")
        monkeypatch.setattr(allowance, "STAT", tmp_path / "stat")
        monkeypatch.setattr(allowance, "cpus", lambda mine=mine: frozenset(mine))
        assert allowance.processor_seconds() == seconds
    looks = iter([(20.0, 6.0), (40.0, 11.0)])
    monkeypatch.setattr(allowance, "processor_seconds", lambda: next(looks))
    assert environment.busy_elsewhere() == 0.25
