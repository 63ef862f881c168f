"""Mutated archives by the thousand: `python -m tests.datasets.fuzz_archives --runs 5000`; a short form is in the tests.

Each must be unpacked or refused in one line: no other exception, nothing outside of the folder, nothing but regular
files and folders inside, no wait of more than SECONDS.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import os
import random
import resource
import shutil
import signal
import stat
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kdad_bench.datasets.archive import extract
from kdad_bench.datasets.category import DatasetError
from tests.datasets import hostile

SECONDS = 20
LARGEST = 1 << 20  # seeds above are left to their own tests
KINDS = ("set", "flip", "cut", "remove", "double", "insert", "move", "number", "splice")
NUMBERS = (b"\0", b"\xff", b"\x7f", b"\x80", b"77777777777\0", b"\x80\0\0\0", b"\xff" * 8, b"../", b"/", b"\0\0\0\x80")
WRAPS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "xz": lambda data: lzma.compress(data, preset=0),
    "gz": gzip.compress,
    "bz2": bz2.compress,
}


@dataclass(frozen=True)
class Edit:
    """One change: what, where (as a share of the length), how long, and with which byte or number."""

    kind: str
    at: float
    length: int
    value: int


def seeds() -> dict[str, bytes]:
    """Archives of every kind, harmless and hostile, small enough to be mutated often."""
    ordinary = {
        "tar": hostile.tar(*(hostile.entry(f"a/{n}.txt", bytes(range(n))) for n in range(40))),
        "tar with pax": hostile.tar(*(hostile.pax({"path": b"a/%d" % n}) + hostile.entry("b") for n in range(9))),
        "tar with long names": hostile.tar(*(hostile.named(b"a/" + b"%d" % n * 150) for n in range(9))),
        "zip": hostile.zipped(*((f"a/{n}.txt", bytes(range(n)) * 20) for n in range(20))),
        "stored zip": hostile.zipped(*((f"a/{n}", bytes(n)) for n in range(9)), method=zipfile.ZIP_STORED),
        "zip64": hostile.zip64(0),
    }
    made = {name: make() for name, (make, _) in hostile.HOSTILE.items()}
    return ordinary | {name: data for name, data in made.items() if 0 < len(data) <= LARGEST}


def mutated(data: bytes, edits: Iterable[Edit], other: bytes, *, repaired: bool) -> bytes:
    """`data` with the edits, one after the other; `repaired` sets the checksums of tar headers right again."""
    made = bytearray(data)
    for edit in edits:
        at = int(edit.at * len(made))
        end = at + edit.length
        if edit.kind == "set":
            made[at:end] = bytes([edit.value]) * len(made[at:end])
        elif edit.kind == "flip" and at < len(made):
            made[at] ^= 1 << edit.value % 8
        elif edit.kind == "cut":
            del made[at:]
        elif edit.kind == "remove":
            del made[at:end]
        elif edit.kind == "double":
            made[end:end] = made[at:end] * (1 + edit.value % 4)
        elif edit.kind == "insert":
            made[at:at] = bytes([edit.value]) * edit.length
        elif edit.kind == "move":
            taken = made[at:end]
            del made[at:end]
            place = edit.value * len(made) // 256
            made[place:place] = taken
        elif edit.kind == "number":
            number = NUMBERS[edit.value % len(NUMBERS)]
            made[at : at + len(number)] = number
        elif edit.kind == "splice":
            made[at:end] = other[: edit.length] if edit.value % 2 else other[-edit.length :]
    return bytes(_repaired(made) if repaired else made)


def _repaired(data: bytearray) -> bytearray:
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at : at + 512] = hostile.summed(data[at : at + 512])
    return data


def attack(data: bytes, place: Path) -> str:
    """Unpack `data` below the empty folder `place`; "unpacked" or what was said. AssertionError for all faults."""
    (place / "outer" / "target").mkdir(parents=True)
    (place / "archive").write_bytes(data)
    (place / "outer" / "victim").write_text("original")
    began = time.monotonic()
    try:
        extract(place / "archive", place / "outer" / "target")
        said = "archive: unpacked"
    except DatasetError as error:
        said = str(error)
    assert said.isprintable(), repr(said)
    assert len(said) < 600, said
    assert time.monotonic() - began < SECONDS, f"{time.monotonic() - began:.0f} s"
    _nothing_outside(place)
    return said.partition(": ")[2]


def _nothing_outside(place: Path) -> None:
    assert sorted(os.listdir(place)) == ["archive", "outer"], os.listdir(place)
    assert sorted(os.listdir(place / "outer")) == ["target", "victim"], os.listdir(place / "outer")
    assert (place / "outer" / "victim").read_text() == "original"
    for folder, folders, names in os.walk(place / "outer" / "target"):
        for name in folders + names:
            mode = os.lstat(os.path.join(folder, name)).st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), name
            assert not mode & 0o7000, name


def drawn(draw: random.Random, known: dict[str, bytes]) -> bytes:
    """A mutated archive."""
    seed, other = known[draw.choice(list(known))], known[draw.choice(list(known))]
    edits = [
        Edit(draw.choice(KINDS), draw.random() ** draw.choice((1, 3)), draw.choice((1, 2, 8, 100, 512, 1024)), value)
        for value in draw.randbytes(draw.choice((1, 1, 2, 3, 8)))
    ]
    made = mutated(seed, edits, other, repaired=draw.random() < 0.7)
    return WRAPS[draw.choice(list(WRAPS))](made) if draw.random() < 0.4 else made


def campaign(runs: int, seed: int, memory: int | None) -> dict[str, object]:
    """Attack `runs` times; raises at the first fault with the seed and number that make it again."""
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    signal.signal(signal.SIGALRM, _hanging)
    known, results = seeds(), Counter[str]()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kdad-fuzz-") as folder:
        for number in range(runs):
            place = Path(folder) / "one"
            signal.alarm(2 * SECONDS)
            try:
                said = attack(drawn(random.Random(f"{seed}/{number}"), known), place)
            except BaseException as error:
                raise AssertionError(f"seed {seed}, number {number}: {type(error).__name__}: {error}") from error
            finally:
                signal.alarm(0)
            results[said if said == "unpacked" else said.partition(",")[0].partition(" (")[0]] += 1
            shutil.rmtree(place)
    return {
        "runs": runs, "seed": seed, "seeds": len(known), "peak_mb": peak_mb(),
        "seconds": round(time.monotonic() - began), "results": dict(results),
    }  # fmt: skip


def peak_mb() -> int:
    """The most memory that this process has had; getrusage would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def _hanging(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("hangs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, default=1 << 30, help="bytes of address space that may be used")
    options = parser.parse_args()
    print(json.dumps(campaign(options.runs, options.seed, options.memory)))  # noqa: T201
