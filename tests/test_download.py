"""Downloads against a server that breaks, stalls, lies and cheats; folders that one process holds at a time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from kdad_bench import download as downloading
from kdad_bench.download import DownloadError, download
from tests.server import BODY, Server, running, serve


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as made:
        yield made


def get(server: Server, target: Path, remedy: str = "see PAGE", **options: Any) -> Path:
    return download(server.url, target, remedy=remedy, pause_seconds=0.001, **options)


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
    with pytest.raises(DownloadError, match="go on from byte 200000"):
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
    with pytest.raises(DownloadError, match=r"no byte for 0\.2 s \(2 attempts\)"):
        get(server, tmp_path / "a", stall_seconds=0.2, attempts=2)
    release.set()


def test_a_declared_length_that_is_too_long_ends_in_one_line(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, number: serve(handler, declare=len(BODY) + 10, ranges=False)
    with pytest.raises(DownloadError, match=f"after {len(BODY)} of {len(BODY) + 10} bytes") as error:
        get(server, tmp_path / "a", attempts=2)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_a_server_error_is_tried_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, number: handler.send_error(503) if number < 3 else serve(handler)
    assert get(server, tmp_path / "a").read_bytes() == BODY
    server.answer = lambda handler, number: handler.send_error(404)
    before = len(server.ranges)
    with pytest.raises(DownloadError, match=r"404 Not Found; the link may have moved: see https://example\.org/page"):
        get(server, tmp_path / "b", remedy="see https://example.org/page")
    assert len(server.ranges) == before + 1


def test_a_web_page_in_the_place_of_the_archive_is_told(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, number: serve(handler, b"<html>moved</html>", kind="text/html; charset=utf-8")
    with pytest.raises(
        DownloadError, match=r"a web page and not the file; the link may have moved: see https://a\.org/b"
    ):
        get(server, tmp_path / "a", remedy="see https://a.org/b")
    assert not (tmp_path / "a").exists()


def test_a_server_that_is_not_there_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="refused") as error:
        download("http://127.0.0.1:9/x", tmp_path / "a", remedy="see PAGE", attempts=2, pause_seconds=0.001)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_noticed_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DownloadError, match="1000 bytes free"):
        get(server, tmp_path / "a")
