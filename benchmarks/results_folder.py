"""What a results folder of many small files costs to resume from: python benchmarks/results_folder.py [--files 5000].

Each way runs in a process of its own, in turn, and the ratios are of the same round: the first way is how version 0.1
did it (every file as a table that is kept until all are there, and every column for the summary at the end). Rows of
many small files are packed in the cache folder as they are read: `_now` begins without one, `_again` with.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from kdad_bench.leaderboard import row as rows
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.board import DRAWN
from kdad_bench.leaderboard.row import COLUMNS, KEY_COLUMNS, Row

FINISHED = ("job_id", "status", "git_commit", "git_dirty")


def invented(number: int) -> Row:
    """A row of the size that rows have, with as many images as its category has; its numbers mean nothing."""
    images = 50 + 7 * (number % 15)
    return Row(
        job_id=f"{number:016x}", protocol_version="1", method="stfpm", title="STFPM", dataset="mvtec_ad",
        category=f"category{number % 15}", seed=number // 15, preset="paper", teacher="resnet18", resolution=256,
        data_fingerprint="0" * 64, settings=json.dumps({f"setting{n}": n for n in range(30)}), image_auroc=0.9,
        pixel_auroc=0.9, aupro_30=0.9, train_seconds=100.0, latency_ms=6.0, images_per_second=100.0, device="cpu",
        device_name="Example CPU", git_commit="0" * 40, git_dirty=False,
        image_scores=tuple(n / images for n in range(images)),
        image_labels=tuple(n % 2 == 0 for n in range(images)), teacher_sha256="0" * 64 if number % 3 else None,
        image_names=tuple(f"crack/{n:03}.png" for n in range(images)), aupimo=0.5 if number % 2 else None,
        latency_samples_ms=tuple(6 + n / 200 for n in range(200)),
        losses=json.dumps([{"step": n, "loss": 1 / (n + 1)} for n in range(200)]),
    )  # fmt: skip


def fill(folder: Path, files: int) -> None:
    """Rows in files of their own, written without waiting for the disk."""
    for number in range(files):
        made = dataclasses.replace(invented(number))
        path = folder / store.file_name(made)
        path.write_bytes(store._encode([made]))
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 60))  # as a resumed run finds them: not just made


def kept_tables(folder: Path, columns: tuple[str, ...]) -> Any:
    """All files as tables that are kept, then one: how version 0.1 read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name in COLUMNS if name in {*columns, *KEY_COLUMNS, "created_at"}]

    def one(path: Path) -> Any:
        with pa.OSFile(str(path), "rb") as source:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            assert set(file.schema_arrow.names) >= set(KEY_COLUMNS)
            return file.read(names, use_threads=False)

    with ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(one, sorted(folder.glob("*.parquet"))))
    assert not pa.concat_tables(tables)["job_id"].null_count
    return pa.concat_tables(tables).combine_chunks()


def plan_kept(folder: Path) -> int:
    """What is finished, by tables that are kept."""
    table = kept_tables(folder, FINISHED)
    return len(dict(zip(table["job_id"].to_pylist(), table["status"].to_pylist(), strict=True)))


def plan_now(folder: Path) -> int:
    """What is finished, by the store."""
    return len(store.finished(folder))


def resume_kept(folder: Path) -> int:
    """What a resumed run reads: the plan, all columns for its summary, the columns of the pages."""
    plan_kept(folder)
    ours = kept_tables(folder, COLUMNS).to_pylist()
    kept_tables(folder, DRAWN)
    return len(ours)


def resume_now(folder: Path) -> int:
    """The same with the store: the plan, and once the columns of the pages."""
    plan_now(folder)
    return len(store.read(folder, DRAWN).rows())


def resume_again(folder: Path) -> int:
    """The same after a resume of before, which has packed the rows."""
    return resume_now(folder)


WAYS = {function.__name__: function for function in (plan_kept, plan_now, resume_kept, resume_now, resume_again)}
PAIRS = (("plan_kept", "plan_now"), ("resume_kept", "resume_now"), ("resume_now", "resume_again"))


def measure(way: str, folder: Path) -> dict[str, float]:
    """Seconds, seconds of the processor and the peak memory of one way in a process of its own."""
    command = [sys.executable, __file__, "--way", way, str(folder)]
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2 if way == "resume_again" else 1):
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, "KDAD_CACHE": cache})
    said: dict[str, float] = json.loads(done.stdout)
    return said


def alone(way: str, folder: Path) -> None:
    """Run one way and print what it took; loading pyarrow is not part of it."""

    assert len(rows.SCHEMA) == len(COLUMNS)
    wall, processor = time.perf_counter(), time.process_time()
    found = WAYS[way](folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    seconds, busy = time.perf_counter() - wall, time.process_time() - processor
    print(json.dumps({"found": found, "seconds": seconds, "busy": busy, "peak_mb": peak}))


def main() -> None:
    """Fill a folder, measure each way in turn, print the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        alone(given.way[0], Path(given.way[1]))
        return
    with tempfile.TemporaryDirectory() as place:
        fill(Path(place), given.files)
        taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(given.rounds):
            for way in WAYS:
                taken[way].append(measure(way, Path(place)))
    print(f"{given.files} files of one row, medians of {given.rounds} rounds\n")
    print("| way | s | s of the processor | peak MB |\n|---|---:|---:|---:|")
    middle = {way: {name: median(one[name] for one in found) for name in found[0]} for way, found in taken.items()}
    for way, found in middle.items():
        assert found["found"] == given.files
        print(f"| {way} | {found['seconds']:.2f} | {found['busy']:.2f} | {found['peak_mb']:.0f} |")
    for before, after in PAIRS:
        pairs = list(zip(taken[before], taken[after], strict=True))
        ratios = (f"{name} {median(now[name] / kept[name] for kept, now in pairs):.2f}" for name in NAMES)
        print(f"\n{after} over {before}, of the same round: {', '.join(ratios)}")


NAMES = ("seconds", "busy", "peak_mb")

if __name__ == "__main__":
    main()
