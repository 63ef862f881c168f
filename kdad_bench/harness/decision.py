"""From a score to a decision: a threshold from normal images that the model never learnt from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from kdad_bench.files import write_text_whole

FILE = "decision.json"


class DecisionError(ValueError):
    """There is nothing to fit a threshold on, or the file that says so is damaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a saved model needs besides its weights: the resolution it was evaluated at and the held-out scores."""

    category: str
    resolution: int  # side in px at which images are given to the model
    normal_scores: tuple[float, ...] = ()  # of held-out normals, ascending
    normal_map_peak: float | None = None  # the highest map value of held-out normals: colour scales reach at least that

    def write(self, folder: Path) -> None:
        """Put it beside the model, whole."""
        write_text_whole(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")

    def threshold(self, false_alarms: float) -> float:
        """The score above which an image is called anomalous, for a wanted false-alarm rate in (0, 1).

        The conformal quantile: of n held-out normals the ceil((n + 1)(1 - rate))-th smallest score, so that a new
        normal image of the same kind lies above it with a probability of at most `rate` (Vovk et al. 2005). Raises
        DecisionError where n is too small for the rate.
        """
        n = len(self.normal_scores)
        if n == 0:
            raise DecisionError(
                "the model has no held-out scores to fit a threshold on: "
                "train with `run --save-models --hold-out 0.2`, or give --threshold or --normals"
            )
        rank = math.ceil((n + 1) * (1 - false_alarms))
        if rank > n:
            raise DecisionError(
                f"{n} held-out normals cannot promise a false-alarm rate of {false_alarms:g}; "
                f"take --false-alarms {math.ceil(1000 / (n + 1)) / 1000:g}, give --threshold or more --normals, "
                "or train with a larger --hold-out"
            )
        return sorted(self.normal_scores)[max(rank, 1) - 1]


def read(folder: Path) -> Decision:
    """The decision file of a saved model; raises DecisionError if it is missing or damaged."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Decision(
            category=str(content["category"]),
            resolution=int(content["resolution"]),
            normal_scores=tuple(float(score) for score in content["normal_scores"]),
            normal_map_peak=content.get("normal_map_peak"),
        )
    except OSError as error:
        raise DecisionError(
            f"{path}: cannot be read ({error.strerror}); give a folder under models/ of a run"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DecisionError(
            f"{path}: not a decision file ({type(error).__name__}: {error}); save the model again"
        ) from error
