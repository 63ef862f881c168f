"""Many attacks of one kind in a process of limited memory, and a watchdog beside it."""

from __future__ import annotations

import json
import os
import random
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from tests.datasets.fuzz_archives import peak_mb

SECONDS = 60  # of one attack; a loaded machine is slow, a hang is for ever
MEMORY = 1 << 30  # that an attack may take above what the process has when it begins


def attacks(kind: str, count: int, seed: int, first: int = 0) -> Iterator[dict[str, object]]:
    """One record per attack: its number, its answer, and what went wrong."""
    from tests.fuzz.kinds import PREPARE

    with tempfile.TemporaryDirectory(prefix="kdad-fuzz-") as folder:
        base = Path(folder)
        os.environ |= {"KDAD_CACHE": str(base / "cache"), "HOME": str(base), "TMPDIR": str(base / "tmp")}
        os.environ |= dict.fromkeys(("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"), str(base / "cache"))
        tempfile.tempdir = None
        for name in ("cache", "tmp", "one"):
            (base / name).mkdir()
        attack = PREPARE[kind](base)
        limit()
        here = snapshot(base)
        for number in range(first, count):
            place = base / "one"
            os.chdir(place)
            record: dict[str, object] = {"number": number}
            signal.alarm(SECONDS)
            try:
                with warnings.catch_warnings(action="ignore"):
                    record["answer"] = attack(random.Random(f"{kind}/{seed}/{number}"), place)
            except TimeoutError:
                record["answer"] = "hang"
            except BaseException as error:
                record |= {"answer": "fault", "why": traceback.format_exc(limit=-4), "line": repr(error)[:300]}
            finally:
                signal.alarm(0)
            os.chdir(base)
            if snapshot(base) != here:
                record |= {"answer": "outside", "line": str(sorted(snapshot(base) ^ here))[:300]}
                here = snapshot(base)
            yield record | {"peak_mb": peak_mb()}
            shutil.rmtree(place)
            place.mkdir()


def snapshot(base: Path) -> set[str]:
    """The names of all that lies in `base`, but for the place of the attack and the cache."""
    found = set()
    for folder, folders, files in os.walk(base):
        if Path(folder) == base:
            folders[:] = [name for name in folders if name not in ("one", "cache")]
        found |= {os.path.join(folder, name) for name in folders + files}
    return found


def limit() -> None:
    """Forbid to take more than MEMORY from now on, and to wait for ever."""
    signal.signal(signal.SIGALRM, hanging)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def hanging(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("hangs")


def watched(kind: str, count: int, seed: int) -> dict[str, object]:
    """The sums of a campaign in a process of its own, which is ended where it stands still, and begun again behind."""
    answers: Counter[str] = Counter()
    faults: list[dict[str, object]] = []
    peak, done, began = 0, 0, time.monotonic()
    while done < count:
        for record in records(kind, count, seed, done):
            done = int(str(record["number"])) + 1
            answers[str(record["answer"])] += 1
            peak = max(peak, int(str(record.get("peak_mb", 0))))
            if record["answer"] not in ("accepted", "refused"):
                faults.append(record)
    return {
        "kind": kind, "tried": done, "refused": answers["refused"], "accepted": answers["accepted"],
        "tracebacks": answers["fault"], "hangs": answers["hang"], "outside": answers["outside"],
        "killed": answers["killed"], "peak_mb": peak, "seconds": round(time.monotonic() - began), "faults": faults,
    }  # fmt: skip


def records(kind: str, count: int, seed: int, first: int) -> Iterator[dict[str, object]]:
    """The records of one process; the last one says if it was killed or had to be."""
    command = [sys.executable, "-m", "tests.fuzz", "--child", kind, "--count", str(count), "--seed", str(seed)]
    number = first - 1
    with subprocess.Popen([*command, "--first", str(first)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        waiting = selectors.DefaultSelector()
        waiting.register(child.stdout, selectors.EVENT_READ)
        while (ready := waiting.select(timeout=5 * SECONDS)) and (line := child.stdout.readline()):
            record: dict[str, object] = json.loads(line)
            number = int(str(record["number"]))
            yield record
        if not ready:
            child.kill()
        child.wait()
    if number + 1 < count:
        line = f"exit code {child.returncode}" if ready else "no answer"
        yield {"number": number + 1, "answer": "killed" if ready else "hang", "line": line}
