"""From discrepancy maps to an anomaly map: upsample, fuse, blur, score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdad_bench.kernels import dispatch, ready, reference
from kdad_bench.kernels.checks import (
    MODES,
    PIXEL_KINDS,
    RULES,
    check,
    check_blur,
    check_maps,
    check_option,
    check_scales,
    check_size,
)
from kdad_bench.kernels.discrepancy import keep, pixel_discrepancy, plain, wants_gradient
from kdad_bench.kernels.dispatch import uses_reference

MOST_MAPS = 4  # scales that are fused in one launch; more are fused by the reference


def fuse_scales(
    maps: Sequence[Tensor], size: tuple[int, int], *, mode: str = "sum", align_corners: bool = False
) -> Tensor:
    """Upsample every map bilinearly to `size` and add or multiply them; no upsampled scale is held in memory.

    "product" is STFPM's rule (eq. 4), "sum" RD4AD's (eq. 5, with align_corners=True in its code).

    Args:
        maps: [N, h_k, w_k] each.
        size: (H, W) of the result.

    Returns: [N, H, W] float32 (float64 for float64). Differentiable; the backward is the reference's.

    Raises: ValueError for no maps, other ranks, differing batches, an unknown mode or a size below 1.
    """
    check_option("mode", mode, MODES)
    check_maps(maps, size)
    if not plain(*maps):
        traced: Tensor = torch.ops.kdad.fuse_scales(list(maps), list(size), mode, align_corners)
        return traced
    if wants_gradient(*maps) or uses_reference(*maps) or len(maps) > MOST_MAPS:
        return reference.fuse_scales(maps, size, mode=mode, align_corners=align_corners)
    return dispatch.ops_of(maps[0]).fuse_blur_score(maps, size, mode, align_corners, None, 0, "scipy", None)[0]


def gaussian_blur(maps: Tensor, sigma: float = 4.0, *, border: str = "scipy", radius: int | None = None) -> Tensor:
    """Separable Gaussian smoothing of anomaly maps (RD4AD's code: scipy.ndimage.gaussian_filter, sigma 4).

    Args:
        maps: [N, H, W].
        border: "scipy" repeats the edge value (d c b a | a b c d), as scipy's "reflect"; "torch" does not
            (d c b | a b c d), as torch's and kornia's "reflect" and scipy's "mirror". Maps may be smaller than the
            radius.
        radius: where the filter is cut off; int(4·sigma + 0.5) if absent, as scipy.

    Returns: [N, H, W] float32 (float64 for float64). Differentiable; the backward is the reference's.

    Raises: ValueError for other ranks, empty maps, sigma <= 0 or infinite, a negative radius or an unknown border.
    """
    cut = check_blur(sigma, border, radius)
    check_maps([maps])
    if not plain(maps):
        traced: Tensor = torch.ops.kdad.gaussian_blur(maps, sigma, border, cut)
        return traced
    if wants_gradient(maps) or uses_reference(maps):
        return reference.gaussian_blur(maps, sigma, border=border, radius=cut)
    size = (maps.shape[1], maps.shape[2])
    return dispatch.ops_of(maps).fuse_blur_score([maps], size, "sum", False, sigma, cut, border, None)[0]


def image_scores(maps: Tensor, rule: str = "max") -> Tensor:
    """The maximum ("max") or the mean ("mean", FractalAD's code) of each map: [N, H, W] -> [N] float32. Differentiable.

    Raises: ValueError for other ranks, empty maps or an unknown rule.
    """
    check_option("rule", rule, RULES)
    check_maps([maps])
    return reference.image_scores(maps, rule)


def anomaly_map(
    teacher_taps: Sequence[Tensor],
    student_taps: Sequence[Tensor],
    size: tuple[int, int],
    *,
    kind: str = "unit_l2",
    weight: float = 1.0,
    mode: str = "sum",
    align_corners: bool = False,
    sigma: float | None = None,
    border: str = "scipy",
    score: str = "max",
    fuse_size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features of every scale in, anomaly map and image scores out: two launches on a GPU, as a rule.

    The discrepancies of all scales, bilinear upsampling and fusion, an optional Gaussian blur, the image score.

    Args:
        teacher_taps, student_taps: one [N, C_k, H_k, W_k] per scale, as for `pixel_discrepancy`.
        size: (H, W) of the map.
        kind, weight: as for `pixel_discrepancy`; the weight applies at each scale.
        mode, align_corners: as for `fuse_scales`.
        sigma, border: as for `gaussian_blur`; no blur if sigma is None.
        score: as `rule` of `image_scores`, taken after the blur.
        fuse_size: fuse at this size first, then upsample to `size` (STFPM's code fuses at 64 x 64).

    Returns: map [N, H, W] float32, scores [N] float32. Differentiable (op by op) when an input requires a gradient.

    Raises: ValueError as those functions do.
    """
    taps = [*teacher_taps, *student_taps]
    at = None if fuse_size is None else tuple(fuse_size)
    asked = tuple(size), kind, weight, mode, align_corners, sigma, border, score, at, len(teacher_taps)
    key = ready.alike(asked, taps)
    if (answered := ready.answer("whole_map", key, taps)) is not None:
        kept: tuple[Tensor, Tensor] = answered
        return kept
    check_scales(teacher_taps, student_taps)
    for t, s in zip(teacher_taps, student_taps, strict=True):
        check(kind, PIXEL_KINDS, t, s)
    check_option("mode", mode, MODES)
    check_option("score", score, RULES)
    check_size("size", size)
    if fuse_size is not None:
        check_size("fuse_size", fuse_size)
    cut = 0 if sigma is None else check_blur(sigma, border, None)
    traced = not plain(*taps)
    if not traced and len({t.shape[0] for t in teacher_taps}) > 1:
        raise ValueError(
            f"all scales must be of one batch; got {', '.join(str(t.shape[0]) for t in teacher_taps)} images"
        )
    options: dict[str, Any] = {"mode": mode, "sigma": sigma, "border": border, "align_corners": align_corners}
    options |= {"kind": kind, "weight": weight, "score": score, "fuse_size": fuse_size}
    if not traced and uses_reference(*taps):
        return reference.anomaly_map(teacher_taps, student_taps, size, **options)
    if traced or wants_gradient(*taps) or len(teacher_taps) > MOST_MAPS:
        return op_by_op(teacher_taps, student_taps, size, **options)
    smallest = [(t.shape[2], t.shape[3]) for t in teacher_taps]
    if min(map(min, smallest)) < 1:
        raise ValueError(f"maps must have at least one pixel; got {smallest}")
    rest = kind, weight, mode, align_corners, sigma, cut, border, score, fuse_size
    made = dispatch.ops_of(teacher_taps[0]).anomaly_map(teacher_taps, student_taps, size, *rest)
    keep("whole_map", key, taps, len(teacher_taps), size, *rest)
    return made


def op_by_op(
    teacher_taps: Sequence[Tensor],
    student_taps: Sequence[Tensor],
    size: tuple[int, int],
    *,
    kind: str,
    weight: float,
    mode: str,
    align_corners: bool,
    sigma: float | None,
    border: str,
    score: str,
    fuse_size: tuple[int, int] | None,
) -> tuple[Tensor, Tensor]:
    """`anomaly_map` by the other public functions, each of them differentiable and traceable."""
    pairs = zip(teacher_taps, student_taps, strict=True)
    maps = [pixel_discrepancy(t, s, kind=kind, weight=weight) for t, s in pairs]
    fused = fuse_scales(maps, fuse_size or size, mode=mode, align_corners=align_corners)
    if fuse_size is not None:
        fused = fuse_scales([fused], size, align_corners=align_corners)
    if sigma is not None:
        fused = gaussian_blur(fused, sigma, border=border)
    return fused, image_scores(fused, score)
