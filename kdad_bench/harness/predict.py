"""A saved model on new images: scores, decisions and overlays."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kdad_bench.datasets.decoding import as_rgb, open_image, read_rgb
from kdad_bench.files import write_text_whole, write_whole
from kdad_bench.harness import decision
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.decision import Decision
from kdad_bench.harness.pictures import colours
from kdad_bench.harness.scoring import SCORE_BATCH, as_images, refuse_not_finite, scored
from kdad_bench.harness.selection import device_from
from kdad_bench.methods.checkpoint import load
from kdad_bench.methods.protocol import Method

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
OPACITY = 0.45  # of a map over its image


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What the model says of one image."""

    image: str
    score: float
    anomalous: bool | None  # None without a threshold
    overlay: str | None  # the file of the picture with its map


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """What the model says of all images, and where the threshold came from."""

    model: str
    method: str
    category: str
    threshold: float | None
    threshold_from: str
    images: tuple[Prediction, ...]

    @property
    def as_json(self) -> str:
        """The whole answer as JSON."""
        return json.dumps(asdict(self), indent=2)


class Answer(NamedTuple):
    """One image's score and its map [R, R]."""

    path: Path
    score: float
    heat: NDArray[np.float32]


def image_files(names: Sequence[str]) -> Iterator[Path]:
    """The image files that `names` (files, folders, globs) stand for; SelectionError for one that stands for none."""
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(file) for file in glob.glob(name, recursive=True))
        if not found:
            raise SelectionError(f"{name}: no such image, folder of images, or glob that matches one")
        yield from found


def predict(
    model: Path,
    images: Sequence[str],
    *,
    threshold: float | None = None,
    normals: Path | None = None,
    false_alarms: float = 0.1,
    out: Path | None = None,
    device: str = "auto",
) -> Predictions:
    """Scores and decisions of `images`, and overlays and predictions.json in the folder `out`.

    Raises SelectionError, DatasetError, DecisionError, ModelError or ScoreError, each a ValueError of one line, and
    OSError for an `out` that cannot be written.
    """
    files = list(image_files(images))
    where = torch.device(device_from(device))
    name, method = load(model, where)
    kept = decision.read(model)
    if normals is not None:
        kept = fitted(kept, list(answers(method, name, list(image_files([str(normals)])), kept.resolution, where)))
    limit, origin = threshold_of(kept, threshold, false_alarms)
    found = list(answers(method, name, files, kept.resolution, where))
    peak = max([float(one.heat.max()) for one in found] + [kept.normal_map_peak or 0.0])
    result = Predictions(
        model=str(model),
        method=name,
        category=kept.category,
        threshold=limit,
        threshold_from=origin,
        images=tuple(
            Prediction(
                image=str(one.path),
                score=one.score,
                anomalous=None if limit is None else one.score > limit,
                overlay=None if out is None else write_overlay(one, peak, out / f"{number:04}-{one.path.stem}.png"),
            )
            for number, one in enumerate(found)
        ),
    )
    if out is not None:
        write_text_whole(out / "predictions.json", result.as_json + "\n")
    return result


def fitted(kept: Decision, normals: Sequence[Answer]) -> Decision:
    """`kept` with the scores of other normal images."""
    return replace(
        kept,
        normal_scores=tuple(sorted(one.score for one in normals)),
        normal_map_peak=max(float(one.heat.max()) for one in normals),
    )


def threshold_of(kept: Decision, given: float | None, false_alarms: float) -> tuple[float | None, str]:
    """(threshold or None, where it is from)."""
    if given is not None:
        return given, f"threshold {given:g}, as given"
    if not kept.normal_scores:
        hint = "train with `run --save-models --hold-out 0.2`, or give --threshold or --normals"
        return None, f"no threshold: the model has no held-out normals; {hint}"
    value = kept.threshold(false_alarms)
    fitted_on = f"fitted on {len(kept.normal_scores)} held-out normals for a false-alarm rate of {false_alarms:g}"
    return value, f"threshold {value:g}, {fitted_on}"


def answers(
    method: Method, name: str, files: Sequence[Path], resolution: int, device: torch.device
) -> Iterator[Answer]:
    """Score and map of each file, decoded as the harness decodes its data sets."""
    for start in range(0, len(files), SCORE_BATCH):
        chunk = files[start : start + SCORE_BATCH]
        pixels = np.stack([read_rgb(path, resolution)[0] for path in chunk])
        scores = scored(method, as_images(pixels, device), SCORE_BATCH, name)
        refuse_not_finite(scores, [str(path) for path in chunk], name)
        yield from map(Answer, chunk, scores.image.tolist(), scores.pixel.cpu().numpy())


def write_overlay(answer: Answer, peak: float, target: Path) -> str:
    """Write the image with its map over it to the PNG file `target`; returns its name.

    Colours run from 0 to `peak`, the highest value of any map of this call and of the held-out normals, so that
    pictures compare and a normal image does not glow.
    """
    picture = as_rgb(open_image(answer.path), answer.path)
    layer = Image.fromarray(colours(answer.heat, 0.0, peak)).resize(picture.size, Image.Resampling.BILINEAR)
    blended = Image.blend(picture, layer, OPACITY)
    write_whole(target, lambda temporary: blended.save(temporary, format="PNG"))
    return str(target)
