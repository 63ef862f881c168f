"""A graph against the model it was made of: how far scores and maps are apart, and which decisions flipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdad_bench.harness.export_images import Images
from kdad_bench.harness.export_runtimes import Answers, Runner, in_batches
from kdad_bench.harness.exported import Certificate, Decisions, Seen
from kdad_bench.harness.scoring import SCORE_BATCH, Scorer, as_images, scored

FLOOR = 1e-2  # of the largest score or range of a map: what is smaller is compared with that instead of with itself
ROUNDING = 1e-5  # of a threshold: as near, a score IS the normal's that the threshold was read from
SHOWN = 5  # images whose decisions flipped, named
CPU = torch.device("cpu")


class Tolerance(NamedTuple):
    """What is accepted of a graph."""

    score: float  # relative
    map: float | None  # relative to the range of the model's map; None: it is only stated
    flipped: float  # share of the decisions


FP32 = Tolerance(score=1e-3, map=1e-3, flipped=0.0)
INT8 = Tolerance(score=0.3, map=None, flipped=0.05)  # measured: docs/export.md


@dataclass(kw_only=True, slots=True)
class Comparison:
    """What model and graph said, image by image."""

    names: list[str] = field(default_factory=list)
    real: list[bool] = field(default_factory=list)  # no drawn image: decisions are compared
    theirs: list[float] = field(default_factory=list)  # the model's scores
    ours: list[tuple[float, ...]] = field(default_factory=list)  # the graph's, for each batch
    ranges: list[float] = field(default_factory=list)  # from the smallest to the largest value of the model's map
    apart: list[float] = field(default_factory=list)  # the largest difference of the maps

    def finite(self) -> bool:
        """Whether all that was compared are numbers."""
        return all(bool(np.isfinite(one).all()) for one in (self.theirs, self.ours, self.ranges, self.apart))

    def scores_apart(self) -> float:
        """The largest relative difference of an image's score."""
        theirs, ours = np.array(self.theirs), np.array(self.ours)
        return largest(np.abs(ours - theirs[:, None]).max(1), self.floored(np.abs(theirs)))

    def maps_apart(self) -> float:
        """The largest difference of two maps, relative to the range of the image's: an offset hides nothing."""
        return largest(np.array(self.apart), self.floored(np.array(self.ranges)))

    def floored(self, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        """`sizes` [N], none smaller than FLOOR of the largest: of photographs among photographs, whatever scores the
        drawn images have."""
        real = np.array(self.real, bool)
        floors = np.where(real, sizes[real].max(initial=0.0), sizes.max(initial=0.0))
        found: NDArray[np.float64] = np.maximum(sizes, FLOOR * floors)
        return found

    def decisions(self, limit: float, own: float) -> Decisions:
        """What the model calls anomalous above `limit` and the graph does not above `own`, or the other way round."""
        compared, at = 0, 0
        flipped = []
        for name, real, theirs, ours in zip(self.names, self.real, self.theirs, self.ours, strict=True):
            if not real:
                continue
            if near(theirs, limit) or any(near(score, own) for score in ours):
                at += 1
                continue
            compared += 1
            if any((score > own) != (theirs > limit) for score in ours):
                flipped.append(name)
        return Decisions(
            threshold=limit, own_threshold=own, compared=compared, flipped=len(flipped), at_threshold=at,
            flipped_images=tuple(flipped[:SHOWN]),
        )  # fmt: skip


def near(score: float, edge: float) -> bool:
    """Whether a score is a threshold, but for rounding."""
    return abs(score - edge) <= ROUNDING * abs(edge)


def largest(apart: NDArray[np.float64], scale: NDArray[np.float64]) -> float:
    """The largest of `apart` in units of `scale`; infinite where something differs from what has no size."""
    shares = np.divide(apart, scale, out=np.where(apart > 0, np.inf, 0.0), where=scale > 0)
    return float(shares.max())


def compared(model: Scorer, runner: Runner, sets: Sequence[Images], batches: Sequence[int], name: str) -> Comparison:
    """Run both on all images, the graph once for each size of batch. Raises ScoreError."""
    found = Comparison()
    for images in sets:
        for start in range(0, len(images.pixels), SCORE_BATCH):
            pixels = np.ascontiguousarray(images.pixels[start : start + SCORE_BATCH])
            wanted = scored(model, as_images(pixels, CPU), SCORE_BATCH, name)
            answers = [filled(runner, pixels, batch) for batch in batches]
            theirs = wanted.pixel.numpy()
            found.names += images.names[start : start + SCORE_BATCH]
            found.real += [images.real] * len(pixels)
            found.theirs += wanted.image.tolist()
            found.ours += [tuple(map(float, one)) for one in np.stack([score for score, _ in answers], 1)]
            found.ranges += (theirs.max((1, 2)) - theirs.min((1, 2))).tolist()
            found.apart += np.max([np.abs(heat - theirs).max((1, 2)) for _, heat in answers], 0).tolist()
    return found


def filled(runner: Runner, pixels: NDArray[np.uint8], batch: int) -> Answers:
    """The answers to `pixels` in batches of `batch` and no fewer: what lacks is filled up with the same images."""
    count = -(-len(pixels) // batch) * batch
    scores, maps = in_batches(runner, pixels[np.arange(count) % len(pixels)], batch)
    return scores[: len(pixels)], maps[: len(pixels)]


def certificate_of(
    found: Comparison,
    sets: Sequence[Images],
    batches: Sequence[int],
    limits: tuple[float, float] | None,
    most: Tolerance,
) -> Certificate:
    """The figures of a comparison; `limits` are the thresholds of model and graph."""
    return Certificate(
        images=tuple(Seen(what=one.what, count=len(one.pixels)) for one in sets),
        batches=tuple(batches),
        score_difference=found.scores_apart(),
        score_tolerance=most.score,
        map_difference=found.maps_apart(),
        map_tolerance=most.map,
        decisions=None if limits is None else found.decisions(*limits),
        most_flipped=most.flipped,
    )


def fault(found: Certificate) -> str:
    """Why a graph is refused, in words; "" for one that is as good as its model."""
    if not found.score_difference <= found.score_tolerance:
        return f"its scores differ by up to {found.score_difference:.2g} ({found.score_tolerance:g} is tolerated)"
    if found.map_tolerance is not None and not found.map_difference <= found.map_tolerance:
        return f"its maps differ by up to {found.map_difference:.2g} ({found.map_tolerance:g} is tolerated)"
    made = found.decisions
    if made is not None and made.flipped > found.most_flipped * made.compared:
        which = ", ".join(made.flipped_images)
        return f"{made.flipped} of {made.compared} decisions flipped ({which}; {found.most_flipped:g} is tolerated)"
    return ""
