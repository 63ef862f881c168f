"""All rows of a results folder, however many files they lie in and whoever rewrites these files meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from kdad_bench.leaderboard import border, packed
from kdad_bench.leaderboard import row as rows
from kdad_bench.leaderboard.folder import Entry, Folder, StoreError
from kdad_bench.leaderboard.picking import picked
from kdad_bench.leaderboard.row import COLUMNS, KEY_COLUMNS
from kdad_bench.leaderboard.text import counted

if TYPE_CHECKING:
    import pyarrow as pa

COMPACTED = "compacted-"
DRAWN = "leaderboard.parquet"  # written by the renderer, perhaps into the same folder: no result
ATTEMPTS = 20  # listings of a folder that other processes are rewriting
PATIENCE = 3  # of them, in a folder to which rows are only added
AT_ONCE = 256  # small tables that are held before they become one
HELD_BYTES = 256_000_000  # of them


@dataclass(slots=True)
class File:
    """A file of the folder as it was read."""

    entry: Entry
    rows: int  # that count
    problems: list[str] = field(default_factory=list)  # what was left out of it, and why
    sound: bool = True  # also in columns that were read and not asked for


class Found(NamedTuple):
    """What a folder holds: `table` has every row that may count, jobs that stand in several files several times."""

    files: list[File]
    table: pa.Table


Answer: TypeAlias = "tuple[File, pa.Table | None] | None"  # what a file gives; None: it is gone
Wanted = Callable[[str], bool]  # whether a file of that name is looked at


def everything(name: str) -> bool:
    """Whether the file of that name may hold results at all."""
    return name.endswith(".parquet") and not name.startswith(".") and name != DRAWN


def load(place: Folder, columns: Iterable[str], wanted: Wanted = everything, *, anew: bool = False) -> Found:
    """The rows of all result files that are `wanted`, each value checked, in `columns` and those that identify a row.

    A compaction may move rows while the folder is listed: a listing counts once the next one shows nothing new. Where
    there are many small files, rows are taken as an earlier reader packed them, unless all are to be read `anew`.
    Raises StoreError if the folder cannot be listed or never comes to rest.
    """
    schema = _schema(columns)
    listed = _listed(place, wanted)
    asked, parts = (schema, []) if anew else _packed(place, listed, schema, wanted)
    known = {file.entry: file for files, _ in parts for file in files}
    with ThreadPoolExecutor(place.readers) as pool:
        for attempt in range(ATTEMPTS):
            listed = _listed(place, wanted) if attempt else listed
            missing = [entry for entry in listed if entry not in known]
            vanished = False
            for answers in _portions(_answers(pool, place, missing, lambda entry: _read(place, entry, asked, schema))):
                vanished |= None in answers
                files, table = _checked([answer for answer in answers if answer is not None], asked, schema)
                known.update((file.entry, file) for file in files)
                parts.append((files, table))
            moved = vanished or any(entry.name.startswith(COMPACTED) for entry in missing)
            if (attempt and not missing) or (attempt >= PATIENCE and not moved):
                found = _together([known[entry] for entry in listed if entry in known], parts, asked)
                if asked is not schema:
                    _pack(place, found)
                return Found(found.files, found.table.select(schema.names))
    raise StoreError(f"the results folder {place.where!r} keeps changing; try again when it is at rest")


def _listed(place: Folder, wanted: Wanted) -> list[Entry]:
    return [entry for entry in place.entries() if everything(entry.name) and wanted(entry.name)]


def _packed(
    place: Folder, entries: Sequence[Entry], schema: pa.Schema, wanted: Wanted
) -> tuple[pa.Schema, list[tuple[list[File], pa.Table]]]:
    """With which columns files are to be read, and the rows that need not be.

    Where so many are left to read that they are worth packing, the columns are all: then each file is opened once, for
    whatever may be asked of it. Which rows count depends on the columns that are asked for alone.
    """
    if len(entries) < packed.LEAST:
        return schema, []
    asked = schema
    found, table = packed.taken(place, entries, schema)
    if wanted is everything and len(entries) - len(found) >= packed.LEAST and packed.worth_it(entries):
        asked = _schema(COLUMNS)
        found, table = packed.taken(place, entries, asked)
    return asked, [([File(entry, 1) for entry in found], table)]


def _pack(place: Folder, found: Found) -> None:
    """Keep the rows of files that hold a single one, sound in every column, and whose stamp can be relied on."""
    starts = accumulate((file.rows for file in found.files), initial=0)
    single = {
        file.entry: start
        for file, start in zip(found.files, starts, strict=False)
        if file.rows == 1 and not file.problems and file.sound and place.settled(file.entry)
    }
    packed.keep(place, single, found.table)


def _schema(columns: Iterable[str]) -> pa.Schema:
    import pyarrow as pa

    asked = {*columns, *KEY_COLUMNS, "created_at", "reason"}
    return pa.schema([rows.SCHEMA.field(name) for name in COLUMNS if name in asked])


def _answers(
    pool: ThreadPoolExecutor, place: Folder, entries: Iterable[Entry], read: Callable[[Entry], Answer]
) -> Iterator[Answer]:
    """What each file gives, in their order; a few are read ahead, as each may hold much."""
    waiting: deque[Future[Answer]] = deque()
    for entry in entries:
        waiting.append(pool.submit(read, entry))
        if len(waiting) > 2 * place.readers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _portions(answers: Iterable[Answer]) -> Iterator[list[Answer]]:
    """So many of them at once as the memory takes before it is known what they hold."""
    some: list[Answer] = []
    held = 0
    for answer in answers:
        size = 0 if answer is None or answer[1] is None else answer[1].get_total_buffer_size()
        if some and (len(some) == AT_ONCE or held + size > HELD_BYTES):
            yield some
            some, held = [], 0
        some.append(answer)
        held += size
    if some:
        yield some


def _read(place: Folder, entry: Entry, asked: pa.Schema, schema: pa.Schema) -> Answer:
    """One file as a table with the columns `asked`, or why it is none; None if it is gone.

    Those beyond `schema` are null where the file can be read only without them.
    """
    import pyarrow as pa

    file = File(entry, 0)
    for columns in (asked,) if asked is schema else (asked, schema):
        try:
            if entry.stamp == ():
                raise border.Foreign("is no regular file")
            with place.open(entry.name) as source:
                table = border.table_of(source, columns)
            if columns is asked:
                return File(entry, 0), table
            return File(entry, 0, sound=False), border.evolved(table, asked)
        except FileNotFoundError:
            return None
        except border.Foreign as error:
            file.problems = [str(error)]
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
            file.problems = [f"unreadable ({border.first_line(error)})"]
    return file, None


def _checked(
    answers: Sequence[tuple[File, pa.Table | None]], asked: pa.Schema, schema: pa.Schema
) -> tuple[list[File], pa.Table]:
    """The files, with what was left out of each, and the rows that may count as one table: by the columns of `schema`,
    whatever the others hold that were `asked` for the pack."""
    import pyarrow as pa

    holding = [(file, table) for file, table in answers if table is not None]
    whole = pa.concat_tables([asked.empty_table(), *(table for _, table in holding)]).combine_chunks()
    bad = border.faults(whole.select(schema.names))
    others = [name for name in asked.names if name == "schema_version" or name not in schema.names]
    beyond = border.faults(whole.select(others)) if asked is not schema else {}
    start = 0
    for file, table in holding:
        inside = [index for index in range(start, start + table.num_rows) if index in bad] if bad else []
        file.rows = table.num_rows - len(inside)
        file.problems += _said(whole, bad, inside, start, table.num_rows)
        file.sound &= beyond.keys().isdisjoint(range(start, start + table.num_rows)) if beyond else True
        start += table.num_rows
    if bad:
        whole = picked(whole, [index for index in range(whole.num_rows) if index not in bad])
    return [file for file, _ in answers], whole


def _said(whole: pa.Table, bad: dict[int, str], inside: Sequence[int], start: int, rows_there: int) -> Iterator[str]:
    """What is wrong with the rows `inside` one file, a line for each of the first few."""
    for index in inside[: border.NAMED]:
        yield bad[index] if rows_there == 1 else f"row {index - start + 1}: {bad[index]}"
    if len(inside) > border.NAMED:
        yield f"{counted(len(inside) - border.NAMED, 'more row')} of this file that cannot be"


def _together(files: list[File], parts: Sequence[tuple[list[File], pa.Table]], schema: pa.Schema) -> Found:
    """One table of the rows of `files`, in their order: a file that is gone by now was compacted, its rows lie
    elsewhere."""
    import numpy as np
    import pyarrow as pa

    places = {file.entry: number for number, file in enumerate(files)}
    members = [file for part, _ in parts for file in part]
    counts = np.array([file.rows for file in members], np.int64)
    of_rows = np.repeat(np.array([places.get(file.entry, -1) for file in members], np.int64), counts)
    order = np.argsort(of_rows, kind="stable")
    whole = pa.concat_tables([schema.empty_table(), *(table for _, table in parts)])
    return Found(files, picked(whole, order[np.count_nonzero(of_rows < 0) :]))
