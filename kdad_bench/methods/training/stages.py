"""Trainings of two stages within one budget: where the second begins, and a schedule for each."""

from __future__ import annotations


def last_of_first(share: float, total: int) -> int:
    """The last step (from 1) of a first stage that takes `share` of `total` steps; 0 where there is none."""
    return min(round(share * total), total)


def progress_in_stage(step: int, total: int, last: int) -> float:
    """How far the stage is that step `step` (from 1) is in, in [0, 1); `last` is the last step of the first."""
    return (step - 1) / last if step <= last else (step - last - 1) / (total - last)
