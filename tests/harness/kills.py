"""Kill runners, workers, compactions and page writers at random, and count what that cost.

`python -m tests.harness.kills --count 200` prints one line per round and a last one with the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import psutil

from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.pages import draw_pages
from tests.conftest import write_tree

COMMAND = [sys.executable, "-m", "kdad_bench", "run", "--method", "pixel_mean", "--no-pictures", "--device", "cpu"]
SEEDS = 6
JOBS = 2 * SEEDS
PATIENCE = 300.0  # seconds for a run to end
KINDS = ("runner", "working", "idle", "starting", "compaction", "pages")


@dataclass
class Tally:
    """Kills that hit, by kind, and what was found after them."""

    kills: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    trained_twice: int = 0
    torn_pages: int = 0
    debris: int = 0
    bad_ends: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.trained_twice or self.torn_pages or self.debris or self.bad_ends)


@dataclass
class Folder:
    """One results folder, and every finished row that was ever seen there."""

    tree: Path
    out: Path
    tally: Tally
    seen: dict[str, set[str]] = field(default_factory=dict)  # job id -> the dates of its ok rows

    def start(self, *more: str) -> subprocess.Popen[str]:
        chosen = ["--dataset", f"folder:{self.tree}", "--seeds", str(SEEDS), "--out", str(self.out), *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*COMMAND, *chosen], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    def look(self) -> None:
        """Compare with what was there before."""
        now: dict[str, str] = {}
        with suppress(store.StoreError):
            now = {row["job_id"]: row["created_at"] for row in store.read(self.out).rows() if row["status"] == "ok"}
        self.tally.lost += len(self.seen.keys() - now.keys())
        for job, date in now.items():
            dates = self.seen.setdefault(job, set())
            self.tally.trained_twice += bool(dates - {date})
            dates.add(date)

    def finish(self) -> None:
        """Run what is left, then look at everything."""
        process = self.start("--retry-failed")
        output, _ = process.communicate(timeout=PATIENCE)
        if process.returncode != 0 or "Traceback" in output:
            self.tally.bad_ends.append(output[-600:])
        self.look()
        self.look_whole()

    def look_whole(self) -> None:
        """Rows, pages and files of a folder where everything has ended."""
        rows = store.read(self.out).rows()
        self.tally.lost += max(0, JOBS - len(rows))
        self.tally.doubled += max(0, len(rows) - JOBS)
        self.tally.torn_pages += not whole_pages(self.out)
        left = [path for path in self.out.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".probe")]
        left += (self.out / "checkpoints").glob("*")
        self.tally.debris += len(left)


def whole_pages(out: Path) -> bool:
    """Whether each page in `out` is there from its beginning to its end."""
    try:
        json.loads((out / "leaderboard.json").read_text())
        page = (out / "leaderboard.html").read_text().rstrip()
        return (
            page.startswith("<!") and page.endswith("</html>") and (out / "leaderboard.md").read_text().endswith("\n")
        )
    except (OSError, ValueError):
        return False


def workers_of(runner: int) -> Iterator[tuple[psutil.Process, str]]:
    """(worker, whether it is working, idle or starting) of a runner."""
    try:
        children = psutil.Process(runner).children()
    except psutil.Error:
        return
    for child in children:
        with suppress(psutil.Error, OSError):
            if "spawn_main" in " ".join(child.cmdline()):
                yield child, state_of(child)


def state_of(worker: psutil.Process) -> str:
    """A worker that holds a job holds its lock; one without torch still starts."""
    if any(".locks" in file.path for file in worker.open_files()):
        return "working"
    return "idle" if "libtorch" in Path(f"/proc/{worker.pid}/maps").read_text() else "starting"


def round_of_runners(folder: Folder, chance: random.Random, kills: int) -> None:
    """Kill the runner some time after its start, again and again; its workers must go with it."""
    for _ in range(kills):
        process = folder.start("--workers", "2")
        time.sleep(chance.uniform(0.3, 12))
        children = []
        with suppress(psutil.Error):
            children = psutil.Process(process.pid).children(recursive=True)
        folder.tally.kills["runner"] += process.poll() is None
        process.kill()
        process.communicate()
        folder.tally.debris += len(psutil.wait_procs(children, timeout=20)[1])
        folder.look()
    folder.finish()


def round_of_workers(folder: Folder, chance: random.Random, kills: int) -> None:
    """Kill workers, first those in the state that was hit least; the runner must go on to its end."""
    process = folder.start("--workers", "3")
    done = 0
    while process.poll() is None and done < kills:
        target = min(("working", "idle", "starting"), key=lambda state: (folder.tally.kills[state], chance.random()))
        deadline = time.monotonic() + chance.uniform(1, 6)
        while process.poll() is None and time.monotonic() < deadline:
            found = [worker for worker, state in workers_of(process.pid) if state == target]
            if found and chance.random() < 0.5:
                with suppress(psutil.Error):
                    chance.choice(found).kill()
                    folder.tally.kills[target] += 1
                    done += 1
                break
            time.sleep(chance.uniform(0.0, 0.2))
        folder.look()
    output, _ = process.communicate(timeout=PATIENCE)
    if process.returncode not in (0, 1) or "Traceback" in output:
        folder.tally.bad_ends.append(output[-600:])
    folder.look()
    folder.finish()


def round_of_compactions(folder: Folder, chance: random.Random, kills: int) -> None:
    """Kill compactions beside two runners that share the work."""
    runners = [folder.start("--workers", "1") for _ in range(2)]
    done = 0
    while any(runner.poll() is None for runner in runners) or done < kills:
        with killed_later(store.compact, folder.out, chance.uniform(0.001, 0.08)) as alive:
            folder.tally.kills["compaction"] += alive
            done += 1
        folder.look()
        time.sleep(0.1)
    for runner in runners:
        output, _ = runner.communicate(timeout=PATIENCE)
        if runner.returncode != 0 or "Traceback" in output:
            folder.tally.bad_ends.append(output[-600:])
    store.compact(folder.out)
    folder.finish()


def round_of_pages(folder: Folder, chance: random.Random, kills: int) -> None:
    """Kill writers of pages; the pages of before or the new ones are there, whole."""
    folder.finish()
    for _ in range(kills):
        with killed_later(lambda out: draw_pages(out, out), folder.out, chance.uniform(0.01, 0.5)) as alive:
            folder.tally.kills["pages"] += alive
        folder.tally.torn_pages += not whole_pages(folder.out)
    folder.finish()


@contextmanager
def killed_later(work: Callable[[Path], object], out: Path, seconds: float) -> Iterator[bool]:
    """`work(out)` in a forked process that is killed after `seconds`; whether it was still at work."""

    def forever() -> None:
        while True:
            with suppress(store.StoreError):
                work(out)

    process = get_context("fork").Process(target=forever)
    process.start()
    time.sleep(seconds)
    alive = process.is_alive()
    process.kill()
    process.join()
    yield alive


ROUNDS = (round_of_workers, round_of_runners, round_of_compactions, round_of_pages)


def campaign(count: int, seed: int, rounds: tuple[Callable[..., None], ...] = ROUNDS, seconds: float = 1e9) -> Tally:
    """At least `count` kills of real processes, or as many as `seconds` allow."""
    chance, tally = random.Random(seed), Tally()
    began, number = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="kdad-kills-") as place:
        tree = write_tree(Path(place) / "tree")
        while tally.kills.total() < count and time.monotonic() - began < seconds:
            folder = Folder(tree, Path(place) / f"out{number}", tally)
            rounds[number % len(rounds)](folder, chance, 10)
            number += 1
            say(f"round {number}, {time.monotonic() - began:.0f} s: {said(tally)}")
    return tally


def say(line: str) -> None:
    """Show how far it is."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def said(tally: Tally) -> str:
    """All numbers in one line."""
    kills = ", ".join(f"{tally.kills[kind]} {kind}" for kind in KINDS)
    return (
        f"{tally.kills.total()} kills ({kills}): {tally.lost} lost, {tally.doubled} doubled, "
        f"{tally.trained_twice} trained twice, {tally.torn_pages} torn pages, {tally.debris} debris, "
        f"{len(tally.bad_ends)} bad ends"
    )


def main() -> None:
    """The command line; exit code 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--round", choices=[one.__name__.rpartition("_")[2] for one in ROUNDS])
    given = parser.parse_args()
    chosen = tuple(one for one in ROUNDS if given.round in (None, one.__name__.rpartition("_")[2]))
    tally = campaign(given.count, given.seed, chosen, given.seconds)
    for end in tally.bad_ends:
        say(end)
    sys.exit(0 if tally.clean else 1)


if __name__ == "__main__":
    main()
