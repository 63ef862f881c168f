"""Files that appear whole or not at all, whoever dies while writing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdad_bench import files


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    target.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.write_whole(target, write)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.md"]


@pytest.mark.parametrize("forbidden", [False, True])
def test_a_file_is_written_where_a_lock_closes_it_to_its_own_writer(
    forbidden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on SMB shares, by flock(2). Nothing is written twice, whatever else is forbidden."""
    written: list[Path] = []
    real = Path.open

    def closed_by_its_lock(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        file = real(path, mode, *more, **named)
        try:
            if mode == "r+b":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise PermissionError(13, "Permission denied") from error
        return file

    monkeypatch.setattr(Path, "open", closed_by_its_lock)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            written.append(temporary)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if forbidden:
                raise PermissionError(13, "Permission denied")
            file.write(b"whole")

    path = tmp_path / "row"
    path.write_bytes(b"before")
    if forbidden:
        with pytest.raises(PermissionError):
            files.write_whole(path, write)
    else:
        files.write_whole(path, write)
    assert path.read_bytes() == (b"before" if forbidden else b"whole")
    assert os.listdir(tmp_path) == ["row"]
    assert len(written) == 1


def test_a_written_file_has_the_usual_permissions_and_an_existing_one_keeps_its_own(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        files.write_text_whole(tmp_path / "new", "x")
        (tmp_path / "old").write_text("y")
        (tmp_path / "old").chmod(0o640)
        files.write_text_whole(tmp_path / "old", "z")
    finally:
        os.umask(umask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "old").read_text() == "z"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("old")
    (tmp_path / "page.md").symlink_to("docs/page.md")
    files.write_text_whole(tmp_path / "page.md", "new")
    assert (tmp_path / "page.md").is_symlink()
    assert (tmp_path / "docs" / "page.md").read_text() == "new"


def test_newlines_and_signs_stay_as_they_are(tmp_path: Path) -> None:
    files.write_text_whole(tmp_path / "deep" / "a", "one\r\ntwo\nσ")
    assert (tmp_path / "deep" / "a").read_bytes() == "one\r\ntwo\nσ".encode()


WRITER = """
import sys, time
from pathlib import Path
from kdad_bench.files import write_whole
def write(temporary):
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
write_whole(Path(sys.argv[1]), write)
"""


def test_what_a_killed_writer_leaves_is_swept_and_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        assert files.sweep(tmp_path) == 0
        assert len(os.listdir(tmp_path)) == 1
        writer.kill()
    deadline = time.monotonic() + 10
    while not files.sweep(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert os.listdir(tmp_path) == []


def test_the_home_folder_is_expanded_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KDAD_CACHE", "~/deep/cache")
    assert files.cache_folder() == (tmp_path / "deep" / "cache").resolve()
    assert files.cache_folder().is_dir()


def test_a_cache_folder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(files.CacheError, match=r"file/cache: the cache folder cannot be made \(Not a directory\)"):
        files.cache_folder()


DAMAGED = {
    "empty": (b"", "Expecting value"),
    "cut": (b'{"a": 1', "delimiter"),
    "zeros": (bytes(100), "Expecting value"),
    "not UTF-8": (b'{"a": "\xff"}', "codec"),
    "NaN": (b'{"a": NaN}', "not JSON compliant"),
    "infinite": (b'{"a": [1e999]}', "not JSON compliant"),
    "half a surrogate pair": (b'{"a": "\\ud800"}', "surrogates"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "deep but allowed": (b'{"a":' * 100_000, "nested too deeply"),
    "a number of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "limit"),
    "list": (b"[1]", "holds list and not dict"),
    "text": (b'"a"', "holds str and not dict"),
    "null": (b"null", "holds NoneType and not dict"),
    "two values": (b"{}{}", "Extra data"),
    "a key twice": (b'{"a": {"b": 1, "b": 2}}', "'b' stands there twice"),
    "long": (b'{"a": "' + b"a" * 2000 + b'"}', "more than 1000 bytes"),
}


@pytest.mark.parametrize("kind", list(DAMAGED))
def test_a_damaged_json_file_is_one_line_that_names_it_and_says_delete(tmp_path: Path, kind: str) -> None:
    content, why = DAMAGED[kind]
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(files.DamagedError, match=f"record.json: damaged .*{why}.*; delete it$") as error:
        files.read_json(tmp_path / "record.json", dict, limit=1000 if kind == "long" else files.JSON_BYTES)
    assert "\n" not in str(error.value)


def test_folders_pipes_and_endless_files_are_no_json_and_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(files.DamagedError, match="not a regular file"):
            files.read_json(path, dict)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "absent", dict)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    for value in ({}, {"σ": [1, 2.5, None, True, "\U0001f600"]}, [], [{"a": -0.0}]):
        files.write_text_whole(tmp_path / "a.json", json.dumps(value))
        assert files.read_json(tmp_path / "a.json", type(value)) == value  # type: ignore[type-var]


@given(content=st.binary(max_size=60) | st.text('[]{}",:0123456789eE-+.nulltrueNaN\\u \n', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_called_damaged(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    try:
        said = str(len(files.read_json(path, dict)))
    except files.DamagedError as error:
        said = str(error)
    assert "\n" not in said


def test_a_name_as_long_as_names_may_be_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / ("\N{CJK UNIFIED IDEOGRAPH-5B57}" * 85)  # 255 bytes
    files.write_text_whole(path, "x")
    assert os.listdir(tmp_path) == [path.name]


def test_a_device_a_pipe_and_a_socket_are_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "socket", "link"):
        before = os.stat(tmp_path / name)
        with pytest.raises(OSError, match="Not a file but a device") as refused:
            files.write_text_whole(tmp_path / name, "x")
        assert refused.value.strerror
        assert os.stat(tmp_path / name).st_ino == before.st_ino
    assert not list(tmp_path.glob(".*"))


def test_a_pipe_that_has_no_path_is_a_pipe_and_a_name_that_nobody_gave_is_not_told() -> None:
    """/dev/stdout leads to `pipe:[123]`, beside which nothing can be written."""
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match="Not a file but a device, a pipe") as refused:
            files.write_text_whole(Path(f"/dev/fd/{writer}"), "x")
        assert refused.value.filename == f"/dev/fd/{writer}"
    finally:
        os.close(reader)
        os.close(writer)
    with pytest.raises(OSError, match=r"/proc/results\.csv") as refused:
        files.write_text_whole(Path("/proc/results.csv"), "x")
    assert refused.value.filename == "/proc/results.csv"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_is_full_names_the_file_that_finds_no_room(tmp_path: Path, code: int) -> None:
    """As a write does not: it knows a number alone."""

    def full(temporary: Path) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        files.write_whole(tmp_path / "out.zip", full)
    assert caught.value.filename == str(tmp_path / "out.zip")
