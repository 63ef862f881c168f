"""A data set is fetched whole or not at all, whoever dies, lies or fetches beside."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets import fetch as fetching
from kdad_bench.datasets.category import DatasetError
from kdad_bench.download import claimed
from tests.conftest import write_tree
from tests.server import Server, running, serve


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as made:
        yield made


def packed(tree: Path, target: Path, prefix: str = "") -> tuple[Path, str]:
    """A tar.xz of a tree and its SHA-256."""
    with tarfile.open(target, "w:xz", preset=0) as archive:
        for path in sorted(tree.iterdir()):
            archive.add(path, arcname=f"{prefix}{path.name}")
    return target, hashlib.sha256(target.read_bytes()).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> tuple[fetching.Source, bytes]:
    """A published data set of one small category."""
    tree = write_tree(tmp_path / "tree", ("bottle",), train=2, test=1)
    path, digest = packed(tree, tmp_path / "published.tar.xz")
    return (
        fetching.Source(
            name="mvtec_ad", title="MVTec AD", url="", algorithm="sha256", digest=digest, page="https://example.org",
            licence="none", download_bytes=1, unpacked_bytes=1,
        ),
        path.read_bytes(),
    )  # fmt: skip


def trained(out: Path) -> tuple[datasets.Sample, ...]:
    """What was fetched to learn from: by its path, as it has not the published numbers."""
    place = datasets.located("mvtec_ad", out)
    return datasets.categories(f"folder:{place.root}", None)[0].train


def test_fetch_downloads_checks_unpacks_and_places(
    server: Server, tmp_path: Path, source: tuple[fetching.Source, bytes]
) -> None:
    server.answer = lambda handler, number: serve(handler, source[1], send=500 if number == 1 else None)
    phases: set[str] = set()
    place = fetching.fetch(
        source[0], tmp_path / "out", url=server.url, pause_seconds=0.001, progress=lambda phase, *_: phases.add(phase)
    )
    assert phases == {"download", "checksum", "unpack"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mvtec_ad"]
    assert len(trained(tmp_path / "out")) == 2
    assert fetching.existing(source[0], tmp_path / "out") == place


def test_a_wrong_hash_unpacks_nothing_and_is_not_taken_up_again(
    server: Server, tmp_path: Path, source: tuple[fetching.Source, bytes]
) -> None:
    wrong = source[1][:-1] + bytes([source[1][-1] ^ 1])
    server.answer = lambda handler, number: serve(handler, wrong)
    with pytest.raises(DatasetError, match="not the published archive") as error:
        fetching.fetch(source[0], tmp_path / "out", url=server.url)
    assert source[0].digest in str(error.value)
    assert not (tmp_path / "out").exists()
    server.answer = lambda handler, number: serve(handler, source[1])
    assert fetching.fetch(source[0], tmp_path / "out", url=server.url).is_dir()


def test_a_local_archive_and_a_wrapped_mirror_are_accepted(
    tmp_path: Path, source: tuple[fetching.Source, bytes]
) -> None:
    path, digest = packed(tmp_path / "tree", tmp_path / "mirror.tar.xz", prefix="mvtec/")
    with pytest.raises(DatasetError, match="not the published archive"):
        fetching.fetch(source[0], tmp_path / "out", archive=path)
    assert path.is_file()  # the user's own file is left alone
    place = fetching.fetch(source[0], tmp_path / "out", archive=path, sha256=digest)
    assert (place / "bottle" / "train" / "good").is_dir()
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mvtec_ad"]
    assert fetching.fetch(source[0], tmp_path / "out", archive=path, sha256=digest) == place  # there already
    (tmp_path / "else" / "mvtec_ad").mkdir(parents=True)
    with pytest.raises(DatasetError, match="something lies there"):
        fetching.fetch(source[0], tmp_path / "else", archive=path, sha256=digest)


def test_an_archive_of_something_else_places_nothing(tmp_path: Path, source: tuple[fetching.Source, bytes]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "readme.txt").write_text("nothing here")
    path, digest = packed(other, tmp_path / "other.tar.xz")
    with pytest.raises(DatasetError, match="no category of MVTec AD"):
        fetching.fetch(source[0], tmp_path / "out", archive=path, sha256=digest)
    assert not (tmp_path / "out").exists()


DYING = """
import os, signal, sys
from pathlib import Path
from kdad_bench.datasets import fetch as fetching
url, digest, out, moment = sys.argv[1:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def progress(phase, done, total):
    if phase == moment and done:
        die()
if moment == "rename":
    os.rename = die
if moment == "cleaning":
    fetching._left_by_killed = lambda work: None
    fetching.shutil.rmtree = lambda *_, **__: die()
source = fetching.Source(
    name="mvtec_ad", title="MVTec AD", url=url, algorithm="sha256", digest=digest, page="", licence="",
    download_bytes=1, unpacked_bytes=1,
)
fetching.fetch(source, Path(out), url=url, progress=progress)
"""


@pytest.mark.parametrize("moment", ["download", "checksum", "unpack", "rename", "cleaning"])
def test_a_killed_fetch_is_gone_on_with_and_leaves_no_debris(
    server: Server, tmp_path: Path, source: tuple[fetching.Source, bytes], moment: str
) -> None:
    server.answer = lambda handler, number: serve(handler, source[1])
    out = tmp_path / "out"
    placed = moment == "cleaning"
    once = placed or moment == "download"  # a download that was killed at its last byte has nothing left to load
    for _ in range(1 if once else 2):
        command = [sys.executable, "-c", DYING, server.url, source[0].digest, str(out), moment]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert sorted(os.listdir(out)) == [".mvtec_ad.fetch", *(["mvtec_ad"] if placed else [])]
    assert fetching.fetch(source[0], out, url=server.url) == out / "mvtec_ad"
    assert len(trained(out)) == 2
    assert os.listdir(out) == ["mvtec_ad"]


@pytest.mark.parametrize("local", [False, True])
def test_a_disk_without_room_for_what_is_unpacked_is_told_before_that(
    server: Server, tmp_path: Path, source: tuple[fetching.Source, bytes], local: bool
) -> None:
    (tmp_path / "a.tar.xz").write_bytes(source[1])
    large = replace(source[0], unpacked_bytes=1 << 60)
    with pytest.raises(DatasetError, match=r"GB free, and MVTec AD needs about 1152921504\.6 GB more; free space"):
        fetching.fetch(large, tmp_path / "out", url=server.url, archive=tmp_path / "a.tar.xz" if local else None)
    assert server.ranges == []
    assert not (tmp_path / "out/mvtec_ad").exists()


def test_the_debris_of_a_fetch_is_swept_where_the_data_set_is_there(tmp_path: Path) -> None:
    write_tree(tmp_path / "mvtec_ad", ("bottle",), train=2, test=1)
    (tmp_path / ".mvtec_ad.fetch" / "draft" / "bottle").mkdir(parents=True)
    (tmp_path / ".mvtec_ad.fetch" / "archive").write_bytes(b"a" * 100)
    source = fetching.source_of("mvtec_ad")
    with claimed(tmp_path / ".mvtec_ad.fetch", wait=False):
        fetching.tidy(source, tmp_path)  # another one runs
        assert (tmp_path / ".mvtec_ad.fetch" / "archive").is_file()
    CliRunner().invoke(cli, ["data", "fetch", "mvtec_ad", "--out", str(tmp_path)])
    assert os.listdir(tmp_path) == ["mvtec_ad"]
    fetching.tidy(source, tmp_path)
    assert os.listdir(tmp_path) == ["mvtec_ad"]


def test_a_second_fetch_beside_the_first_says_so_and_harms_nothing(
    server: Server, tmp_path: Path, source: tuple[fetching.Source, bytes]
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        asked.set()
        go_on.wait(20)
        serve(handler, source[1])

    server.answer = answer
    first = threading.Thread(target=fetching.fetch, args=(source[0], tmp_path / "out"), kwargs={"url": server.url})
    first.start()
    assert asked.wait(20)
    with pytest.raises(DatasetError, match=r"out: another `data fetch mvtec_ad` is running there; wait"):
        fetching.fetch(source[0], tmp_path / "out", url=server.url)
    go_on.set()
    first.join()
    assert os.listdir(tmp_path / "out") == ["mvtec_ad"]
    assert len(server.ranges) == 1
    assert fetching.fetch(source[0], tmp_path / "out", url=server.url) == tmp_path / "out" / "mvtec_ad"


def test_many_fetches_at_once_place_one_data_set(tmp_path: Path, source: tuple[fetching.Source, bytes]) -> None:
    (tmp_path / "archive.tar.xz").write_bytes(source[1])
    out = tmp_path / "out"
    said: list[str] = []

    def one() -> None:
        try:
            said.append(str(fetching.fetch(source[0], out, archive=tmp_path / "archive.tar.xz")))
        except DatasetError as error:
            said.append(str(error))

    together = [threading.Thread(target=one) for _ in range(8)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert str(out / "mvtec_ad") in said
    assert all(line == str(out / "mvtec_ad") or "another `data fetch" in line for line in said)
    assert len(said) == 8
    assert os.listdir(out) == ["mvtec_ad"]
    assert len(trained(out)) == 2


def test_a_full_disk_while_unpacking_is_one_line_and_leaves_nothing(
    tmp_path: Path, source: tuple[fetching.Source, bytes]
) -> None:
    (tmp_path / "archive.tar.xz").write_bytes(source[1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(DatasetError, match=r"cannot be written \(File too large\); free space or choose --out"):
            fetching.fetch(source[0], tmp_path / "out", archive=tmp_path / "archive.tar.xz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_written_is_one_line(
    tmp_path: Path, source: tuple[fetching.Source, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "archive.tar.xz").write_bytes(source[1])
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"out: cannot be written \(Not a directory\)"):
        fetching.fetch(source[0], tmp_path / "file" / "out", archive=tmp_path / "archive.tar.xz")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(DatasetError, match=r"out: cannot be written \(Read-only file system\)"):
        fetching.fetch(source[0], tmp_path / "out", archive=tmp_path / "archive.tar.xz")


def test_the_home_folder_is_expanded(
    tmp_path: Path, source: tuple[fetching.Source, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "archive.tar.xz").write_bytes(source[1])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    place = fetching.fetch(source[0], Path("~/data"), archive=Path("~/archive.tar.xz"))
    assert place == tmp_path / "data" / "mvtec_ad"
    assert fetching.existing(source[0], Path("~/data")) == place
    assert not (tmp_path / "~").exists()
    with pytest.raises(DatasetError, match="the home folder is not known"):
        fetching.fetch(source[0], Path("~nobody-of-this-name/data"))


def test_an_archive_that_changes_while_it_is_read_places_nothing(
    tmp_path: Path, source: tuple[fetching.Source, bytes]
) -> None:
    """The checksum is of other bytes than those that were unpacked."""
    path = tmp_path / "archive.tar.xz"
    path.write_bytes(source[1])

    def meddle(phase: str, done: int, total: int | None) -> None:
        if phase == "checksum":
            os.utime(path, (1, 1))

    with pytest.raises(DatasetError, match="changed while it was read"):
        fetching.fetch(source[0], tmp_path / "out", archive=path, progress=meddle)
    assert not (tmp_path / "out").exists()


def test_the_archive_is_kept_where_asked_and_the_folder_has_ordinary_rights(
    server: Server, tmp_path: Path, source: tuple[fetching.Source, bytes]
) -> None:
    server.answer = lambda handler, number: serve(handler, source[1])
    umask = os.umask(0o022)
    try:
        place = fetching.fetch(source[0], tmp_path / "out", url=server.url, keep=True)
    finally:
        os.umask(umask)
    assert (tmp_path / "out" / "mvtec_ad.archive").read_bytes() == source[1]
    assert sorted(os.listdir(tmp_path / "out")) == ["mvtec_ad", "mvtec_ad.archive"]
    assert place.stat().st_mode & 0o777 == 0o755


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_asks_for_the_licence_and_counts_what_is_there(tmp_path: Path) -> None:
    run = CliRunner()
    asked = run.invoke(cli, ["data", "fetch", "mvtec_ad", "--out", str(tmp_path)])
    assert asked.exit_code == 2
    assert "CC BY-NC-SA 4.0" in asked.output
    assert "--accept-license" in asked.output
    assert list(tmp_path.iterdir()) == []
    write_tree(tmp_path / "mvtec_ad", ("bottle",), train=2, test=1)
    there = run.invoke(cli, ["data", "fetch", "mvtec_ad", "--out", str(tmp_path)])
    assert there.exit_code == 2, "fewer than published"
    assert "already there" in there.output
    assert "train 2 and not 209" in there.output
    missing = run.invoke(
        cli,
        [
            "data",
            "fetch",
            "mvtec_3d_ad",
            "--out",
            str(tmp_path),
            "--accept-license",
            "--archive",
            str(tmp_path / "none"),
        ],
    )
    assert missing.exit_code == 2
    assert "no such archive" in missing.output


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://h/x", "file:///x", "http://", "http://[::1/x", "http://h:0/x", "http://h:x/"]
)
def test_what_is_no_address_is_one_line_and_makes_no_folder(url: str, tmp_path: Path) -> None:
    arguments = ["data", "fetch", "btad", "--out", str(tmp_path / "data"), "--accept-license", "--url", url]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert "not an address that can be fetched" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_is_another_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK")
    arguments = ["data", "fetch", "btad", "--out", str(tmp_path / "data"), "--accept-license"]
    done = CliRunner().invoke(cli, [*arguments, "--archive", str(tmp_path / "x.zip")])
    assert done.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_the_published_sources_are_complete() -> None:
    names = list(datasets.entries(lambda one: one.archive))
    assert names == ["mvtec_ad", "mvtec_3d_ad", "mvtec_ad_2", "mvtec_loco", "visa", "btad"]
    for name, source in zip(names, map(fetching.source_of, names), strict=True):
        assert source.name == name
        assert len(source.digest) == {"sha256": 64, "md5": 32}[source.algorithm]
        assert source.url.startswith("https://")
        assert source.page.startswith("https://www.mvtec.com/" if name.startswith("mvtec") else "https://github.com/")
