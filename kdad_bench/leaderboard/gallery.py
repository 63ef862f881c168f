"""Pictures beside the rows: found by job, opened one at a time as what they must be, and made small."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from pathlib import Path

from kdad_bench.leaderboard.text import printable

THUMBNAIL = 420  # px
FORMATS = ("PNG",)  # what a run writes; another format would start another program, or decoder, by its first bytes
MOST_BYTES = 64_000_000  # of a file
BROKEN = (OSError, ValueError, SyntaxError, LookupError, EOFError, MemoryError, struct.error, zlib.error)
MOST_PIXELS = 40_000_000  # a contact sheet has about one million


class NoPicture(ValueError):
    """A file that is no picture of ours; one line names it and says why."""


def pictures(results: str | Path) -> dict[str, Path]:
    """job -> contact sheet, from the folder `pictures` of a local results folder; a URL has none."""
    if "://" in str(results):
        return {}
    return {path.stem: path for path in sorted(Path(results).glob("pictures/*.png"))}


def thumbnail(path: Path) -> bytes:
    """The picture as a small JPEG. Raises NoPicture for what is no PNG file, or too large for a contact sheet."""
    from PIL import Image

    try:
        content = io.BytesIO(_content(path))
        with warnings.catch_warnings(action="ignore"), Image.open(content, formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise NoPicture(f"{printable(path.name)}: {picture.width} x {picture.height} px are no contact sheet")
            small = picture.convert("RGB")
    except (*BROKEN, Image.DecompressionBombError) as error:
        if isinstance(error, NoPicture):
            raise
        reason = getattr(error, "strerror", None) or "no PNG picture"
        raise NoPicture(f"{printable(path.name)}: {reason}") from error
    small.thumbnail((THUMBNAIL, 4 * THUMBNAIL))
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=70, optimize=True)
    return sink.getvalue()


def _content(path: Path) -> bytes:
    """The whole file, if it is a regular one of a size that a picture has: a pipe would never end."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise NoPicture(f"{printable(path.name)}: no regular file")
        if state.st_size > MOST_BYTES:
            raise NoPicture(f"{printable(path.name)}: {state.st_size} bytes are no contact sheet")
        return file.read(MOST_BYTES)
