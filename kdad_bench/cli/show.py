"""`kdad-bench show`: everything that is known about one job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rich_click as click

from kdad_bench.cli import BadInput

SECTIONS = {
    "identity": (
        "job_id",
        "method",
        "title",
        "variant",
        "dataset",
        "category",
        "modality",
        "seed",
        "preset",
        "created_at",
    ),
    "run": (
        *(
            "teacher",
            "teacher_weights",
            "teacher_sha256",
            "resolution",
            "image_size",
            "steps",
            "batch_size",
            "precision",
        ),
        *("readings", "data_fingerprint", "synthetic", "train_images", "test_images", "protocol_version"),
    ),
    "accuracy": (
        *("image_auroc", "image_ap", "image_f1_max", "image_auroc_max", "pixel_auroc", "pixel_ap", "pixel_f1_max"),
        *("aupro_30", "aupro_05", "batch_invariance"),
    ),
    "cost": (
        *("train_seconds", "data_seconds", "score_seconds", "metric_seconds", "total_seconds", "latency_ms"),
        *("latency_p95_ms", "network_latency_ms", "images_per_second", "best_batch", "peak_memory_mb", "parameters"),
        *("trainable_parameters", "gflops"),
    ),
    "machine": (
        *("device", "device_name", "threads", "python", "torch", "triton", "numpy", "kdad_bench", "platform"),
        *("git_commit", "git_dirty"),
    ),
}
BESIDE = {"picture": "pictures/{}.png", "log": "logs/{}.jsonl", "maps": "maps/{}.npz"}


@click.command()
@click.argument("job")
@click.option("--results", default="results", show_default=True, help="Results folder or fsspec URL.")
@click.option("--json", "as_json", is_flag=True, help="The whole row as JSON on stdout, raw measurements included.")
def show(job: str, results: str, as_json: bool) -> None:
    """Show everything about one JOB: its id, or the first digits of it."""
    from kdad_bench.leaderboard import store

    try:
        found = [row for row in store.read(results).rows() if row["job_id"].startswith(job)]
    except store.StoreError as error:
        raise BadInput(str(error)) from error
    if not found:
        raise BadInput(f"no job {job!r} in {results}; `kdad-bench results export {results} csv` lists them all")
    if len(found) > 1:
        names = ", ".join(
            f"{row['job_id']} ({row['method']} {row['category']} seed {row['seed']})" for row in found[:5]
        )
        raise BadInput(f"{job!r} begins the ids of {len(found)} jobs: {names}{', ...' if len(found) > 5 else ''}")
    (row,) = found
    if as_json:
        click.echo(json.dumps(row, indent=1, ensure_ascii=False))
        return
    click.echo(
        f"{row['title'] or row['method']} {row['dataset']}/{row['category']} seed {row['seed']}: {row['status']}"
    )
    if row["reason"]:
        click.echo(f"reason: {row['reason']}")
    for section, columns in SECTIONS.items():
        lines = [(name, said(row[name])) for name in columns if row[name] not in (None, "", [])]
        if lines:
            click.echo(f"\n{section}")
        for name, text in lines:
            click.echo(f"  {name.ljust(20)} {text}")
    for name in ("settings", "environment"):
        facts = json.loads(row[name] or "{}")
        if facts:
            click.echo(f"\n{name}")
            for key, value in facts.items():
                click.echo(f"  {key.ljust(20)} {said(value)}")
    throughput = row["throughput"] or []
    if throughput:
        click.echo("\nimages per second by batch")
        for point in throughput:
            click.echo(f"  {str(point['batch']).ljust(20)} {point['images_per_second']:.1f}")
    beside = {name: Path(results) / pattern.format(row["job_id"]) for name, pattern in BESIDE.items()}
    there = {name: path for name, path in beside.items() if "://" not in results and path.exists()}
    if there:
        click.echo("\nbeside the row")
        for name, path in there.items():
            click.echo(f"  {name.ljust(20)} {path}")


def said(value: Any) -> str:
    """A value on one line: floats with six digits, lists with semicolons, anything nested as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "; ".join(said(item) for item in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
