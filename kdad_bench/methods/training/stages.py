"""Trainings of two stages within one budget: where the second begins, and a schedule for each."""

from __future__ import annotations

from kdad_bench.methods.training.settings import part_done


def last_of_first(share: float, total: int) -> int:
    """The last step (from 1) of a first stage that takes `share` of `total` steps; 0 where there is none."""
    return min(round(share * total), total)


def progress_in_stage(step: int, total: int, last: int, schedule: str = "constant") -> float:
    """How far `schedule` is in the stage that step `step` (from 1) is in, in [0, 1); `last` is the last step of the
    first."""
    return part_done(step, last, schedule) if step <= last else part_done(step - last, total - last, schedule)
