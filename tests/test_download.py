"""Downloads against a server that breaks, stalls, lies and cheats; folders that one process holds at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from kdad_bench import download as downloading
from kdad_bench.download import BusyError, DownloadError, claimed, download
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


@pytest.mark.parametrize("total", [2_000_000, None], ids=["another length", "longer than the file"])
def test_an_old_part_does_not_count_against_a_connection_that_breaks_often(
    server: Server, tmp_path: Path, total: int | None
) -> None:
    """Each attempt brings new bytes of the file that is there now, though fewer than were thrown away."""
    (tmp_path / "a.part").write_bytes(b"x" * (900_000 if total else 1_100_000))
    (tmp_path / "a.part.json").write_text(json.dumps({"url": server.url, "total": total, "version": ""}))
    server.answer = lambda handler, number: serve(handler, send=100_000)
    assert get(server, tmp_path / "a").read_bytes() == BODY


def test_a_part_longer_than_the_file_starts_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(BODY + b"rubbish")
    (tmp_path / "a.part.json").write_text(json.dumps({"url": server.url, "total": None, "version": ""}))
    assert get(server, tmp_path / "a").read_bytes() == BODY


def test_a_stalled_connection_is_given_up_and_taken_up_again(server: Server, tmp_path: Path) -> None:
    release, hung_up = threading.Event(), threading.Event()

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        serve(handler, send=100_000 if number == 1 else None)
        if number == 1:
            release.wait(60)
            hung_up.set()

    server.answer = answer
    assert get(server, tmp_path / "a", stall_seconds=0.3).read_bytes() == BODY
    assert not hung_up.is_set(), "nobody waited for the server to end what stalls"
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
    assert list(tmp_path.iterdir()) == []


def test_an_untrusted_certificate_ends_at_once_with_the_remedy(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    server.secure(tmp_path)
    pauses: list[float] = []
    monkeypatch.setattr(downloading.time, "sleep", pauses.append)
    with pytest.raises(
        DownloadError, match=r"certificate of localhost is not trusted \(self-signed.*SSL_CERT_FILE"
    ) as error:
        download(server.url, tmp_path / "a", remedy="give --archive")
    assert pauses == []  # another attempt would change nothing
    assert str(error.value).endswith("; give --archive")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
    assert get(server, tmp_path / "a").read_bytes() == BODY
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    with pytest.raises(DownloadError, match=r"SSL_CERT_FILE is '.*absent\.pem': does it hold the authority"):
        get(server, tmp_path / "b")


def test_a_server_that_speaks_no_tls_ends_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no secure connection"):
        download(server.url.replace("http:", "https:"), tmp_path / "a", remedy="give --archive")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "FILE:/etc/passwd", "ftp://localhost/a", "data:text/plain,a", "a.tar.xz", "", "http://",
        "http://[::1", "http://a b/c", "http://h:99999/a", "http://h:x/a", "http://h\n/a", "http://ü..x/a", "https:///a",
        "javascript:alert(1)", "http://localhost/a\x00b", "http://h/ü b",
    ],
)  # fmt: skip
def test_what_is_no_web_address_ends_at_once(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match=r"not an address that can be fetched.*; see PAGE"):
        download(url, tmp_path / "a", remedy="see PAGE")
    assert list(tmp_path.iterdir()) == []


def redirect(handler: BaseHTTPRequestHandler, to: str) -> None:
    handler.send_response(302)
    handler.send_header("Location", to)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://localhost/a", "data:,a", "/again", "http:///", "//"])
def test_redirects_lead_to_web_servers_only(server: Server, tmp_path: Path, to: str) -> None:
    server.answer = lambda handler, number: redirect(handler, to)
    with pytest.raises(DownloadError, match="see PAGE") as error:
        get(server, tmp_path / "a")
    assert str(error.value).isprintable()
    assert not (tmp_path / "a").exists()
    assert len(server.ranges) < 20


def test_a_redirect_is_followed_but_not_from_https_to_http(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler, number: redirect(handler, server.url) if number == 1 else serve(handler)
    assert get(server, tmp_path / "a").read_bytes() == BODY
    with running() as other, pytest.MonkeyPatch.context() as patch:
        other.secure(tmp_path)
        patch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
        other.answer = lambda handler, number: redirect(handler, server.url)
        with pytest.raises(DownloadError, match=r"redirects to 'http://127.*', which is not followed"):
            get(other, tmp_path / "b")


def head(handler: BaseHTTPRequestHandler, code: int = 200, reason: str = "OK", **headers: str) -> None:
    handler.send_response(code, reason)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def chunked(handler: BaseHTTPRequestHandler, chunks: int, *, end: bool) -> None:
    head(handler, Transfer_Encoding="chunked")
    for _ in range(chunks):
        handler.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n" if end else b"10000\r\nhalf")


LIES: dict[str, tuple[Callable[[BaseHTTPRequestHandler, int], None], str]] = {
    "escapes in the reason": (lambda h, n: head(h, 404, "\x1b[2JGone\tnow"), "answers 404"),
    "a length of 30 digits": (lambda h, n: head(h, Content_Length="9" * 18), "bytes are announced; limit"),
    "another range": (lambda h, n: head(h, 206, Content_Range="bytes 5-6/7\x1b[2J"), "sends another range"),
    "no range": (lambda h, n: head(h, 206), "sends another range"),
    "an endless stream": (lambda h, n: chunked(h, 1000, end=True), "more than 9999999 bytes"),
    "a chunk that ends early": (lambda h, n: chunked(h, 2, end=False), "ended in the middle"),
    "a chunk of no length": (
        lambda h, n: (head(h, Transfer_Encoding="chunked"), h.wfile.write(b"-5\r\nxx"))[0], "ended|attempts",
    ),
    "no HTTP at all": (lambda h, n: h.wfile.write(b"\x1b[2Jhello\r\n\r\n") and None, "attempts"),
    "nothing": (lambda h, n: None, "attempts"),
    "a thousand headers": (lambda h, n: head(h, **{f"X{i}": "y" for i in range(1000)}), "attempts"),
    "a web page": (lambda h, n: head(h, Content_Type="text/html"), "a web page"),
    "too many requests": (lambda h, n: head(h, 429, "Too Many"), "answers 429 Too Many .2 attempts"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(LIES))
def test_a_lying_server_ends_in_one_plain_line(server: Server, tmp_path: Path, kind: str) -> None:
    server.answer, why = LIES[kind]
    with pytest.raises(DownloadError, match=why) as error:
        get(server, tmp_path / "a", attempts=2, most_bytes=9_999_999)
    assert str(error.value).isprintable()
    assert not (tmp_path / "a").exists()
    if not (tmp_path / "a.part").exists():
        assert list(tmp_path.iterdir()) == []  # no record of nothing


@pytest.mark.parametrize("length", ["-5", "²", "9" * 5000, "1e9", ""])
def test_a_length_that_is_none_is_no_length(server: Server, tmp_path: Path, length: str) -> None:
    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        head(handler, Content_Length=length)
        handler.wfile.write(BODY)

    server.answer = answer
    with contextlib.suppress(DownloadError):  # http.client may count on it itself: then the file is short
        assert get(server, tmp_path / "a", attempts=2).read_bytes() in (BODY, b"")


def test_a_server_that_changes_its_mind_each_time_is_given_up(server: Server, tmp_path: Path) -> None:
    """Each answer is another file, and breaks: what grows is thrown away again, which is no progress."""
    server.answer = lambda handler, number: serve(
        handler, BODY + bytes(number), send=50_000, tag=f'"{number}"', ranges=False
    )
    with pytest.raises(DownloadError, match="attempts"):
        get(server, tmp_path / "a", attempts=3)
    assert len(server.ranges) < 8


FACTS = [
    "", "{", "null", "[]", "{}", "\0" * 50, "[" * 100_000, "9" * 100_000,
    '{"url": 5, "total": 1, "version": ""}', '{"url": "U", "total": -1, "version": ""}',
    '{"url": "U", "total": "5", "version": ""}', '{"url": "U", "total": true, "version": ""}',
    '{"url": "U", "total": null, "version": "a\\nHost: b"}', '{"url": "U", "total": null, "version": ["a"]}',
    '{"url": "U", "total": 1e400, "version": ""}', '{"url": "U", "total": null, "version": "\\ud800"}',
]  # fmt: skip


@pytest.mark.parametrize("facts", FACTS)
def test_a_damaged_record_of_a_part_begins_the_part_anew(server: Server, tmp_path: Path, facts: str) -> None:
    (tmp_path / "a.part").write_bytes(b"rubbish")
    (tmp_path / "a.part.json").write_text(facts.replace("U", server.url))
    assert get(server, tmp_path / "a").read_bytes() == BODY
    assert server.ranges == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_part_that_is_complete_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(BODY)
    (tmp_path / "a.part.json").write_text(json.dumps({"url": server.url, "total": len(BODY), "version": ""}))
    assert get(server, tmp_path / "a").read_bytes() == BODY
    assert server.ranges == []


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The nearest thing to a full disk that needs no rights: writing beyond `size` bytes fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_becomes_full_ends_at_once_and_the_part_is_taken_up(server: Server, tmp_path: Path) -> None:
    with files_of_at_most(300_000), pytest.raises(DownloadError, match=r"cannot be written \(File too large\)"):
        get(server, tmp_path / "a")
    assert len(server.ranges) == 1
    assert get(server, tmp_path / "a").read_bytes() == BODY
    assert server.ranges[1] == "bytes=300000-"


# --- folders that one process holds ---------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from kdad_bench.download import claimed
with claimed(Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    time.sleep(60)
"""
COUNT = """
import sys, time
from pathlib import Path
from kdad_bench.download import claimed
folder, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(50):
    with claimed(folder, wait=True):
        count = int(counter.read_text())
        time.sleep(0.001)
        counter.write_text(str(count + 1))
"""


def test_a_held_folder_is_refused_to_others_and_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "work"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError), claimed(folder, wait=False):
            pytest.fail("held twice")
        holder.kill()
        holder.wait()
    with claimed(folder, wait=False):
        (folder / "part").write_text("kept")
    assert os.listdir(folder) == ["part"]
    (folder / "part").unlink()
    with claimed(folder, wait=False):
        assert folder.is_dir()
    assert not folder.exists()


def test_who_waits_for_a_folder_says_so(tmp_path: Path) -> None:
    told: list[str] = []
    with ExitStack() as holder:
        holder.enter_context(claimed(tmp_path / "work", wait=True, waiting=lambda: told.append("at once")))

        def waiting() -> None:
            told.append("waits")
            holder.close()

        with claimed(tmp_path / "work", wait=True, waiting=waiting):
            pass
    assert told == ["waits"]


@pytest.mark.parametrize("since", ["removed", "made again"])
def test_a_folder_that_its_holder_removes_while_it_is_made_is_made_again(
    since: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mkdir looks twice: it was there, and is not: and by the next look, somebody may have made it again."""
    folder, mkdir, refused = tmp_path / "work", Path.mkdir, []

    def raced(path: Path, *args: Any, **keywords: Any) -> None:
        if path == folder and not refused:
            refused.append(path)
            if since == "made again":
                mkdir(folder)
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        mkdir(path, *args, **keywords)

    monkeypatch.setattr(Path, "mkdir", raced)
    with claimed(folder, wait=False):
        assert refused == [folder]
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["file", "link to nothing"])
def test_what_is_no_folder_cannot_be_held(kind: str, tmp_path: Path) -> None:
    if kind == "file":
        (tmp_path / "work").write_text("")
    else:
        (tmp_path / "work").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError), claimed(tmp_path / "work", wait=True):
        pytest.fail("held")


def test_several_processes_hold_a_folder_one_after_the_other(tmp_path: Path) -> None:
    """The lock is removed and made again each time: whoever waits for the old one must not take it for the new."""
    (tmp_path / "counter").write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "work"), str(tmp_path / "counter")]
    together = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(60) for process in together] == [0] * 4
    assert (tmp_path / "counter").read_text() == "200"
    assert os.listdir(tmp_path) == ["counter"]
