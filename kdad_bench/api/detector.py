"""`kdad_bench.Detector`: one method on images of one's own: fit, save, load, predict."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdad_bench.api.images import Images
from kdad_bench.api.keywords import fields_of, keywords, on_this_machine, said_as_keywords
from kdad_bench.datasets import SQUASH, DatasetError, copies, held_out
from kdad_bench.harness import decision, exported
from kdad_bench.harness.choices import PRESETS, SelectionError, method_of_a_model
from kdad_bench.harness.decision import Decision, copied_words, floor_of, least_rate, shortfall, supported
from kdad_bench.harness.graphs import graphed, plain
from kdad_bench.harness.job import TeacherWeights
from kdad_bench.harness.lone_batch import refuse_a_lone_batch
from kdad_bench.harness.options import options_from
from kdad_bench.harness.plan import configurations_of
from kdad_bench.harness.run import built
from kdad_bench.harness.scoring import ScoreError, Scorer, decision_from, finite, score_all
from kdad_bench.harness.selection import Selection, selected_for
from kdad_bench.harness.teachers import find, weights_for, with_teachers_at_hand
from kdad_bench.harness.trust import notes_on
from kdad_bench.harness.view import WHOLE, refuse_what_cannot_be_seen
from kdad_bench.harness.windows import sources_of, windowed, windows_of
from kdad_bench.methods import checkpoint
from kdad_bench.methods.protocol import Fitting, Method, ignore_step
from kdad_bench.methods.training.parting import learnt_from

CPU = torch.device("cpu")
NO_CATEGORY = "images of one's own"  # what a saved model says it was fitted on


class NotFitted(ValueError):
    """A detector that has learnt nothing yet; one line with the remedy."""


class Prediction(NamedTuple):
    """What a detector says of N images, in their order."""

    scores: NDArray[np.float32]  # [N], higher is more anomalous
    maps: NDArray[np.float32]  # [N, R, R], at the detector's resolution; [N] objects [h, w] for images of many shapes
    decision: NDArray[np.bool_] | None  # [N], True: anomalous; None without a threshold


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was learnt, and the scores that a threshold comes from."""

    method: Scorer  # a method, or a graph that one was exported as
    decision: Decision


class Detector:
    """A method of this benchmark with its settings, to be fitted on normal images; a run of it gives the same scores.

    `method` is a name, `name:variant` or a file, as `kdad-bench run --method` takes it; every further keyword is one of
    its settings (`steps=100`, `learning_rate=0.1`, `teacher="resnet18"`). `preset` is that of a run on real images
    unless said: paper with CUDA, standard without; quick is for trying things out. `resolution` is the side of maps,
    px; images of another size are reduced to that square, or with `fit="pad"` or `fit="short-side"` so that their
    longer or shorter side is that. With `tile` the method sees tiles of that side, which overlap by at least `overlap`
    px; maps are stitched. `hold_out` is the share of the images that the method does
    not see, from whose scores the threshold comes: at most a share `false_alarms` of new normal images lies above it.
    With `hold_out=0` the method sees all images, and there is no decision. `weights` is a file for the teacher, or
    "random".

    Raises SelectionError, a ValueError of one line, for an unknown method, preset, device or setting.
    """

    def __init__(
        self,
        method: str | os.PathLike[str] = "stfpm",
        *,
        preset: str | None = None,
        device: str = "auto",
        resolution: int | None = None,
        fit: str = SQUASH,
        tile: int | None = None,
        overlap: int | None = None,
        seed: int = 0,
        hold_out: float = 0.2,
        false_alarms: float = 0.1,
        weights: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        self.false_alarms = share("false_alarms", false_alarms, least_is_open=True)
        self.hold_out = share("hold_out", hold_out, least_is_open=False)
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
            raise SelectionError(f"seed={seed!r} is no whole number from 0 on; give one")
        if not isinstance(method, (str, os.PathLike)):
            raise SelectionError(f"method={method!r} is of type {type(method).__name__}; give a name or a file")
        seed = int(seed)
        with said_as_keywords(method="method"):
            asked = {
                "methods": method, "preset": preset, "device": device, "resolution": resolution, "fit": fit,
                "tile": tile, "overlap": overlap, "weights": weights, "settings": settings, "seeds": [seed],
            }  # fmt: skip
            self._options = options_from(fields_of(asked))
            selection = selected_for(self._options, ())
            self.settings, self._needs_teacher = configured_alone(selection)
            self.resolution = selection.resolution or PRESETS[selection.preset].resolution
            refuse_what_cannot_be_seen(selection.view, self.resolution, [selection.methods[0][0]])
        self._selection: Selection | None = selection  # None: loaded, and its settings are the model's
        ((self.method, self.variant),) = selection.methods
        self.preset, self.device, self.seed = selection.preset, torch.device(selection.device), seed
        self.view = selection.view
        self._fitted: Fitted | None = None

    @said_as_keywords(method="method")
    def fit(self, images: Any, *, log: Callable[[int, Mapping[str, float]], object] | None = None) -> Self:
        """Learn from normal images; returns itself. `log(step, terms)` is told the loss terms as it learns.

        `images`: a uint8 array [N, H, W, 3], a list of files, of PIL images or of uint8 arrays, or a torch tensor
        [N, 3, H, W] in [0, 1] (or uint8). Files, PIL images and arrays are reduced to the resolution by Pillow's
        antialiased bilinear resize, as a data set's are; tensors of floats by torch's. A part is held out first: the
        same part, for the same seed and number of images, as in a run.

        Raises ImagesError, SelectionError or DatasetError (ValueErrors) before anything is trained, WeightsError
        without the teacher's weights.
        """
        self._refuse_a_graph("fitted: it learns nothing; make a new Detector")
        if log is not None and not callable(log):
            raise SelectionError(
                f"log={log!r} is not callable; give a function that takes a step and its terms, as print"
            )
        given = Images(images)
        fit, apart = self._split(len(given))
        inner = learnt_from(len(fit), self.settings)
        if self.view.plain:
            refuse_a_lone_batch(self.method, self.settings, inner, f"{self.method} on {len(given)} images")
        weights = self._weights()
        learnt, sources, held, equal = self._brought_to_size(given, fit, apart)
        if equal:
            warnings.warn(copied_words(equal, len(apart)), stacklevel=3)
        method = windowed(built(self.method, self.settings, weights, self.device), self.view, self.resolution)
        method.fit(learnt, Fitting(log=ignore_step if log is None else told(log), sources=sources))
        unseen = score_all(method, held, self.method) if len(held) else None
        kept = decision_from(unseen, category=NO_CATEGORY, resolution=self.resolution, view=self.view, copies=equal)
        self._fitted = Fitted(graphed(method, self.device), kept)
        return self

    @said_as_keywords(method="method")
    def predict(self, images: Any, *, threshold: float | None = None) -> Prediction:
        """Scores, maps and decisions of images, of any kind that `fit` takes; each image is judged for itself.

        A decision is True where the score is above the threshold: the one given, else that of the held-out normals.
        Raises NotFitted, ImagesError, DatasetError for a file that is no readable image, ScoreError for scores that are
        not finite, and DecisionError where no threshold is given and the held-out normals are too few for the rate.
        """
        fitted = self._learnt()
        limit = self.threshold_ if threshold is None else finite_number("threshold", threshold)
        given = Images(images)
        scores, maps, done = [], [], 0
        plain = self.view.plain
        parts = given.parts(self.resolution, self.device)
        for part in parts if plain else given.pictures(self.view, self.resolution, self.device):
            found = score_all(fitted.method, part, self.method)
            sound = finite(found)
            if not bool(sound.all()):
                number = done + int((~sound).nonzero()[0, 0])
                raise ScoreError(f"image {number}: the scores of method '{self.method}' are not finite; fit it again")
            scores.append(found.image.cpu().numpy())
            maps.append(found.pixel.cpu().numpy())
            done += len(part)
        every = np.concatenate(scores)
        return Prediction(every, joined(maps), None if limit is None else decision.above(every, limit))

    @property
    def threshold_(self) -> float | None:
        """The score above which an image is called anomalous; None without held-out normals.

        Raises NotFitted, and DecisionError where these are too few for the rate.
        """
        kept = self._learnt().decision
        if not kept.normal_scores:
            return None
        refuse_too_few(len(kept.normal_scores), self.false_alarms)
        return kept.threshold(self.false_alarms)

    @property
    def false_alarm_floor_(self) -> float | None:
        """The smallest false-alarm rate that n held-out normals can support, 1/(n + 1); None without any."""
        count = len(self._learnt().decision.normal_scores)
        return floor_of(count) if count else None

    @property
    def threshold_notes_(self) -> tuple[str, ...]:
        """What to know of the threshold, in words: what it can promise and, for a model of `run --save-models`, what
        was seen of false alarms on the normal test images and whether they differ from the held-out ones."""
        return notes_on(self._learnt().decision, self.threshold_, self.false_alarms)

    @property
    def normal_scores_(self) -> NDArray[np.float64]:
        """The scores of the held-out normals, ascending."""
        return np.array(self._learnt().decision.normal_scores)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write model.safetensors, model.json and decision.json, as `run --save-models` does; returns the folder.

        `Detector.load` and `kdad-bench predict` read them.
        Raises NotFitted, SelectionError for a URL, for what is no folder and for a folder that holds an exported graph,
        which would go on answering there, and OSError where that cannot be written.
        """
        fitted, place = self._learnt(), on_this_machine(folder)
        if os.path.lexists(place) and not place.is_dir():
            raise SelectionError(f"{place}: is no folder; choose another one")
        self._refuse_a_graph("saved again; copy its folder")
        if os.path.lexists(place / exported.FILE):
            raise SelectionError(f"{place}: holds an exported graph ({exported.FILE}); give another folder")
        checkpoint.save(self.method, cast(Method, plain(fitted.method)), place)
        fitted.decision.write(place)
        return place

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        method: str | os.PathLike[str] | None = None,
        device: str = "auto",
        false_alarms: float | None = None,
    ) -> Detector:
        """The detector that `save`, `run --save-models` or `kdad-bench export` wrote into the folder `model`.

        `method` is the file of its method, where it is in one: code is never loaded because a model names it. `fit`
        learns anew by the model's settings, with its teacher's usual weights; `hold_out`, whose share no model tells,
        is 0.2, or 0 for a model without a threshold. `preset` and `variant` are "": no model tells them either.
        An exported one runs its graph, on the CPU, needs no code of its method, and can neither be fitted nor saved;
        its `settings` are a dict. Without `false_alarms` its rate is that of its export; of others it is 0.1.
        Raises ModelError or DecisionError (ValueErrors) for files that are missing, damaged, of another version or not
        of one save, and for a runtime that is not installed.
        """
        folder = Path(model).expanduser()
        with said_as_keywords(method="method"):
            asked = None if method is None else method_of_a_model(os.fspath(method))
            name, scorer, kept, where = exported.opened(folder, device)
            exported.refuse_other_method(folder, name, asked)
            rate = exported.rate_for(folder, false_alarms)
        if isinstance(scorer, exported.ExportedModel):
            return cls._of_a_graph(name, scorer, kept, exported.read(folder).settings, rate)
        settings = scorer.settings  # type: ignore[attr-defined]  # a method's
        found = cls(name, device=str(where), resolution=kept.resolution, fit=kept.fit, tile=kept.tile,
                    overlap=kept.overlap, seed=settings.seed, false_alarms=rate)  # fmt: skip
        seen = windowed(cast(Method, scorer), found.view, found.resolution)
        found.settings, found._fitted = settings, Fitted(graphed(seen, where), kept)
        found.preset, found._selection = "", None
        found.hold_out = found.hold_out if kept.normal_scores else 0.0
        return found

    @classmethod
    def _of_a_graph(
        cls, name: str, graph: exported.ExportedModel, kept: Decision, settings: Mapping[str, Any], rate: float
    ) -> Detector:
        """The detector of an exported model, whose method need not be known here."""
        found = cls.__new__(cls)
        found.method, found.variant, found.preset, found.settings = name, "", "", settings
        found.device, found.seed, found.resolution, found.view = CPU, settings["seed"], kept.resolution, WHOLE
        found.hold_out, found.false_alarms = 0.0, share("false_alarms", rate, least_is_open=True)
        found._fitted = Fitted(graph, kept)
        return found

    def __repr__(self) -> str:
        name = f"{self.method}:{self.variant}" if self.variant else self.method
        state = "fitted" if self._fitted else "not fitted"
        seen = f", {self.view.label}" if self.view.label else ""
        return f"Detector({name!r}, device={str(self.device)!r}, resolution={self.resolution}{seen}), {state}"

    def _refuse_a_graph(self, what: str) -> None:
        """Raises SelectionError where this is an exported graph, which cannot be `what`."""
        if self._fitted is not None and isinstance(self._fitted.method, exported.ExportedModel):
            raise SelectionError(f"{self!r}: an exported graph cannot be {what}")

    def _split(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices to learn from and to hold out; raises where the threshold could not keep its promise."""
        if not self.hold_out:
            return np.arange(count), np.arange(0)
        try:
            fit, apart = held_out(count, fraction=self.hold_out, seed=self.seed)
        except DatasetError as error:
            raise SelectionError(f"{error}; give more images, or hold_out=0 for no threshold") from error
        refuse_too_few(len(apart), self.false_alarms, f" of {count} images")
        return fit, apart

    def _brought_to_size(
        self, given: Images, fit: NDArray[np.int64], apart: NDArray[np.int64]
    ) -> tuple[Tensor, tuple[int, ...] | None, Any, int]:
        """What the method learns from [K, 3, S, S], of which images these are windows, what is held out, and how much
        of that is a copy."""
        if self.view.plain:
            normal = given.all(self.resolution, self.device)
            return normal[fit], None, normal[apart], copies_among(normal, fit, apart)
        pictures = [one[0] for one in given.pictures(self.view, self.resolution, self.device)]
        learnt, seen = [pictures[k] for k in fit], (self.view, self.resolution)
        held = [pictures[k] for k in apart]
        return windows_of(learnt, *seen), sources_of(learnt, *seen), held, copies_among(pictures, fit, apart)

    def _weights(self) -> TeacherWeights | None:
        """Those of the teacher; None for a method without one."""
        if not self._needs_teacher:
            return None
        if self._selection is None:
            return find(self.settings.teacher, None)
        weights = weights_for(self._selection, self._options)
        self._selection, weights, replaced = with_teachers_at_hand(self._selection, weights, self._options)
        if replaced:
            warnings.warn(keywords(replaced[0]), stacklevel=4)
            self.settings, _ = configured_alone(self._selection)
        return weights[self.settings.teacher]

    def _learnt(self) -> Fitted:
        if self._fitted is None:
            raise NotFitted(f"{self!r}: call fit(images) first, or Detector.load(model)")
        return self._fitted


def configured_alone(selection: Selection) -> tuple[Any, bool]:
    """(settings, whether it needs a teacher) of a selection of one method and one seed; raises SelectionError."""
    ((_, (settings, _, needs_teacher)),) = configurations_of(selection)
    return replace(settings, seed=selection.seeds[0]), needs_teacher


def copies_among(images: Sequence[Tensor] | Tensor, fit: NDArray[np.int64], apart: NDArray[np.int64]) -> int:
    """How many images [3, h, w] of the indices `apart` equal one of `fit`, or another of them, to the last pixel."""
    if not len(apart):
        return 0
    contents = [hashlib.sha256(one.cpu().numpy().tobytes()).digest() for one in images]
    return copies((contents[k] for k in fit), (contents[k] for k in apart))


def joined(maps: Sequence[NDArray[np.float32]]) -> NDArray[Any]:
    """[N, H, W] of parts [n, H, W]; where shapes differ an array [N] of maps."""
    if len({part.shape[1:] for part in maps}) == 1:
        return np.concatenate(maps)
    every = [one for part in maps for one in part]
    found = np.empty(len(every), object)
    found[:] = every
    return found


def finite_number(name: str, value: Any) -> float:
    """`value` if it is a finite number; raises SelectionError."""
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool) or not np.isfinite(value):
        raise SelectionError(f"{name}={value!r} is no finite number; give one")
    return float(value)


def share(name: str, value: Any, *, least_is_open: bool) -> float:
    """`value` if it is a share of images; raises SelectionError."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not 0 <= value < 1 or (least_is_open and not value):
        low = "above 0" if least_is_open else "from 0"
        raise SelectionError(f"{name}={value!r} is no share {low} to below 1; give one")
    return float(value)


def refuse_too_few(count: int, rate: float, of: str = "") -> None:
    """Raises DecisionError where `count` held-out normals cannot promise a false-alarm rate."""
    if not supported(count, rate):
        raise decision.DecisionError(
            f"{shortfall(count, rate, of)}; take false_alarms={least_rate(count):g}, a larger hold_out, "
            "more images, or hold_out=0 for no threshold"
        )


def told(log: Callable[[int, Mapping[str, float]], object]) -> Callable[[int, Mapping[str, float]], None]:
    """`log` as a method calls it."""

    def tell(step: int, terms: Mapping[str, float]) -> None:
        log(step, terms)

    return tell
