"""`kdad-bench show`: everything that is known about one job."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

import rich_click as click

from kdad_bench.cli import BadInput
from kdad_bench.cli.parameters import Place
from kdad_bench.leaderboard.metric import ACCURACIES, COSTS, MEASURED
from kdad_bench.leaderboard.text import counted, printable

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "identity": (
        "job_id", "method", "title", "family", "variant", "dataset", "category", "modality", "seed", "preset",
        "also_presets", "created_at", "schema_version", "origin", "code_sha256",
    ),
    "run": (
        "teacher", "teacher_weights", "teacher_sha256", "resolution", "image_size", "steps", "batch_size", "precision",
        "data_fingerprint", "synthetic", "train_images", "test_images", "protocol_version",
        "k_shot", "contamination", "corruption", "setting", "weights_sha256", "fit", "tile", "tile_overlap",
    ),
    **{
        section: tuple(name for name, metric in MEASURED.items() if metric.section == section)
        for section in (ACCURACIES, COSTS)
    },
    "machine": (
        "device", "device_name", "threads", "speed_key", "speed_threads",
        "python", "torch", "triton", "numpy", "kdad_bench", "platform",
        "git_commit", "git_dirty",
    ),
}  # fmt: skip
WORDS = {
    "learnt_together": "learnt together: the categories of its model, and the hash of the files of each",
    "readings": "readings: what no source settles, and what was chosen",
    "deviations": "deviations: what a source settles and this run does otherwise",
}
BESIDE = {  # what a run keeps of a job -> where, as docs/results.md lists it
    "picture": "pictures/{}.png", "log": "logs/{}.jsonl", "model": "models/*-{}", "maps": "maps/{}.npz",
    "audit": "audits/{}.json", "events": "tensorboard/{}",
}  # fmt: skip


@click.command()
@click.argument("job")
@click.option("--results", type=Place(), default="results", show_default=True, help="Results folder or fsspec URL.")
@click.option("--json", "as_json", is_flag=True, help="The whole row as JSON on stdout, raw measurements included.")
def show(job: str, results: str, as_json: bool) -> None:
    """Show everything about one JOB: its id, or the first digits of it."""
    from kdad_bench.harness import trust

    row = the_row(job, results)
    if as_json:
        click.echo(json.dumps(row, indent=1, ensure_ascii=False, allow_nan=False))
        return
    title = f"{row['title'] or row['method']} {row['dataset']}/{row['category']} seed {row['seed']}: {row['status']}"
    click.echo(printable(title))
    if row["reason"]:
        click.echo(printable(f"reason: {row['reason']}"))
    for section, columns in SECTIONS.items():
        listed(section, {name: row[name] for name in columns if row[name] not in (None, "", [])})
    listed_words("threshold: what can be trusted of one", trust.words_of(row))
    for name, title in WORDS.items():
        listed_words(title, row[name] or ())
    for name in ("settings", "environment"):
        listed(name, json.loads(row[name] or "{}"))
    curve = {point["batch"]: f"{point['images_per_second']:.1f}" for point in row["throughput"] or ()}
    listed("images per second by batch", curve)
    if "://" not in results:
        listed("beside the row", kept_beside(Path(results), row["job_id"]))


def kept_beside(results: Path, job: str) -> dict[str, Path]:
    """What there is of BESIDE; the names of models begin with method, category and seed."""
    found = {name: sorted(results.glob(pattern.format(escape(job)))) for name, pattern in BESIDE.items()}
    return {name: paths[0] for name, paths in found.items() if paths}


def the_row(job: str, results: str) -> dict[str, Any]:
    """The one row whose job id begins with `job`; raises BadInput if there is none, or several."""
    from kdad_bench.leaderboard import store

    try:
        found = store.matching(results, job)
    except store.StoreError as error:
        raise BadInput(str(error)) from error
    if not found:
        command = f"kdad-bench results export {shlex.quote(results)} csv"
        raise BadInput(f"no job {job!r} in {results}; `{command}` lists them all")
    if len(found) > 1 or not job:
        names = ", ".join(
            f"{row['job_id']} ({row['method']} {row['category']} seed {row['seed']})" for row in found[:5]
        )
        more = ", ..." if len(found) > 5 else ""
        raise BadInput(f"{job!r} begins the ids of {counted(len(found), 'job')}: {names}{more}")
    return found[0]


def listed(title: str, facts: Mapping[Any, Any]) -> None:
    """A section of aligned names and values, if there are any."""
    if facts:
        click.echo(f"\n{title}")
    for name, value in facts.items():
        click.echo(printable(f"  {str(name).ljust(20)} {said(value)}"))


def listed_words(title: str, texts: Sequence[str]) -> None:
    """A section of lines, if there are any."""
    if texts:
        click.echo(f"\n{title}")
    for text in texts:
        click.echo(printable(f"  {text}"))


def said(value: Any) -> str:
    """A value on one line: floats with six digits, lists with semicolons, anything nested as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "; ".join(said(item) for item in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
