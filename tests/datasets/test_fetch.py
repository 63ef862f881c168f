"""Downloads against a server that breaks, stalls, lies and cheats; archives that mean harm."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import lzma
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kdad_bench import datasets
from kdad_bench.datasets import archive as unpacking
from kdad_bench.datasets import fetch as fetching
from kdad_bench.datasets.archive import Limits, extract
from kdad_bench.datasets.category import DatasetError
from tests.conftest import write_tree

BODY = bytes(range(256)) * 4000  # 1,024,000 bytes


class Server:
    """A local server that behaves as `answer` says; it counts its requests and remembers their Range headers."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []
        self.answer: Callable[[BaseHTTPRequestHandler, int], None] = lambda handler, number: serve(handler)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.ranges.append(self.headers.get("Range"))
                self.close_connection = True
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
                    outer.answer(self, len(outer.ranges))

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/archive.tar.xz"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def serve(
    handler: BaseHTTPRequestHandler,
    body: bytes = BODY,
    *,
    send: int | None = None,
    declare: int | None = None,
    ranges: bool = True,
    tag: str = '"one"',
    kind: str = "application/x-xz",
) -> None:
    """Answer with `body`, from the byte asked for; `send` limits what is really sent and `declare` lies about it."""
    asked = handler.headers.get("Range")
    start = 0
    if asked and ranges and handler.headers.get("If-Range", tag) == tag:
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            handler.send_error(416)
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    else:
        handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.send_header("ETag", tag)
    handler.send_header("Content-Length", str(len(body) - start if declare is None else declare))
    handler.end_headers()
    handler.wfile.write(body[start:][:send])
    handler.wfile.flush()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def get(server: Server, target: Path, **options: Any) -> Path:
    return fetching.download(server.url, target, pause_seconds=0.001, **options)


# --- the network ----------------------------------------------------------------------------------------------------


def test_a_download_arrives_and_reports_its_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = get(server, tmp_path / "a", progress=lambda *step: seen.append(step))
    assert path.read_bytes() == BODY
    assert seen[-1] == ("download", len(BODY), len(BODY))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a"]
    get(server, tmp_path / "a")
    assert len(server.ranges) == 1  # a finished file is not asked for again


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, number: serve(handler, send=300_000 if number < 4 else None)
    assert get(server, tmp_path / "a").read_bytes() == BODY
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, number: serve(handler, send=200_000 if number == 1 else 0)
    with pytest.raises(DatasetError, match="go on from byte 200000"):
        get(server, tmp_path / "a", attempts=3)
    server.answer = lambda handler, number: serve(handler)
    assert get(server, tmp_path / "a").read_bytes() == BODY
    assert server.ranges[-1] == "bytes=200000-"


def test_a_server_without_ranges_is_asked_for_the_whole_file(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, number: serve(handler, send=200_000 if number == 1 else None, ranges=False)
    assert get(server, tmp_path / "a").read_bytes() == BODY


def test_another_file_on_the_server_is_not_appended_to_the_old_part(server: Server, tmp_path: Path) -> None:
    other = BODY[::-1]

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        if number == 1:
            serve(handler, send=200_000)
        else:
            serve(handler, other, tag='"two"')

    server.answer = answer
    assert get(server, tmp_path / "a").read_bytes() == other


def test_a_changed_length_starts_again(server: Server, tmp_path: Path) -> None:
    longer = BODY + b"more"
    server.answer = lambda handler, number: serve(
        handler, BODY if number == 1 else longer, send=99 if number == 1 else None
    )
    assert get(server, tmp_path / "a").read_bytes() == longer


def test_a_part_longer_than_the_file_starts_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(BODY + b"rubbish")
    (tmp_path / "a.part.json").write_text(json.dumps({"url": server.url, "total": None, "version": ""}))
    assert get(server, tmp_path / "a").read_bytes() == BODY


def test_a_stalled_connection_is_given_up_and_taken_up_again(server: Server, tmp_path: Path) -> None:
    release = threading.Event()

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        serve(handler, send=100_000 if number == 1 else None)
        if number == 1:
            release.wait(10)

    server.answer = answer
    began = time.monotonic()
    assert get(server, tmp_path / "a", stall_seconds=0.3).read_bytes() == BODY
    assert time.monotonic() - began < 5
    release.set()


def test_a_server_that_only_stalls_ends_in_one_line(server: Server, tmp_path: Path) -> None:
    release = threading.Event()
    server.answer = lambda handler, number: release.wait(10) and None
    with pytest.raises(DatasetError, match=r"no byte for 0\.2 s \(2 attempts\)"):
        get(server, tmp_path / "a", stall_seconds=0.2, attempts=2)
    release.set()


def test_a_declared_length_that_is_too_long_ends_in_one_line(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, number: serve(handler, declare=len(BODY) + 10, ranges=False)
    with pytest.raises(DatasetError, match=f"after {len(BODY)} of {len(BODY) + 10} bytes") as error:
        get(server, tmp_path / "a", attempts=2)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_a_server_error_is_tried_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, number: handler.send_error(503) if number < 3 else serve(handler)
    assert get(server, tmp_path / "a").read_bytes() == BODY
    server.answer = lambda handler, number: handler.send_error(404)
    before = len(server.ranges)
    with pytest.raises(DatasetError, match=r"404 Not Found; the link may have moved: see https://example\.org/page"):
        get(server, tmp_path / "b", page="https://example.org/page")
    assert len(server.ranges) == before + 1


def test_a_web_page_in_the_place_of_the_archive_is_told(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, number: serve(handler, b"<html>moved</html>", kind="text/html; charset=utf-8")
    with pytest.raises(
        DatasetError, match=r"a web page and not an archive; the link may have moved: see https://a\.org/b"
    ):
        get(server, tmp_path / "a", page="https://a.org/b")
    assert not (tmp_path / "a").exists()


def test_a_server_that_is_not_there_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="refused") as error:
        fetching.download("http://127.0.0.1:9/x", tmp_path / "a", attempts=2, pause_seconds=0.001)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_noticed_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DatasetError, match="1000 bytes free"):
        get(server, tmp_path / "a")


# --- fetch as a whole -----------------------------------------------------------------------------------------------


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
    assert len(datasets.categories("mvtec_ad", tmp_path / "out")[0].train) == 2
    assert fetching.existing(source[0], tmp_path / "out") == place


def test_a_wrong_hash_unpacks_nothing_and_is_not_taken_up_again(
    server: Server, tmp_path: Path, source: tuple[fetching.Source, bytes]
) -> None:
    wrong = source[1][:-1] + bytes([source[1][-1] ^ 1])
    server.answer = lambda handler, number: serve(handler, wrong)
    with pytest.raises(DatasetError, match="not the published archive") as error:
        fetching.fetch(source[0], tmp_path / "out", url=server.url)
    assert source[0].digest in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []
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
    with pytest.raises(DatasetError, match="something lies there"):
        fetching.fetch(source[0], tmp_path / "out", archive=path, sha256=digest)


def test_an_archive_of_something_else_places_nothing(tmp_path: Path, source: tuple[fetching.Source, bytes]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "readme.txt").write_text("nothing here")
    path, digest = packed(other, tmp_path / "other.tar.xz")
    with pytest.raises(DatasetError, match="no category of MVTec AD"):
        fetching.fetch(source[0], tmp_path / "out", archive=path, sha256=digest)
    assert list((tmp_path / "out").iterdir()) == []


# --- archives -------------------------------------------------------------------------------------------------------


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
    assert extract(path, target) == 3


def test_a_header_of_a_gigabyte_is_not_read_into_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    path = tmp_path / "pax.tar.xz"
    path.write_bytes(lzma.compress(info.tobuf() + bytes(1 << 20), preset=0))
    (tmp_path / "target").mkdir()
    with pytest.raises(DatasetError, match="damaged archive"):
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


def test_the_stream_steps_back_by_a_little_only() -> None:
    stream = unpacking._Forward(io.BytesIO(bytes(range(200)) * 100))
    assert stream.read(600)[-1] == 599 % 200
    stream.seek(599)
    assert stream.tell() == 599
    assert list(stream.read(3)) == [199, 0, 1]
    stream.seek(10_000)
    assert list(stream.read(2)) == [0, 1]
    with pytest.raises(tarfile.ReadError, match="jump back"):
        stream.seek(0)
    with pytest.raises(tarfile.ReadError, match="header"):
        stream.read(1 << 30)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_asks_for_the_licence_and_counts_what_is_there(tmp_path: Path) -> None:
    from kdad_bench.cli import cli

    run = CliRunner()
    asked = run.invoke(cli, ["data", "fetch", "mvtec_ad", "--out", str(tmp_path)])
    assert asked.exit_code == 2
    assert "CC BY-NC-SA 4.0" in asked.output
    assert "--accept-license" in asked.output
    assert list(tmp_path.iterdir()) == []
    write_tree(tmp_path / "mvtec_ad", ("bottle",), train=2, test=1)
    there = run.invoke(cli, ["data", "fetch", "mvtec_ad", "--out", str(tmp_path)])
    assert there.exit_code == 1
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


def test_the_published_sources_are_complete() -> None:
    names = list(datasets.entries(lambda one: one.archive))
    assert names == ["mvtec_ad", "mvtec_3d_ad"]
    for name, source in zip(names, map(fetching.source_of, names), strict=True):
        assert source.name == name
        assert len(source.digest) == {"sha256": 64, "md5": 32}[source.algorithm]
        assert source.url.startswith("https://")
        assert source.page.startswith("https://www.mvtec.com/")
