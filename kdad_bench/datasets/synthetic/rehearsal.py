"""Subjects for choosing recipes: a wire mesh and a moulded disc, which no table shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdad_bench.datasets.synthetic.drawing import (
    Canvas,
    Colour,
    Field,
    Stream,
    cloud,
    coverage,
    direction,
    length,
    noise,
    paint,
    path,
    rotated,
    smooth,
    wander,
)
from kdad_bench.datasets.synthetic.subjects import Picture, Region, anywhere, irregular


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """Welded steel wires, crossing at right angles before a dark cloth."""

    period: float = 26.0  # units from wire to wire
    thickness: float = 3.4  # half of a wire's width, units
    steel: Colour = (176.0, 178.0, 174.0)
    cloth: Colour = (52.0, 58.0, 48.0)
    defects: tuple[str, ...] = ("bent_wire", "broken_wire", "clot", "tarnish")

    def draw(self, canvas: Canvas, look: Stream, defect: str | None, flaw: Stream) -> Picture:
        """See Subject.draw."""
        x, y = canvas.x, canvas.y
        centre = anywhere(canvas, flaw, 45.0)
        u, v = rotated(x, y, look.between(-0.008, 0.008))
        u, v = u + look.between(0.0, self.period), v + look.between(0.0, self.period)
        u = u + 1.4 * (noise(look, x / 50.0, y / 50.0) - 0.5)
        straight = self._wire(v)
        bent = self._bent(x, y, v, centre, flaw) if defect == "bent_wire" else straight
        down, across = self._wire(u), bent
        image = np.asarray(self.cloth) * (0.8 + 0.4 * cloud(look, x / 4.0, y / 4.0, 2))[:, :, None]
        steel = self.steel
        for distance, along in ((down, v), (across, u)):
            cut = self._gap(x, y, centre, distance, flaw) if defect == "broken_wire" and distance is down else distance
            shade = 0.62 + 0.5 * smooth(-distance / self.thickness)
            shade = shade * (0.94 + 0.12 * noise(look, along / 9.0, distance / 9.0, cells=64))
            wire = np.asarray(steel) * shade[:, :, None]
            if defect == "tarnish":
                wire = paint(wire, (92.0, 70.0, 44.0), self._stain(x, y, centre, flaw))
            image = paint(image, wire, coverage(cut, canvas.unit))
            down = cut if distance is down else down
        region = self._changed(defect, x, y, centre, straight, bent, self._wire(u), down)
        if defect == "clot":
            edge = irregular(x, y, flaw, centre, flaw.between(7.0, 13.0), 0.5)
            image = paint(image, (118.0, 104.0, 88.0), coverage(edge, 1.5) * 0.92)
            region = edge < 0.0
        return Picture(image, region)

    def _wire(self, across: Field) -> Field:
        """Signed distance to the nearest of the parallel wires."""
        return np.abs(across - self.period * np.floor(across / self.period + 0.5)) - self.thickness

    def _bent(self, x: Field, y: Field, v: Field, centre: tuple[float, float], flaw: Stream) -> Field:
        """The wires that run across, one of them pushed aside about `centre`."""
        bell = smooth(1.0 - np.abs(x - centre[0]) / flaw.between(26.0, 44.0))
        near = smooth(1.6 - np.abs(y - centre[1]) / (0.5 * self.period))
        return self._wire(v + flaw.sign() * flaw.between(6.0, 9.0) * bell * near)

    def _gap(self, x: Field, y: Field, centre: tuple[float, float], wire: Field, flaw: Stream) -> Field:
        """The wires that run down, cut open about `centre`."""
        hole = np.maximum(np.abs(x - centre[0]) - self.period * 0.6, np.abs(y - centre[1]) - flaw.between(7.0, 15.0))
        return np.maximum(wire, -hole)

    def _stain(self, x: Field, y: Field, centre: tuple[float, float], flaw: Stream) -> Field:
        stain = Stream(f"stain/{centre}")
        return smooth(0.5 - irregular(x, y, stain, centre, 24.0, 0.4) / 6.0) * 0.8

    def _changed(
        self, defect: str | None, x: Field, y: Field, centre: tuple[float, float],
        straight: Field, bent: Field, whole: Field, cut: Field,
    ) -> Region:  # fmt: skip
        """The pixels that a bent, broken or tarnished wire covers and ought not to, or the other way round."""
        region: Region = np.zeros(x.shape, dtype=np.bool_)
        if defect == "bent_wire":
            region = (straight < 0.0) != (bent < 0.0)
        elif defect == "broken_wire":
            region = (whole < 0.0) & (cut >= 0.0)
        elif defect == "tarnish":
            stain = irregular(x, y, Stream(f"stain/{centre}"), centre, 24.0, 0.4)
            region = (stain < 0.0) & (np.minimum(straight, whole) < 0.0)
        return region


@dataclass(frozen=True, kw_only=True, slots=True)
class Disc:
    """A moulded disc with a raised rim and five dimples, on a light tray."""

    radius: float = 88.0
    plastic: Colour = (86.0, 118.0, 96.0)
    tray: Colour = (214.0, 206.0, 196.0)
    dimples: int = 5
    defects: tuple[str, ...] = ("chip", "crack", "missing_dimple", "speck")

    def draw(self, canvas: Canvas, look: Stream, defect: str | None, flaw: Stream) -> Picture:
        """See Subject.draw."""
        x, y = canvas.x, canvas.y
        fit = min(canvas.reach) / 128.0 * look.between(0.985, 1.015)
        u, v = rotated(
            x, y, look.between(-0.03, 0.03), (128.0 + look.between(-4.0, 4.0), 128.0 + look.between(-4.0, 4.0))
        )
        u, v = u / fit, v / fit
        radius = length(u, v)
        whole = radius - self.radius
        shape, region = whole, np.zeros(x.shape, dtype=np.bool_)
        if defect == "chip":
            c, s = direction(flaw.between(0.0, 1.0))
            bite = irregular(u, v, flaw, (c * self.radius, s * self.radius), flaw.between(8.0, 15.0), 0.4)
            shape = np.maximum(whole, -bite)
            region = (whole < 0.0) & (shape >= 0.0)
        lost = flaw.below(self.dimples) if defect == "missing_dimple" else None
        shade = 1.0 + 0.16 * smooth(1.0 - np.abs(radius - self.radius * 0.9) / 5.0) * -(u + v) / (radius + 1e-6)
        for number in range(self.dimples):
            hollow, dent = self._dimple(u, v, number)
            if number == lost:
                region = hollow < 1.0
            else:
                shade = shade - dent
        skin = (
            np.asarray(self.plastic)
            * (shade * (0.95 + 0.1 * cloud(look, u / 14.0 + 30.0, v / 14.0 + 30.0)))[:, :, None]
        )
        if defect in ("crack", "speck"):
            distance, colour = self._mark(u, v, defect, flaw)
            skin = paint(skin, colour, coverage(distance, 1.4) * 0.9)
            region = (distance < 0.5) & (shape < 0.0)
        tray = np.asarray(self.tray) * (0.97 + 0.06 * cloud(look, x / 30.0, y / 30.0))[:, :, None]
        tray = tray * (1.0 - 0.3 * coverage(length(u - 4.0, v - 6.0) - self.radius, 14.0))[:, :, None]
        return Picture(paint(tray, skin, coverage(shape, canvas.unit / fit)), region)

    def _dimple(self, u: Field, v: Field, number: int) -> tuple[Field, Field]:
        """(distance from the dimple's centre in its radii, how much darker it is)."""
        c, s = direction(number / self.dimples)
        du, dv = u - c * self.radius * 0.52, v - s * self.radius * 0.52
        hollow = length(du, dv) / 12.0
        return hollow, smooth((1.0 - hollow) * 2.0) * (0.22 + 0.018 * (du + dv))

    def _mark(self, u: Field, v: Field, defect: str, flaw: Stream) -> tuple[Field, Colour]:
        """(signed distance to a crack or a speck, its colour)."""
        c, s = direction(flaw.between(0.0, 1.0))
        reach = flaw.between(0.1, 0.75) * self.radius
        start = (c * reach, s * reach)
        if defect == "speck":
            return irregular(u, v, flaw, start, flaw.between(3.0, 6.5), 0.4), (214.0, 200.0, 120.0)
        points = wander(flaw, start, flaw.between(0.0, 1.0), flaw.between(26.0, 50.0), 6, 0.12)
        return path(u, v, points) - flaw.between(0.8, 1.4), (34.0, 46.0, 40.0)
