"""Maps of other code -> rows that say so: matched, checked and judged before anything is written."""

from __future__ import annotations

import os
import platform
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from kdad_bench import __version__, datasets
from kdad_bench.allowance import cores
from kdad_bench.datasets import PAD, SHORT_SIDE, SQUASH, Category, TestSet, fitted
from kdad_bench.datasets.decoding import Upright, upright
from kdad_bench.files import write_bytes_whole
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.environment import git_state, keep_freed_memory, package_version
from kdad_bench.harness.judging import judged, regions_of
from kdad_bench.harness.known_maps import PREFIX, Asked, Known, Loaded, Same, Size, content_of, identity
from kdad_bench.harness.maps import Floats, MapError, plain, read_map, resampled
from kdad_bench.harness.matching import Matched, match
from kdad_bench.harness.offers import Offer, OfferError, of_scores, offers
from kdad_bench.harness.output import refuse_a_file, refuse_what_cannot_be_written
from kdad_bench.harness.protocol import PROTOCOL, PROTOCOL_VERSION
from kdad_bench.harness.selection import categories_of, category_names_of, refuse_urls_that_cannot_serve
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import EXTERNAL, Row
from kdad_bench.leaderboard.text import counted
from kdad_bench.metrics import RegionIndex

NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}", re.ASCII)  # of external results; it names files


class EvaluationError(ValueError):
    """Maps that cannot be evaluated: a line for each of them."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


class Seen(NamedTuple):
    """What is known of a map once it was read."""

    size: Size
    same: bool  # it has the size that it is judged at
    constant: bool
    exact: bool  # float32 holds what is judged


class Judged(NamedTuple):
    """A row, and the bytes of its picture; none without one."""

    row: Row
    picture: bytes


class Match(NamedTuple):
    """What was offered for a category, all of it checked."""

    dataset: str
    category: str
    test_images: int
    maps: int
    scores: int  # image scores that were given
    readings: tuple[str, ...]

    @property
    def words(self) -> str:
        """The same, in one line."""
        scores = f", {counted(self.scores, 'image score')}" if self.scores else ""
        images = counted(self.test_images, "test image")
        begin = f"{self.dataset}/{self.category}: {counted(self.maps, 'map')} for {images}{scores}"
        return "; ".join([begin, *self.readings])


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What was not used, in words, what matched, and what came of it; no rows of a dry run."""

    remarks: tuple[str, ...]
    matches: tuple[Match, ...]
    judged: tuple[Judged, ...] = ()

    @property
    def said(self) -> tuple[str, ...]:
        """All that is to be told before the rows, a line each."""
        return *self.remarks, *(one.words for one in self.matches)


def evaluate(asked: Asked, *, dry_run: bool = False) -> Evaluation:
    """Match, read and check all maps and, unless it is a dry run, judge them; writes nothing (`keep` does).

    Raises EvaluationError with a line for each fault of the maps, SelectionError and DatasetError.
    """
    refuse_contradictions(asked)
    side = asked.options.resolution or PROTOCOL.resolution
    matched, remarks = matched_maps(asked)
    known = Known(asked)
    matched = known.named(matched)
    keep_freed_memory()  # a file of a map has the size of the one before it
    faults: list[str] = []
    matches: list[Match] = []
    found: list[Judged] = []
    for one in matched:
        with ThreadPoolExecutor(1) as beside:  # what the maps are judged by is read while the maps are
            by = None if dry_run or faults else beside.submit(test_data_of, one.category, side, asked.options.fit)
            try:
                loaded = load(one, side, asked.options.fit)
            except (EvaluationError, datasets.DatasetError) as error:
                faults += error.lines
                continue
        same = known.about(one.category, loaded)
        faults += same.faults
        matches.append(match_of(one, loaded, same.readings, side, asked.options.fit))
        found += [] if by is None or faults else [judge(by.result(), loaded, same, side, asked)]
    if faults:
        raise EvaluationError(faults)
    return Evaluation(remarks=tuple(remarks), matches=tuple(matches), judged=tuple(found))


def keep(found: Evaluation, out: str) -> None:
    """Write the rows, then the pictures beside rows on this machine: one that cannot be written is a warning.

    Raises StoreError and SelectionError.
    """
    local = "://" not in out
    if local:
        refuse_what_cannot_be_written(Path(out))
    for one in found.judged:
        store.write(one.row, out)
    for one in found.judged if local else ():
        try:
            if one.picture:
                write_bytes_whole(Path(out) / "pictures" / f"{one.row.job_id}.png", one.picture)
        except OSError as error:
            text = f"{error.filename or Path(out) / 'pictures'}: {error.strerror}"
            warnings.warn(f"{one.row.category}: its row is complete, its picture is not kept ({text})", stacklevel=2)


def refuse_contradictions(asked: Asked) -> None:
    """Raises SelectionError for a name that cannot stand in a row, and for a place that rows cannot go to."""
    if not NAME.fullmatch(asked.name):
        raise SelectionError(
            f"--name '{asked.name}': up to 64 letters, digits and . _ + -, beginning with a letter or a digit"
        )
    refuse_urls_that_cannot_serve(asked.options)
    if "://" not in asked.options.out:
        refuse_a_file(Path(asked.options.out))


def matched_maps(asked: Asked) -> tuple[tuple[Matched, ...], list[str]]:
    """Each chosen category with a map for every image, and what is not used; raises EvaluationError if one has not."""
    chosen = categories_of(asked.options)
    known = [name for names in category_names_of(asked.options).values() for name in names]
    try:
        offered = offers(asked.maps, known)
        given = tuple(of_scores(asked.scores, known)) if asked.scores else ()
    except OfferError as error:
        raise EvaluationError([str(error)]) from error
    if given and any(one.score is not None for one in offered.found):
        raise EvaluationError([f"{asked.scores}: {asked.maps} brings image scores already; leave --scores out"])
    found = match(offered.found, given, chosen, known)
    if found.faults:
        raise EvaluationError([*found.faults, *offered.remarks, *found.remarks])
    return found.categories, [*offered.remarks, *found.remarks]


def load(one: Matched, side: int, fit: str = SQUASH) -> Loaded:
    """The maps of a category, in threads: float32, or float64 where that would round one.

    Raises EvaluationError with a line for each fault, and DatasetError for an image without a size.
    """
    samples = one.category.test
    if not samples:
        raise EvaluationError([f"{one.label}: the category has no test images"])
    with ThreadPoolExecutor(cores()) as pool:
        lying = list(pool.map(upright, [sample.path for sample in samples]))
        shapes = [fitted(image.size, side, fit, own.path) for image, own in zip(lying, samples, strict=True)]
        maps, found = filled(one, shapes, fit, np.dtype(np.float32), pool)
        seen = {number: about for number, about in enumerate(found) if not isinstance(about, str)}
        faults = [line for line in found if isinstance(line, str)]
        faults += [*misfits(one, {number: about.size for number, about in seen.items()}, lying, fit), *not_finite(one)]
        faults += constant_scores(one)
        constant = sum(about.constant for about in seen.values())
        if constant == len(samples):
            faults.append(f"{one.label}: all {constant} maps are constant; a map tells pixels apart")
        if faults:
            raise EvaluationError(faults)
        if not all(about.exact for about in seen.values()):
            del maps
            maps, _ = filled(one, shapes, fit, np.dtype(np.float64), pool)
    kinds = tuple(size for size, _ in Counter(about.size for about in seen.values()).most_common())
    return Loaded(
        maps, scores_of(one), kinds, None if fit == SQUASH else np.array(shapes, np.int64),
        same=all(about.same for about in seen.values()), constant=constant, turned=sum(image.turned for image in lying),
    )  # fmt: skip


def filled(
    one: Matched, shapes: Sequence[tuple[int, int]], fit: str, kind: np.dtype[Any], pool: ThreadPoolExecutor
) -> tuple[Floats, list[Seen | str]]:
    """The maps of a category [N, H, W] in the type `kind`, and what is known of each or what is wrong with it."""
    own = {stamp for sample in one.category.test if (stamp := whereabouts(sample.path)) is not None}
    room = np.empty if fit == SQUASH else np.zeros  # beside a picture lie zeros; squares are filled
    maps: Floats = room((len(shapes), *map(max, zip(*shapes, strict=True))), kind)

    def read(number: int) -> Seen | str:
        offer, (height, width) = one.maps[number], shapes[number]
        try:
            values = values_of(offer, own)
            judged = resampled(values, (height, width))
        except MapError as error:
            return f"{offer.file or offer.where}: {error}"
        mine = maps[number, :height, :width]
        mine[:] = judged
        constant = bool(values.min() == values.max())
        exact = judged.dtype == kind or np.array_equal(mine, judged)
        return Seen(values.shape[::-1], values.shape == (height, width), constant, exact)

    return maps, list(pool.map(read, range(len(shapes))))


def scores_of(one: Matched) -> Floats | None:
    """[N] the image scores that were given: float32, or float64 where that would make two equal; None without any."""
    if not one.scores:
        return None
    given = np.array([one.scores[number].score for number in range(len(one.scores))], np.float64)
    return given.astype(np.float32) if told_apart(given) else given


def told_apart(scores: Floats) -> bool:
    """Whether float32 makes none of the different `scores` [N] equal."""
    different = np.unique(scores)
    return np.unique(different.astype(np.float32)).size == different.size


def whereabouts(path: Path) -> tuple[int, int] | None:
    """What tells a file from all others, however it is named; None where it cannot be asked."""
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return None
    return about.st_dev, about.st_ino


def values_of(offer: Offer, own: set[tuple[int, int]]) -> Floats:
    """The map of an offer; raises MapError, also where its file is one of the images themselves."""
    if offer.array is not None:
        return plain(offer.array)
    assert offer.file is not None
    if offer.file.suffix.lower() not in (".png", ".tif", ".tiff"):
        return read_map(offer.file)
    if whereabouts(offer.file) in own:
        raise MapError("is the test image itself; give the folder of the maps")
    return read_map(offer.file)


def misfits(one: Matched, sizes: dict[int, Size], lying: Sequence[Upright], fit: str = SQUASH) -> Iterator[str]:
    """A line for each map that has neither the size of its image, which is `lying` so, nor the one of the others.

    A size that maps share may be any square, for images that were squeezed, or have the proportions of the image. With
    a `fit` that keeps proportions maps have those of their images, and need share no size.
    """
    if not sizes:
        return
    usual = Counter(sizes.values()).most_common(1)[0][0]
    for number, size in sizes.items():
        image, stored, _ = lying[number]
        squeezed = fit == SQUASH and size[0] == size[1]
        shared = fit != SQUASH or size == usual
        if size == image or (shared and (squeezed or proportional(size, image))):
            continue
        said = f"the map is {size[0]} x {size[1]} px; its image is {image[0]} x {image[1]}"
        if stored != image and proportional(size, stored):
            why = "as a camera's note in the file turns it; turn the map so"
        elif fit != SQUASH:
            why = f"and --fit {fit} keeps proportions; give the map of the picture without what lies beside it"
        else:
            why = f"and the other maps are {usual[0]} x {usual[1]}" if size != usual else "and it is no square"
        yield f"{one.maps[number].file or one.maps[number].where}: {said} {why}"


def proportional(size: Size, image: Size) -> bool:
    """Whether a map of that size is the image made smaller or larger, up to a pixel of rounding."""
    return abs(size[0] * image[1] - size[1] * image[0]) <= max(image)


def not_finite(one: Matched) -> Iterator[str]:
    """A line for each image score that is no number, or none that float32 holds."""
    for offer in one.scores.values():
        with np.errstate(over="ignore"):
            if not np.isfinite(np.float32(offer.score)):
                yield f"{offer.where}: the image score is {offer.score}; it must be finite in float32"


def constant_scores(one: Matched) -> list[str]:
    """A line where all of several image scores that were given are one value, as a wrong column is."""
    given = {offer.score for offer in one.scores.values()}
    if len(one.scores) < 2 or len(given) > 1:
        return []
    return [f"{one.label}: all {len(one.scores)} image scores are {given.pop():g}; a score tells images apart"]


def match_of(one: Matched, loaded: Loaded, more: tuple[str, ...], side: int, fit: str = SQUASH) -> Match:
    """What matched of a category."""
    return Match(
        dataset=one.category.dataset,
        category=one.category.name,
        test_images=len(one.category.test),
        maps=len(one.maps),
        scores=len(one.scores),
        readings=(*readings(loaded, side, fit), *more),
    )


def readings(loaded: Loaded, side: int, fit: str = SQUASH) -> tuple[str, ...]:
    """What was decided about the maps: how they came to the size they are judged at, where image scores come from."""
    sizes = ", ".join(f"{width} x {height}" for width, height in loaded.sizes[:4])
    more = f" and {len(loaded.sizes) - 4} more sizes" if len(loaded.sizes) > 4 else ""
    wanted = {SQUASH: f"{side} x {side} px", SHORT_SIDE: f"a short side of {side} px", PAD: f"a long side of {side} px"}
    how = "as they are" if loaded.same else f"resampled to {wanted[fit]}, antialiased bilinear"
    scores = "as given" if loaded.scores is not None else f"the maximum of each map at {side} px"
    found = [f"maps: {sizes}{more} px, {how}", f"image scores: {scores}"]
    found += [f"maps: {loaded.constant} are constant"] if loaded.constant else []
    found += [f"images: a camera's note turns {loaded.turned}; maps are compared as it says"] if loaded.turned else []
    return tuple(found)


class TestData(NamedTuple):
    """What the maps of a category are judged by."""

    category: Category  # sealed
    test: TestSet
    regions: RegionIndex | None  # None without masks


def test_data_of(category: Category, side: int, fit: str) -> TestData:
    """The test images, labels and regions of a category. Raises DatasetError."""
    sealed = datasets.hashed(category)
    test = datasets.load_test(datasets.single_modalities(sealed)[0], side, fit)
    return TestData(sealed, test, regions_of(test, category, side))


def judge(by: TestData, loaded: Loaded, same: Same, side: int, asked: Asked) -> Judged:
    """The row of one category and, if wanted, its picture."""
    category, test, fit = by.category, by.test, asked.options.fit
    peaks = loaded.peaks()
    scores = peaks if loaded.scores is None else loaded.scores
    method = PREFIX + asked.name
    with ThreadPoolExecutor(1) as beside:  # the hash takes one core while the metrics do not fill the others
        content = beside.submit(lambda: same.content or content_of(loaded))
        figures = judged(
            scores, loaded.maps, peaks, test, category=category, resolution=side, method=method, index=by.regions
        )
    data = datasets.fingerprint(category)
    commit, dirty = git_state()
    kept, said = as_kept(scores)
    row = Row(
        job_id=identity(category, content.result(), data, asked),
        protocol_version=PROTOCOL_VERSION,
        method=method,
        title=f"{asked.name} (external)",
        dataset=category.dataset,
        category=category.name,
        seed=asked.seed,
        preset="external" if fit == SQUASH else f"external[fit={fit}]",
        modality=category.modality,
        origin=EXTERNAL,
        resolution=side,
        fit=None if fit == SQUASH else fit,
        readings=(*readings(loaded, side, fit), *said, *same.readings),
        data_fingerprint=data,
        synthetic=category.synthetic,
        test_images=len(test.labels),
        **figures,
        image_scores=tuple(kept.tolist()),
        image_labels=tuple(bool(label) for label in test.labels),
        image_names=tuple(test.names),
        python=platform.python_version(),
        numpy=package_version("numpy"),
        kdad_bench=__version__,
        platform=platform.platform(),
        git_commit=commit,
        git_dirty=dirty,
    )
    drawn = asked.pictures and "://" not in asked.options.out
    return Judged(row, picture(row, test, loaded, scores) if drawn else b"")


def as_kept(scores: Floats) -> tuple[Floats, tuple[str, ...]]:
    """Image scores [N] as a row keeps them, in float32, and a reading where those are ranks: scores of which float32
    would make some equal. Every figure of images follows from their order."""
    if told_apart(scores):
        return scores, ()
    _, ranks = np.unique(scores, return_inverse=True)
    return ranks.astype(np.float32), ("scores: kept as their ranks, as float32 would make some of them equal",)


def picture(row: Row, test: TestSet, loaded: Loaded, scores: Floats) -> bytes:
    """The contact sheet of a row, as the bytes of a PNG file."""
    from kdad_bench.harness.pictures import contact_sheet

    title = f"{row.title} {row.dataset}/{row.category} seed {row.seed} [{EXTERNAL}]"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        contact_sheet(test.images, test.masks, loaded.maps, scores, test.names, path, labels=test.labels,
                      sizes=test.sizes, title=title)  # fmt: skip
        return path.read_bytes()
