"""What a job learns from, what is held out of it and what it is judged on, as its axes and its view say."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdad_bench import datasets
from kdad_bench.datasets import Category, Sample, TestSet
from kdad_bench.datasets.category import printable
from kdad_bench.datasets.corruption import corrupted
from kdad_bench.datasets.loading import Regions
from kdad_bench.datasets.lots import Indices, Lot, draw, left_to_learn_from, set_aside, size_of
from kdad_bench.datasets.splits import FRACTION
from kdad_bench.harness.axes import Axes
from kdad_bench.harness.decision import copied_words
from kdad_bench.harness.job import Job, held_out_of


def normals(job: Job, *, learning: bool = True) -> tuple[Any, Any]:
    """(images to learn from, held-out images) uint8 [N, 3 M, R, R], the M modalities stacked along the channels; where
    a job does not see whole squares, lists of pictures [3 M, h, w].

    Normals are held out where a threshold or a late fusion needs them: the validation split that the data set ships,
    else a share of the training images drawn by the job's seed. Of categories that are learnt together those of each
    are held out, and the ones returned are those of the job's own; the images to learn from are those of all, one of
    each in turn, so that the first few tell of all, too. There are none where nothing is to be learnt any more.
    """
    if not job.together:
        return normals_of(job)
    every = {one.category.name: normals_of(one) for one in (job.siblings if learning else (job,))}
    fit, held_out = every[job.category.name]
    if not learning:
        return fit[:0], held_out
    return np.stack([one for one, _ in every.values()], 1).reshape(-1, *fit.shape[1:]), held_out


def categories_of(job: Job, images: int) -> tuple[int, ...] | None:
    """Of which of the categories that are learnt together each of so many images to learn from is, as `normals` gives
    them; None for a job of one."""
    return tuple(k % len(job.together) for k in range(images)) if job.together else None


def normals_of(job: Job) -> tuple[Any, Any]:
    """The same of the job's own category."""
    if not job.view.plain:
        return pictures_apart(job)
    parts = datasets.single_modalities(job.category)
    if not job.hold_out and len(parts) == 1:
        images = datasets.load_train(job.category, job.resolution)
        return learnt_from(job, images), images[:0]
    fraction = job.hold_out or FRACTION
    found = [datasets.load_normals(part, job.resolution, fraction=fraction, seed=job.seed) for part in parts]
    fit = np.concatenate([one.fit for one in found], 1)
    return learnt_from(job, fit), np.concatenate([one.held_out for one in found], 1)


def pictures_apart(job: Job) -> tuple[list[Any], list[Any]]:
    """What `normals` gives, as pictures of the shapes that the job's view gives them."""
    train = pictures(job, job.category, "train")
    if not held_out_of(job):
        return learnt_from(job, train), []
    if job.category.validation:
        return learnt_from(job, train), pictures(job, job.category, "validation")
    fit, apart = datasets.held_out(len(train), fraction=held_out_of(job), seed=job.seed)
    return learnt_from(job, [train[k] for k in fit]), [train[k] for k in apart]


def test_set(job: Job) -> datasets.TestSet:
    """The test images, the modalities stacked along the channels, as the axes of the job say."""
    parts = datasets.single_modalities(job.category)
    found = [datasets.load_test(part, job.resolution, job.view.fit) for part in parts]
    stacked = found[0]._replace(images=np.concatenate([one.images for one in found], 1)) if found[1:] else found[0]
    return judged_on(job.axes, job.category, job.seed, stacked)


def lot_of(job: Job) -> Lot | None:
    """The lot that decides what `job` learns from; None where it learns from every normal image that is not held out.

    Where one model learns from several categories it is that of the job's own, with as many images as any has. Raises
    DatasetError in one line where there are too few images.
    """
    axes, count = job.axes, of_each(job)
    if count is None and axes.contamination is None:
        return None
    return draw(job.category, count=count, share=axes.contamination, hold_out=held_out_of(job), seed=job.seed)


def of_each(job: Job) -> int | None:
    """How many images of each category are learnt from; None where each has its own number.

    Categories that are learnt together are balanced: the one that has the fewest decides.
    """
    axes = job.axes
    if axes.train_images is not None or not job.together:
        return axes.train_images
    return min(
        size_of(one, share=axes.contamination, hold_out=held_out_of(job), seed=job.seed) for one, _ in job.together
    )


def count_of(job: Job) -> int:
    """How many images `job` learns from; raises DatasetError where there are too few."""
    lot = lot_of(job)
    if lot is None:
        return len(left_to_learn_from(job.category, held_out_of(job), job.seed))
    return len(lot.places) * max(1, len(job.together))


def learnt_from(job: Job, fit: Any) -> Any:
    """What is learnt from, uint8 [N, 3 M, R, R] or pictures, of the normals `fit` that are not held out.

    Of the test set nothing is opened but the defective images that are set aside for a contamination.
    """
    lot = lot_of(job)
    if lot is None:
        return fit
    there = left_to_learn_from(job.category, held_out_of(job), job.seed)
    images = [fit[place] for place in np.searchsorted(there, lot.normals)]
    images += list(spared(job)[: len(lot.slipped)]) if len(lot.slipped) else []
    order = np.argsort(lot.places)  # places are a permutation: the image at each of them
    found = [images[k] for k in order]
    return found if isinstance(fit, list) else np.stack(found)


def unseen_names(job: Job) -> list[str]:
    """The files of the normal images that a threshold comes from, below the category's folder: a shipped validation
    split, else what is held out."""
    return [os.path.relpath(sample.path, job.category.root) for sample in unseen_samples(job)]


def unseen_samples(job: Job) -> Sequence[Sample]:
    """The same as samples."""
    category = job.category
    kept = left_to_learn_from(category, held_out_of(job), job.seed)
    return category.validation or [category.train[k] for k in np.setdiff1d(np.arange(len(category.train)), kept)]


def copies_of(job: Job) -> int:
    """How many held-out normals have the contents of an image that is learnt from, or of another of them."""
    if not job.hold_out:
        return 0
    category, lot = job.category, lot_of(job)
    there = left_to_learn_from(category, job.hold_out, job.seed) if lot is None else lot.normals
    learnt = datasets.contents_of(category, [category.train[k] for k in there])
    return datasets.copies(learnt, datasets.contents_of(category, unseen_samples(job)))


def copied(jobs: Iterable[Job]) -> Iterator[str]:
    """A line on each category of which some job holds out copies of what it learns from, by the job with the most."""
    most: dict[Path, tuple[int, int]] = {}
    there: dict[tuple[Path, str], bool] = {}  # whether a category has copies at all
    asked = [job for job in jobs if job.hold_out and not job.category.validation]
    for job in {(place_of(job), job.category.modality, job.hold_out, job.together): job for job in asked}.values():
        category = job.category
        known = category.root, category.modality
        if known not in there:
            there[known] = has_copies(category)
        if there[known]:
            most[category.root] = max(most.get(category.root, (0, 0)), (copies_of(job), len(unseen_samples(job))))
    for root, (count, of) in most.items():
        if count:
            yield printable(f"{root}: {copied_words(count, of)}")


def place_of(job: Job) -> tuple[str, str, int, Any]:
    """What a lot follows from, whatever the method."""
    return job.category.dataset, job.category.name, job.seed, job.axes


def has_copies(category: Category) -> bool:
    """Whether two training images have the same contents."""
    return len(set(datasets.contents_of(category, category.train))) < len(category.train)


def spared(job: Job) -> Any:
    """The defective images that are set aside, in the order in which they slip in: decoded apart from the test set."""
    samples = tuple(job.category.test[index] for index in set_aside(job.category, job.seed))
    if not job.view.plain:
        return pictures(job, replace(job.category, validation=samples), "validation")
    parts = [replace(part, validation=samples) for part in datasets.single_modalities(job.category)]
    return np.concatenate([datasets.load_validation(part, job.resolution) for part in parts], 1)


def pictures(job: Job, category: Category, split: str) -> list[Any]:
    """The pictures uint8 [3 M, h, w] of a split (train or validation), the modalities stacked along the channels."""
    parts = datasets.single_modalities(category)
    found = [datasets.load_pictures(part, split, job.resolution, job.view.fit) for part in parts]
    return found[0] if len(found) == 1 else [np.concatenate(one) for one in zip(*found, strict=True)]


def pictures_of(test: TestSet) -> Any:
    """The test images as a method is given them: the array where all fill it, else a list of pictures."""
    if test.sizes is None:
        return test.images
    return [whole[:, :height, :width] for whole, (height, width) in zip(test.images, test.sizes, strict=True)]


def left_to_judge(category: Category, seed: int) -> Indices:
    """The test images that no share of a contamination takes away, ascending."""
    return np.setdiff1d(np.arange(len(category.test)), set_aside(category, seed))


def regions_of(kept: Indices, regions: Regions | None) -> Regions | None:
    """The regions of the images that are kept, which are numbered anew."""
    if regions is None:
        return None
    there = np.isin(regions.images, kept)
    return Regions(regions.masks[there], np.searchsorted(kept, regions.images[there]), regions.shares[there])


def judged_category(axes: Axes, category: Category, seed: int) -> Category:
    """The category with the test images that a job is judged on."""
    if axes.contamination is None:
        return category
    return replace(category, test=tuple(category.test[index] for index in left_to_judge(category, seed)))


def judged_on(axes: Axes, category: Category, seed: int, test: TestSet) -> TestSet:
    """The test set without what is set aside for a contamination, whatever its share, and corrupted as was asked."""
    if axes.contamination is not None:
        kept = left_to_judge(category, seed)
        masks = None if test.masks is None else test.masks[kept]
        names = tuple(test.names[index] for index in kept)
        test = TestSet(test.images[kept], test.labels[kept], masks, names, regions_of(kept, test.regions),
                       None if test.sizes is None else test.sizes[kept],
                       tuple(name for name in test.unmarked if name in names))  # fmt: skip
    if axes.corruption is not None:
        name, _, level = axes.corruption.partition(":")
        test = corrupted(test, category, name, int(level))
    return test
