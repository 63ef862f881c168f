"""Things with a relief for synthetic scans: a lump on a table, seen as a photograph and as points in space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
    length,
    noise,
    paint,
    path,
    rotated,
    smooth,
    wander,
)
from kdad_bench.datasets.synthetic.subjects import Picture, irregular

DISTANCE_METRES = 0.5  # from the camera to the table
SPAN_METRES = 0.12  # of the table, along the longer side of the image
DEPTH_NOISE_METRES = 0.00006


class Scan(NamedTuple):
    """One drawing of a solid, before light and sensor."""

    picture: Picture
    points: npt.NDArray[np.float32]  # [H, W, 3] metres; (0, 0, 0) where the scanner saw nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Solid:
    """A baked disc (`half_height` None) or a rounded slab, with crumbs, bubbles and an uneven crust."""

    half_width: float = 84.0  # units of 256
    half_height: float | None = None
    thickness: float = 0.018  # metres
    crust: Colour = (176.0, 128.0, 78.0)
    pale: Colour = (218.0, 186.0, 138.0)
    table: Colour = (58.0, 62.0, 70.0)
    defects: tuple[str, ...] = ("color", "contamination", "crack", "dent", "hole")

    def draw(self, canvas: Canvas, look: Stream, defect: str | None, flaw: Stream) -> Scan:
        """Draw it; `look` gives its natural variation and `flaw` the place and form of the defect.

        `dent` shows in the relief alone, `color` in the photograph alone, the others in both.
        """
        x, y = canvas.x, canvas.y
        half_x, half_y = canvas.reach
        scale = look.between(0.97, 1.03) * min(
            half_x / 128.0, half_y / (self.half_height or self.half_width) * 0.75, 1.0
        )
        centre = (128.0 + look.between(-5.0, 5.0), 128.0 + look.between(-4.0, 4.0))
        turns = look.between(0.0, 1.0) if self.half_height is None else look.between(-0.01, 0.01)
        u, v = rotated(x, y, turns, centre)
        u, v = u / scale, v / scale
        wobble = 5.0 * (noise(look, u / 30.0 + 8.0, v / 30.0 + 8.0) - 0.5)
        if self.half_height is None:
            edge = length(u, v) - self.half_width + wobble
        else:
            edge = box(u, v, self.half_width - 14.0, self.half_height - 14.0) - 14.0 + wobble * 0.4
        bumps = cloud(look, u / 15.0 + 8.0, v / 15.0 + 8.0)
        crumbs = noise(look, u / 3.5, v / 3.5, cells=128)
        rise = smooth(-edge / 22.0)
        height = self.thickness * (0.35 * smooth(-edge / 5.0) + 0.55 * rise) + 0.0022 * (bumps - 0.5) * rise
        height = height + 0.0004 * (crumbs - 0.5) * rise
        inside = edge < 0.0
        skin = blend(self.crust, self.pale, smooth(bumps * 1.6 - 0.3))
        skin = skin * (0.90 + 0.20 * crumbs)[:, :, None] * (0.80 + 0.20 * smooth(-edge / 10.0))[:, :, None]
        region = np.zeros(x.shape, dtype=np.bool_)
        if defect is not None:
            reach_x, reach_y = self.half_width * 0.6, (self.half_height or self.half_width) * 0.6
            spot = (flaw.between(-reach_x, reach_x) * 0.8, flaw.between(-reach_y, reach_y) * 0.8)
            if defect == "crack":
                points = wander(flaw, spot, flaw.between(0.0, 1.0), flaw.between(40.0, 70.0), 8, 0.1)
                distance = path(u, v, points) - flaw.between(1.5, 2.8)
                cut = smooth(0.5 - distance / 2.0)
                height = height - 0.55 * self.thickness * cut
                skin = paint(skin, (70.0, 46.0, 30.0), cut * 0.8)
                region = (distance < 0.5) & inside
            else:
                blob = irregular(u, v, flaw, spot, flaw.between(9.0, 16.0), 0.4)
                soft = smooth(0.5 - blob / 5.0)
                region = (blob < 0.0) & inside
                if defect == "hole":
                    height = height * (1.0 - soft)
                    skin = paint(skin, np.asarray(self.table) * 0.7, soft)
                elif defect == "dent":
                    height = height - flaw.between(0.16, 0.3) * self.thickness * soft
                elif defect == "color":
                    skin = paint(skin, (84.0, 120.0, 96.0), soft * flaw.between(0.35, 0.6))
                elif defect == "contamination":
                    height = height + flaw.between(0.15, 0.3) * self.thickness * soft
                    skin = paint(skin, (120.0, 128.0, 150.0), soft * 0.85)
        ground = np.asarray(self.table) * (0.92 + 0.16 * cloud(look, x / 8.0, y / 8.0, 2))[:, :, None]
        image = paint(ground, skin, coverage(edge, canvas.unit / scale))
        return Scan(Picture(image, region), self._points(canvas, np.maximum(height, 0.0), look))

    def _points(self, canvas: Canvas, height: Field, look: Stream) -> npt.NDArray[np.float32]:
        """The scanned points of a relief of `height` metres on a slightly tilted table."""
        metres = SPAN_METRES / 256.0
        px, py = (canvas.x - 128.0) * metres, (canvas.y - 128.0) * metres
        z = (
            DISTANCE_METRES
            + look.between(-0.02, 0.02)
            + look.between(-0.04, 0.04) * px
            + look.between(-0.04, 0.04) * py
        )
        z = z - height + DEPTH_NOISE_METRES * look.grain(canvas.height, canvas.width)
        points = np.stack([px, py, z], axis=2).astype(np.float32)
        step = np.zeros(height.shape)
        step[:, 1:] = np.abs(height[:, 1:] - height[:, :-1])
        shadow = (step > 2.2 * canvas.unit * metres) | (look.field(canvas.height, canvas.width) < 0.002)
        points[shadow] = 0.0
        return points
