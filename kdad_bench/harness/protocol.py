"""The evaluation protocol as one object: the same rules for every method, named by one version in every row."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

PROTOCOL_VERSION = "1"  # goes up when a rule below changes so that a number may change; such rows never share a table


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """What is fixed for all methods. `docs/protocol.md` gives the reasons."""

    version: str = PROTOCOL_VERSION
    # data
    resolution: int = 256  # side of the evaluated maps and masks; a row says so if another was chosen
    image_rule: str = "RGB, antialiased bilinear resize to a square, no crop"
    mask_rule: str = "nearest-neighbour resize, then > 0"
    mask_threshold: float = 0.0
    test_images: str = "all: the good ones count in every image and pixel metric"
    # scores
    image_score_rule: str = "the method's own"
    common_image_score_rule: str = "max"  # of the map; a second column, like for like
    smoothing: str = "the method's own; the harness adds none"
    map_dtype: str = "float32"
    map_normalisation: str = "none: not over a batch, an image, or the test set"
    # metrics
    thresholds: str = "every distinct score; equal scores move together"
    fpr_limits: tuple[float, ...] = (0.3, 0.05)  # AUPRO, linear interpolation at the limit, divided by the limit
    connectivity: int = 8  # of ground-truth regions
    single_class: str = "null: with one class only there is nothing to rank"
    not_finite: str = "error: a NaN or infinite score fails the job"
    # training
    checkpoint: str = "last, of a fixed budget; nothing sees a test label"
    seeding: str = "from the job alone, before the model is built"
    # timing
    latency_batch: int = 1
    throughput_batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    warmup_calls: int = 20
    warmup_seconds: float = 1.0
    timed_calls: int = 200
    timed_seconds: float = 5.0
    spread_limit: float = 0.05  # of a timing over jobs, standard deviation over mean: above it, tables flag it with a ~
    # statistics
    interval: float = 0.95
    significance: float = 0.05

    def as_dict(self) -> dict[str, Any]:
        """Name -> value of every rule, in the order above."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


PROTOCOL = Protocol()
