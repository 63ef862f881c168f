"""What a path of the kernels is: the ops that the C++, Triton and PyTorch implementations share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

Wants = tuple[bool, bool]  # a gradient to the teacher, to the student
Gradients = list[Tensor | None]


class Path(Protocol):
    """The ops that every path has; `reference.py` has their formulas.

    Features are [N, C, H, W] in a dtype of SUPPORTED, maps [N, H, W] float32, all on one device. `students` has one or
    two per scale; `wants` says whether teachers and students get a gradient, and one that nobody wants is None.
    """

    def pixel_maps(
        self, teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]], kind: str, weight: float, /
    ) -> list[list[Tensor]]:
        """The maps of each student to the teacher of its scale, times `weight`."""

    def pixel_gradients(
        self, teacher: Tensor, student: Tensor, upstream: Tensor, kind: str, weight: float, wants: Wants, /
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of a map to (teacher, student) under `upstream` [N, H, W] float32, any strides."""

    def pixel_loss(
        self,
        teachers: Sequence[Tensor],
        students: Sequence[Sequence[Tensor]],
        kind: str,
        weights: Sequence[float],
        wants: Wants,
        /,
    ) -> tuple[Tensor, Gradients, list[Gradients]]:
        """Σ weight · mean of the map, and its gradients to teachers and students under an upstream gradient of 1."""

    def flat_sums(
        self, teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]], /
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """(A, B, P [N, 3] float64, distance [N] float32) of each student, a sample being one vector."""

    def flat_gradients(
        self, teacher: Tensor, student: Tensor, sums: Tensor, upstream: Tensor, factor: float, wants: Wants, /
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the distances to (teacher, student), times `factor`, under `upstream` [N] float32."""

    def attention_weighting(self, teachers: Sequence[Tensor], students: Sequence[Tensor], /) -> list[Tensor]:
        """(1 - cos)/2 · student at every scale, in the student's dtype and layout."""

    def fuse_blur_score(
        self,
        maps: Sequence[Tensor],
        size: tuple[int, int],
        mode: str,
        align_corners: bool,
        sigma: float | None,
        radius: int,
        border: str,
        score: str | None,
        /,
    ) -> tuple[Tensor, Tensor | None]:
        """The maps upsampled to `size` and fused, blurred unless `sigma` is None; scores [N] unless `score` is."""

    def scale_in_place(self, grads: Sequence[Tensor], factor: Tensor, /) -> None:
        """Multiply every gradient by the scalar `factor`."""

    def anomaly_map(
        self,
        teachers: Sequence[Tensor],
        students: Sequence[Tensor],
        size: tuple[int, int],
        kind: str,
        weight: float,
        mode: str,
        align_corners: bool,
        sigma: float | None,
        radius: int,
        border: str,
        score: str,
        fuse_size: tuple[int, int] | None,
        /,
    ) -> tuple[Tensor, Tensor]:
        """The whole map and its scores: discrepancies, fusion (at `fuse_size` first, if given), blur, score."""
