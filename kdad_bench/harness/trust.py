"""How far a threshold can be trusted, as figures of a row and in words. Of test images it only tells: nothing is chosen
by them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdad_bench.harness.decision import Decision, above, copied_words, floor_of, images, percent, shortfall, supported
from kdad_bench.leaderboard.thresholds import LEVEL, PROMISED
from kdad_bench.metrics import clopper_pearson, two_sample_p

FALSE_ALARMS = PROMISED  # `predict` asks for it, too
DARK = 16  # of 255: the highest value of 12 bits where all 16 are scaled
FIGURES = (
    "false_alarm_floor", "false_alarms", "false_alarms_low", "false_alarms_high", "detected", "normals_p",
)  # fmt: skip


def figures_of(normal: Sequence[float], scores: ArrayLike, anomalous: ArrayLike) -> dict[str, float | None]:
    """FIGURES of a row: of the scores of `normal` images that nothing was learnt from, and of test images [N].

    All are None without such images; those at the threshold also where they are too few for FALSE_ALARMS. Without a
    normal test image there are no false alarms, without an anomalous one nothing to detect.
    """
    if not normal:
        return dict.fromkeys(FIGURES)
    values, bad = np.asarray(scores, np.float64), np.asarray(anomalous, bool)
    found: dict[str, float | None] = dict.fromkeys(FIGURES)
    found |= {"false_alarm_floor": floor_of(len(normal)), "normals_p": two_sample_p(normal, values[~bad])}
    if not supported(len(normal), FALSE_ALARMS):
        return found
    called = above(values, Decision(category="", resolution=1, normal_scores=tuple(normal)).threshold(FALSE_ALARMS))
    if not bad.all():
        alarms, count = int(called[~bad].sum()), int((~bad).sum())
        low, high = clopper_pearson(alarms, count)
        found |= {"false_alarms": alarms / count, "false_alarms_low": low, "false_alarms_high": high}
    if bad.any():
        found["detected"] = float(called[bad].mean())
    return found


def warn_of_a_difference(figures: Mapping[str, Any], unseen: int, test: int, where: str) -> None:
    """One line where the unseen normals and the normal test images of a job differ."""
    p = figures["normals_p"]
    if p is not None and p < LEVEL:
        warnings.warn(f"{where}: {difference(p, unseen, test)}", stacklevel=3)


def warn_of_darkness(images: Iterable[NDArray[np.uint8]], what: str) -> None:
    """One line where none of the images, uint8 [C, h, w] each, has a value that 10 or 12 bits of 16 do not explain."""
    most, count = 0, 0
    for image in images:
        most, count = max(most, int(image.max())), count + 1
        if most > DARK:
            return
    if count:
        warnings.warn(f"{what}: {darkness(most)}", stacklevel=3)


def darkness(most: int) -> str:
    """That images of the highest value `most` of 255 are nearly black, in words."""
    return (
        f"nearly black as read, no value is above {most} of 255; where they are 10 or 12 bits in files of 16, multiply "
        "them by 64 or 16, or save 8 bits: all 16 bits are scaled"
    )


def difference(p: float, unseen: int, test: int) -> str:
    """That unseen and test normals differ, in words."""
    return (
        f"the scores of {images(unseen, 'unseen normal ')} and of {images(test, 'normal test ')} differ (exact "
        f"Kolmogorov-Smirnov test, p = {p:.2g}, level {LEVEL:g}): a threshold from the former need not keep its "
        "false-alarm rate on the latter"
    )


def floor_words(count: int) -> str:
    """What `count` held-out normals can promise, in words."""
    return f"{percent(floor_of(count))} is the smallest false-alarm rate that {images(count)} can support"


def alarm_words(alarms: int, count: int) -> str:
    """What was seen of false alarms on normal test images, in words."""
    low, high = map(percent, clopper_pearson(alarms, count))
    return (
        f"{above_words(alarms, count, 'normal test ')}: {percent(alarms / count)} false alarms, "
        f"95 % interval {low} to {high}"
    )


def above_words(found: int, count: int, kind: str) -> str:
    """How many images of a kind lie above a threshold, in words."""
    return f"{found} of {images(count, kind)} {'lies' if found == 1 else 'lie'} above it"


def notes_on(kept: Decision, limit: float | None, false_alarms: float | None) -> tuple[str, ...]:
    """What a person should know of a threshold: a line each.

    `false_alarms` is the rate that it was fitted for; None for a threshold that was given.
    """
    unseen, seen = kept.normal_scores, kept.test_normal_scores
    lines = []
    if unseen and false_alarms is not None:
        lines.append(floor_words(len(unseen)))
    elif unseen and false_alarms is None and limit is not None:
        passed = int(above(np.array(unseen), limit).sum())
        lines.append(above_words(passed, len(unseen), "unseen normal "))
    if unseen and kept.copies:
        lines.append(f"warning: {copied_words(kept.copies, len(unseen))}")
    if seen and limit is not None:
        lines.append(alarm_words(int(above(np.array(seen), limit).sum()), len(seen)))
    p = two_sample_p(unseen, seen)
    if p is not None and p < LEVEL:
        lines.append(f"warning: {difference(p, len(unseen), len(seen))}")
    return tuple(lines)


def words_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The same of a row: the floor, what a rate of FALSE_ALARMS gives, and whether the normals differ."""
    unseen = row["normal_scores"] or ()
    if not unseen:
        return ()
    pairs = list(zip(row["image_scores"] or (), row["image_labels"] or (), strict=False))
    kept = Decision(
        category=row["category"],
        resolution=1,
        normal_scores=tuple(unseen),
        test_normal_scores=tuple(score for score, bad in pairs if not bad),
    )
    if not supported(len(unseen), FALSE_ALARMS):
        return (shortfall(len(unseen), FALSE_ALARMS), *notes_on(kept, None, None))
    limit = kept.threshold(FALSE_ALARMS)
    return (f"threshold {limit:g} for a false-alarm rate of {FALSE_ALARMS:g}", *notes_on(kept, limit, FALSE_ALARMS))
