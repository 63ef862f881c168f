"""Drawing on pixel grids with arithmetic that gives the same bits on every machine.

Only IEEE-754 float64 addition, subtraction, multiplication, division, square root, floor and comparison are applied,
element by element: each is correctly rounded, so that no library, vector width or thread count can change a pixel.
There is no `sin` or `exp` from a mathematics library, no sum over an array and no matrix product. Random numbers are
the raw 64-bit words of Philox (Salmon, Moraes, Dror, Shaw, SC 2011), whose stream numpy guarantees for good.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float64]  # [H, W]
Colour = tuple[float, float, float]

UNITS = 256.0  # the drawing surface is 256 x 256 units, whatever its number of pixels


class Stream:
    """Random numbers for one drawing, named by a text: equal texts give equal numbers."""

    def __init__(self, name: str) -> None:
        digest = hashlib.sha256(name.encode()).digest()
        self._words = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """`count` random 64-bit words."""
        return np.asarray(self._words.random_raw(count), dtype=np.uint64)

    def field(self, height: int, width: int) -> Field:
        """Independent numbers, uniform in [0, 1)."""
        return ((self.words(height * width) >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(height, width)

    def between(self, low: float, high: float) -> float:
        """One number, uniform in [low, high)."""
        return low + (high - low) * ((int(self.words(1)[0]) >> 11) * 2.0**-53)

    def below(self, count: int) -> int:
        """One integer in 0 .. count - 1."""
        return int(self.words(1)[0]) % count

    def sign(self) -> float:
        """-1.0 or 1.0."""
        return 1.0 if int(self.words(1)[0]) & 1 else -1.0

    def grain(self, height: int, width: int) -> Field:
        """Independent noise with mean 0 and variance 1: a centred sum of four bytes, close to a normal variable."""
        octets = self.words((height * width + 1) // 2).astype("<u8").view(np.uint8).reshape(-1, 4).astype(np.int64)
        total = octets[:, 0] + octets[:, 1] + octets[:, 2] + octets[:, 3]  # mean 510, variance 4 * 65535 / 12
        return ((total[: height * width] - 510).astype(np.float64) / 147.8).reshape(height, width)


@dataclass(frozen=True, slots=True)
class Canvas:
    """The coordinates of pixel centres, in units; `rows` of `x` and columns of `y` are constant."""

    width: int
    height: int

    @property
    def unit(self) -> float:
        """Units per pixel."""
        return UNITS / max(self.width, self.height)

    @property
    def x(self) -> Field:
        """[H, W] horizontal coordinate; a canvas that is not square is centred on (128, 128)."""
        row = (np.arange(self.width, dtype=np.float64) + 0.5 - self.width * 0.5) * self.unit + UNITS / 2
        return np.broadcast_to(row[None, :], (self.height, self.width))

    @property
    def y(self) -> Field:
        """[H, W] vertical coordinate."""
        column = (np.arange(self.height, dtype=np.float64) + 0.5 - self.height * 0.5) * self.unit + UNITS / 2
        return np.broadcast_to(column[:, None], (self.height, self.width))

    @property
    def reach(self) -> tuple[float, float]:
        """Half of the width and half of the height, in units."""
        return self.width * self.unit / 2, self.height * self.unit / 2


def turn(t: Field) -> Field:
    """sin(2 pi t) by its Taylor polynomial of degree 11 on a quarter turn; error below 1e-7."""
    u = t - np.floor(t + 0.5)
    u = np.where(u > 0.25, 0.5 - u, np.where(u < -0.25, -0.5 - u, u))
    x = u * 6.283185307179586
    s = x * x
    return x * (1 + s * (-1 / 6 + s * (1 / 120 + s * (-1 / 5040 + s * (1 / 362880 + s * (-1 / 39916800))))))


def direction(turns: float) -> tuple[float, float]:
    """(cos, sin) of an angle given in turns."""
    both = turn(np.array([turns + 0.25, turns]))
    return float(both[0]), float(both[1])


def unit(value: Field) -> Field:
    """`value` cut to [0, 1]."""
    return np.minimum(np.maximum(value, 0.0), 1.0)


def smooth(value: Field) -> Field:
    """The smooth step 3 t^2 - 2 t^3 of `value` cut to [0, 1]."""
    t = unit(value)
    return t * t * (3.0 - 2.0 * t)


def noise(stream: Stream, x: Field, y: Field, *, cells: int = 32) -> Field:
    """Value noise in [0, 1) at the points (x, y), given in cells; it repeats after `cells` (a power of two) cells."""
    lattice = stream.field(cells, cells).ravel()
    floor_x, floor_y = np.floor(x), np.floor(y)
    fx, fy = x - floor_x, y - floor_y  # in [0, 1): the smooth step needs no cut
    fx, fy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
    left, top = floor_x.astype(np.int64) & (cells - 1), floor_y.astype(np.int64) & (cells - 1)
    right, upper, lower = (left + 1) & (cells - 1), top * cells, ((top + 1) & (cells - 1)) * cells
    corner = lattice.take(upper + left)
    above = corner + (lattice.take(upper + right) - corner) * fx
    corner = lattice.take(lower + left)
    below = corner + (lattice.take(lower + right) - corner) * fx
    return above + (below - above) * fy


def cloud(stream: Stream, x: Field, y: Field, octaves: int = 3) -> Field:
    """Value noise over several octaves, each twice as fine and half as strong; in [0, 1)."""
    total, weight, reach = np.zeros(x.shape), 1.0, 0.0
    for _ in range(octaves):
        total = total + weight * noise(stream, x, y)
        reach += weight
        x, y, weight = x * 2.0, y * 2.0, weight * 0.5
    return total / reach


def length(x: Field, y: Field) -> Field:
    """sqrt(x^2 + y^2); numpy's hypot belongs to the mathematics library."""
    return np.sqrt(x * x + y * y)


def rotated(x: Field, y: Field, turns: float, centre: tuple[float, float] = (128.0, 128.0)) -> tuple[Field, Field]:
    """The points (x, y) turned about `centre`, relative to it."""
    c, s = direction(turns)
    dx, dy = x - centre[0], y - centre[1]
    return c * dx + s * dy, c * dy - s * dx


def box(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    """Signed distance to a rectangle about the origin; negative inside."""
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    outside = length(np.maximum(dx, 0.0), np.maximum(dy, 0.0))
    return outside + np.minimum(np.maximum(dx, dy), 0.0)


def segment(x: Field, y: Field, a: tuple[float, float], b: tuple[float, float]) -> tuple[Field, Field]:
    """(distance to the segment from a to b, position along it in [0, 1])."""
    bx, by = b[0] - a[0], b[1] - a[1]
    along = unit(((x - a[0]) * bx + (y - a[1]) * by) / max(bx * bx + by * by, 1e-9))
    return length(x - a[0] - along * bx, y - a[1] - along * by), along


def path(x: Field, y: Field, points: list[tuple[float, float]]) -> Field:
    """Distance to a chain of segments."""
    nearest = np.full(x.shape, 1e9)
    for a, b in itertools.pairwise(points):
        nearest = np.minimum(nearest, segment(x, y, a, b)[0])
    return nearest


def wander(
    stream: Stream, start: tuple[float, float], turns: float, reach: float, steps: int, bend: float = 0.06
) -> list[tuple[float, float]]:
    """Points of a crooked line of about `reach` units that leaves `start` at the angle `turns`."""
    points = [start]
    for _ in range(steps):
        turns += stream.between(-bend, bend)
        c, s = direction(turns)
        x, y = points[-1]
        points.append((x + c * reach / steps, y + s * reach / steps))
    return points


def coverage(distance: Field, unit_per_pixel: float) -> Field:
    """Share of a pixel inside a shape, from the signed distance of its centre: edges one pixel wide."""
    return unit(0.5 - distance / unit_per_pixel)


def paint(image: Field, colour: Colour | Field, alpha: Field) -> Field:
    """`image` [H, W, 3] under `colour` (one colour or [H, W, 3]) with opacity `alpha` [H, W]."""
    over = np.asarray(colour, dtype=np.float64)
    return image + (over - image) * alpha[:, :, None]


def blend(first: Colour, second: Colour, share: Field) -> Field:
    """[H, W, 3]: from `first` where `share` is 0 to `second` where it is 1."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    return a + (b - a) * share[:, :, None]
