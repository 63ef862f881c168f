"""Shares of a contamination that come to the same images: one training would stand on a curve as two points."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.job import Job
from kdad_bench.harness.material import lot_of, place_of


def refuse_shares_of_one_lot(jobs: Iterable[Job]) -> None:
    """Raises SelectionError where two shares put as many defective images among as many of a category; DatasetError
    for a share that cannot be."""
    drawn: dict[tuple[Any, ...], float] = {}
    for (dataset, name, seed, axes), job in {place_of(job): job for job in jobs}.items():
        lot = None if axes.contamination is None else lot_of(job)
        if lot is None:
            continue
        slipped, size = len(lot.slipped), len(lot.places)
        first = drawn.setdefault((dataset, name, seed, axes.train_images, axes.corruption, slipped), axes.contamination)
        if first != axes.contamination:
            raise SelectionError(
                f"--contamination {first:g} and {axes.contamination:g} are one on {dataset}/{name}: {slipped} of "
                f"{size} training images; leave one out, or take more images"
            )
