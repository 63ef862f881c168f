"""The store: whole rows, each job once, whatever else lies in the folder and whoever writes there."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import plausible
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdad_bench.leaderboard import border, picking, reading, store
from kdad_bench.leaderboard import row as rows
from kdad_bench.leaderboard.board import DRAWN
from kdad_bench.leaderboard.folder import LOCK, LocalFolder, RemoteFolder
from kdad_bench.leaderboard.row import COLUMNS, MOST_FLOAT, Row

GOLDEN = Path(__file__).parents[1] / "golden"


def statuses(folder: Path) -> dict[str, str]:
    return {job: found.status for job, found in store.finished(folder).items()}


def some_rows(number: int = 6) -> list[Row]:
    return plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable", "carpet"), (number + 5) // 6)[:number]


def filled(folder: Path, number: int = 6) -> list[Row]:
    made = some_rows(number)
    for one in made:
        store.write(one, folder)
    return made


def as_row(columns: dict[str, Any]) -> Row:
    return Row(**{name: tuple(value) if isinstance(value, list) else value for name, value in columns.items()})


def ids(folder: Path | str) -> list[str]:
    return sorted(store.read(folder, ("job_id",)).table["job_id"].to_pylist())


def result_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == ".parquet" and not path.name.startswith("."))


# ---- writing and reading


def test_every_column_of_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made = plausible.row("dskd", "bottle", 3, batch_invariance=1e-6, triton="3.5", variant="plain")
    path = store.write(made, tmp_path)
    assert path.name == f"dskd-mvtec_ad-bottle-s3-{made.job_id}.parquet"
    found = as_row(store.read(tmp_path).rows()[0])
    as_float32 = {name: getattr(found, name) for name in ("image_scores", "latency_samples_ms")}
    for name, values in as_float32.items():
        assert values == pytest.approx(getattr(made, name), rel=1e-6)
    assert replace(found, **{name: getattr(made, name) for name in as_float32}) == made


@pytest.mark.parametrize("largest", [1e25, MOST_FLOAT])
def test_maps_of_any_scale_may_differ_by_as_much(largest: float, tmp_path: Path) -> None:
    store.write(plausible.row("dskd", "bottle", 3, batch_invariance=largest), tmp_path)
    assert store.read(tmp_path).rows()[0]["batch_invariance"] == largest


def test_numpy_arrays_may_stand_for_lists_and_scalars(tmp_path: Path) -> None:
    import numpy as np

    scores: Any = np.arange(3, dtype=np.float32)
    auroc: Any = np.float64(0.5)
    store.write(plausible.row("stfpm", "bottle", 0, image_scores=scores, image_auroc=auroc), tmp_path)
    (found,) = store.read(tmp_path).rows()
    assert (found["image_scores"], found["image_auroc"]) == ([0.0, 1.0, 2.0], 0.5)


def test_columns_can_be_picked_and_keep_the_order_of_the_schema(tmp_path: Path) -> None:
    filled(tmp_path)
    assert store.read(tmp_path, ("seed", "method")).table.column_names == ["method", "seed"]


def test_rows_come_in_one_order_whatever_the_order_of_writing(tmp_path: Path) -> None:
    made = some_rows(12)
    for name, order in (("a", made), ("b", made[::-1])):
        for one in order:
            store.write(one, tmp_path / name)
    assert store.read(tmp_path / "a").table.equals(store.read(tmp_path / "b").table)


def test_an_empty_folder_has_no_rows_and_a_missing_one_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    assert store.read(tmp_path).table.num_rows == 0
    assert store.read(tmp_path).table.schema.names == list(COLUMNS)
    words = r"no results folder '.*no where'; `kdad-bench run --all --out '.*no where'` makes one"
    with pytest.raises(store.StoreError, match=words):
        store.read(tmp_path / "no where")
    assert store.finished(tmp_path / "no where") == {}
    (tmp_path / "file").touch()
    for question in (store.read, store.finished):
        with pytest.raises(store.StoreError, match="is a file, not a results folder"):
            question(tmp_path / "file")


def test_names_that_no_file_system_takes_still_give_a_file(tmp_path: Path) -> None:
    made = plausible.row("stfpm", "../../a b/" + "ü" * 300, 0, dataset="folder:/data/my parts")
    path = store.write(made, tmp_path)
    assert path.parent == tmp_path
    assert len(path.name.encode()) < 255
    assert path.exists()
    assert ids(tmp_path) == [made.job_id]


def test_writing_leaves_the_result_and_the_lock_and_nothing_else(tmp_path: Path) -> None:
    path = store.write(plausible.row("stfpm", "bottle", 0), tmp_path / "deep" / "folder")
    assert sorted(os.listdir(path.parent)) == sorted([LOCK, path.name])


# ---- each job once


def test_finished_names_each_job_with_its_status(tmp_path: Path) -> None:
    made = filled(tmp_path)
    broken = plausible.failed_row("mkd", "bottle", 0, "out of memory")
    store.write(broken, tmp_path)
    assert statuses(tmp_path) == {**{one.job_id: "ok" for one in made}, broken.job_id: "failed"}


def test_a_later_failure_never_displaces_a_finished_job(tmp_path: Path) -> None:
    good = plausible.row("stfpm", "bottle", 0, created_at="2026-01-01T00:00:00+00:00")
    store.write(good, tmp_path)
    store.write(Row.failed(reason="killed", **_identity(good), created_at="2026-02-01T00:00:00+00:00"), tmp_path)
    found = store.read(tmp_path)
    assert (found.table["status"].to_pylist(), found.superseded) == (["ok"], 1)


def test_a_success_clears_away_the_failure_before_it(tmp_path: Path) -> None:
    good = plausible.row("stfpm", "bottle", 0)
    store.write(Row.failed(reason="killed", **_identity(good)), tmp_path)
    assert statuses(tmp_path) == {good.job_id: "failed"}
    store.write(good, tmp_path)
    assert statuses(tmp_path) == {good.job_id: "ok"}
    assert len(result_files(tmp_path)) == 1


def _identity(made: Row) -> dict[str, Any]:
    return {name: getattr(made, name) for name in ("job_id", "method", "dataset", "category", "seed", "preset")}


def test_of_several_copies_of_a_job_the_newest_counts_once(tmp_path: Path) -> None:
    old = plausible.row("stfpm", "bottle", 0, created_at="2026-01-01T00:00:00+00:00")
    new = replace(old, created_at="2026-01-02T00:00:00+00:00", image_auroc=0.5)
    first = store.write(old, tmp_path)
    first.rename(tmp_path / "a-copy-under-another-name.parquet")
    store.write(new, tmp_path)
    found = store.read(tmp_path)
    assert (found.table["image_auroc"].to_pylist(), found.superseded, found.files) == ([0.5], 1, 2)


# ---- files that are no results


def test_a_file_torn_at_any_length_is_reported_and_the_others_are_counted(tmp_path: Path) -> None:
    made = filled(tmp_path)
    whole = store.write(plausible.row("mkd", "bottle", 0), tmp_path)
    content = whole.read_bytes()
    for length in (0, 1, 4, 8, 100, len(content) // 2, len(content) - 9, len(content) - 1):
        whole.write_bytes(content[:length])
        found = store.read(tmp_path)
        assert [problem.file for problem in found.problems] == [whole.name], length
        assert found.problems[0].what.startswith("unreadable ("), length
        assert found.table.num_rows == len(made)
    assert whole.exists(), "left where it is"


def test_no_flipped_byte_crashes_a_read_and_a_changed_value_is_noticed(tmp_path: Path) -> None:
    good = plausible.row("stfpm", "cable", 0)
    store.write(good, tmp_path)
    whole = store.write(plausible.row("mkd", "bottle", 0), tmp_path)
    content = whole.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        place = rng.randrange(len(content))
        whole.write_bytes(content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :])
        found = store.read(tmp_path)
        assert good.job_id in found.table["job_id"].to_pylist()
        refused += bool(found.problems)
    assert refused > 15
    value = content.index(struct.pack("<d", plausible.row("mkd", "bottle", 0).image_auroc or 0.0))
    whole.write_bytes(content[:value] + bytes([content[value] ^ 1]) + content[value + 1 :])
    assert "CRC" in store.read(tmp_path).problems[0].what


def test_a_foreign_parquet_file_is_named_and_not_counted(tmp_path: Path) -> None:
    made = filled(tmp_path)
    pq.write_table(pa.table({"method": ["x"], "seed": [0]}), tmp_path / "foreign.parquet")
    pq.write_table(rows.SCHEMA.empty_table(), tmp_path / "empty.parquet")
    (tmp_path / "notes.txt").write_text("not a result")
    (tmp_path / "subfolder.parquet").mkdir()
    found = store.read(tmp_path)
    assert found.table.num_rows == len(made)
    assert dict(found.problems) == {
        "empty.parquet": "holds no row",
        "subfolder.parquet": "is no regular file",
        "foreign.parquet": "not a kdad-bench result (columns missing: category, dataset, job_id and 3 more)",
    }


def test_nulls_or_an_unknown_status_in_the_identity_make_a_file_foreign(tmp_path: Path) -> None:
    path = store.write(plausible.row("stfpm", "bottle", 0), tmp_path)
    table = pq.read_table(path)
    for column, value, what in (("method", None, "holds nulls"), ("status", "done", "unknown status")):
        place = table.column_names.index(column)
        pq.write_table(table.set_column(place, table.schema.field(column), pa.array([value], pa.string())), path)
        assert what in store.read(tmp_path).problems[0].what


def test_text_that_is_not_utf8_is_refused_when_read_and_not_when_shown(tmp_path: Path) -> None:
    path = store.write(plausible.row("stfpm", "bottle", 0), tmp_path)
    table = pq.read_table(path)
    bad = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.column_names.index("title"), table.schema.field("title"), bad), path)
    found = store.read(tmp_path)
    assert found.table.num_rows == 0
    assert found.problems[0].what == "column title has characters that do not show: '\\udcff\\udcfe'"


def test_the_leaderboard_written_into_the_folder_is_no_result(tmp_path: Path) -> None:
    from kdad_bench.leaderboard.pages import draw_pages

    made = filled(tmp_path)
    draw_pages(tmp_path, tmp_path)
    found = store.read(tmp_path)
    assert (found.table.num_rows, found.problems) == (len(made), ())


# ---- schema evolution


def test_a_file_of_an_older_schema_still_reads_with_nulls_for_what_it_lacks(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "older_schema.parquet", tmp_path)
    old = pq.read_table(GOLDEN / "older_schema.parquet")
    assert set(COLUMNS) - set(old.column_names), "a record of an older schema lacks columns"
    store.write(plausible.row("rd4ad", "bottle", 0), tmp_path)
    found = store.read(tmp_path)
    assert found.problems == ()
    (line,) = (line for line in found.rows() if line["method"] == "stfpm")
    assert line["image_auroc"] == 0.9375
    assert line["seed"] == 7
    for name in set(COLUMNS) - set(old.column_names):
        assert line[name] is None
    assert found.table.schema.equals(rows.SCHEMA)


def test_a_row_of_an_older_schema_survives_compaction_and_is_drawn(tmp_path: Path) -> None:
    from kdad_bench.leaderboard.markdown import leaderboard

    shutil.copy(GOLDEN / "older_schema.parquet", tmp_path)
    filled(tmp_path)
    before = leaderboard(store.read(tmp_path))
    store.compact(tmp_path)
    assert leaderboard(store.read(tmp_path)) == before
    assert "0.938" in before


def test_a_file_of_a_newer_schema_is_refused_with_the_remedy(tmp_path: Path) -> None:
    store.write(replace(plausible.row("stfpm", "bottle", 0), schema_version=rows.SCHEMA_VERSION + 1), tmp_path)
    found = store.read(tmp_path)
    assert found.table.num_rows == 0
    assert found.problems[0].what.endswith("upgrade")
    assert f"schema {rows.SCHEMA_VERSION + 1}" in found.problems[0].what


# ---- compaction


def test_compaction_keeps_every_row_in_one_file(tmp_path: Path) -> None:
    made = filled(tmp_path, 30)
    store.write(plausible.failed_row("mkd", "bottle", 0, "out of memory"), tmp_path)
    before = store.read(tmp_path).table
    replaced, (path,) = store.compact(tmp_path)
    assert replaced == len(made) + 1
    assert result_files(tmp_path) == [path]
    assert store.read(tmp_path).table.equals(before)
    assert store.compact(tmp_path) == (0, ()), "nothing more to do"


@pytest.mark.parametrize("limit", ["MOST_ROWS", "MOST_BYTES"])
def test_more_than_one_file_may_hold_is_compacted_into_several(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them can be read: rows in one file that is too large were there and counted no more."""
    made = filled(tmp_path, 30)
    before = store.read(tmp_path).table
    most = 10 if limit == "MOST_ROWS" else before.nbytes // 2
    monkeypatch.setattr(border, limit, most)
    monkeypatch.setattr(store, limit, most)
    replaced, paths = store.compact(tmp_path)
    assert replaced == len(made)
    assert result_files(tmp_path) == sorted(paths)
    assert len(paths) >= 3
    found = store.read(tmp_path)
    assert (found.table, found.problems) == (before, ())
    assert store.compact(tmp_path) == (0, ()), "nothing more to do"
    store.write(plausible.row("mkd", "tile", 9), tmp_path)
    replaced, paths = store.compact(tmp_path)
    assert replaced >= 1
    assert store.read(tmp_path).table.num_rows == len(before) + 1


def test_no_row_is_lost_where_a_column_holds_more_than_arrow_takes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gigabytes of text, say: verify and compact ended with an overflow."""
    filled(tmp_path, 30)
    found = store.read(tmp_path)
    numbers = [7, 3, 29, 0, 11]
    parts = pa.concat_tables([found.table.slice(0, 9), found.table.slice(9)])
    wanted = parts.take(pa.array(numbers))
    monkeypatch.setattr(picking, "MOST_IN_ONE", 100)
    assert picking.picked(parts, numbers).equals(wanted)
    assert picking.picked(parts, []).equals(parts.slice(0, 0))
    assert store.read(tmp_path).table.equals(found.table)
    assert store.verify(tmp_path).ok == found.table["status"].to_pylist().count("ok")
    store.compact(tmp_path)
    assert store.read(tmp_path).table.equals(found.table)


def test_rows_with_much_text_are_put_in_order_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify and compact held such a folder four times."""
    texts = [str(number) * 100_000 for number in range(10)]
    parts = pa.chunked_array([texts[:3], texts[3:7], [], texts[7:]])
    table = pa.table({"losses": parts, "scores": pa.chunked_array([[[float(len(text))] * 3 for text in texts]])})
    monkeypatch.setattr(picking, "MOST_IN_ONE", 100)
    before = pa.total_allocated_bytes()
    turned = picking.picked(table, range(9, -1, -1))
    whole = picking.picked(table, range(10))
    again = picking.picked(turned, [9, 8, 1])
    assert pa.total_allocated_bytes() - before < 100_000
    assert turned["losses"].to_pylist() == texts[::-1]
    assert whole["losses"].to_pylist() == texts
    assert again["losses"].to_pylist() == [texts[0], texts[1], texts[8]]
    assert turned["scores"].to_pylist() == table["scores"].to_pylist()[::-1]


def test_rows_written_after_a_compaction_are_added_and_replace_older_ones(tmp_path: Path) -> None:
    made = filled(tmp_path)
    store.compact(tmp_path)
    store.write(replace(made[0], created_at="2030-01-01T00:00:00+00:00", image_auroc=0.125), tmp_path)
    store.write(plausible.row("mkd", "tile", 9), tmp_path)
    for _ in range(2):
        found = {line["job_id"]: line["image_auroc"] for line in store.read(tmp_path).rows()}
        assert len(found) == len(made) + 1
        assert found[made[0].job_id] == 0.125
        store.compact(tmp_path)


def test_compaction_leaves_unreadable_files_and_clears_interrupted_writes(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    (tmp_path / ".writing-stfpm-1-abc").write_bytes(b"half a row")
    assert store.verify(tmp_path).unfinished == (".writing-stfpm-1-abc",)
    store.compact(tmp_path)
    assert (tmp_path / "torn.parquet").exists()
    assert not (tmp_path / ".writing-stfpm-1-abc").exists()


def test_a_crash_after_any_deletion_of_a_compaction_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled(tmp_path / "whole")
    wanted = sorted(one.job_id for one in made)
    remove = LocalFolder.remove
    for survivors in range(len(made) + 1):
        folder = tmp_path / str(survivors)
        shutil.copytree(tmp_path / "whole", folder)
        left = [survivors]

        def crash(self: LocalFolder, entry: Any, left: list[int] = left) -> bool:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return remove(self, entry)

        monkeypatch.setattr(LocalFolder, "remove", crash)
        if survivors < len(made):
            with pytest.raises(KeyboardInterrupt):
                store.compact(folder)
        else:
            store.compact(folder)
        monkeypatch.setattr(LocalFolder, "remove", remove)
        assert ids(folder) == wanted
        store.compact(folder)
        assert ids(folder) == wanted
        assert len(result_files(folder)) == 1


def test_a_compacted_file_that_reads_back_wrongly_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled(tmp_path)
    write = LocalFolder.write
    monkeypatch.setattr(LocalFolder, "write", lambda self, name, content: write(self, name, content[:-10]))
    before = result_files(tmp_path)
    with pytest.raises(store.StoreError, match="the folder is as it was"):
        store.compact(tmp_path)
    assert result_files(tmp_path) == before, "what was written would make the folder unsound"
    assert ids(tmp_path) == sorted(one.job_id for one in made)


def test_a_reader_beside_a_compaction_always_sees_every_job_once(tmp_path: Path) -> None:
    made = filled(tmp_path, 24)
    wanted = sorted(one.job_id for one in made)
    code = (
        "import sys, shutil, pathlib; from kdad_bench.leaderboard import store\n"
        "folder = pathlib.Path(sys.argv[1]); spare = pathlib.Path(sys.argv[2])\n"
        "for _ in range(12):\n"
        "    store.compact(folder)\n"
        "    for path in spare.iterdir():\n"
        "        shutil.copy(path, folder / ('.copy-' + path.name))\n"
        "        (folder / ('.copy-' + path.name)).rename(folder / path.name)\n"
    )
    spare = tmp_path.with_name(tmp_path.name + "-spare")
    shutil.copytree(tmp_path, spare, ignore=shutil.ignore_patterns(".*"))
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(spare)])
    reads = 0
    while process.poll() is None:
        assert ids(tmp_path) == wanted
        reads += 1
    assert process.returncode == 0
    assert reads > 3


def test_ten_thousand_jobs_are_queried_in_under_two_seconds_of_a_processor_once_compacted(tmp_path: Path) -> None:
    base = store._encode([plausible.row("stfpm", "bottle", 0)])
    table = pq.read_table(pa.BufferReader(base))
    many = pa.concat_tables([table] * 10_000).combine_chunks()
    numbers = pa.array([f"{index:016x}" for index in range(10_000)])
    many = many.set_column(0, many.schema.field("job_id"), numbers)
    for half in range(2):  # as a folder that was compacted twice
        pq.write_table(many.slice(half * 5000, 5000), tmp_path / f"compacted-{half}.parquet")
    start = time.process_time()
    assert store.read(tmp_path, DRAWN).table.num_rows == 10_000
    assert len(store.finished(tmp_path)) == 10_000
    assert time.process_time() - start < 2


# ---- faults of the folder


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_gives_one_line_and_keeps_what_was_there(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plausible.row("stfpm", "bottle", 0)
    store.write(made, tmp_path)

    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(store.StoreError) as caught:
        store.write(replace(made, image_auroc=0.1), tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(tmp_path) in text
    assert f"{os.strerror(code)}; free some space or choose another with --out" in text
    monkeypatch.undo()
    assert store.read(tmp_path).rows()[0]["image_auroc"] == made.image_auroc
    assert sorted(os.listdir(tmp_path)) == sorted([LOCK, store.file_name(made)])


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to write as somebody else")
def test_a_read_only_folder_gives_one_line_and_can_still_be_read() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        store.write(plausible.row("stfpm", "bottle", 0), folder)
        folder.chmod(0o555)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # the process of a user who does not own the folder
            try:
                os.setuid(65534)
                answer = f"{len(store.finished(folder))} "
                try:
                    store.write(plausible.row("stfpm", "cable", 0), folder)
                except store.StoreError as error:
                    answer += str(error)
                os.write(writer, answer.encode())
            finally:
                os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        said = os.read(reader, 10_000).decode()
        os.close(reader)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    assert said == (
        f"1 cannot write to the results folder {str(folder)!r}: Permission denied; "
        "make it writable or choose another with --out (what is finished is kept)"
    )


WRITER = """
import sys, dataclasses, pathlib
sys.path.insert(0, sys.argv[3])
import plausible
from kdad_bench.leaderboard import store
folder, first, count = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4])
for seed in range(first, first + count):
    made = plausible.row("stfpm", "bottle", seed)
    store.write(made, folder)
    print(made.job_id, flush=True)
    if seed % 10 == 9:
        store.compact(folder)
"""


def writer(folder: Path, first: int, count: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, str(folder), str(first), str(Path(__file__).parent), str(count)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_several_processes_write_and_compact_one_folder_and_nothing_is_lost(tmp_path: Path) -> None:
    processes = [writer(tmp_path, 1000 * number, 30) for number in range(3)]
    said = [process.communicate()[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    found = store.verify(tmp_path)
    assert found.sound
    assert ids(tmp_path) == sorted(job for jobs in said for job in jobs)
    assert found.ok == 90


def kill_writers(folder: Path, kills: int, seed: int) -> None:
    """Kill a writing and compacting process again and again; after each kill every reported job is there once."""
    rng = random.Random(seed)
    reported: set[str] = set()
    for kill in range(kills):
        process = writer(folder, 100_000 * kill, 100_000)
        assert process.stdout is not None
        reported.add(process.stdout.readline().strip())  # it has started
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        reported.update(line for line in process.communicate()[0].split("\n")[:-1] if line)
        found = store.verify(folder)
        assert found.problems == ()
        assert reported <= set(ids(folder))
        assert found.ok == len(ids(folder)) == len(set(ids(folder)))


def test_killing_a_writer_loses_no_reported_job(tmp_path: Path) -> None:
    kill_writers(tmp_path, 4, seed=0)


@pytest.mark.slow
def test_a_hundred_random_kills_lose_no_reported_job(tmp_path: Path) -> None:
    kill_writers(tmp_path, 100, seed=1)


# ---- folders elsewhere


@pytest.fixture
def memory_folder() -> Any:
    import fsspec

    yield "memory://bucket/results"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def exercise(folder: str) -> None:
    """What the store does on a local folder, on a URL."""
    assert store.finished(folder) == {}
    with pytest.raises(store.StoreError, match="no results folder"):
        store.read(folder)
    made = some_rows(8)
    for one in made:
        assert store.write(one, folder) == f"{folder}/{store.file_name(one)}"
    broken = plausible.row("mkd", "tile", 0)
    store.write(Row.failed(reason="out of memory", **_identity(broken)), folder)
    store.write(broken, folder)
    wanted = sorted(one.job_id for one in (*made, broken))
    assert ids(folder) == wanted
    RemoteFolder(folder).write("torn.parquet", b"PAR1")
    found = store.verify(folder)
    assert (found.ok, found.failed, found.superseded, len(found.problems)) == (9, 0, 0, 1)
    replaced, (path,) = store.compact(folder)
    assert replaced == 9
    assert str(path).startswith(folder)
    assert ids(folder) == wanted
    assert [entry.name for entry in RemoteFolder(folder).entries()] == [str(path).rsplit("/", 1)[1], "torn.parquet"]


def test_a_folder_behind_an_fsspec_url_works_like_a_local_one(memory_folder: str) -> None:
    exercise(memory_folder)


@pytest.mark.filterwarnings("ignore")
def test_a_folder_in_an_object_store_works_like_a_local_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="the s3 extra is not installed")
    server = pytest.importorskip("moto.server", reason="moto, a local object store, is not installed")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        import s3fs

        s3fs.S3FileSystem().mkdir("bucket")
        exercise("s3://bucket/results")
    finally:
        running.stop()


def test_a_url_of_an_unknown_kind_is_one_line_with_the_remedy() -> None:
    with pytest.raises(store.StoreError, match=r"cannot open 'nosuch://x'.*fsspec URL such as s3://"):
        store.read("nosuch://x")


def test_a_file_url_is_a_local_path(tmp_path: Path) -> None:
    filled(tmp_path)
    assert ids(f"file://{tmp_path}") == ids(tmp_path)


# ---- verify and export


def test_verify_counts_jobs_and_files(tmp_path: Path) -> None:
    made = filled(tmp_path)
    store.write(plausible.failed_row("mkd", "bottle", 0, "out of memory"), tmp_path)
    found = store.verify(tmp_path)
    assert found.sound
    assert (found.files, found.rows, found.jobs, found.ok, found.failed) == (7, 7, 7, len(made), 1)


def test_every_export_holds_every_row_and_column(tmp_path: Path) -> None:
    made = filled(tmp_path / "results")
    wanted = store.read(tmp_path / "results").rows()
    for kind in ("csv", "json", "sqlite"):
        assert store.export(tmp_path / "results", tmp_path / f"all.{kind}", kind) == len(made)
    assert json.loads((tmp_path / "all.json").read_text()) == wanted
    with (tmp_path / "all.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["job_id"] for line in lines] == [line["job_id"] for line in wanted]
    assert [float(line["image_auroc"]) for line in lines] == [line["image_auroc"] for line in wanted]
    assert json.loads(lines[0]["throughput"]) == wanted[0]["throughput"]
    base = sqlite3.connect(tmp_path / "all.sqlite")
    assert base.execute("SELECT job_id, image_auroc, seed FROM results ORDER BY rowid").fetchall() == [
        (line["job_id"], line["image_auroc"], line["seed"]) for line in wanted
    ]
    assert [column[1] for column in base.execute("PRAGMA table_info(results)")] == list(COLUMNS)
    base.close()


def test_an_export_replaces_the_old_file_whole_and_refuses_an_unknown_kind(tmp_path: Path) -> None:
    filled(tmp_path / "results")
    path = tmp_path / "all.sqlite"
    for _ in range(2):
        store.export(tmp_path / "results", path, "sqlite")
    assert sorted(os.listdir(tmp_path)) == ["all.sqlite", "results"]
    with pytest.raises(ValueError, match="cannot export 'xlsx'; have: csv, json, sqlite"):
        store.export(tmp_path / "results", path, "xlsx")
    with pytest.raises(store.StoreError, match="cannot write"):
        store.export(tmp_path / "results", tmp_path / "all.sqlite" / "below-a-file.csv", "csv")


# ---- compaction beside readers, and clocks


class Moving(LocalFolder):
    """A folder that is compacted between the two halves of the first listing: it shows neither old file nor new one."""

    def __init__(self, path: Path, missed: tuple[str, ...]) -> None:
        super().__init__(path)
        self.listings = 0
        self.missed = missed

    def entries(self) -> list[Any]:
        self.listings += 1
        found = super().entries()
        if self.listings > 1:
            return found
        store.compact(self.root)
        return [entry for entry in found if not any(word in entry.name for word in self.missed)]


@pytest.mark.parametrize("missed", [("stfpm",), ("stfpm", "rd4ad")])
def test_a_listing_that_misses_rows_on_their_way_into_a_compacted_file_is_done_again(
    missed: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled(tmp_path, 12)
    (tmp_path / "stays.parquet").write_bytes(b"PAR1")
    compact = store.compact
    moving = Moving(tmp_path, missed)

    def opened(folder: str | Path) -> LocalFolder:
        return moving

    monkeypatch.setattr(store, "compact", lambda folder: (monkeypatch.undo(), compact(folder)))
    monkeypatch.setattr(store, "open_folder", opened)
    assert store.finished(tmp_path).keys() == {one.job_id for one in made}


def test_finished_and_find_see_every_row_beside_compactions(tmp_path: Path) -> None:
    made = filled(tmp_path, 24)
    code = (
        "import sys, pathlib, dataclasses; sys.path.insert(0, sys.argv[2])\n"
        "import plausible\n"
        "from kdad_bench.leaderboard import store\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for number in range(25):\n"
        "    for seed in range(4):\n"
        "        store.write(plausible.row('mkd', 'tile', 100 * number + seed), folder)\n"
        "    store.compact(folder)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)])
    looks = 0
    while process.poll() is None:
        assert store.finished(tmp_path).keys() >= {one.job_id for one in made}
        one = made[looks % len(made)]
        found = store.find(tmp_path, one.job_id)
        assert found is not None
        assert (found.status, found.image_auroc) == ("ok", one.image_auroc)
        looks += 1
    assert process.returncode == 0
    assert looks > 3


def test_find_gives_the_row_of_a_job_wherever_it_lies(tmp_path: Path) -> None:
    assert store.find(tmp_path / "nowhere", "a") is None
    made = filled(tmp_path)
    shutil.copy(GOLDEN / "older_schema.parquet", tmp_path)
    old = pq.read_table(GOLDEN / "older_schema.parquet")["job_id"][0].as_py()
    for _ in range(2):
        assert store.find(tmp_path, made[0].job_id).image_auroc == made[0].image_auroc  # type: ignore[union-attr]
        assert store.find(tmp_path, old).seed == 7  # type: ignore[union-attr]
        assert store.find(tmp_path, "nobody") is None
        store.compact(tmp_path)


def test_find_opens_only_files_that_may_hold_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filled(tmp_path, 30)
    opened = []
    read = LocalFolder.open
    monkeypatch.setattr(LocalFolder, "open", lambda self, name: opened.append(name) or read(self, name))
    assert store.find(tmp_path, made[3].job_id) is not None
    assert opened == [store.file_name(made[3])]


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("ahead", ["2090-01-01T00:00:00+00:00", "2090-01-01T00:00:00", "2090-01-01T12:00:00+05:00"])
def test_a_redone_job_replaces_rows_of_a_clock_that_ran_ahead(ahead: str, compacted: bool, tmp_path: Path) -> None:
    old = plausible.row("stfpm", "bottle", 0, created_at=ahead, image_auroc=0.25)
    path = store.write(old, tmp_path)
    path.rename(path.with_name("a-copy.parquet"))
    if compacted:
        store.write(plausible.row("stfpm", "cable", 0), tmp_path)
        store.compact(tmp_path)
    for value in (0.5, 0.75):
        store.write(replace(old, created_at="2026-01-01T00:00:00+00:00", image_auroc=value), tmp_path)
        (line,) = (line for line in store.read(tmp_path).rows() if line["category"] == "bottle")
        assert line["image_auroc"] == value
        if compacted:
            store.compact(tmp_path)


def test_a_date_is_left_alone_where_no_row_of_the_job_is_newer(tmp_path: Path) -> None:
    made = plausible.row("stfpm", "bottle", 0)
    store.write(plausible.row("stfpm", "cable", 0, created_at="2090-01-01T00:00:00+00:00"), tmp_path)
    store.write(made, tmp_path)
    found = store.find(tmp_path, made.job_id)
    assert found is not None
    assert found.created_at == made.created_at


def test_a_row_at_the_end_of_all_dates_does_not_stop_a_write(tmp_path: Path) -> None:
    last = plausible.row("stfpm", "bottle", 0, created_at="2199-12-31T23:59:59.999999+00:00")
    store.write(last, tmp_path).rename(tmp_path / "a-copy.parquet")
    store.write(replace(last, created_at="2026-01-01T00:00:00+00:00"), tmp_path)
    assert ids(tmp_path) == [last.job_id]


def test_the_earlier_of_two_dates_in_other_zones_loses(tmp_path: Path) -> None:
    early = plausible.row("stfpm", "bottle", 0, created_at="2026-01-01T12:00:00+05:00", image_auroc=0.25)
    late = replace(early, created_at="2026-01-01T08:00:00+00:00", image_auroc=0.5)
    for number, one in enumerate((early, late)):
        store.write(one, tmp_path / str(number)).rename(tmp_path / f"{number}.parquet")
    assert store.read(tmp_path).rows()[0]["image_auroc"] == 0.5


def test_what_is_held_before_it_is_judged_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its bytes in memory, not by the number of files alone."""
    for seed in range(7):
        store.write(plausible.row("stfpm", "gear", seed), tmp_path)
    whole = store.read(tmp_path)
    judged: list[int] = []
    checked = reading._checked

    def watched(answers: Any, *schemas: Any) -> Any:
        judged.append(len(answers))
        return checked(answers, *schemas)

    monkeypatch.setattr(reading, "_checked", watched)
    monkeypatch.setattr(reading, "HELD_BYTES", int(2.5 * whole.table.nbytes / 7))
    assert store.read(tmp_path).table.equals(whole.table)
    assert judged == [2, 2, 2, 1]
