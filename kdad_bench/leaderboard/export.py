"""All rows of a results folder as one file for another program: CSV, JSON, or an SQLite database."""

from __future__ import annotations

import contextlib
import csv
import json
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kdad_bench.leaderboard.text import cell

if TYPE_CHECKING:
    import pyarrow as pa


def _json(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(table.to_pylist(), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def _csv(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows([cell(_flat(value)) for value in line.values()] for line in table.to_pylist())


def _sqlite(table: pa.Table, path: Path) -> None:
    import pyarrow as pa

    def affinity(kind: pa.DataType) -> str:
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return "INTEGER"
        return "REAL" if pa.types.is_floating(kind) else "TEXT"

    columns = ", ".join(f'"{field.name}" {affinity(field.type)}' for field in table.schema)
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute(f"CREATE TABLE results ({columns}, PRIMARY KEY (job_id))")
        marks = ", ".join("?" * table.num_columns)
        base.executemany(
            f"INSERT INTO results VALUES ({marks})",
            ([_flat(value) for value in line.values()] for line in table.to_pylist()),
        )


def _flat(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) if isinstance(value, list) else value


# kind -> what writes a table (columns as in `row.SCHEMA`) to a path
WRITERS: Mapping[str, Callable[[pa.Table, Path], None]] = MappingProxyType(
    {"csv": _csv, "json": _json, "sqlite": _sqlite}
)
