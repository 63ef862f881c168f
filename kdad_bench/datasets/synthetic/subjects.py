"""The things a synthetic image shows: fabric, wood, stone, gear, capsule; each with its own kinds of defects.

A subject draws one image from a stream of random numbers, the same with and without a defect but for the defect
itself, and says exactly which pixels the defect covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kdad_bench.datasets.synthetic.drawing import (
    Canvas,
    Colour,
    Field,
    Stream,
    blend,
    box,
    cloud,
    coverage,
    direction,
    length,
    noise,
    paint,
    path,
    rotated,
    segment,
    smooth,
    turn,
    unit,
    wander,
)

Region = npt.NDArray[np.bool_]


class Picture(NamedTuple):
    """One drawing before light and sensor."""

    image: Field  # [H, W, 3], 0 .. 255
    region: Region  # [H, W], the pixels of the defect


class Subject(Protocol):
    """Something that can be drawn with and without defects."""

    @property
    def defects(self) -> tuple[str, ...]:
        """The kinds of defects it can have."""
        ...

    def draw(self, canvas: Canvas, look: Stream, defect: str | None, flaw: Stream) -> Picture:
        """Draw it; `look` gives its natural variation and `flaw` the place and form of the defect."""
        ...


def _nothing(canvas: Canvas) -> Region:
    return np.zeros((canvas.height, canvas.width), dtype=np.bool_)


def anywhere(canvas: Canvas, flaw: Stream, margin: float) -> tuple[float, float]:
    """A point at least `margin` units inside the canvas."""
    half_x, half_y = canvas.reach
    mx, my = max(half_x - margin, 0.0), max(half_y - margin, 0.0)
    return 128.0 + flaw.between(-mx, mx), 128.0 + flaw.between(-my, my)


def irregular(
    x: Field, y: Field, flaw: Stream, centre: tuple[float, float], radius: float, ragged: float = 0.35
) -> Field:
    """Signed distance of an irregular blob about `centre`; negative inside."""
    bumps = cloud(flaw, x / (radius * 0.9), y / (radius * 0.9), 2)
    squash = flaw.between(0.75, 1.3)
    u, v = rotated(x, y, flaw.between(0.0, 1.0), centre)
    return length(u * squash, v / squash) - radius * (1.0 + ragged * 2.0 * (bumps - 0.5))


@dataclass(frozen=True, kw_only=True, slots=True)
class Fabric:
    """A plain weave seen from above: two sets of threads, slightly bent and unevenly bright."""

    period: float = 11.0  # units from thread to thread
    warp: Colour = (96.0, 112.0, 138.0)
    weft: Colour = (150.0, 158.0, 166.0)
    defects: tuple[str, ...] = ("hole", "misweave", "pulled_thread", "stain")

    def draw(self, canvas: Canvas, look: Stream, defect: str | None, flaw: Stream) -> Picture:
        """See Subject.draw."""
        x, y = canvas.x, canvas.y
        region = _nothing(canvas)
        tilt = look.between(-0.006, 0.006)
        u, v = rotated(x, y, tilt)
        u = u + look.between(0.0, 64.0) + 4.0 * (noise(look, x / 70.0 + 1.0, y / 70.0) - 0.5)
        v = v + look.between(0.0, 64.0) + 4.0 * (noise(look, x / 70.0, y / 70.0 + 1.0) - 0.5)
        if defect == "pulled_thread":
            cx, cy = anywhere(canvas, flaw, 50.0)
            reach, height = flaw.between(32.0, 52.0), flaw.between(6.0, 9.0)
            along, across = (x - cx, y - cy) if flaw.sign() > 0 else (y - cy, x - cx)
            bell = smooth(1.0 - np.abs(along) / reach) * smooth(1.0 - np.abs(across) / (self.period * 1.8))
            shift = height * flaw.sign() * bell
            region = bell * height > 1.2
            if along is not x:
                u, v = u + shift * 0.8, v + shift
        i, j = np.floor(u / self.period), np.floor(v / self.period)
        fu, fv = u / self.period - i - 0.5, v / self.period - j - 0.5
        over = np.floor((i + j) / 2.0) * 2.0 == i + j
        if defect == "misweave":
            cx, cy = anywhere(canvas, flaw, 34.0)
            wide, high = flaw.between(1.2, 2.6), flaw.between(1.2, 2.6)
            ci, cj = np.floor(128.0 / self.period), np.floor(128.0 / self.period)
            at = np.unravel_index(int(np.argmin((x - cx) * (x - cx) + (y - cy) * (y - cy))), x.shape)
            ci, cj = i[at], j[at]
            region = (np.abs(i - ci) <= wide) & (np.abs(j - cj) <= high)
            over = np.where(region, flaw.sign() > 0, over)
        bright_i = noise(look, i * 1.0 + 0.0, np.zeros_like(i), cells=64) - 0.5
        bright_j = noise(look, j * 1.0 + 0.0, np.zeros_like(j), cells=64) - 0.5
        warp = (1.0 - 1.9 * fu * fu) * (1.0 - 0.9 * fv * fv) * (1.0 + 0.10 * bright_i)
        weft = (1.0 - 1.9 * fv * fv) * (1.0 - 0.9 * fu * fu) * (1.0 + 0.10 * bright_j)
        fibre_u = 0.10 * (noise(look, u * 0.9, v * 0.25, cells=256) - 0.5)
        fibre_v = 0.10 * (noise(look, u * 0.25, v * 0.9, cells=256) - 0.5)
        gap = smooth((np.maximum(np.abs(fu), np.abs(fv)) - 0.40) / 0.12)
        image = np.where(
            over[:, :, None],
            np.asarray(self.warp) * (warp + fibre_v)[:, :, None],
            np.asarray(self.weft) * (weft + fibre_u)[:, :, None],
        )
        image = image * (1.0 - 0.35 * gap)[:, :, None]
        image = image * (0.93 + 0.14 * cloud(look, x / 90.0, y / 90.0))[:, :, None]
        if defect == "hole":
            edge = irregular(x, y, flaw, anywhere(canvas, flaw, 22.0), flaw.between(6.0, 11.0), 0.6)
            image = paint(image, (30.0, 30.0, 34.0), unit(0.5 - edge / 2.0) * 0.92)
            region = edge < 0.0
        elif defect == "stain":
            edge = irregular(x, y, flaw, anywhere(canvas, flaw, 36.0), flaw.between(16.0, 26.0), 0.5)
            tint = np.asarray((0.98, 0.80, 0.52) if flaw.sign() > 0 else (0.58, 0.66, 0.76)) * flaw.between(0.9, 1.0)
            image = image * (1.0 + (tint - 1.0) * smooth(0.5 - edge / 5.0)[:, :, None])
            region = edge < 0.0
        return Picture(image, region)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wood:
    """A planed board: growth rings cut lengthwise, with fine fibres."""

    light: Colour = (196.0, 152.0, 104.0)
    dark: Colour = (132.0, 88.0, 52.0)
    ring: float = 17.0  # units from ring to ring
    defects: tuple[str, ...] = ("drill_hole", "knot", "liquid", "scratch")

    def draw(self, canvas: Canvas, look: Stream, defect: str | None, flaw: Stream) -> Picture:
        """See Subject.draw."""
        x, y = canvas.x, canvas.y
        region = _nothing(canvas)
        u = x + look.between(0.0, 200.0) + 0.06 * look.sign() * (y - 128.0) * look.between(0.0, 1.0)
        u = u + 34.0 * noise(look, x / 80.0, y / 240.0) + 9.0 * noise(look, x / 22.0, y / 110.0)
        v = y + look.between(0.0, 200.0)
        knot_shade = np.zeros(x.shape)
        if defect == "knot":
            centre = anywhere(canvas, flaw, 34.0)
            radius = flaw.between(8.0, 13.0)
            dx, dy = x - centre[0], (y - centre[1]) * 0.62
            distance = length(dx, dy)
            pull = smooth(1.0 - distance / (radius * 2.2))
            u = u + pull * (distance * 1.6 - dx) * 1.0
            knot_shade = smooth(1.35 - distance / radius) * 0.32
            region = distance < radius * 1.15
        phase = u / self.ring
        saw = phase - np.floor(phase)
        ring = np.where(saw < 0.72, saw / 0.72, (1.0 - saw) / 0.28)  # slow summer rise, quick winter fall
        strength = 0.45 + 0.5 * noise(look, np.floor(phase) + 0.0, np.zeros_like(phase), cells=64)
        fibre = noise(look, u * 0.8, v / 26.0, cells=256) * 0.6 + noise(look, u * 1.7, v / 9.0, cells=512) * 0.4
        share = unit(smooth(ring) * strength + 0.42 * (fibre - 0.5) + 0.10)
        image = blend(self.light, self.dark, share)
        pores = unit((noise(look, u * 1.3, v / 7.0, cells=512) - 0.86) * 6.0)
        image = image * (1.0 - 0.25 * pores)[:, :, None]
        image = image * (1.0 - knot_shade)[:, :, None]
        if defect == "scratch":
            start = anywhere(canvas, flaw, 45.0)
            points = wander(flaw, start, flaw.between(0.0, 1.0), flaw.between(35.0, 75.0), 5, 0.03)
            distance = path(x, y, points) - flaw.between(0.6, 1.5)
            colour = (222.0, 186.0, 142.0) if flaw.sign() > 0 else (104.0, 70.0, 44.0)
            image = paint(image, colour, coverage(distance, 1.4) * flaw.between(0.6, 0.9))
            region = distance < 0.5
        elif defect == "liquid":
            edge = irregular(x, y, flaw, anywhere(canvas, flaw, 34.0), flaw.between(13.0, 24.0), 0.45)
            depth = flaw.between(0.12, 0.22)
            rim = smooth(1.0 - np.abs(edge) / 2.5) * 0.05
            image = image * (1.0 - depth * smooth(0.5 - edge / 4.0) - rim)[:, :, None]
            region = edge < 0.0
        elif defect == "drill_hole":
            for _ in range(1 + flaw.below(3)):
                cx, cy = anywhere(canvas, flaw, 14.0)
                distance = length(x - cx, y - cy) - flaw.between(2.6, 4.2)
                image = paint(image, (44.0, 28.0, 18.0), coverage(distance, 1.5))
                region = region | (distance < 0.0)
        return Picture(image, region)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stone:
    """A polished slab: speckles of two kinds on a cloudy ground."""

    ground: Colour = (168.0, 160.0, 150.0)
    fleck: Colour = (70.0, 66.0, 68.0)
    vein: Colour = (206.0, 196.0, 182.0)
    grain: float = 6.5  # units across a speckle
    defects: tuple[str, ...] = ("crack", "dull_patch", "oil", "paint_stroke")

    def draw(self, canvas: Canvas, look: Stream, defect: str | None, flaw: Stream) -> Picture:
        """See Subject.draw."""
        x, y = canvas.x, canvas.y
        region = _nothing(canvas)
        ox, oy = look.between(0.0, 100.0), look.between(0.0, 100.0)
        u, v = rotated(x + ox, y + oy, 0.07)  # the lattice of the noise must not show
        u = (u + 5.0 * noise(look, x / 7.0, y / 7.0)) / self.grain
        v = (v + 5.0 * noise(look, y / 7.0, x / 7.0)) / self.grain
        dark = smooth((noise(look, u, v, cells=64) - 0.60) * 5.0)
        bright = smooth((noise(look, u * 0.7, v * 0.7, cells=64) - 0.62) * 5.0)
        if defect == "dull_patch":
            edge = irregular(x, y, flaw, anywhere(canvas, flaw, 34.0), flaw.between(14.0, 24.0), 0.4)
            soft = smooth(0.5 - edge / 4.0) * flaw.between(0.75, 0.95)
            dark, bright = dark + (0.22 - dark) * soft, bright + (0.25 - bright) * soft
            region = edge < 0.0
        image = blend(self.ground, self.vein, bright)
        image = paint(image, self.fleck, dark * 0.85)
        image = image * (0.92 + 0.16 * cloud(look, x / 60.0, y / 60.0))[:, :, None]
        if defect == "crack":
            points = wander(
                flaw, anywhere(canvas, flaw, 50.0), flaw.between(0.0, 1.0), flaw.between(45.0, 85.0), 9, 0.12
            )
            fork = wander(flaw, points[4], flaw.between(0.0, 1.0), flaw.between(12.0, 26.0), 4, 0.12)
            distance = np.minimum(path(x, y, points), path(x, y, fork)) - flaw.between(0.5, 1.1)
            image = paint(image, (38.0, 36.0, 36.0), coverage(distance, 1.4) * 0.9)
            region = distance < 0.6
        elif defect == "oil":
            edge = irregular(x, y, flaw, anywhere(canvas, flaw, 34.0), flaw.between(14.0, 26.0), 0.4)
            tint = np.asarray((0.88, 0.80, 0.60))
            image = image * (1.0 + (tint - 1.0) * smooth(0.5 - edge / 3.0)[:, :, None])
            region = edge < 0.0
        elif defect == "paint_stroke":
            points = wander(
                flaw, anywhere(canvas, flaw, 45.0), flaw.between(0.0, 1.0), flaw.between(30.0, 55.0), 4, 0.04
            )
            distance = path(x, y, points) - flaw.between(3.0, 5.5)
            streaks = 0.6 + 0.4 * noise(flaw, x / 3.0, y / 3.0, cells=128)
            image = paint(image, (112.0, 110.0, 112.0), smooth(0.5 - distance / 2.0) * streaks)
            region = distance < 0.0
        return Picture(image, region)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gear:
    """A machined wheel with teeth and bolt holes on a dark mat."""

    radius: float = 84.0
    teeth: int = 12
    bolts: int = 3
    bore: float = 21.0  # radius of the hole in the middle
    metal: Colour = (168.0, 166.0, 160.0)
    mat: Colour = (46.0, 54.0, 62.0)
    turns: float = 0.02  # largest natural rotation to either side
    defects: tuple[str, ...] = ("blocked_hole", "broken_tooth", "dent", "rust", "scratch")

    def draw(self, canvas: Canvas, look: Stream, defect: str | None, flaw: Stream) -> Picture:
        """See Subject.draw."""
        x, y = canvas.x, canvas.y
        pixel = canvas.unit
        region = _nothing(canvas)
        fit = min(canvas.reach) / 128.0
        centre = (128.0 + look.between(-4.0, 4.0), 128.0 + look.between(-4.0, 4.0))
        angle = look.between(-self.turns, self.turns)
        scale = fit * look.between(0.985, 1.015)
        u, v = rotated(x, y, angle, centre)
        u, v = u / scale, v / scale
        radius = length(u, v)
        whole = self._outline(u, v, radius)
        blocked = flaw.below(self.bolts) if defect == "blocked_hole" and self.bolts else None
        shape = whole
        if defect in ("broken_tooth", "broken_rim"):
            tooth = flaw.below(max(self.teeth, 3))
            c, s = direction(tooth / max(self.teeth, 3))
            reach = self.radius + (9.0 if self.teeth else 0.0)
            bite = irregular(u, v, flaw, (c * reach, s * reach), flaw.between(10.0, 17.0), 0.4)
            shape = np.maximum(whole, -bite)
            region = (whole < 0.0) & (shape >= 0.0)
        holes = self._holes(u, v)
        body = np.maximum(shape, -holes)
        shadow = coverage(np.maximum(self._outline(u - 5.0, v - 6.0, length(u - 5.0, v - 6.0)), -holes), 9.0)
        mat = np.asarray(self.mat) * (0.86 + 0.28 * cloud(look, x / 5.0, y / 5.0, 2))[:, :, None]
        mat = mat * (1.0 - 0.45 * shadow)[:, :, None]
        rings = noise(look, radius * 0.9, np.full_like(radius, look.between(0.0, 20.0)), cells=256) - 0.5
        swirl = noise(look, radius * 0.35, (u + v) / 40.0, cells=128) - 0.5
        sheen = turn((u * 0.6 + v) / 260.0 + look.between(-0.04, 0.04))
        shade = 1.0 + 0.07 * rings + 0.04 * swirl + 0.08 * sheen
        bevel = smooth((body + 5.0) / 5.0)
        facing = -(u + v) / (radius * 1.4142135623730951 + 1e-6)
        shade = shade + 0.22 * bevel * np.where(radius < self.bore * 1.6, -facing, facing)
        rim = smooth(1.0 - np.abs(radius - self.radius * 0.62) / 1.6)
        shade = shade - 0.16 * rim
        if defect == "dent":
            reach = flaw.between(0.45, 0.85) * self.radius
            c, s = direction(flaw.between(0.0, 1.0))
            size = flaw.between(13.0, 18.0)
            du, dv = u - c * reach, v - s * reach
            bell = smooth(1.0 - length(du, dv) / size)
            shade = shade + flaw.between(2.6, 3.6) * bell * (du + dv) / size * 0.42
            region = (length(du, dv) < size * 0.85) & (body < 0.0)
        metal = np.asarray(self.metal) * shade[:, :, None]
        if defect == "rust":
            reach = flaw.between(0.4, 0.95) * self.radius
            c, s = direction(flaw.between(0.0, 1.0))
            edge = irregular(u, v, flaw, (c * reach, s * reach), flaw.between(8.0, 15.0), 0.8)
            speckle = 0.45 + 0.55 * cloud(flaw, u / 4.0, v / 4.0, 2)
            metal = paint(metal, (138.0, 96.0, 66.0), smooth(0.5 - edge / 5.0) * speckle * flaw.between(0.55, 0.85))
            region = (edge < 0.0) & (body < 0.0)
        elif defect == "scratch":
            reach = flaw.between(0.45, 0.8) * self.radius
            c, s = direction(flaw.between(0.0, 1.0))
            points = wander(flaw, (c * reach, s * reach), flaw.between(0.0, 1.0), flaw.between(30.0, 60.0), 4, 0.03)
            distance = path(u, v, points) - flaw.between(0.8, 1.5)
            colour = (226.0, 226.0, 222.0) if flaw.sign() > 0 else (84.0, 82.0, 80.0)
            metal = paint(metal, colour, coverage(distance, 1.3) * flaw.between(0.6, 0.9))
            region = (distance < 0.5) & (body < 0.0)
        image = paint(mat, metal, coverage(body, pixel / scale))
        if blocked is not None:
            plug = self._bolt(u, v, blocked)
            image = paint(image, self._screw(u, v, blocked, plug), coverage(plug, pixel / scale))
            region = plug < 0.0
        return Picture(image, region)

    def _outline(self, u: Field, v: Field, radius: Field) -> Field:
        shape = radius - self.radius
        for tooth in range(self.teeth):
            c, s = direction(tooth / self.teeth)
            along, across = c * u + s * v - self.radius, c * v - s * u
            shape = np.minimum(shape, box(along, across, 13.0, 0.26 * 6.2832 * self.radius / self.teeth) - 1.0)
        return shape

    def _holes(self, u: Field, v: Field) -> Field:
        holes = length(u, v) - self.bore
        for bolt in range(self.bolts):
            holes = np.minimum(holes, self._bolt(u, v, bolt))
        return holes

    def _screw(self, u: Field, v: Field, bolt: int, plug: Field) -> Field:
        """The head of a screw left in a hole, [H, W, 3]: darker steel with a slot and a bright rim."""
        c, s = direction(bolt / max(self.bolts, 1) + 0.25 / max(self.bolts, 1))
        reach = (self.bore + self.radius) * 0.56
        slot = np.abs((u - c * reach) * s + (v - s * reach) * 0.8) - 2.2
        shade = 0.62 + 0.45 * smooth(1.0 + plug / 2.5) - 0.45 * coverage(slot, 1.5)
        return np.asarray(self.metal) * shade[:, :, None]

    def _bolt(self, u: Field, v: Field, bolt: int) -> Field:
        c, s = direction(bolt / max(self.bolts, 1) + 0.25 / max(self.bolts, 1))
        reach = (self.bore + self.radius) * 0.56
        return length(u - c * reach, v - s * reach) - 11.0


# 5 x 7 letters for the print on a capsule, a row a string
LETTERS = {
    "K": ("#...#", "#..#.", "#.#..", "##...", "#.#..", "#..#.", "#...#"),
    "D": ("####.", "#...#", "#...#", "#...#", "#...#", "#...#", "####."),
    "5": ("#####", "#....", "####.", "....#", "....#", "#...#", ".###."),
    "0": (".###.", "#...#", "#..##", "#.#.#", "##..#", "#...#", ".###."),
    "#": ("#.#.#", ".#.#.", "#.#.#", ".#.#.", "#.#.#", ".#.#.", "#.#.#"),
    "8": (".###.", "#...#", "#...#", ".###.", "#...#", "#...#", ".###."),
    "7": ("#####", "....#", "...#.", "..#..", ".#...", ".#...", ".#..."),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Capsule:
    """A two-coloured glossy capsule with a print, on a pale table."""

    half_length: float = 92.0
    radius: float = 37.0
    cap: Colour = (150.0, 52.0, 40.0)
    body: Colour = (222.0, 206.0, 170.0)
    table: Colour = (206.0, 208.0, 206.0)
    text: str = "KD5"
    defects: tuple[str, ...] = ("crack", "faulty_print", "poke", "squeeze")

    def draw(self, canvas: Canvas, look: Stream, defect: str | None, flaw: Stream) -> Picture:
        """See Subject.draw."""
        x, y = canvas.x, canvas.y
        region = _nothing(canvas)
        fit = min(canvas.reach) / 128.0
        centre = (128.0 + look.between(-5.0, 5.0), 128.0 + look.between(-5.0, 5.0))
        u, v = rotated(x, y, look.between(-0.012, 0.012), centre)
        scale = fit * look.between(0.985, 1.015)
        u, v = u / scale, v / scale
        pixel = canvas.unit / scale
        straight = self.half_length - self.radius
        whole = segment(u, v, (-straight, 0.0), (straight, 0.0))[0] - self.radius
        shape, waist = whole, np.zeros(x.shape)
        if defect == "squeeze":
            at = flaw.between(-0.75, 0.75) * straight
            side, depth = flaw.sign(), flaw.between(7.5, 12.0)
            waist = depth * smooth(1.0 - np.abs(u - at) / flaw.between(18.0, 28.0))
            waist = np.where(v * side > 0.0, waist, 0.0)
            waist = waist * smooth(np.abs(v) / self.radius * 1.6 - 0.5)
            shape = whole + waist
            region = ((whole < 0.0) != (shape < 0.0)) | ((waist > 1.5) & (whole < 0.0))
        gloss = np.maximum(1.0 - np.abs(v / self.radius) * np.abs(v / self.radius), 0.0)
        rounding = 0.50 + 0.50 * np.sqrt(gloss) - 0.018 * waist
        seam = look.between(-7.0, 3.0)
        share = smooth((u - seam) / 1.5 + 0.5)
        tone = 1.0 + 0.05 * look.between(-1.0, 1.0)
        skin = blend(self.cap, self.body, share) * tone
        skin = skin * (0.95 + 0.10 * cloud(look, u / 22.0 + 40.0, v / 22.0 + 40.0))[:, :, None]
        skin = skin * (1.0 - 0.28 * smooth(1.0 - np.abs(u - seam) / 1.8))[:, :, None]
        skin = skin * rounding[:, :, None]
        print_wear = 0.72 + 0.28 * noise(look, u / 3.0, v / 3.0, cells=128)
        shift = (look.between(-3.0, 3.0), look.between(-2.5, 2.5))
        ink, full = self._print(u - shift[0], v - shift[1], seam, defect, flaw)
        if defect == "faulty_print":
            region = np.abs(ink - full) > 0.5
            region = _grown(region, max(1, int(2.0 / canvas.unit)))
        skin = paint(skin, (58.0, 44.0, 40.0), ink * print_wear * 0.8)
        band = smooth(1.0 - np.abs(v + self.radius * 0.48) / 4.5) * smooth((straight + 18.0 - np.abs(u)) / 12.0)
        streak = 0.42 + 0.25 * noise(look, u / 18.0, np.full_like(u, 3.0))
        skin = skin + (np.asarray((255.0, 252.0, 246.0)) - skin) * (band * streak)[:, :, None]
        if defect == "crack":
            start = (flaw.between(-0.8, 0.8) * straight, flaw.between(-0.5, 0.5) * self.radius)
            points = wander(flaw, start, flaw.between(0.0, 1.0), flaw.between(28.0, 48.0), 7, 0.13)
            fork = wander(flaw, points[3], flaw.between(0.0, 1.0), flaw.between(8.0, 16.0), 3, 0.1)
            distance = np.minimum(path(u, v, points), path(u, v, fork)) - flaw.between(1.1, 1.7)
            skin = paint(skin, (52.0, 34.0, 30.0), coverage(distance, 1.3) * flaw.between(0.75, 0.95))
            region = (distance < 0.5) & (shape < 0.0)
        elif defect == "poke":
            tip = (flaw.between(-0.95, 0.95) * straight, flaw.between(-0.6, 0.6) * self.radius)
            size = flaw.between(11.0, 15.0)
            du, dv = u - tip[0], v - tip[1]
            distance = length(du, dv)
            bell = smooth(1.0 - distance / size)
            skin = skin * (1.0 - 0.5 * bell + 0.8 * bell * (du + dv) / size)[:, :, None]
            region = distance < size * 0.85
        shade = coverage(segment(u - 3.0, v - 9.0, (-straight, 0.0), (straight, 0.0))[0] - self.radius, 22.0)
        table = np.asarray(self.table) * (0.985 + 0.03 * cloud(look, x / 50.0, y / 50.0))[:, :, None]
        table = table * (1.0 - 0.30 * shade)[:, :, None]
        return Picture(paint(table, skin, coverage(shape, pixel)), region)

    def _print(self, u: Field, v: Field, seam: float, defect: str | None, flaw: Stream) -> tuple[Field, Field]:
        """(ink on the capsule, ink without a defect), [H, W] in [0, 1]."""
        cell = 3.3
        text = self.text
        left, top = seam + 12.0, -3.5 * cell + 4.0
        wrong = text
        lost = np.ones(u.shape)
        if defect == "faulty_print":
            if flaw.sign() > 0:
                place = flaw.below(len(text))
                wrong = text[:place] + ("#" if place & 1 else "8") + text[place + 1 :]
            else:
                at = (left + flaw.between(6.0, len(text) * 6 * cell - 10.0), top + 3.5 * cell)
                lost = smooth(0.5 + irregular(u, v, flaw, at, flaw.between(13.0, 18.0), 0.5) / 3.0)
        full = self._letters(u - left, v - top, text, cell)
        return self._letters(u - left, v - top, wrong, cell) * lost, full

    def _letters(self, u: Field, v: Field, text: str, cell: float) -> Field:
        """Ink in [0, 1] at points relative to the upper left corner of `text`: bitmaps with softened edges."""
        if not text:
            return np.zeros(u.shape)
        rows = [".".join(LETTERS[letter][row] for letter in text) for row in range(7)]
        bitmap = np.zeros((9, len(rows[0]) + 2))
        for row, line in enumerate(rows):
            for column, mark in enumerate(line):
                bitmap[row + 1, column + 1] = float(mark == "#")
        across = np.minimum(np.maximum(u / cell + 0.5, 0.0), bitmap.shape[1] - 1.001)
        down = np.minimum(np.maximum(v / cell + 0.5, 0.0), bitmap.shape[0] - 1.001)
        i, j = np.floor(down).astype(np.int64), np.floor(across).astype(np.int64)
        fi, fj = down - i, across - j
        above = bitmap[i, j] + (bitmap[i, j + 1] - bitmap[i, j]) * fj
        below = bitmap[i + 1, j] + (bitmap[i + 1, j + 1] - bitmap[i + 1, j]) * fj
        return smooth((above + (below - above) * fi - 0.25) * 2.0)


def _grown(region: Region, pixels: int) -> Region:
    """`region` with every pixel spread to its square neighbourhood."""
    for _ in range(pixels):
        tall = np.pad(region, ((1, 1), (0, 0)))
        region = tall[:-2] | tall[1:-1] | tall[2:]
        wide = np.pad(region, ((0, 0), (1, 1)))
        region = wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]
    return region
