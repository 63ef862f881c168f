"""Downloading a data set: resumed where it broke, checked before it is unpacked, placed whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdad_bench import __version__
from kdad_bench.datasets.archive import Limits, extract
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.entry import Archive
from kdad_bench.datasets.finding import root_of
from kdad_bench.datasets.listing import look
from kdad_bench.datasets.table import entries, entry

CHUNK = 1 << 20
ATTEMPTS = 6  # in a row without a single new byte
STALL_SECONDS = 30.0  # without a byte before the connection is given up and taken up again
PAUSE_SECONDS = 2.0  # before the second attempt; doubled each time, up to half a minute

Progress = Callable[[str, int, int | None], None]  # phase, bytes done, bytes in all (None where unknown)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source(Archive):
    """The archive of a data set, and what a person has to know before it is fetched."""

    name: str
    title: str
    licence: str


def source_of(name: str) -> Source:
    """Where the data set `name` can be had; raises DatasetError for one that cannot be fetched."""
    have = entries(lambda one: one.archive)
    one = have.get(name)
    if one is None or one.archive is None:
        raise DatasetError(f"data set '{name}' cannot be fetched; have: {', '.join(have)}")
    return Source(name=one.name, title=one.title, licence=one.terms, **asdict(one.archive))


class _Again(Exception):
    """The connection failed in a way that another attempt may heal."""


class _Moved(Exception):
    """The server answers with something that is not the archive."""


def download(
    url: str,
    target: Path,
    *,
    page: str = "",
    progress: Progress = lambda *_: None,
    attempts: int = ATTEMPTS,
    stall_seconds: float = STALL_SECONDS,
    pause_seconds: float = PAUSE_SECONDS,
) -> Path:
    """Fetch `url` into the file `target`; what an earlier, broken call left in `target.part` is taken up.

    The file is asked for from its missing byte on, and from the start again where the server has another one by now.
    Raises DatasetError naming the URL and `page` where it is gone or keeps failing; the part is kept.
    """
    part, facts = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        return target
    failures = 0
    while True:
        had = part.stat().st_size if part.is_file() else 0
        try:
            _continue(url, part, facts, progress, stall_seconds)
            break
        except _Again as error:
            grown = (part.stat().st_size if part.is_file() else 0) > had
            failures = 1 if grown else failures + 1
            if failures >= attempts:
                raise DatasetError(
                    f"{url}: {error} ({failures} attempts); run the command again to go on from byte "
                    f"{part.stat().st_size if part.is_file() else 0}"
                ) from error
            time.sleep(min(pause_seconds * 2 ** (failures - 1), 30.0))
        except (_Moved, urllib.error.HTTPError) as error:
            said = f"the server answers {error.code} {error.reason}" if not isinstance(error, _Moved) else str(error)
            see = f": see {page} and give --url or --archive" if page else "; give --url or --archive"
            raise DatasetError(f"{url}: {said}; the link may have moved{see}") from error
    os.replace(part, target)
    facts.unlink(missing_ok=True)
    return target


def _continue(url: str, part: Path, facts: Path, progress: Progress, stall_seconds: float) -> None:
    """One connection: append to `part` until it is complete. Raises _Again where another connection may help."""
    known = _read_facts(facts)
    start = part.stat().st_size if part.is_file() and known.get("url") == url else 0
    headers = {"User-Agent": f"kdad-bench/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if known.get("version"):
            headers["If-Range"] = known["version"]
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=stall_seconds) as answer:
            start, total = _agreed(answer, start)
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            if start and known.get("total") not in (None, total):
                part.unlink(missing_ok=True)
                raise _Again("the file on the server has changed its length")
            if not version.startswith("W/"):  # a weak tag cannot vouch for bytes
                known = {"version": version}
            facts.write_text(json.dumps({"url": url, "total": total, "version": known.get("version", "")}))
            _room(part, total, start)
            _receive(answer, part, start, total, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing beyond what is there: whatever it is, it is not the file
            part.unlink(missing_ok=True)
            raise _Again("the server has less than what was fetched") from error
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Again(f"the server answers {error.code} {error.reason}") from error
        raise
    except (http.client.HTTPException, TimeoutError, ConnectionError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        if isinstance(reason, TimeoutError) or isinstance(error, TimeoutError):
            reason = f"no byte for {stall_seconds:g} s"
        raise _Again(str(reason)) from error


def _agreed(answer: Any, start: int) -> tuple[int, int | None]:
    """(first byte that this answer brings, length of the whole file or None)."""
    kind = answer.headers.get_content_type()
    if kind == "text/html":
        raise _Moved("a web page and not an archive")
    length = answer.headers.get("Content-Length")
    declared = int(length) if length is not None and length.isdigit() else None
    if answer.status != 206:
        return 0, declared
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start:
        raise _Again(f"the server sends another range ({answer.headers.get('Content-Range')}) than the one asked for")
    return start, int(match[3]) if match[3] != "*" else None


def _receive(answer: Any, part: Path, start: int, total: int | None, progress: Progress) -> None:
    done = start
    with open(part, "r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)
        while True:
            try:
                chunk = answer.read(CHUNK)
            except http.client.IncompleteRead as error:
                file.write(error.partial)
                raise _Again(f"the connection ended after {done + len(error.partial)} of {total} bytes") from error
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            if total is not None and done > total:
                file.truncate(0)
                raise _Again(f"more bytes than the {total} declared")
            progress("download", done, total)
    if total is not None and done < total:
        raise _Again(f"the connection ended after {done} of {total} bytes")


def _room(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise DatasetError(f"{part.parent}: {free} bytes free and {total - start} needed; free space or choose --out")


def _read_facts(facts: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(facts.read_text())
        if isinstance(found, dict):
            return found
    return {}


def check(path: Path, algorithm: str, digest: str, progress: Progress = lambda *_: None) -> None:
    """Raise DatasetError unless the file has this checksum."""
    found, done = hashlib.new(algorithm, usedforsecurity=False), 0
    total = path.stat().st_size
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
            done += len(chunk)
            progress("checksum", done, total)
    if found.hexdigest() != digest.lower():
        raise DatasetError(
            f"{path}: {algorithm} {found.hexdigest()} and not {digest.lower()}: not the published archive; "
            "nothing was unpacked; fetch it again, or give --sha256 if you trust this archive"
        )


def existing(source: Source, out: Path) -> Path | None:
    """The folder below `out` where the data set already lies, if it does."""
    return root_of(entry(source.name), out)


def fetch(
    source: Source,
    out: Path,
    *,
    url: str | None = None,
    archive: Path | None = None,
    sha256: str | None = None,
    keep: bool = False,
    limits: Limits | None = None,
    progress: Progress = lambda *_: None,
    stall_seconds: float = STALL_SECONDS,
    pause_seconds: float = PAUSE_SECONDS,
) -> Path:
    """Download (or take the local `archive`), check, unpack and place a data set as `out/<name>`; return that folder.

    `url` names a mirror and `sha256` the checksum of an archive other than the published one. A downloaded archive is
    deleted at the end unless `keep`. Raises DatasetError with one line; `out/<name>` is there whole or not at all.
    """
    final = out / source.name
    if final.exists():
        raise DatasetError(f"{final}: something lies there that is not {source.title}; move it away or choose --out")
    out.mkdir(parents=True, exist_ok=True)
    if archive is not None and not archive.is_file():
        raise DatasetError(f"{archive}: no such archive")
    path = archive or download(
        url or source.url,
        out / f".{source.name}.download",
        page=source.page,
        progress=progress,
        stall_seconds=stall_seconds,
        pause_seconds=pause_seconds,
    )
    try:
        check(path, "sha256" if sha256 else source.algorithm, sha256 or source.digest, progress)
    except DatasetError:
        if archive is None:  # a wrong file must not be taken up by the next call
            path.unlink(missing_ok=True)
        raise
    draft = Path(tempfile.mkdtemp(prefix=f".{source.name}.", suffix=".tmp", dir=out))
    try:
        extract(path, draft, limits=limits, progress=lambda done: progress("unpack", done, None))
        os.rename(_unpacked_root(source, draft), final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if archive is None and not keep:
        path.unlink(missing_ok=True)
    return final


def _unpacked_root(source: Source, draft: Path) -> Path:
    """The folder that holds the categories: the unpacked folder itself, or the only folder in it."""
    for place in (draft, *look(draft).folders):
        for layout in entry(source.name).layouts:
            found = layout.categories(place)
            if found and place not in found.values():
                return place
    raise DatasetError(f"the archive holds no category of {source.title}; nothing was placed")
