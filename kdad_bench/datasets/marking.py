"""What the values of a mask mean: labels above 0, or white on black whose edges a lossy format has blurred."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

JPEG_SIGNATURE = b"\xff\xd8\xff"
FEW_VALUES = 8  # kinds of defects in one mask; more grey values than these are soft edges, or a photograph
MOST = 0.5  # share of an image, and of its rim
NEARLY_ALL = 0.95  # of the rim; a single mask that marks so much, and most of its image, is taken for an inverted one
WHITE = 15 / 16  # of the largest value of 8 or 16 bits: a highest value above this is white
COMPRESSION, JPEG_IN_TIFF = 259, (6, 7)  # the number of a TIFF tag, and its values for a lossy one

Values = npt.NDArray[Any]  # [H, W] grey values, or the distinct ones of them other than 0, ascending


def lossy_format(image: Image.Image, data: bytes) -> str:
    """What to call a file whose format changes the values of pixels; nothing for one that keeps them.

    `image` is as `Image.open` gives it, of a file with the bytes `data`.
    """
    if data.startswith(JPEG_SIGNATURE):
        return "JPEG"
    if image.format == "WEBP":
        return "" if b"VP8L" in _chunks(data) else "lossy WebP"
    return "JPEG-compressed TIFF" if getattr(image, "tag_v2", {}).get(COMPRESSION) in JPEG_IN_TIFF else ""


def _chunks(data: bytes) -> Iterator[bytes]:
    """The names of the chunks of a WebP file; VP8L is one whose pixels are kept."""
    place = 12
    while place + 8 <= len(data):
        yield data[place : place + 4]
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + size + size % 2


def has_halo(values: Values, found: Values) -> bool:
    """Whether a mask is white on black that went through a lossy format: the blurred edges are above 0, too.

    `found` are the distinct `values`. There are some near 0 and several near the highest, which is white, and between
    them none; where there are more values than labels are, few pixels.
    """
    if len(found) <= FEW_VALUES:
        return _is_two_ended(found) and len(_near_top(found)) > 1
    near = found[-1] / 4
    between = (values > near) & (values < found[-1] - near)
    low = (values > 0) & (values <= near)
    return _is_white(found) and int((found >= found[-1] - near).sum()) > 1 and bool(10 * between.sum() <= low.sum())


def _is_two_ended(found: Values) -> bool:
    """Whether the highest of the distinct values is white and the others are near it or near 0, some of them near 0."""
    return _is_white(found) and 0 < int((found <= found[-1] / 16).sum()) == len(found) - len(_near_top(found))


def _near_top(found: Values) -> Values:
    near: Values = found[found >= found[-1] * WHITE]
    return near


def _is_white(found: Values) -> bool:
    return len(found) > 0 and any(WHITE * largest <= found[-1] <= largest for largest in (255, 65535))


def doubt_about(found: Values, *, lossy: str, halo: bool) -> str:
    """Why a mask with these distinct values other than 0 may not mean what it marks; nothing for one of a few labels on
    a ground of zeros. `lossy` is what its format is called, if it changes values."""
    if lossy:
        return f"is a {lossy} file, whose edges are blurred: marked above half of the highest value; save it as PNG"
    if halo:
        return (
            f"has the halo of a lossy format (values near 0 and near {found[-1]:g}): marked above half of the highest "
            "value; save it with two values"
        )
    if len(found) > FEW_VALUES:
        return f"is not binary: {len(found)} grey values, all of which count as defect; save it with two values"
    if _is_two_ended(found):
        return (
            f"marks with {found[0]:g} and with {found[-1]:g}: kinds of defects, or the halo of a lossy format? all of "
            "its values count as defect"
        )
    return ""


def nothing_marked(image: Image.Image) -> str:
    """That a mask marks no pixel, and where its marks may be: in what is not read."""
    if image.mode == "P" and _varies(image):
        return "marks no pixel: its palette shows every index in black; save it as grey"
    alpha = image.getchannel("A") if "A" in image.getbands() else None
    if alpha is not None and _varies(alpha):
        return "marks no pixel but in its alpha channel, which is not read; save that as grey"
    return "marks no pixel"


def _varies(band: Image.Image) -> bool:
    return bool(np.ptp(np.asarray(band)) > 0)


def rim_of(marked: npt.NDArray[np.bool_]) -> float:
    """The share of the outermost pixels of a mask [H, W] that it marks."""
    return float(np.concatenate([marked[0], marked[-1], marked[:, 0], marked[:, -1]]).mean())


def inverted(shares: Sequence[tuple[float, float]]) -> list[str]:
    """For each mask of a category why it may be inverted, or nothing, from the shares of its pixels and of its rim.

    One that marks most of its image and nearly its whole rim may be; where most masks mark most of both, all of those.
    """
    wide = [share > MOST and rim > MOST for share, rim in shares]
    least = MOST if 2 * sum(wide) > len(wide) else NEARLY_ALL
    return [
        f"marks {share:.0%} of the image and {rim:.0%} of its rim: inverted? defects have values above 0"
        if share > MOST and rim > least
        else ""
        for share, rim in shares
    ]
