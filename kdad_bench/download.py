"""One file over HTTP, taken up where it broke, and a folder for it that one process holds at a time."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import re
import shutil
import ssl
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdad_bench import __version__
from kdad_bench.files import DamagedError, read_json, write_text_whole

try:
    import fcntl
except ImportError:  # Windows: without locks, two at once both download
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 20
ATTEMPTS = 6  # in a row without a single new byte
STALL_SECONDS = 30.0  # without a byte before the connection is given up and taken up again
PAUSE_SECONDS = 2.0  # before the second attempt; doubled each time, up to half a minute
MOST_BYTES = 80 << 30  # of any file; a server that sends without end is left
LOCK = "lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # file systems without them
FACTS_BYTES = 1 << 16  # of the record beside a part

Progress = Callable[[str, int, int | None], None]  # phase, bytes done, bytes in all (None where unknown)


class DownloadError(ValueError):
    """A file cannot be had: one line that names the address, what is wrong and what to do."""


class BusyError(Exception):
    """Another process holds the folder."""


class _Again(Exception):
    """The connection failed in a way that another attempt may heal."""


class _Never(Exception):
    """No other attempt can heal this; `moved` if the address may be another one by now."""

    def __init__(self, said: str, *, moved: bool = False) -> None:
        super().__init__(said)
        self.moved = moved


@dataclass(frozen=True, slots=True)
class _Facts:
    """The file that a part is a part of; `version` is a strong tag or a date, empty where the server gives none."""

    url: str
    total: int | None
    version: str


@contextlib.contextmanager
def claimed(folder: Path, *, wait: bool, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold `folder`, made if missing, against other processes; at the end it is removed if it is empty.

    A killed holder holds nothing, and what it left in `folder` belongs to the next one. `waiting` is called before it
    is waited for another holder. Raises BusyError where there is one and `wait` is False, OSError where the folder
    cannot be made.
    """
    descriptor = _locked(folder, wait, waiting)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty: there is something for the next holder
            folder.rmdir()


def _locked(folder: Path, wait: bool, waiting: Callable[[], object]) -> int:
    """The descriptor of the lock file, locked, and still the one that others would open."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if _no_folder(folder):
                raise
            continue  # its holder removed it between the two looks of mkdir; another may have made it since
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except FileNotFoundError:  # the folder was removed by its holder in between
            continue
        try:
            _lock(descriptor, wait, waiting)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _no_folder(path: Path) -> bool:
    """Whether something lies at `path` that no folder can be made of: one look, since others make and remove it."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return path.is_symlink()  # that leads nowhere


def _lock(descriptor: int, wait: bool, waiting: Callable[[], object]) -> None:
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            if not wait:
                raise BusyError from error
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:  # there, as if alone
                raise


def download(
    url: str,
    target: Path,
    *,
    remedy: str,
    progress: Progress = lambda *_: None,
    attempts: int = ATTEMPTS,
    stall_seconds: float = STALL_SECONDS,
    pause_seconds: float = PAUSE_SECONDS,
    most_bytes: int = MOST_BYTES,
) -> Path:
    """Fetch `url` into the file `target`; what an earlier, broken call left in `target.part` is taken up.

    The file is asked for from its missing byte on, and from the start again where the server has another one by now.
    Raises DownloadError naming the address and `remedy` (what else the user can do) where it is gone, refused, not
    trusted or keeps failing, or the folder cannot be written; the part is kept. Call it inside of `claimed`.
    """
    part = target.with_name(f"{target.name}.part")
    if target.is_file():
        return target
    failures, best, anew = 0, _size(part), False
    with _no_record_of_nothing(part):
        while True:
            try:
                _continue(url, part, progress, stall_seconds, most_bytes)
                break
            except _Again as error:
                if _size(part) < best and not anew:  # another file is there by now: what comes is new, this one time
                    best, anew = 0, True
                failures = 1 if _size(part) > best else failures + 1
                best = max(best, _size(part))
                if failures >= attempts:
                    raise DownloadError(
                        f"{url}: {error} ({failures} attempts); run the command again to go on from byte "
                        f"{_size(part)}, or {remedy}"
                    ) from error
                time.sleep(min(pause_seconds * 2 ** (failures - 1), 30.0))
            except _Never as error:
                see = "; the link may have moved: " if error.moved else "; "
                raise DownloadError(f"{url}: {error}{see}{remedy}") from error
        with _writing(target.parent):
            os.replace(part, target)
    return target


@contextlib.contextmanager
def _no_record_of_nothing(part: Path) -> Iterator[None]:
    """At the end, an empty or missing part leaves no trace."""
    try:
        yield
    finally:
        if not _size(part):
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
                _facts_path(part).unlink(missing_ok=True)


def _continue(url: str, part: Path, progress: Progress, stall_seconds: float, most_bytes: int) -> None:
    """One connection: append to `part` until it is complete. Raises _Again where another connection may help."""
    known = _read_facts(_facts_path(part))
    start = _size(part) if known is not None and known.url == url else 0
    if known is not None and start and start == known.total:
        return
    headers = {"User-Agent": f"kdad-bench/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if known is not None and known.version:
            headers["If-Range"] = known.version
    with _network(url, part, stall_seconds), _opened(url, headers, stall_seconds) as answer:
        start, total = _agreed(answer, start)
        if total is not None and total > most_bytes:
            raise _Never(f"{total} bytes are announced; limit {most_bytes}")
        if start and known is not None and known.total not in (None, total):
            part.unlink(missing_ok=True)
            raise _Again("the file on the server has changed its length")
        _room(part, total, start)
        with _writing(part.parent):
            facts = {"url": url, "total": total, "version": _version(answer)}
            write_text_whole(_facts_path(part), json.dumps(facts))
        _receive(answer, part, start, total, most_bytes, progress)


def refuse_no_address(url: str) -> None:
    """Raises ValueError, in words, for what no file can be fetched from; nothing is asked for."""
    parsed = urllib.parse.urlsplit(url)
    if parsed.scheme not in ("http", "https") or not parsed.hostname or parsed.port == 0:
        raise ValueError("http://HOST/... and https://HOST/... are fetched")


def _opened(url: str, headers: dict[str, str], stall_seconds: float) -> Any:
    """The server's answer, over http and https only: whatever else urllib knows (file, ftp, data) is no download."""
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        director.add_handler(handler)
    try:
        refuse_no_address(url)
        request = urllib.request.Request(url, headers=headers)
        return director.open(request, timeout=stall_seconds)
    except (http.client.InvalidURL, ValueError, OverflowError) as error:
        raise _Never(f"not an address that can be fetched ({_plain(error)})") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects to http and https only, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        allowed = ("https:",) if req.type == "https" else ("http:", "https:")
        if not newurl.lower().startswith(allowed):
            fp.close()
            raise _Never(f"the server redirects to '{_plain(newurl)}', which is not followed", moved=True)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def _network(url: str, part: Path, stall_seconds: float) -> Iterator[None]:
    """Everything a connection can raise, as _Again or _Never. Errors of the disk are something else by then."""
    try:
        yield
    except urllib.error.HTTPError as error:
        said = f"the server answers {error.code} {_plain(error.reason)}"
        error.close()
        if error.code == 416:  # nothing beyond what is there: whatever it is, it is not the file
            part.unlink(missing_ok=True)
            raise _Again("the server has less than what was fetched") from error
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Again(said) from error
        raise _Never(said, moved=True) from error
    except (http.client.HTTPException, OSError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if (
            cause is not error
            and isinstance(cause, ssl.SSLError)
            and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        ):
            raise _Never(_distrust(url, cause)) from error
        if "Tunnel connection failed: 4" in str(cause):
            raise _Never(f"the proxy refuses ({_plain(cause)})") from error
        if isinstance(cause, TimeoutError):
            raise _Again(f"no byte for {stall_seconds:g} s") from error
        raise _Again(_plain(cause) or type(cause).__name__) from error


def _distrust(url: str, error: ssl.SSLError) -> str:
    """Why a connection is not trusted: mostly a proxy that signs anew, or an old list of authorities."""
    why = getattr(error, "verify_message", None) or error.reason or error
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"no secure connection ({_plain(why)})"
    named = os.environ.get("SSL_CERT_FILE")
    how = f"SSL_CERT_FILE is '{_plain(named)}': does it hold" if named else "set SSL_CERT_FILE to a file that holds"
    host = urllib.parse.urlsplit(url).hostname
    return f"the certificate of {host} is not trusted ({_plain(why)}); {how} the authority (of your proxy, say)"


def _agreed(answer: Any, start: int) -> tuple[int, int | None]:
    """(first byte that this answer brings, length of the whole file or None)."""
    if answer.headers.get_content_type() == "text/html":
        raise _Never("a web page and not the file", moved=True)
    length = answer.headers.get("Content-Length") or ""
    declared = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    if answer.status != 206:
        return 0, declared
    sent = answer.headers.get("Content-Range", "")
    match = re.fullmatch("bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\\*)", sent)
    if match is None or int(match[1]) != start:
        raise _Again(f"the server sends another range ('{_plain(sent)}') than the one asked for")
    return start, int(match[2]) if match[2] != "*" else None


def _version(answer: Any) -> str:
    """A tag that vouches for bytes, or the date; empty where there is none, or one that could not be sent back."""
    version = str(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
    return version if re.fullmatch("[ -~]{1,200}", version) and not version.startswith("W/") else ""


def _receive(answer: Any, part: Path, start: int, total: int | None, most_bytes: int, progress: Progress) -> None:
    done = start
    with _writing(part.parent):
        file = open(part, "r+b" if start else "wb")  # noqa: SIM115  # closed below
    with contextlib.closing(file):
        with _writing(part.parent):
            file.truncate(start)
            file.seek(start)
        for chunk in _chunks(answer):
            done += len(chunk)
            if total is not None and done > total:
                file.truncate(0)
                raise _Again(f"more bytes than the {total} declared")
            if done > most_bytes:
                raise _Never(f"more than {most_bytes} bytes")
            with _writing(part.parent):
                file.write(chunk)
            progress("download", done, total)
        with _writing(part.parent):
            file.flush()
    if total is not None and done < total:
        raise _Again(f"the connection ended after {done} of {total} bytes")


def _chunks(answer: Any) -> Iterator[bytes]:
    """What the server sends, as it comes."""
    try:
        while chunk := answer.read1(CHUNK):
            yield chunk
    except http.client.IncompleteRead as error:
        if error.partial:
            yield error.partial
        raise _Again("the connection ended in the middle") from error


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A folder that cannot be written is no fault of the network, and no other attempt heals it."""
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{folder}: cannot be written ({error.strerror or error}); make room and run the command again, "
            "or choose another folder"
        ) from error


def _room(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise DownloadError(
            f"{part.parent}: {free} bytes free and {total - start} needed; free space or choose another folder"
        )


def _facts_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_facts(path: Path) -> _Facts | None:
    """What is known of a part; None where the record is missing or damaged: the part then begins anew."""
    try:
        found = read_json(path, dict, limit=FACTS_BYTES)
    except (OSError, DamagedError):
        return None
    url, total, version = found.get("url"), found.get("total"), found.get("version")
    if not isinstance(url, str) or not isinstance(version, str) or not re.fullmatch("[ -~]{0,200}", version):
        return None
    if total is not None and (type(total) is not int or total < 0):
        return None
    return _Facts(url, total, version)


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _plain(said: object) -> str:
    """What a server or a library says, on one line and without signs that a terminal obeys."""
    return " ".join(str(said).split()).encode("unicode_escape").decode()[:200]
