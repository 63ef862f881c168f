"""`kdad-bench logs`: the training log of one job."""

from __future__ import annotations

import json
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import rich_click as click

from kdad_bench.cli import BadInput
from kdad_bench.cli.parameters import LocalPath
from kdad_bench.leaderboard.text import printable

LONGEST_LINE = 100_000  # bytes
MOST_LINES = 10**9
HEAD = 1000  # bytes of a log's beginning by which it is known again
PATIENCE = 0.5  # seconds between two looks at a log that is being written


@click.command()
@click.argument("job")
@click.option("--results", type=LocalPath(), default=Path("results"), show_default=True, help="Results folder.")
@click.option("--last", type=click.IntRange(1, MOST_LINES), help="Only the last so many lines.")
@click.option("--follow", "-f", is_flag=True, help="Go on as the job writes, until it ends; also in a log begun anew.")
@click.option("--json", "as_json", is_flag=True, help="The JSON lines as they are.")
def logs(job: str, results: Path, last: int | None, follow: bool, as_json: bool) -> None:
    """Show the loss terms of JOB, given by its id or the beginning of it."""
    say = printable if as_json else readable
    path = log_of(job, results)
    file = opened(path)
    try:
        ended = shown(deque(whole_lines(file), maxlen=last) if last else whole_lines(file), say)
        while follow and not ended:
            head = os.pread(file.fileno(), HEAD, 0)
            time.sleep(PATIENCE)
            if begun_anew(path, file, head):
                click.echo(f"{printable(path.name)}: begun anew", err=True)
                file.close()
                file = opened(path)
            ended = shown(whole_lines(file), say)
        torn = file.read(LONGEST_LINE)
        if torn and not follow:
            click.echo(say(torn.decode("utf-8", "backslashreplace")))
    finally:
        file.close()


def shown(lines: Iterable[str], say: Callable[[str], str]) -> bool:
    """Print lines of a log; whether they say that its job has ended."""
    ended = False
    for text in lines:
        click.echo(say(text))
        ended = event_of(text) in ("end", "failed")
    return ended


def begun_anew(path: Path, file: BinaryIO, head: bytes) -> bool:
    """Whether the log at `path` is another file than the opened one, is shorter than what was read of it, or does not
    begin with `head` any more. One that is gone may come again."""
    try:
        now = os.stat(path)
    except OSError:
        return False
    own = os.fstat(file.fileno())
    if (now.st_dev, now.st_ino) != (own.st_dev, own.st_ino):
        return True
    return own.st_size < file.tell() or os.pread(file.fileno(), len(head), 0) != head


def log_of(job: str, results: Path) -> Path:
    """The one log whose name begins with `job`; raises BadInput if there is none, or several."""
    if not job:
        raise BadInput("'': no job; give the id of one, or the beginning of it")
    folder = results / "logs"
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix == ".jsonl" and path.name.startswith(job))
    except OSError as error:
        why = "no such folder" if isinstance(error, FileNotFoundError) else error.strerror
        raise BadInput(f"{folder}: {why}; say with --results where the results of the run are") from error
    if len(found) != 1:
        which = f"{len(found)} jobs begin with it, write more of the id" if found else "none begins so"
        raise BadInput(
            f"no log of job '{job}' in {folder}: {which}; the files there are named by the ids of their jobs"
        )
    return found[0]


def opened(path: Path) -> BinaryIO:
    """The log for reading; raises BadInput for what is no regular file or cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadInput(f"{path}: no regular file, so no log of ours")
    return os.fdopen(handle, "rb")


def whole_lines(file: BinaryIO) -> Iterator[str]:
    """The lines from where `file` stands; one that is not written to its end stays for the next call."""
    while line := file.readline(LONGEST_LINE):
        if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
            file.seek(-len(line), os.SEEK_CUR)
            return
        yield line.decode("utf-8", "backslashreplace").rstrip("\r\n")


def content_of(text: str) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def event_of(text: str) -> object:
    """What a line reports: start, step, end or failed; None for a line that is not ours."""
    return (content_of(text) or {}).get("event")


def readable(text: str) -> str:
    """`step 120  loss 0.0123  layer1 0.004`."""
    content = content_of(text)
    if content is None:
        return printable(f"(unreadable line) {text[:200]}")
    event = content.pop("event", "?")
    if event == "step":
        step = content.pop("step", "?")
        return printable(f"step {step!s:>6}  " + "  ".join(f"{name} {said(value)}" for name, value in content.items()))
    return printable(f"{event}  " + "  ".join(f"{name}={value}" for name, value in content.items()))


def said(value: object) -> str:
    """A number with five digits, anything else as it is."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
