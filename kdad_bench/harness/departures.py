"""Where a job does otherwise than papers with the images of its data set: the deviations that its files decide."""

from __future__ import annotations

from collections.abc import Iterator

from kdad_bench.datasets.lots import MOST_SHARE, left_to_learn_from, set_aside
from kdad_bench.harness.job import Job, held_out_of
from kdad_bench.harness.lone_batch import learnt_from
from kdad_bench.harness.material import count_of, lot_of
from kdad_bench.methods.training.parting import has_a_lone_image


def departures_of(job: Job) -> tuple[str, ...]:
    """`subject: words` of each, behind `Job.deviations`; which images there are changes nothing for a floor, which
    follows no source. Raises DatasetError where there are too few images."""
    of_lots = () if job.floor else (*of_training_images(job), *of_test_images(job), *of_relief(job))
    return (*of_lots, *of_few_images(job), *of_other_data(job))


def of_training_images(job: Job) -> Iterator[str]:
    """What is to be said where a lot leaves normals out, and where it has defective images."""
    lot = lot_of(job)
    if lot is None:
        return
    count, slipped = len(lot.places), len(lot.slipped)
    left = [len(left_to_learn_from(one.category, held_out_of(job), job.seed)) for one in job.siblings]
    if count < max(left):
        yield f"train_images: {why_so_few(job, count, min(left))}drawn by lot (papers: all)"
    if slipped:
        yield f"contamination: {share_of(job, slipped, count)} defective (papers: none)"


def why_so_few(job: Job, count: int, fewest: int) -> str:
    """What a lot of `count` images (of each category, where one model learns from several) is bounded by; the category
    that has the fewest left to learn from has `fewest`. The number of a category alone is in the row's own column."""
    each = f"{count} of each category, " if job.together else ""
    if job.axes.train_images is not None:
        return each or f"{count}, "
    if count == fewest:
        return f"{each}as many as the smallest gives, "
    of_each = " in each" if job.together else ""
    return f"{each}no more than can be filled to {MOST_SHARE:g} with defective ones{of_each}, "


def share_of(job: Job, slipped: int, count: int) -> str:
    """The share that was asked for, where the whole number of images is that to two digits; else the numbers."""
    asked = job.axes.contamination or 0.0
    if f"{asked:.2g}" == f"{slipped / count:.2g}":
        return f"{asked:g} of the training images are"
    each = " of each category" if job.together else ""
    return f"{slipped} of {count} training images{each} ({asked:g} was asked for) {'is' if slipped == 1 else 'are'}"


def of_test_images(job: Job) -> Iterator[str]:
    """What is to be said where test images are left out or corrupted."""
    axes = job.axes
    if axes.contamination is not None and len(set_aside(job.category, job.seed)):
        yield "test images: without half of the defective ones of each kind, rounded down (papers: all)"
    if axes.corruption is not None:
        yield f"corruption: test images with {axes.corruption} (papers: as they are)"


def of_relief(job: Job) -> Iterator[str]:
    """What is to be said where scans that are not learnt from take part in the scale of the heights."""
    lot = lot_of(job)
    given = count_of(job) if lot is None else len(lot.normals)
    if "depth" in job.category.modality and given < len(job.category.train):
        yield "relief: its scale is that of all training scans, also of those that the method is not given"


def of_few_images(job: Job) -> tuple[str, ...]:
    """What is to be said where the settings keep a share of one normal image apart, or where a fit on so few does
    otherwise than its settings say; of windows, whose number follows from the files, only the first."""
    lone = "lone image: learnt from, and taken for those that nothing learns from, too"
    said = job.settings.learning_from(learnt_from(job)) if job.view.plain else ()
    return (*((lone,) if has_a_lone_image(count_of(job), job.settings) else ()), *said)


def of_other_data(job: Job) -> tuple[str, ...]:
    """What is to be said where the data bear the name of a published data set and are not all of it, or more."""
    return tuple(dict.fromkeys(one.category.departure for one in job.siblings if one.category.departure))
