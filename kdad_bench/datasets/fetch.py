"""Downloading a data set: resumed where it broke, checked before it is unpacked, placed whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from kdad_bench.datasets.archive import Limits, extract
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.entry import Archive
from kdad_bench.datasets.finding import root_of
from kdad_bench.datasets.listing import look
from kdad_bench.datasets.table import entries, entry
from kdad_bench.download import (
    PAUSE_SECONDS,
    STALL_SECONDS,
    BusyError,
    DownloadError,
    Progress,
    claimed,
    download,
    refuse_no_address,
)
from kdad_bench.files import sweep

CHUNK = 1 << 20
ROOM = 0.9  # of the room that is needed, as far as it is known; with less nothing is begun


@dataclass(frozen=True, kw_only=True, slots=True)
class Source(Archive):
    """The archive of a data set, and what a person has to know before it is fetched."""

    name: str
    title: str
    licence: str


def source_of(name: str) -> Source:
    """Where the data set `name` can be had; raises DatasetError for one that cannot be fetched."""
    have = entries(lambda one: one.archive)
    by_hand = entries(lambda one: one.page).get(name)
    if by_hand is not None:
        raise DatasetError(
            f"{by_hand.title}: no program can fetch it; take it from {by_hand.page}, unpack it as {name}/ in the data "
            f"root, and count it with `data verify` ({by_hand.terms})"
        )
    one = have.get(name)
    if one is None or one.archive is None:
        raise DatasetError(f"data set '{name}' cannot be fetched; have: {', '.join(have)}")
    return Source(name=one.name, title=one.title, licence=one.terms, **asdict(one.archive))


def check(path: Path, algorithm: str, digest: str, progress: Progress = lambda *_: None) -> None:
    """Raise DatasetError unless the file has this checksum."""
    found, done = hashlib.new(algorithm, usedforsecurity=False), 0
    try:
        total = path.stat().st_size
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                found.update(chunk)
                done += len(chunk)
                progress("checksum", done, total)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); nothing was unpacked") from error
    if found.hexdigest() != digest.lower():
        raise DatasetError(
            f"{path}: {algorithm} {found.hexdigest()} and not {digest.lower()}: not the published archive; "
            "nothing was unpacked; fetch it again, or give --sha256 if you trust this archive"
        )


def existing(source: Source, out: Path) -> Path | None:
    """The folder below `out` where the data set already lies, if it does."""
    return root_of(entry(source.name), _at_home(out))


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

    `url` names a mirror and `sha256` the checksum of an archive other than the published one. Everything unfinished
    lies in `out/.<name>.fetch`, which one process holds at a time and the next takes over; it is gone at the end but
    for a download to be taken up. With `keep` a downloaded archive becomes `out/<name>.archive`. A data set that is
    there already is returned as it is. Raises DatasetError with one line; `out/<name>` is there whole or not at all.
    """
    out = _at_home(out)
    archive = None if archive is None else _at_home(archive)
    if archive is not None and not archive.is_file():
        raise DatasetError(f"{archive}: no such archive")
    if url is not None:
        _refuse_no_address(source, url)
    work, new = _work(source, out), not out.exists()
    try:
        with claimed(work, wait=False):
            if (place := existing(source, out)) is not None:  # a fetch that has just ended
                shutil.rmtree(work, ignore_errors=True)
                return place
            _free(source, out / source.name)
            _left_by_killed(work)
            published = sha256 is None  # another archive is of another size
            if archive is None and published:
                here = sum(
                    (work / name).stat().st_size for name in ("archive", "archive.part") if (work / name).exists()
                )
                _room(source, out, max(0, source.download_bytes - here) + source.unpacked_bytes)
            path = archive or _downloaded(source, url, work, progress, stall_seconds, pause_seconds)
            before = _stamp(path)
            _checked(path, source, sha256, progress, mine=archive is None)
            if published:
                _room(source, out, source.unpacked_bytes)
            with _unpacked(path, work / "draft", limits, progress) as draft:
                if _stamp(path) != before:
                    raise DatasetError(f"{path}: changed while it was read; nothing was placed")
                os.rename(_unpacked_root(source, draft), out / source.name)
            if archive is None and keep:
                os.replace(path, out / f"{source.name}.archive")
            elif archive is None:
                path.unlink(missing_ok=True)
    except BusyError as error:
        raise DatasetError(
            f"{out}: another `data fetch {source.name}` is running there; wait for its end, or choose --out"
        ) from error
    except OSError as error:
        raise DatasetError(f"{out}: cannot be written ({error.strerror}); free space or choose --out") from error
    finally:
        if new:
            with contextlib.suppress(OSError):  # it holds something, or was never made
                out.rmdir()
    return out / source.name


def _refuse_no_address(source: Source, url: str) -> None:
    """Raises DatasetError for what nothing can be fetched from, before there is a folder for it."""
    try:
        refuse_no_address(url)
    except ValueError as error:
        remedy = f"see {source.page} and give --url or --archive"
        raise DatasetError(f"{url or repr(url)}: not an address that can be fetched ({error}); {remedy}") from error


def tidy(source: Source, out: Path) -> None:
    """Remove what a fetch that was killed has left in `out`, its download too; nothing while another one runs there."""
    work = _work(source, _at_home(out))
    with contextlib.suppress(BusyError, OSError):  # a folder that cannot be written keeps what it has
        if work.is_dir():
            with claimed(work, wait=False):
                shutil.rmtree(work, ignore_errors=True)


def _work(source: Source, out: Path) -> Path:
    """Where everything unfinished lies."""
    return out / f".{source.name}.fetch"


def _at_home(path: Path) -> Path:
    """The path with `~` as the home folder."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise DatasetError(f"{path}: the home folder is not known; give the whole path") from error


def _free(source: Source, final: Path) -> None:
    if os.path.lexists(final):
        raise DatasetError(f"{final}: something lies there that is not {source.title}; move it away or choose --out")


def _room(source: Source, out: Path, needed: int) -> None:
    """Raises DatasetError where `out` has clearly less room than the bytes `needed`, which are known about."""
    free = shutil.disk_usage(out).free
    if free < ROOM * needed:
        raise DatasetError(
            f"{out}: {free / 1e9:.1f} GB free, and {source.title} needs about {needed / 1e9:.1f} GB more; "
            "free space or choose --out"
        )


def _left_by_killed(work: Path) -> None:
    """Remove what a killed fetch has left, but for the part of its download."""
    shutil.rmtree(work / "draft", ignore_errors=True)
    sweep(work)


def _downloaded(
    source: Source, url: str | None, work: Path, progress: Progress, stall_seconds: float, pause_seconds: float
) -> Path:
    try:
        return download(
            source.url if url is None else url,
            work / "archive",
            remedy=f"see {source.page} and give --url or --archive",
            progress=progress,
            stall_seconds=stall_seconds,
            pause_seconds=pause_seconds,
        )
    except DownloadError as error:
        raise DatasetError(str(error)) from error


def _checked(path: Path, source: Source, sha256: str | None, progress: Progress, *, mine: bool) -> None:
    """Compare the checksum; a wrong file that is `mine` is removed, so that the next call does not take it up."""
    try:
        check(path, "sha256" if sha256 else source.algorithm, sha256 or source.digest, progress)
    except DatasetError:
        if mine:
            path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _unpacked(path: Path, draft: Path, limits: Limits | None, progress: Progress) -> Iterator[Path]:
    """The archive's contents in the new folder `draft`, all of it on the disk; what is not taken away is removed."""
    draft.mkdir()
    try:
        extract(path, draft, limits=limits, progress=lambda done: progress("unpack", done, None))
        if hasattr(os, "sync"):  # a crash must not leave files of zeros under the final name
            os.sync()
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _stamp(path: Path) -> tuple[int, int, int]:
    facts = path.stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _unpacked_root(source: Source, draft: Path) -> Path:
    """The folder that holds the categories: the unpacked folder itself, or the only folder in it."""
    for place in (draft, *look(draft).folders):
        for layout in entry(source.name).layouts:
            found = layout.categories(place)
            if found and place not in found.values():
                return place
    raise DatasetError(f"the archive holds no category of {source.title}; nothing was placed")
