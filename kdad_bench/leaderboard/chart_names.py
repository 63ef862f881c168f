"""Where the names of points stand in a chart: beside their point, joined to it by a line, or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]  # [n, 4]: left, top, right, bottom

CHARACTER, CAPITAL, LINE = 7.2, 9.2, 15.0  # px: a wide small letter, a capital and a line of the page's 13 px type
RADIUS = 9.0  # px around a point that no name may cover
REACH = (13.0, 26.0, 42.0, 62.0, 88.0, 118.0)  # px from a point to its name
DIRECTIONS = 16
ROUNDS = 3
MOST_NAMES = 30  # beyond these a chart is a heap of words; the points keep what they say when they are reached
COVERS, CROSSES, TOUCHES = 1000.0, 300.0, 6.0  # what a name on a name, a line across one, a name on a bar costs


class Name(NamedTuple):
    """Where a point's name stands, and the line that joins the two where they are apart."""

    x: float
    y: float  # of the base line
    anchor: Literal["start", "middle", "end"]
    line: tuple[float, float, float, float] | None  # from the point to the name


class _Places(NamedTuple):
    """The places that one name could take."""

    boxes: Boxes  # [k, 4]
    lines: NDArray[np.float64]  # [k, 2, 2]: from the point to the name
    anchors: list[Literal["start", "middle", "end"]]
    price: NDArray[np.float64]  # [k]: for being far away


def named(
    texts: Sequence[str],
    points: Sequence[tuple[float, float]],
    frame: tuple[float, float, float, float],
    bars: Sequence[tuple[float, float, float, float]] = (),
) -> list[Name | None]:
    """A place for the name of each point inside `frame` (left, top, right, bottom) that covers no other name or point.

    `bars` are better not covered. None where there is no such place, and where the text is empty.
    """
    markers = np.array([(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in points])
    walls = np.array(bars, np.float64).reshape(-1, 4)
    every = [_places(text, point, frame) for text, point in zip(texts, points, strict=True)]
    chosen = [-1 if not len(places.boxes) else 0 for places in every]
    for turn in range(ROUNDS):
        for index, places in enumerate(every):
            if len(places.boxes):
                known = index if turn == 0 else len(every)
                costs = _costs(index, every, [c if i < known else -1 for i, c in enumerate(chosen)], markers, walls)
                chosen[index] = int(np.argmin(costs))
    for _ in every:  # who still covers something goes, the worst first
        worst = [float(_costs(i, every, chosen, markers, walls)[c]) if c >= 0 else 0.0 for i, c in enumerate(chosen)]
        if not worst or max(worst) < CROSSES:
            break
        chosen[worst.index(max(worst))] = -1
    return [None if c < 0 else _name(p, c) for p, c in zip(every, chosen, strict=True)]


def _places(text: str, point: tuple[float, float], frame: tuple[float, float, float, float]) -> _Places:
    """All places of one name that lie inside the frame, the nearest first."""
    width, half = sum(CAPITAL if one.isupper() else CHARACTER for one in text), LINE / 2
    boxes: list[tuple[float, float, float, float]] = []
    lines: list[tuple[tuple[float, float], tuple[float, float]]] = []
    anchors: list[Literal["start", "middle", "end"]] = []
    price: list[float] = []
    for reach in REACH if text else ():
        for turn in range(DIRECTIONS):
            angle = 2 * np.pi * turn / DIRECTIONS
            across, down = float(np.cos(angle)), float(np.sin(angle))
            x, y = point[0] + reach * across, point[1] + reach * down
            anchor: Literal["start", "middle", "end"] = (
                "start" if across > 0.3 else "end" if across < -0.3 else "middle"
            )
            left = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
            middle = y if anchor != "middle" else y + half * np.sign(down)
            box = (left, middle - half, left + width, middle + half)
            if box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]:
                continue
            boxes.append(box)
            lines.append(((point[0] + RADIUS * across, point[1] + RADIUS * down), (x, y)))
            anchors.append(anchor)
            price.append(0.1 * reach + (0 if turn == 0 else 0.5 if turn == DIRECTIONS // 2 else 1.5))
    return _Places(
        np.array(boxes).reshape(-1, 4), np.array(lines).reshape(-1, 2, 2), anchors, np.array(price, np.float64)
    )


def _costs(index: int, every: Sequence[_Places], chosen: Sequence[int], markers: Boxes, walls: Boxes) -> Boxes:
    """[k]: what each place of name `index` costs beside the others as they are chosen now."""
    own = every[index]
    others = [
        (p.boxes[c], p.lines[c]) for i, (p, c) in enumerate(zip(every, chosen, strict=True)) if i != index and c >= 0
    ]
    names = np.array([box for box, _ in others]).reshape(-1, 4)
    lines = np.array([line for _, line in others]).reshape(-1, 2, 2)
    apart = _covered(markers, markers[index : index + 1]) == 0
    on_it = ~apart & (np.arange(len(markers)) != index)  # a line cannot help meeting a point that lies on its own
    cost = own.price + COVERS * (_covered(own.boxes, names) + _covered(own.boxes, markers))
    cost = cost + TOUCHES * _crossed(own.lines, markers[on_it])
    lines_cross = (
        _crossed(own.lines, names) + _crossed(own.lines, markers[apart]) + _crossed(lines, own.boxes, each_box=True)
    )
    return np.asarray(cost + CROSSES * lines_cross + TOUCHES * _covered(own.boxes, walls))


def _covered(boxes: Boxes, others: Boxes) -> NDArray[np.float64]:
    """[n]: how many of the others each box overlaps."""
    one, other = boxes[:, None], others[None]
    across = (one[..., 0] < other[..., 2]) & (other[..., 0] < one[..., 2])
    down = (one[..., 1] < other[..., 3]) & (other[..., 1] < one[..., 3])
    return np.asarray((across & down).sum(axis=1), np.float64)


def _crossed(lines: NDArray[np.float64], boxes: Boxes, each_box: bool = False) -> NDArray[np.float64]:
    """How many boxes each line runs through, at twelve points of it; with `each_box` how many lines each box meets."""
    steps = np.linspace(0, 1, 12)[:, None]
    points = lines[:, None, 0] * (1 - steps) + lines[:, None, 1] * steps  # [n, 12, 2]
    x, y = points[:, None, :, 0], points[:, None, :, 1]
    inside = (x > boxes[:, 0, None]) & (x < boxes[:, 2, None]) & (y > boxes[:, 1, None]) & (y < boxes[:, 3, None])
    return np.asarray(inside.any(axis=2).sum(axis=0 if each_box else 1), np.float64)


def _name(places: _Places, choice: int) -> Name:
    left, top, right, bottom = places.boxes[choice]
    anchor = places.anchors[choice]
    x = {"start": left, "middle": (left + right) / 2, "end": right}[anchor]
    (x1, y1), (x2, y2) = places.lines[choice]
    apart = float(np.hypot(x2 - x1, y2 - y1)) > 6
    line = (float(x1), float(y1), float(x2), float(y2)) if apart else None
    return Name(float(x), float(top + bottom) / 2 + 4.5, anchor, line)
