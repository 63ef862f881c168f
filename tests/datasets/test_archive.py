"""Archives that mean harm, and those that do not."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kdad_bench.datasets.archive import Limits, extract
from kdad_bench.datasets.category import DatasetError


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


HOSTILE = {
    "parent": member("../outside.txt"),
    "hidden parent": member("a/../../outside.txt"),
    "absolute": member("/tmp/kdad-outside.txt"),
    "drive": member("C:\\outside.txt"),
    "backslash": member("..\\outside.txt"),
    "link out": member("link", b"", type=tarfile.SYMTYPE, linkname="../../etc"),
    "absolute link": member("link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": member("link", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "device": member("dev", b"", type=tarfile.BLKTYPE, devmajor=8),
    "character device": member("dev", b"", type=tarfile.CHRTYPE, devmajor=1),
    "pipe": member("pipe", b"", type=tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_member_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    path = archive(tmp_path / "hostile.tar.xz", member("fine.txt"), HOSTILE[kind], member("after.txt"))
    with pytest.raises(DatasetError, match="refused, member") as error:
        extract(path, target)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert [entry.name for entry in target.iterdir()] == ["fine.txt"]
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["deep", "fine.txt", "hostile.tar.xz", "target"]


def test_a_link_that_leads_a_later_member_out_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    inner = member("a", b"", type=tarfile.SYMTYPE, linkname=".")
    step = member("a/b", b"", type=tarfile.SYMTYPE, linkname="..")
    with pytest.raises(DatasetError, match="refused"):
        extract(archive(tmp_path / "x.tar.xz", inner, step, member("a/b/outside.txt")), target)
    assert not (tmp_path / "outside.txt").exists()


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
