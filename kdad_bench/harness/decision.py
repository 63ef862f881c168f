"""From a score to a decision: a threshold from normal images that the model never learnt from."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdad_bench.datasets import SQUASH
from kdad_bench.files import DamagedError, read_json, write_text_whole
from kdad_bench.harness.choices import MOST_SIDE
from kdad_bench.methods.checkpoint import DESCRIPTION, DIGEST

FILE = "decision.json"
SEAL = "sha256"  # in decision.json; older ones, of models without a digest of their weights, have none
REMEDY = "save the model again with `run --save-models`"
EXACT = 2**53  # counts that a float has exactly
MOST_SCORE = 3.5e38  # of a float32
Score = Annotated[float, Field(ge=-MOST_SCORE, le=MOST_SCORE)]


class DecisionError(ValueError):
    """There is nothing to fit a threshold on, or the file that says so is damaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a saved model needs besides its weights: the resolution it was evaluated at and the held-out scores."""

    category: str
    resolution: int  # side in px at which images are given to the model
    fit: str = SQUASH  # how an image comes to that side
    tile: int | None = None  # side of the tiles that it sees, px; None: whole images
    overlap: int | None = None  # of neighbouring windows, px; None: a quarter of one
    normal_scores: tuple[float, ...] = ()  # of held-out normals, ascending
    copies: int = 0  # of those, how many equal an image that was learnt from, or another of them
    normal_map_peak: float | None = None  # the highest map value of held-out normals: colour scales reach at least that
    test_normal_scores: tuple[float, ...] = ()  # of normal test images, ascending: to tell of a threshold, never for it

    def write(self, folder: Path) -> None:
        """Put it beside the model, whole, with a seal that binds it to those weights."""
        content = json.loads(json.dumps(asdict(self)))
        sealed = content | {SEAL: seal_of(content, digest_of_weights(folder))}
        write_text_whole(folder / FILE, json.dumps(sealed, indent=2) + "\n")

    def threshold(self, false_alarms: float, remedy: str = "give --threshold or more --normals, ") -> float:
        """The score above which an image is called anomalous, for a wanted false-alarm rate in (0, 1).

        The conformal quantile: of n held-out normals the ceil((n + 1)(1 - rate))-th smallest score, so that a new
        normal image of the same kind lies above it with a probability of at most `rate` (Vovk et al. 2005). Raises
        DecisionError where n is too small for the rate; `remedy` is one of the ways out that it names.
        """
        n = len(self.normal_scores)
        if n == 0:
            raise DecisionError(
                "the model has no held-out scores to fit a threshold on: "
                "train with `run --save-models --hold-out 0.2`, or give --threshold or --normals"
            )
        if not supported(n, false_alarms):
            raise DecisionError(
                f"{shortfall(n, false_alarms)}; take --false-alarms {least_rate(n):g}, {remedy}or train with a larger "
                "--hold-out"
            )
        return sorted(self.normal_scores)[rank_of(n, false_alarms) - 1]


def rank_of(count: int, false_alarms: float) -> int:
    """Which of `count` held-out scores, from the smallest, is the threshold; more than `count` where none can be.

    The rate is taken as it is written, in decimals: 1 - 0.9 is one tenth here, and 0.3333333333333333 is a third of
    three, as `floor_of` writes it.
    """
    alarms = round(false_alarms * (count + 1))
    if alarms / (count + 1) == false_alarms:
        return max(1, count + 1 - alarms)
    return max(1, math.ceil((count + 1) * (1 - Fraction(str(false_alarms)))))


def supported(count: int, false_alarms: float) -> bool:
    """Whether `count` held-out normals can promise a false-alarm rate."""
    return rank_of(count, false_alarms) <= count


def floor_of(count: int) -> float:
    """The smallest false-alarm rate that `count` held-out normals can promise."""
    return 1 / (count + 1)


def needed_for(false_alarms: float) -> int:
    """How many held-out normals can promise a rate: the least n, one at least, with 1 / (n + 1) at most the rate."""
    count = max(1, math.ceil(1 / Fraction(str(false_alarms))) - 1)
    fewer = count - 1  # enough where the rate is 1 / count as a float writes it
    return fewer if 0 < fewer < EXACT and supported(fewer, false_alarms) else count


def least_rate(count: int) -> float:
    """`floor_of`, rounded up to as many decimals as `count` + 1 has digits, and one more: a rate to ask for."""
    digits = 1 + len(str(count + 1))
    return float(Fraction(math.ceil(Fraction(10**digits, count + 1)), 10**digits))


def percent(share: float, digits: int = 3) -> str:
    """A share as people read it: 5 %, 2.7 %."""
    return f"{100 * share:.{digits}g} %"


def told_apart(one: float, other: float) -> tuple[str, str]:
    """Two shares in percent, with as many digits as tell them apart."""
    pairs = ((percent(one, digits), percent(other, digits)) for digits in range(3, 18))
    return next((pair for pair in pairs if pair[0] != pair[1]), (percent(one), percent(other)))


def shortfall(count: int, false_alarms: float, of: str = "") -> str:
    """Why `count` unseen normal images have no threshold for a rate, in words."""
    asked, least = told_apart(false_alarms, floor_of(count))
    return (
        f"{images(count, 'unseen normal ')}{of} cannot support a {asked} false-alarm rate, {least} at best; "
        f"{needed_for(false_alarms)} would"
    )


def copied_words(copies: int, count: int) -> str:
    """What is wrong with a threshold of `count` held-out normals of which so many are `copies`."""
    are = "is a copy" if copies == 1 else "are copies"
    return (
        f"{copies} of {count} held-out normals {are} of images that are learnt from, or "
        "of one another: a threshold from them need not keep its false-alarm rate; keep one of each image"
    )


def images(count: int, kind: str = "") -> str:
    """So many images, in words."""
    return f"{count} {kind}image{'' if count == 1 else 's'}"


def above(scores: NDArray[np.floating[Any]], limit: float) -> NDArray[np.bool_]:
    """[N] bool: which scores lie above the threshold, compared in double precision."""
    return np.asarray(scores, np.float64) > limit


def read(folder: Path) -> Decision:
    """The decision file of a saved model; raises DecisionError, in one line, if it is missing or damaged."""
    path = folder / FILE
    try:
        content = read_json(path, dict, remedy=REMEDY)
    except OSError as error:
        raise DecisionError(
            f"{path}: cannot be read ({error.strerror}); give a folder under models/ of a run"
        ) from error
    except DamagedError as error:
        raise DecisionError(str(error)) from error
    seal = content.pop(SEAL, None)
    weights = digest_of_weights(folder)
    if (seal is not None or weights is not None) and seal != seal_of(content, weights):
        if seal is None:
            raise DecisionError(f"{path}: damaged ({SEAL} is missing); {REMEDY}")
        raise DecisionError(
            f"{path}: damaged, changed or of another model (its SHA-256 is not the one in it); {REMEDY}"
        )
    try:
        return Written.model_validate_json(json.dumps(content)).decision
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:60]
        value = repr(first["input"])[:60]
        wrong = "is missing" if first["type"] == "missing" else f"is {value}: {first['msg']}"
        said = f"{where} {wrong}"
        if first["type"] == "value_error":  # of fields that do not fit together
            said = str(first["msg"]).removeprefix("Value error, ")
        raise DecisionError(f"{path}: damaged ({said}); {REMEDY}") from error


def digest_of_weights(folder: Path) -> Any:
    """What the model's description says of its weights; None where it says nothing, or cannot be read."""
    try:
        return read_json(folder / DESCRIPTION, dict).get(DIGEST)
    except (OSError, DamagedError):  # whoever loads the model says so
        return None


def seal_of(content: dict[str, Any], weights: Any) -> str:
    """SHA-256 of the fields of a decision and of the `digest_of_weights` beside it."""
    return hashlib.sha256(json.dumps([content, weights], sort_keys=True).encode()).hexdigest()


class Written(BaseModel):
    """What the file may hold."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    category: str = Field(max_length=1000)
    resolution: int = Field(ge=1, le=MOST_SIDE)
    fit: Literal["squash", "short-side", "pad"] = "squash"
    tile: int | None = Field(default=None, ge=1, le=MOST_SIDE)
    overlap: int | None = Field(default=None, ge=0, le=MOST_SIDE)
    normal_scores: tuple[Score, ...]
    copies: int = Field(default=0, ge=0)
    normal_map_peak: Score | None = None
    test_normal_scores: tuple[Score, ...] = ()

    @model_validator(mode="after")
    def _windows_move(self) -> Self:
        """Raises ValueError for tiles that a run refuses: none of the others, or half as wide as they overlap."""
        if self.tile is None:
            if self.overlap is not None:
                raise ValueError("an overlap without tiles")
        elif self.overlap is not None and 2 * self.overlap > self.tile:
            raise ValueError(f"tiles of {self.tile} px that overlap by {self.overlap} px")
        return self

    @property
    def decision(self) -> Decision:
        """The same, as the harness uses it."""
        return Decision(**dict(self))
