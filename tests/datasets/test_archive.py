"""Archives that mean harm, and those that do not."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import re
import stat
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kdad_bench.datasets.archive import Limits, extract
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.fetch import fetch, source_of
from tests.datasets import hostile
from tests.datasets.hostile import BOMBS, HOSTILE


def member(name: str, data: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:xz", preset=0) as made:
        for info, data in members:
            made.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


MEASURED = """
import json, re, sys, time
from pathlib import Path
from kdad_bench.datasets.archive import extract
from kdad_bench.datasets.category import DatasetError
said = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    target = Path(sys.argv[2]) / path.name
    target.mkdir()
    began = time.monotonic()
    try:
        extract(path, target)
        said[path.name] = ["unpacked", 0]
    except DatasetError as error:
        said[path.name] = [str(error), time.monotonic() - began]
# not getrusage: its peak begins with that of the process that started this one
print(json.dumps([int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024, said]))
"""
PUBLISHED = source_of("mvtec_ad")


def entries(folder: Path) -> dict[str, tuple[int, str]]:
    """Everything below a folder: its mode, and the contents of files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes().hex() if path.is_file() and path.stat().st_size < 1000 else ""
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, content)
    return found


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_archive_is_refused_in_one_line_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    made, why = HOSTILE[kind]
    path = tmp_path / "archive"
    path.write_bytes(made())
    (tmp_path / "victim").write_text("original")
    out = tmp_path / "outer" / "out"
    out.mkdir(parents=True)
    (tmp_path / "outer" / "victim").write_text("original")
    before = entries(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DatasetError, match=why) as error:
        fetch(PUBLISHED, out, archive=path, sha256=digest)
    assert str(error.value).isprintable()
    assert str(path) in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 400
    assert entries(tmp_path) == before
    assert not list(Path("/tmp").glob("kdad-outside*"))


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_what_is_written_before_the_refusal_lies_inside(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "archive"
    path.write_bytes(HOSTILE[kind][0]())
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    with pytest.raises(DatasetError):
        extract(path, target)
    assert sorted(os.listdir(tmp_path)) == ["archive", "deep"]
    assert os.listdir(tmp_path / "deep") == ["target"]
    for inside in target.rglob("*"):
        assert stat.S_ISREG(inside.lstat().st_mode) or stat.S_ISDIR(inside.lstat().st_mode)


def test_hostile_archives_take_less_than_256_mb_and_little_time(tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    (tmp_path / "targets").mkdir()
    for number, (made, _) in enumerate((HOSTILE | BOMBS).values()):
        (tmp_path / "archives" / f"{number:03}").write_bytes(made())
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "archives", tmp_path / "targets"],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    megabytes, said = json.loads(done.stdout)
    for (kind, (_, why)), (message, seconds) in zip((HOSTILE | BOMBS).items(), said.values(), strict=True):
        assert re.search(why, message), (kind, message)
        assert seconds < 20, kind
    assert megabytes < 256


@pytest.mark.slow
def test_the_most_files_that_are_allowed_take_less_than_256_mb(tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    (tmp_path / "targets").mkdir()
    with gzip.open(tmp_path / "archives" / "many", "wb", compresslevel=1) as file:
        for number in range(Limits().members + 1):
            file.write(hostile.entry(f"{'n' * 60}/{number:030}", b""))
    command = [sys.executable, "-c", MEASURED, tmp_path / "archives", tmp_path / "targets"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)
    megabytes, said = json.loads(done.stdout)
    assert "more than 200000" in said["many"][0]
    assert megabytes < 256


def test_a_link_put_in_the_way_is_not_followed(tmp_path: Path) -> None:
    """Should a name ever pass that should not, or another process meddle, the opened folders still hold."""
    (tmp_path / "outside").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "fine").symlink_to(tmp_path / "outside")
    path = tmp_path / "archive"
    path.write_bytes(hostile.tar())
    with pytest.raises(DatasetError, match="cannot be written"):
        extract(path, target)
    (target / "fine").unlink()
    (target / "fine").mkdir()
    (target / "fine" / "one.txt").symlink_to(tmp_path / "outside" / "one.txt")
    with pytest.raises(DatasetError, match="cannot be written"):
        extract(path, target)
    assert os.listdir(tmp_path / "outside") == []


ORDINARY = {
    "ustar": lambda: hostile.tar(hostile.entry("a/b.txt")),
    "leading dots": lambda: hostile.tar(hostile.entry("./", b"", type=tarfile.DIRTYPE), hostile.entry("./a/b.txt")),
    "a folder twice": lambda: hostile.tar(hostile.entry("a", b"", type=tarfile.DIRTYPE) * 2, hostile.entry("a/b.txt")),
    "folders with setgid": lambda: hostile.tar(
        hostile.entry("a", b"", type=tarfile.DIRTYPE, mode=0o2775), hostile.entry("a/b.txt", mode=0o777)
    ),
    "pax": lambda: hostile.tar(hostile.pax({"path": b"a/b.txt", "mtime": b"1.5", "size": b"1"}) + hostile.entry("c")),
    "comment": lambda: hostile.tar(hostile.pax({"comment": b"c" * 40}, b"g"), hostile.entry("a/b.txt")),
    "long name": lambda: hostile.tar(hostile.named(b"a/" + b"c" * 250), hostile.entry("a/b.txt")),
    "Unicode": lambda: hostile.tar(hostile.entry("größe/σ.png"), hostile.entry("a/b.txt")),
    "xz -9": lambda: hostile.with_dictionary(28, hostile.tar(hostile.entry("a/b.txt"))),  # 64 MiB
    "zip": lambda: hostile.zipped(("a/", b""), ("a/b.txt", b"x")),
    "stored zip": lambda: hostile.zipped(("a/b.txt", b"x"), method=zipfile.ZIP_STORED),
    "zip with modes": lambda: hostile.zipped(
        hostile.of_mode("a/", stat.S_IFDIR | 0o2755, b""), hostile.of_mode("a/b.txt", stat.S_IFREG | 0o755)
    ),
    "zip with a UTF-8 name": lambda: hostile.zipped(("größe/σ.png", b"x"), ("a/b.txt", b"x")),
}


@pytest.mark.parametrize("kind", list(ORDINARY))
def test_ordinary_archives_are_unpacked_without_their_modes(tmp_path: Path, kind: str) -> None:
    (tmp_path / "archive").write_bytes(ORDINARY[kind]())
    (tmp_path / "target").mkdir()
    umask = os.umask(0o022)
    try:
        assert extract(tmp_path / "archive", tmp_path / "target") >= 2
    finally:
        os.umask(umask)
    assert (tmp_path / "target" / "a" / "b.txt").read_bytes() == b"x"
    assert (tmp_path / "target" / "a" / "b.txt").stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "target" / "a").stat().st_mode & 0o7777 == 0o755


def test_a_zip_of_many_members_and_64_bit_fields_is_unpacked_exactly(tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    contents = {f"a/{size}.bin": bytes(range(256)) * (size // 256) for size in (0, 256, 65_536, 131_072, 1 << 20)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in contents.items():
            with made.open(name, "w", force_zip64=True) as file:
                file.write(data)
        with warnings.catch_warnings():  # of a name that is there twice: folders may be
            warnings.simplefilter("ignore")
            for _ in range(70_000):
                made.writestr("b/", b"")
    (tmp_path / "target").mkdir()
    assert extract(path, tmp_path / "target") == len(contents)
    for name, data in contents.items():
        assert (tmp_path / "target" / name).read_bytes() == data


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(total_bytes=2500), "more than 2500 bytes in total"),
        (Limits(member_bytes=999), "declares 1000 bytes"),
        (Limits(members=2), "more than 2 members"),
    ],
)
def test_bombs_are_refused_by_what_they_declare(tmp_path: Path, limits: Limits, message: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    path = archive(tmp_path / "bomb.tar.xz", *(member(f"{index}", bytes(1000)) for index in range(3)))
    with pytest.raises(DatasetError, match=message):
        extract(path, target, limits=limits)
    (tmp_path / "other").mkdir()
    assert extract(path, tmp_path / "other") == 3


def test_a_header_of_a_gigabyte_is_not_read_into_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    path = tmp_path / "pax.tar.xz"
    path.write_bytes(lzma.compress(info.tobuf() + bytes(1 << 20), preset=0))
    (tmp_path / "target").mkdir()
    with pytest.raises(DatasetError, match="refused, an extended header of 1073741824 bytes"):
        extract(path, tmp_path / "target")


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "garbage", "zip"])
def test_what_is_no_archive_ends_in_one_line(tmp_path: Path, kind: str) -> None:
    whole = archive(tmp_path / "whole.tar.xz", member("a", bytes(100_000))).read_bytes()
    contents = {
        "text": b"hello",
        "empty": b"",
        "cut": whole[:-60],
        "garbage": whole[:40] + bytes(100),
        "zip": b"PK\3\4",
    }
    path = tmp_path / "archive.tar.xz"
    path.write_bytes(contents[kind])
    (tmp_path / "target").mkdir()
    with pytest.raises(DatasetError, match=r"damaged archive|no file in the archive") as error:
        extract(path, tmp_path / "target")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_every_compression_and_size_is_unpacked_exactly(tmp_path: Path, compression: str) -> None:
    sizes = [0, 1, 511, 512, 513, 10_240, 65_536, 1_048_576]
    path = tmp_path / "archive"
    with tarfile.open(path, f"w:{compression}") as made:
        for size in sizes:
            info, data = member(f"folder/{size}.bin", bytes(range(256)) * (size // 256) + bytes(size % 256))
            made.addfile(info, io.BytesIO(data))
    (tmp_path / "target").mkdir()
    seen: list[int] = []
    assert extract(path, tmp_path / "target", progress=seen.append) == len(sizes)
    assert seen[-1] == sum(sizes)
    for size in sizes:
        expected = bytes(range(256)) * (size // 256) + bytes(size % 256)
        assert (tmp_path / "target" / "folder" / f"{size}.bin").read_bytes() == expected


def test_folders_pipes_and_absent_files_are_no_archives_and_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "target").mkdir()
    for path, why in ((tmp_path / "pipe", "not a regular"), (tmp_path, "not a regular"), (tmp_path / "no", "No such")):
        with pytest.raises(DatasetError, match=why):
            extract(path, tmp_path / "target")
