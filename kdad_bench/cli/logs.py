"""`kdad-bench logs`: the training log of one job."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import rich_click as click

from kdad_bench.cli import BadInput


@click.command()
@click.argument("job")
@click.option(
    "--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="Results folder."
)
@click.option("--last", type=click.IntRange(min=1), help="Only the last so many lines.")
@click.option("--follow", "-f", is_flag=True, help="Go on as the job writes, until it ends.")
@click.option("--json", "as_json", is_flag=True, help="The JSON lines as they are.")
def logs(job: str, results: Path, last: int | None, follow: bool, as_json: bool) -> None:
    """Show the loss terms of JOB, given by its id or the beginning of it."""
    folder = results / "logs"
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; say with --results where the results of the run are")
    found = sorted(folder.glob(f"{job}*.jsonl"))
    if len(found) != 1:
        which = f"{len(found)} jobs begin with it, write more of the id" if found else "none begins so"
        raise BadInput(
            f"no log of job '{job}' in {folder}: {which}; the files there are named by the ids of their jobs"
        )
    lines = found[0].read_text(encoding="utf-8").splitlines()
    for text in lines[-last:] if last else lines:
        click.echo(text if as_json else readable(text))
    if follow:
        for text in written_after(found[0], len(lines)):
            click.echo(text if as_json else readable(text))


def written_after(path: Path, seen: int) -> Iterator[str]:
    """Whole lines as they are added to `path` beyond the first `seen`, until the job's end is written."""
    while True:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()[: text.count("\n")]
        yield from lines[seen:]
        seen = len(lines)
        if lines and json.loads(lines[-1])["event"] in ("end", "failed"):
            return
        time.sleep(0.5)


def readable(text: str) -> str:
    """`step 120  loss 0.0123  layer1 0.004`."""
    try:
        content = json.loads(text)
    except ValueError:
        return f"(unreadable line) {text}"
    event = content.pop("event", "?")
    if event == "step":
        step = content.pop("step")
        return f"step {step:>6}  " + "  ".join(f"{name} {value:.5g}" for name, value in content.items())
    return f"{event}  " + "  ".join(f"{name}={value}" for name, value in content.items())
