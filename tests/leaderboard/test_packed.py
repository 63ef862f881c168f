"""Rows of many files that were read before are taken from the cache, and never stand for what lies there now."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plausible
import pyarrow.parquet as pq
import pytest

from kdad_bench.leaderboard import border, packed, reading, store
from kdad_bench.leaderboard import folder as folders
from kdad_bench.leaderboard.board import DRAWN
from kdad_bench.leaderboard.folder import Entry, LocalFolder, RemoteFolder
from kdad_bench.leaderboard.row import Row

MANY = 6


@pytest.fixture(autouse=True)
def few_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small folders are packed, in a cache of this test's own."""
    monkeypatch.setattr(packed, "LEAST", 3)
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened one by one."""
    names: list[str] = []
    read = reading._read

    def watched(place: LocalFolder, entry: Entry, *rest: Any) -> Any:
        names.append(entry.name)
        return read(place, entry, *rest)

    monkeypatch.setattr(reading, "_read", watched)
    return names


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The one by which files are old or new."""
    shown = Clock()
    monkeypatch.setattr(folders, "time", shown)
    return shown


class Clock:
    """A clock that can be put forward: no program can put back when a file was changed."""

    ahead = 0

    def time_ns(self) -> int:
        return time.time_ns() + self.ahead

    def pass_by(self) -> None:
        self.ahead += 10**10


@pytest.fixture
def folder(tmp_path: Path, clock: Clock) -> Path:
    place = tmp_path / "results"
    for seed in range(MANY):
        store.write(row(seed), place)
    clock.pass_by()
    return place


def row(seed: int, auroc: float = 0.75) -> Row:
    made: Row = plausible.row("stfpm", "gear", seed, image_auroc=auroc)
    return made


def aurocs(folder: Path) -> dict[int, float]:
    return {line["seed"]: line["image_auroc"] for line in store.read(folder, ("seed", "image_auroc")).rows()}


def pack_of(folder: Path) -> Path:
    (found,) = (folder.parent / "cache" / "rows").glob("*.parquet")
    return found


def test_each_file_is_opened_once_and_what_is_found_is_the_same(folder: Path, opened: list[str]) -> None:
    plan = store.finished(folder)
    first = store.read(folder)
    assert len(opened) == MANY
    assert store.finished(folder) == plan
    assert store.read(folder, DRAWN).table.equals(first.table.select(DRAWN))
    assert (first.files, first.problems, first.superseded) == (MANY, (), 0)
    assert len(opened) == MANY
    pack_of(folder).unlink()
    assert store.read(folder).table.equals(first.table)


def test_new_files_are_read_and_packed_once_they_are_many(folder: Path, clock: Clock, opened: list[str]) -> None:
    store.read(folder)
    for number in range(3):
        del opened[:]
        store.write(row(MANY + number, 0.5), folder)
        clock.pass_by()
        assert len(aurocs(folder)) == MANY + number + 1
        assert len(opened) == number + 1
    del opened[:]
    assert len(aurocs(folder)) == MANY + 3
    assert opened == []


@pytest.mark.parametrize(
    "how", ["replaced", "written over", "of the same size and time", "written over, of the same size and time"]
)
def test_a_file_that_changed_is_read_again(how: str, folder: Path, opened: list[str]) -> None:
    assert aurocs(folder)[2] == 0.75
    path = folder / store.file_name(row(2))
    before = path.stat()
    values = (0.25 + step / 1024 for step in range(64))
    value, content = next(
        (value, content)
        for value in values
        if len(content := store._encode([row(2, value)])) == before.st_size  # checksums take four bytes or five
    )
    if how.startswith("written over"):
        path.write_bytes(content)
    else:
        (folder / "new").write_bytes(content)
        os.replace(folder / "new", path)
    if how.endswith("of the same size and time"):  # as an archive brings it
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    del opened[:]
    assert aurocs(folder)[2] == value
    assert opened == [path.name]


def test_a_file_that_is_gone_is_gone_and_one_that_is_new_may_still_change(
    folder: Path, clock: Clock, opened: list[str]
) -> None:
    store.write(row(MANY), folder)
    now = clock.time_ns()
    os.utime(folder / store.file_name(row(MANY)), ns=(now, now))  # not packed
    assert len(aurocs(folder)) == MANY + 1
    (folder / store.file_name(row(0))).unlink()
    del opened[:]
    assert sorted(aurocs(folder)) == [*range(1, MANY + 1)]
    assert opened == [store.file_name(row(MANY))]


def test_files_with_problems_are_named_each_time(folder: Path, clock: Clock) -> None:
    torn = folder / store.file_name(row(1))
    torn.write_bytes(torn.read_bytes()[:-100])
    wrong = folder / store.file_name(row(2))
    impossible = row(2)
    object.__setattr__(impossible, "image_auroc", 7.0)
    wrong.write_bytes(store._encode([impossible]))
    clock.pass_by()
    first = store.read(folder)
    assert {problem.file for problem in first.problems} == {torn.name, wrong.name}
    again = store.read(folder)
    assert again.problems == first.problems
    assert again.table.equals(first.table)
    assert again.table.num_rows == MANY - 2


def test_files_of_several_rows_are_read_as_they_are(folder: Path, clock: Clock, opened: list[str]) -> None:
    """Also one with a row that cannot be, beside one that can."""
    impossible = row(20)
    object.__setattr__(impossible, "image_auroc", 7.0)
    (folder / "several.parquet").write_bytes(store._encode([row(10), row(11)]))
    (folder / "in part.parquet").write_bytes(store._encode([row(12), impossible]))
    clock.pass_by()
    first = store.read(folder)
    assert sorted(aurocs(folder)) == [*range(MANY), 10, 11, 12]
    assert [problem.file for problem in first.problems] == ["in part.parquet"]
    del opened[:]
    again = store.read(folder)
    assert (again.table.equals(first.table), again.problems) == (True, first.problems)
    assert sorted(opened) == ["in part.parquet", "several.parquet"]


@pytest.mark.parametrize("before", [False, True], ids=["nothing packed", "packed"])
def test_a_row_whose_file_goes_while_the_folder_is_read_does_not_count(
    before: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before:
        aurocs(folder)
    list_them, listings = LocalFolder.entries, []

    def entries(place: LocalFolder) -> list[Entry]:
        if listings:
            (folder / store.file_name(row(0))).unlink(missing_ok=True)
        listings.append(place)
        return list_them(place)

    monkeypatch.setattr(LocalFolder, "entries", entries)
    assert sorted(aurocs(folder)) == [*range(1, MANY)]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(4, len(content) - 4, 7):
        content[place] ^= 0xFF
    path.write_bytes(content)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def of_other_code(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, packed.CODE: b"other"}), path)


def without_a_column(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["image_auroc"]), path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [damage, shorten, of_other_code, without_a_column, a_folder])
def test_a_pack_that_cannot_be_used_is_passed_over(
    harm: Callable[[Path], None], folder: Path, opened: list[str]
) -> None:
    found = aurocs(folder)
    harm(pack_of(folder))
    del opened[:]
    assert aurocs(folder) == found
    assert len(opened) == MANY
    if harm is not a_folder:  # which nothing can replace
        del opened[:]
        assert aurocs(folder) == found
        assert opened == []


def test_without_a_cache_folder_rows_are_read_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_CACHE", "/dev/null/nowhere")
    assert len(aurocs(folder)) == MANY


def test_verify_and_compact_look_at_the_files_themselves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that changed on the disk, with nothing else of its file."""
    monkeypatch.setattr(folders, "_stamp", lambda state: (state.st_ino, 0, state.st_size, 0))
    path = folder / store.file_name(row(3))
    aurocs(folder)
    content = path.read_bytes()
    place = content.index(b"\x00\x00\x00\x00\x00\x00\xe8\x3f")  # 0.75
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\x01")
    assert len(aurocs(folder)) == MANY
    assert not store.verify(folder).sound
    replaced, _ = store.compact(folder)
    assert replaced == MANY - 1
    assert path.exists()


def test_folders_do_not_share_rows_and_a_link_is_the_folder_that_it_leads_to(
    folder: Path, tmp_path: Path, opened: list[str]
) -> None:
    aurocs(folder)
    (tmp_path / "link").symlink_to(folder)
    del opened[:]
    assert len(aurocs(tmp_path / "link")) == MANY
    assert opened == []
    shutil.copytree(folder, tmp_path / "copy")
    assert len(aurocs(tmp_path / "copy")) == MANY
    assert len(opened) == MANY


def test_the_packs_of_few_folders_are_kept(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "FOLDERS", 2)
    for name in "abc":
        for seed in range(3):
            store.write(row(seed), tmp_path / name)
        clock.pass_by()
        aurocs(tmp_path / name)
        time.sleep(0.02)
    left = {path.name for path in (tmp_path / "cache" / "rows").iterdir()}
    assert left == {packed._path(str(tmp_path / name)).name for name in "bc"}


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("told", "seconds", "settled"),
    [
        ({"ETag": "a", "LastModified": NOW}, 0, True),
        ({"etag": "a", "updated": "2026-01-01T00:00:00Z"}, 0, True),
        ({"LastModified": NOW}, 1, False),
        ({"LastModified": NOW}, 3, True),
        ({"mtime": NOW.timestamp(), "created": 1.0}, 1, False),
        ({"mtime": NOW.timestamp(), "created": 1.0}, 3, True),
        ({"mtime": int(NOW.timestamp())}, 3, True),
        ({"updated": "2026-01-01T00:00:00Z"}, 3, False),
        ({}, 3, False),
    ],
)
def test_an_object_is_packed_once_its_stamp_tells_it_from_what_replaces_it(
    told: dict[str, Any], seconds: int, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time of whole seconds does not while that second may go on."""
    monkeypatch.setattr(folders, "time", SimpleNamespace(time_ns=lambda: int((NOW.timestamp() + seconds) * 1e9)))
    place = RemoteFolder("memory://stamps")
    stamp = place._stamp({"size": 3, **told})
    assert place.settled(Entry("a", stamp)) == settled
    later = {name: value.replace(second=30) if isinstance(value, datetime) else value for name, value in told.items()}
    if "mtime" in told:
        later["mtime"] += 30
    assert (place._stamp({"size": 3, **later}) != stamp) == (later != told and "ETag" not in told)


def test_objects_are_packed_where_their_store_can_tell_that_they_changed(clock: Clock, opened: list[str]) -> None:
    url = "memory://packed-results"
    place = RemoteFolder(url)
    for seed in range(MANY):
        store.write(row(seed), url)
    assert len(store.finished(url)) == MANY
    assert len(store.finished(url)) == MANY
    assert len(opened) == 2 * MANY  # while they are new
    clock.pass_by()
    assert len(store.finished(url)) == MANY
    del opened[:]
    assert len(store.finished(url)) == MANY
    assert opened == []
    store.write(replace(row(2), image_auroc=0.25), url)
    assert len(store.finished(url)) == MANY
    assert opened == [store.file_name(row(2))]
    place.fs.rm(place.root, recursive=True)


def wrong_losses(folder: Path) -> None:
    path = folder / store.file_name(row(2))
    impossible = row(2)
    object.__setattr__(impossible, "losses", "no JSON")
    path.write_bytes(store._encode([impossible]))


def a_flipped_bit(folder: Path) -> None:
    path = folder / store.file_name(row(2))
    path.write_bytes(path.read_bytes().replace(b'{"total": 0.4}', b'{"total": 0.5}'))


@pytest.mark.parametrize("harm", [wrong_losses, a_flipped_bit])
def test_which_rows_count_does_not_depend_on_what_is_packed(
    harm: Callable[[Path], None], folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column that nobody asked for is damaged: the row counts, with a cache and without, at once and later."""
    harm(folder)
    clock.pass_by()
    assert [problem.file for problem in store.verify(folder).problems] == [store.file_name(row(2))]
    first = store.read(folder, DRAWN)
    again = store.read(folder, DRAWN)
    assert store.read(folder).table.num_rows == MANY - 1
    monkeypatch.setattr(packed, "LEAST", MANY + 1)
    plain = store.read(folder, DRAWN)
    assert (plain.table.num_rows, plain.problems) == (MANY, ())
    for found in (first, again):
        assert (found.table, found.problems) == (plain.table, plain.problems)


def test_a_file_whose_name_is_no_text_is_packed_too(folder: Path, opened: list[str]) -> None:
    os.rename(folder / store.file_name(row(1)), os.fsencode(folder) + b"/r\xe9sultat.parquet")
    assert len(aurocs(folder)) == MANY
    del opened[:]
    assert len(aurocs(folder)) == MANY
    assert opened == []


@pytest.mark.parametrize("why", ["no cache", "read only", "no source", "too many", "too large"])
def test_columns_that_nobody_asked_for_are_read_only_to_be_packed(
    why: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    table_of = border.table_of

    def watched(source: Any, schema: Any) -> Any:
        asked.append(schema.names)
        return table_of(source, schema)

    monkeypatch.setattr(border, "table_of", watched)
    packed._code.cache_clear()
    if why == "no cache":
        monkeypatch.setenv("KDAD_CACHE", "/dev/null/nowhere")
    elif why == "read only":
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # who may do everything is told of nothing
    elif why == "no source":  # of modules that are there only as they were compiled
        monkeypatch.setattr(packed.resources, "files", lambda package: tmp_path)
    elif why == "too many":
        monkeypatch.setattr(packed, "MOST", MANY - 1)
    else:
        monkeypatch.setattr(packed, "MOST_BYTES", sum(path.stat().st_size for path in folder.glob("*.parquet")) - 1)
    assert len(aurocs(folder)) == MANY
    assert len(asked) == MANY
    assert not any("losses" in names for names in asked)


def test_rows_are_packed_by_a_package_in_an_archive(folder: Path, tmp_path: Path) -> None:
    package = Path(packed.__file__).parents[1]
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        for path in package.rglob("*.py*"):
            if "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(package.parent))
    program = (
        "import sys; from kdad_bench.leaderboard import folder, packed, store; "
        "packed.LEAST, folder.SETTLED_NS = 3, -1; print(packed.__file__, store.read(sys.argv[1]).table.num_rows)"
    )
    surroundings = {**os.environ, "PYTHONPATH": str(tmp_path / "package.zip")}
    command = [sys.executable, "-P", "-c", program, str(folder)]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "package.zip" in done.stdout
    assert done.stdout.endswith(f" {MANY}\n")
    assert pq.read_table(pack_of(folder)).num_rows == MANY


def test_what_a_killed_writer_left_is_swept(folder: Path) -> None:
    left = folder.parent / "cache" / "rows" / ".a.parquet.0.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a pack")
    aurocs(folder)
    assert os.listdir(left.parent) == [pack_of(folder).name]


def test_a_pack_is_nobody_elses_and_goes_with_its_folder(folder: Path, clock: Clock) -> None:
    aurocs(folder)
    pack = pack_of(folder)
    assert stat.S_IMODE(pack.stat().st_mode) == 0o600
    others = pack.with_name("0123.parquet")
    others.write_bytes(pack.read_bytes())
    for one in (pack, others):
        one.chmod(0o644)  # as an earlier version left them
    of_other_code(pack)
    aurocs(folder)
    assert {stat.S_IMODE(one.stat().st_mode) for one in (pack, others)} == {0o600}
    moved = folder.rename(folder.with_name("moved"))
    assert len(aurocs(moved)) == MANY
    clock.pass_by()  # to be moved changes no file
    assert pack_of(moved) != pack
