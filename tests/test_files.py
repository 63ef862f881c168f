"""Files that appear whole or not at all, whoever dies while writing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
