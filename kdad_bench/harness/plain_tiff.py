"""The commonest TIFF files, read without a parser of all of them: one channel, not packed, in strips.

Source: TIFF revision 6.0, Adobe, 1992, section 2. Anything unusual is left to tifffile, which takes ten times as long.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Order = Literal["<", ">"]
ORDERS: Mapping[bytes, Order] = {b"II*\0": "<", b"MM\0*": ">"}
INTEGERS = {3: "H", 4: "I"}  # types of tags that hold sizes and places
WIDTH, LENGTH, BITS, PACKING, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
OFFSETS, ORIENTATION, SAMPLES, ROWS, SIZES, PREDICTOR, FORMAT = 273, 274, 277, 278, 279, 317, 339
PLAIN = {PACKING: 1, FILL_ORDER: 1, ORIENTATION: 1, SAMPLES: 1, PREDICTOR: 1}  # what they are where they are not said
OTHERS = frozenset({254, 269, 270, 271, 272, 282, 283, 284, 296, 305, 306, 315})  # words, resolutions: no pixel of it
# (bits, format) -> type
KINDS: Mapping[tuple[int, ...], str] = {(8, 1): "u1", (16, 1): "u2", (16, 3): "f2", (32, 3): "f4", (64, 3): "f8"}
MOST_TAGS = 64
Tags = dict[int, tuple[int, ...]]


def plain_page(data: bytes, most: int) -> NDArray[Any] | None:
    """The only page of a TIFF file [H, W], a view of `data` where it can be; None for all but a sound plain one of at
    most so many pixels."""
    order = ORDERS.get(data[:4])
    if order is None:
        return None
    try:
        tags = tags_of(data, order)
        return None if tags is None else pixels(data, order, tags, most)
    except (struct.error, KeyError, ValueError):  # cut short, or a tag that must be there, once, is not
        return None


def tags_of(data: bytes, order: Order) -> Tags | None:
    """The tags of the only page that say how its pixels lie; None where some are not known here."""
    (place,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, place)
    end = place + 2 + 12 * count
    if count > MOST_TAGS or struct.unpack_from("I", data, end) != (0,):  # another page follows
        return None
    found: Tags = {}
    for tag, kind, number, value in struct.iter_unpack(order + "HHI4s", data[place + 2 : end]):
        if tag in OTHERS:
            continue
        if kind not in INTEGERS or tag in found or 4 * number > len(data):
            return None
        form = f"{order}{number}{INTEGERS[kind]}"
        inside = struct.calcsize(form) <= len(value)
        found[tag] = struct.unpack_from(form, *((value, 0) if inside else (data, *struct.unpack(order + "I", value))))
    return found


def pixels(data: bytes, order: Order, tags: Tags, most: int) -> NDArray[Any] | None:
    """The page that the tags describe."""
    known = {WIDTH, LENGTH, BITS, PHOTOMETRIC, OFFSETS, ROWS, SIZES, FORMAT, *PLAIN}
    kind = KINDS.get((*tags[BITS], *tags.get(FORMAT, (1,))))
    if not tags.keys() <= known or kind is None or tags[PHOTOMETRIC] != (1,):
        return None
    if any(tags.get(tag, (usual,)) != (usual,) for tag, usual in PLAIN.items()):
        return None
    (width,), (length,), (rows,) = tags[WIDTH], tags[LENGTH], tags.get(ROWS, tags[LENGTH])
    if not 0 < width * length <= most or rows < 1:
        return None
    stored = np.dtype(kind).newbyteorder(order)
    wanted = [min(rows, length - first) * width * stored.itemsize for first in range(0, length, rows)]
    if list(tags[SIZES]) != wanted or len(tags[OFFSETS]) != len(wanted):
        return None
    if any(start + size > len(data) for start, size in zip(tags[OFFSETS], wanted, strict=True)):
        return None
    if len(wanted) == 1:
        return np.frombuffer(data, stored, width * length, tags[OFFSETS][0]).reshape(length, width)
    strips = b"".join(data[start : start + size] for start, size in zip(tags[OFFSETS], wanted, strict=True))
    return np.frombuffer(strips, stored, width * length).reshape(length, width)
