"""What today's code says of a row by its settings: python -m tests.leaderboard.words FOLDER says it in the rows there.

Readings and deviations follow from a row's settings and number of images, so that words that were mended are mended in
rows of before: no figure changes, and no id.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdad_bench.datasets.category import Category
from kdad_bench.harness.axes import axes_of
from kdad_bench.harness.job import Job, TeacherWeights, hold_out_of
from kdad_bench.harness.view import view_of
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import SCHEMA
from kdad_bench.methods import entry
from kdad_bench.methods.training.parting import learnt_from

Words = tuple[tuple[str, ...], tuple[str, ...]]  # readings, deviations


def words_of(row: Mapping[str, Any]) -> Words:
    """The words on a `row` (all columns) of a method of this package, where `plain`."""
    values = json.loads(row["settings"])
    kind = type(next(iter(entry(row["method"]).presets.values())))
    known = {one.name for one in fields(kind)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    settings = kind(**{name: value for name, value in given.items() if name in known})
    weights = row["teacher"] and TeacherWeights(
        teacher=row["teacher"], source=row["teacher_weights"], sha256=row["teacher_sha256"]
    )
    job = Job(
        method=row["method"],
        variant=row["variant"] or "",
        category=Category(dataset=row["dataset"], name=row["category"], root=Path(), train=(), test=()),
        seed=row["seed"],
        preset=row["preset"],
        resolution=row["resolution"],
        settings=settings,
        weights=weights or None,
        device=row["device"],
        fingerprint=row["data_fingerprint"],
        view=view_of(row),
    )
    few = settings.learning_from(learnt_from(row["train_images"], settings)) if job.view.plain else ()
    return tuple(settings.readings), (*job.deviations, *few)


def plain(row: Mapping[str, Any]) -> bool:
    """Whether no word on it follows from the files of its category, which are not there: it is of photographs, of
    which all normals are given to a model of its own."""
    points = (axes_of(row).used, row["setting"], hold_out_of(row["preset"]))
    return row["modality"] == "rgb" and not any(points)


def said_in(row: Mapping[str, Any]) -> Words:
    """The words that stand there."""
    return tuple(row["readings"] or ()), tuple(row["deviations"] or ())


def rewritten(path: Path) -> int:
    """How many rows of a Parquet file had other words; it is replaced by one whose rows have today's."""
    table = pq.read_table(path, schema=SCHEMA)
    rows = table.to_pylist()
    words = [words_of(row) if row["status"] == "ok" and plain(row) else said_in(row) for row in rows]
    changed = sum(said_in(row) != one for row, one in zip(rows, words, strict=True))
    if changed:
        for place, name in enumerate(("readings", "deviations")):
            column = pa.array([list(one[place]) for one in words], SCHEMA.field(name).type)
            table = table.set_column(table.column_names.index(name), SCHEMA.field(name), column)
        content = store.encoded(table)
        compacted = path.name.startswith(store.COMPACTED)
        name = f"{store.COMPACTED}{hashlib.sha256(content).hexdigest()[:16]}.parquet" if compacted else path.name
        (path.parent / name).write_bytes(content)
        if name != path.name:
            path.unlink()
    return changed


def main() -> None:
    """Say of each folder how many rows had other words."""
    for folder in map(Path, sys.argv[1:]):
        sys.stdout.write(f"{folder}: {sum(map(rewritten, sorted(folder.glob('*.parquet'))))} rows had other words\n")


if __name__ == "__main__":
    main()
