"""The kernels on a GPU: every check of `checks.py`, then the tables. Started by run.sh.

Checks come first, each in a process of its own, side by side, because compiling takes most of their time; how launches
are made is checked before all of them, and launches from plans are turned off if they give other bits. Then every case
is written to OUT as it is measured (kernels.jsonl, kernels.md), until --seconds are over, in a process that is started
anew, behind the case it was at, if it dies, hangs or loses its GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import checks  # beside this file
import torch

from kdad_bench.files import write_text_whole
from kdad_bench.kernels import benchmark, benchmark_ops

BEGAN = time.perf_counter()
POLL = 0.2  # seconds between two looks at what runs
# Shares of --seconds: for the check of launches, until all checks side by side are over, for those that are timed, and
# without a new case, after which measuring is started anew.
FIRST, SIDE_BY_SIDE, ALONE, STALLED = 0.2, 0.5, 0.14, 0.22
STARTS = 12  # of measuring, at most
LOST = 3  # exit code of measuring after an error that leaves a process without its GPU
SECONDS = 0.04  # per implementation and round: some ten replays of the largest case


def command(out: Path, *more: str) -> list[str]:
    """This script again, in a rehearsal too."""
    rehearsal = os.environ.get("KDAD_REHEARSAL")
    return [sys.executable, *([rehearsal] if rehearsal else []), __file__, "--out", str(out), *more]


def stopped(process: subprocess.Popen[bytes]) -> int | None:
    """Kill a process; its exit code, or None if a driver that hangs keeps it."""
    process.kill()
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        return None


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_process(name: str, out: Path, log: Path) -> subprocess.Popen[bytes]:
    """A process that runs one check and writes its outcome to `log`; exit code 1 if it fails."""
    with log.open("wb") as file:
        return subprocess.Popen(command(out, "--check", name), stdout=file, stderr=subprocess.STDOUT)


def checked(names: Sequence[str], out: Path, ends: float) -> list[str]:
    """Run checks side by side until `ends` on the clock; prints each outcome as it comes, returns those that failed."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        logs = {name: Path(folder) / f"{number}.txt" for number, name in enumerate(names)}
        running = {name: check_process(name, out, log) for name, log in logs.items()}
        while running:
            over = time.perf_counter() > ends
            for name in [name for name, process in running.items() if over or process.poll() is not None]:
                process = running.pop(name)
                late = process.poll() is None
                code = stopped(process) if late else process.returncode
                print(logs[name].read_text(errors="replace"), end="")
                if code != 0:
                    failed.append(name)
                    print(f"{name}: FAILED: {'out of time' if late else f'exit code {code}'}")
            sys.stdout.flush()
            time.sleep(POLL)
    return failed


def outcome(name: str) -> int:
    """Run one check here and print its outcome; 1 if it fails."""
    start, failed = time.perf_counter(), 0
    try:
        said = checks.CHECKS[name]()
    except Exception as problem:  # a line of this run, not its end
        said, failed = f"FAILED: {type(problem).__name__}: {str(problem).strip()[:500]}", 1
    print(f"{name}: {said} ({time.perf_counter() - start:.1f} s)", flush=True)
    return failed


# ---- tables ----------------------------------------------------------------------------------------------------------


def write(out: Path, timings: Sequence[benchmark.Timing], where: dict[str, str]) -> str:
    """All cases so far, whole or not at all: whoever is killed keeps what was measured by then."""
    rows = [json.dumps({**dataclasses.asdict(one), "gb_per_s": one.gb_per_s, **where}) for one in timings]
    write_text_whole(out / "kernels.jsonl", "".join(row + "\n" for row in rows))
    text = "\n".join([", ".join(f"{k} {v}" for k, v in where.items()), "", benchmark.table(timings)])
    write_text_whole(out / "kernels.md", text + "\n")
    return text


def read(out: Path) -> list[benchmark.Timing]:
    """What was written before measuring was started anew."""
    file = out / "kernels.jsonl"
    names = [field.name for field in dataclasses.fields(benchmark.Timing) if field.name != "case"]
    rows = map(json.loads, file.read_text().splitlines() if file.exists() else [])
    return [
        benchmark.Timing(case=benchmark_ops.Case(**row["case"]), **{name: row[name] for name in names}) for row in rows
    ]


def attempts(out: Path) -> dict[str, str]:
    """The cases that were begun, and what was wrong with them: "" for those that were measured."""
    file = out / "attempts.jsonl"
    rows = map(json.loads, file.read_text().splitlines() if file.exists() else [])
    return {row["case"]: row["problem"] for row in rows}


def attempt(out: Path, case: benchmark_ops.Case, problem: str) -> None:
    """Note a case: begun, failed, or measured."""
    with (out / "attempts.jsonl").open("a") as file:
        file.write(json.dumps({"case": str(case), "problem": problem}) + "\n")


def loses_gpu(problem: Exception) -> bool:
    """Whether CUDA does nothing more in this process: every later case would fail of it."""
    return not isinstance(problem, torch.OutOfMemoryError) and "CUDA" in str(problem)


def measured(out: Path, ends: float, compiled: bool) -> int:
    """Measure and write what was not begun yet, until `ends` on the clock; LOST if the GPU was lost."""
    timings, begun = read(out), attempts(out)
    left = [case for case in checks.cases() if str(case) not in begun]
    for number, case in enumerate(left):
        if time.perf_counter() > ends:
            print(f"out of time: {len(left) - number} of {len(left) + len(begun)} cases not measured", flush=True)
            return 0
        attempt(out, case, "begun, and never ended")
        beside = compiled and (case.dtype, case.layout, case.batch) == ("fp32", "channels_last", 32)
        try:
            timings += benchmark.measure(case, checks.DEVICE, compiled=beside)
        except Exception as problem:  # a case that fails must not take the others' figures with it
            attempt(out, case, f"{type(problem).__name__}: {str(problem)[:300]}")
            if loses_gpu(problem):
                return LOST
            continue
        attempt(out, case, "")
        print(write(out, timings, benchmark.environment(checks.DEVICE)).splitlines()[-1], flush=True)
    return 0


def watched(process: subprocess.Popen[bytes], file: Path, ends: float, stalled: float) -> int | None:
    """The exit code of measuring; None if it was killed, at `ends` or because no case was begun or ended for long."""
    changed = time.time()
    while process.poll() is None:
        if file.exists():
            changed = max(changed, file.stat().st_mtime)
        if time.perf_counter() > ends or time.time() - changed > stalled:
            stopped(process)
            return None
        time.sleep(POLL)
    return process.returncode


def tables(out: Path, ends: float, stalled: float, compiled: bool) -> list[str]:
    """Measure every case, however often that has to be started; returns those that failed."""
    for _ in range(STARTS):
        seconds = ends - time.perf_counter()
        if seconds <= 0:
            break
        more = ["--measure", "--seconds", f"{seconds:.0f}", *(["--compile"] if compiled else [])]
        code = watched(subprocess.Popen(command(out, *more)), out / "attempts.jsonl", ends + 15, stalled)
        if code == 0:
            break
        print(f"measuring ended with {code}; it goes on behind the case it was at", flush=True)
    return [f"{case}: {problem}" for case, problem in attempts(out).items() if problem]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=440.0, help="end after so long; half of it for the checks")
    parser.add_argument("--check", choices=checks.CHECKS, help="only this check, in this process")
    parser.add_argument("--measure", action="store_true", help="only the tables, in this process, where they stopped")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of the eager forms")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no GPU: nothing was run")
        return 2
    if given.check:
        return outcome(given.check)
    ends = BEGAN + given.seconds
    if given.measure:
        benchmark.SECONDS = SECONDS
        return measured(given.out, ends, given.compile)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in ("kernels.jsonl", "attempts.jsonl"):
        (given.out / name).unlink(missing_ok=True)
    failed = checked(["launching"], given.out, BEGAN + FIRST * given.seconds)
    if failed:
        print("launches from plans are turned off from here on: KDAD_TRITON_LAUNCH=official", flush=True)
        os.environ["KDAD_TRITON_LAUNCH"] = "official"
    failed += checked(list(checks.SIDE_BY_SIDE), given.out, BEGAN + SIDE_BY_SIDE * given.seconds)
    alone = time.perf_counter() + ALONE * given.seconds
    for name in checks.ALONE:
        failed += checked([name], given.out, alone)
    failed += tables(given.out, ends, STALLED * given.seconds, given.compile)
    for failure in failed:
        print(f"FAILED {failure}")
    print(f"{len(failed)} failed, {time.perf_counter() - BEGAN:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
