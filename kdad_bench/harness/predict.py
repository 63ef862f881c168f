"""A saved model on new images: scores, decisions and overlays. Of all images, one batch at a time is in memory."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kdad_bench.datasets import DatasetError
from kdad_bench.datasets import fitted as fitted_shape
from kdad_bench.datasets.category import printable
from kdad_bench.datasets.decoding import as_rgb, open_image, read_rgb, reduced_rgb
from kdad_bench.datasets.photographs import ANSWERS, Bad, drawn, is_answer, is_drawn, photographs
from kdad_bench.files import refuse_what_is_no_file, write_text_whole, write_whole
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.decision import Decision, floor_of
from kdad_bench.harness.exported import opened, rate_for, refuse_other_method
from kdad_bench.harness.graphs import graphed
from kdad_bench.harness.pictures import colours
from kdad_bench.harness.scoring import ScoreError, Scorer, as_images, batch_for, finite, score_all
from kdad_bench.harness.trust import DARK, darkness, notes_on
from kdad_bench.harness.view import WHOLE, View
from kdad_bench.harness.windows import windowed
from kdad_bench.methods.protocol import Method
from kdad_bench.outside import text_of

OPACITY = 0.45  # of a map over its image
STEM = 50  # letters of an image's name in that of its overlay


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What the model says of one image."""

    image: str
    score: float
    anomalous: bool | None  # None without a threshold
    overlay: str | None  # the file of the picture with its map


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An image that has no score, or no overlay."""

    image: str
    reason: str  # one line that names it


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """What the model says of all images, and where the threshold came from. All text is printable."""

    model: str
    method: str
    category: str
    threshold: float | None
    threshold_from: str
    false_alarm_floor: float | None  # the smallest rate that the normals of the threshold support; None without any
    notes: tuple[str, ...]  # what to know of the threshold, a line each
    images: tuple[Prediction, ...]
    failed: tuple[Failure, ...]
    normals_failed: tuple[Failure, ...]  # of the normals to fit the threshold on
    not_used: tuple[str, ...]  # lines on what was found and is no photograph

    @property
    def as_json(self) -> str:
        """The whole answer as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


class Answer(NamedTuple):
    """One image's score and its map [R, R], or [h, w] where the model keeps proportions."""

    path: Path
    score: float
    heat: NDArray[np.float32]


@dataclass(kw_only=True, slots=True)
class Judge:
    """A loaded model, and what it could not judge."""

    name: str
    method: Scorer
    resolution: int
    device: torch.device
    view: View = WHOLE
    failed: list[Failure] = field(default_factory=list)
    not_used: list[str] = field(default_factory=list)
    brightest: int = -1  # of 255, of all images so far

    @property
    def notes(self) -> tuple[str, ...]:
        """A line where all images so far are nearly black."""
        return (f"all images: {darkness(self.brightest)}",) if 0 <= self.brightest <= DARK else ()

    def answers(self, names: Sequence[str]) -> Iterator[Answer]:
        """Score and map of each photograph that `names` stand for, decoded as the harness decodes its data sets.

        What cannot be read or scored is noted in `failed`. Raises SelectionError where no name stands for anything.
        """
        found = photographs(names)
        self.not_used += found.remarks
        if not found.files and not found.bad:
            raise SelectionError(found.none_of(names))
        for bad in found.bad:
            self.fail(bad)
        yield from self.each(found.files)

    def each(self, files: Sequence[Path]) -> Iterator[Answer]:
        """The answers to files, in batches whose memory is bounded; of many shapes one at a time."""
        batch = batch_for(np.empty((0, self.resolution, self.resolution), np.uint8)) if self.view.plain else 1
        for start in range(0, len(files), batch):
            yield from self.batch(files[start : start + batch])

    def batch(self, files: Sequence[Path]) -> Iterator[Answer]:
        """The answers to a few files."""
        pixels = {path: image for path in files if (image := self.pixels(path)) is not None}
        if not pixels:
            return
        self.brightest = max(self.brightest, *(int(image.max()) for image in pixels.values()))
        try:
            scores = score_all(self.method, as_images(np.stack(list(pixels.values())), self.device), self.name)
        except ScoreError:
            raise
        except Exception as error:  # a method raises anything; it may be of one image
            if len(pixels) > 1:
                for path in pixels:
                    yield from self.batch([path])
                return
            (path,) = pixels
            why = f"method '{self.name}' raises {type(error).__name__}: {' '.join(text_of(error).split())[:200]}"
            self.fail(Bad(path, f"{path}: {why}"))
            return
        sound_ones = finite(scores)
        maps = scores.pixel.cpu().numpy()
        for path, score, heat, sound in zip(pixels, scores.image.tolist(), maps, sound_ones.tolist(), strict=True):
            if sound:
                yield Answer(path, score, heat)
            else:
                why = f"the scores of method '{self.name}' are not finite; train the model again"
                self.fail(Bad(path, f"{path}: {why}"))

    def pixels(self, path: Path) -> NDArray[np.uint8] | None:
        """uint8 [3, R, R], or [3, h, w] of its proportions; None for an image that cannot be read."""
        try:
            if self.view.plain:
                return read_rgb(path, self.resolution)[0]
            picture = as_rgb(open_image(path), path)
            return reduced_rgb(picture, fitted_shape(picture.size, self.resolution, self.view.fit, path))
        except DatasetError as error:
            self.fail(Bad(path, str(error)))
            return None

    def fail(self, bad: Bad) -> None:
        """Note an image that has no answer."""
        self.failed.append(Failure(image=printable(str(bad.path)), reason=printable(bad.why)))


def judge_of(model: Path, device: str) -> tuple[Judge, Decision]:
    """A saved or exported model, which sees images as it did in its run, and its decision.

    Raises ModelError, DecisionError or SelectionError, in one line.
    """
    name, method, kept, where = opened(model, device)
    view = View(fit=kept.fit, tile=kept.tile, overlap=kept.overlap)
    seen = windowed(cast(Method, method), view, kept.resolution)  # no export with windows: `opened` sees to it
    seen = graphed(seen, where)
    return Judge(name=name, method=seen, resolution=kept.resolution, device=where, view=view), kept


def predict(
    model: Path,
    images: Sequence[str],
    *,
    threshold: float | None = None,
    normals: Path | None = None,
    false_alarms: float | None = None,
    out: Path | None = None,
    device: str = "auto",
    method: str | None = None,
) -> Predictions:
    """Scores and decisions of `images`, and overlays and predictions.json in the folder `out`.

    A `method` has to be the model's, which is known by itself unless it is in a file. Without `false_alarms` the rate
    is 0.1, of an exported model that of its export.
    An image that cannot be read is among the `failed`, and the others are scored. Raises SelectionError, DecisionError,
    ModelError or ScoreError, each a ValueError of one line, and OSError for an `out` that cannot be written.
    """
    judge, kept = judge_of(model, device)
    refuse_other_method(model, judge.name, method)
    rate = rate_for(model, false_alarms)
    if out is not None:
        refuse_what_is_not_ours(out / ANSWERS)
    if normals is not None:
        kept = fitted(kept, judge, normals)
    left_out, judge.failed = tuple(judge.failed), []
    limit, origin = threshold_of(kept, threshold, rate, normals)
    unseen = len(kept.normal_scores)
    if out is None:
        found = [prediction(one, limit) for one in judge.answers(images)]
    else:
        found = drawn_over(judge, judge.answers(images), limit, kept.normal_map_peak or 0.0, out)
    result = Predictions(
        model=printable(str(model)),
        method=judge.name,
        category=printable(kept.category),
        threshold=limit,
        threshold_from=origin,
        false_alarm_floor=floor_of(unseen) if unseen else None,
        notes=(*notes_on(kept, limit, None if threshold is not None else rate), *judge.notes),
        images=tuple(found),
        failed=tuple(judge.failed),
        normals_failed=left_out,
        not_used=tuple(judge.not_used),
    )
    if out is not None:
        write_text_whole(out / ANSWERS, result.as_json + "\n")
        clear_of_earlier(out, {one.overlay for one in found})
    return result


def refuse_what_is_not_ours(path: Path) -> None:
    """Raises SelectionError, or OSError for what is no file, where an answer would take the place of something else."""
    refuse_what_is_no_file(path)
    if os.path.lexists(path) and not is_answer(path):
        raise SelectionError(f"{path}: something else is there than an answer of predict; choose another --out")


def free_name(out: Path, numbers: Iterable[int], stem: str) -> Path:
    """The first name of an overlay in `out` at which nothing lies but, maybe, an earlier overlay."""
    names = (out / f"{number:04}-{stem}.png" for number in numbers)
    return next(path for path in names if not os.path.lexists(path) or (is_drawn(path) and not path.is_symlink()))


def clear_of_earlier(out: Path, overlays: Container[str | None]) -> None:
    """Delete the overlays in `out` that an earlier call left and that are not among `overlays` of this one."""
    for path in out.glob("[0-9][0-9][0-9][0-9]*-*.png"):
        if printable(str(path)) not in overlays and not path.is_symlink() and is_drawn(path):
            path.unlink()


def prediction(answer: Answer, limit: float | None) -> Prediction:
    """The answer without its map."""
    anomalous = None if limit is None else answer.score > limit
    return Prediction(image=printable(str(answer.path)), score=answer.score, anomalous=anomalous, overlay=None)


def drawn_over(
    judge: Judge, answers: Iterator[Answer], limit: float | None, peak: float, out: Path
) -> list[Prediction]:
    """The predictions, each with its overlay in `out`; the maps wait in a nameless file until the highest is known.

    An overlay has the number of its image, or, where another file has that name, a later one that is no image's.
    """
    out.mkdir(parents=True, exist_ok=True)
    found, paths, shapes = [], [], []
    with tempfile.TemporaryFile(dir=out) as maps:
        for one in answers:
            peak = max(peak, float(one.heat.max()))
            maps.write(one.heat.astype(np.float32).tobytes())
            found.append(prediction(one, limit))
            paths.append(one.path)
            shapes.append(one.heat.shape)
        maps.seek(0)
        for number, path in enumerate(paths):
            answer = Answer(path, found[number].score, next_map(maps, shapes[number]))
            stem = re.sub(r"[^\w. -]", "_", path.stem)[:STEM]
            try:
                overlay = write_overlay(answer, peak, free_name(out, count(number, len(paths)), stem))
                found[number] = replace(found[number], overlay=overlay)
            except DatasetError as error:  # gone or changed since it was scored
                judge.fail(Bad(path, str(error)))
    return found


def next_map(maps: IO[bytes], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The next map of the file, of that (height, width)."""
    return np.frombuffer(maps.read(4 * math.prod(shape)), np.float32).reshape(shape)


def fitted(kept: Decision, judge: Judge, normals: Path) -> Decision:
    """`kept` with the scores of other normal images, to which its test images say nothing.

    Raises SelectionError if none of them can be scored.
    """
    scores, peak = [], 0.0
    for one in judge.answers([str(normals)]):
        scores.append(one.score)
        peak = max(peak, float(one.heat.max()))
    if not scores:
        raise SelectionError(judge.failed[0].reason)
    return replace(kept, normal_scores=tuple(sorted(scores)), copies=0, normal_map_peak=peak, test_normal_scores=())


def threshold_of(
    kept: Decision, given: float | None, false_alarms: float, normals: Path | None = None
) -> tuple[float | None, str]:
    """(threshold or None, where it is from); `normals`: where the scores of `kept` are from if a person named them."""
    if given is not None:
        return given, f"threshold {given:g}, as given"
    if not kept.normal_scores:
        hint = "train with `run --save-models --hold-out 0.2`, or give --threshold or --normals"
        return None, f"no threshold: the model has no held-out normals; {hint}"
    value = kept.threshold(false_alarms)
    rate = f"for a false-alarm rate of {false_alarms:g}"
    if normals is None:
        return value, f"threshold {value:g}, fitted on {len(kept.normal_scores)} held-out normals {rate}"
    whose = f"{len(kept.normal_scores)} normals of {printable(str(normals))}"
    return value, f"threshold {value:g}, fitted on {whose} {rate}, which holds if the model learnt from none of them"


def write_overlay(answer: Answer, peak: float, target: Path) -> str:
    """Write the image with its map over it to the PNG file `target`; returns its name.

    Colours run from 0 to `peak`, the highest value of any map of this call and of the held-out normals, so that
    pictures compare and a normal image does not glow.
    """
    picture = as_rgb(open_image(answer.path), answer.path)
    layer = Image.fromarray(colours(answer.heat, 0.0, peak)).resize(picture.size, Image.Resampling.BILINEAR)
    blended = Image.blend(picture, layer, OPACITY)
    write_whole(target, lambda temporary: blended.save(temporary, format="PNG", pnginfo=drawn()))
    return printable(str(target))
