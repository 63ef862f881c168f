"""What arguments the ops refuse, the public functions as the registered ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from kdad_bench.kernels import reference

PIXEL_KINDS = ("unit_l2", "cosine", "l2")
KINDS = (*PIXEL_KINDS, "flattened")
MODES = ("sum", "product")
BORDERS = ("scipy", "torch")
RULES = ("max", "mean")


def check(kind: str, kinds: Sequence[str], teacher: Tensor, *students: Tensor) -> None:
    """Raise ValueError unless the tensors are [N,C,H,W] of one shape and device, C >= 1, and `kind` is known."""
    if kind not in kinds:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(kinds)}")
    if teacher.dim() != 4 or teacher.shape[1] == 0:
        raise ValueError(f"features must be [N, C, H, W] with C >= 1; the teacher's are {tuple(teacher.shape)}")
    for student in students:
        if student.shape != teacher.shape or student.device != teacher.device:
            raise ValueError(
                f"teacher and student must agree: {tuple(teacher.shape)} on {teacher.device}, "
                f"{tuple(student.shape)} on {student.device}"
            )


def check_scales(*lists: Sequence[Tensor]) -> None:
    """Raise ValueError unless all lists have the same length, at least 1, and all their tensors are on one device."""
    lengths = [len(taps) for taps in lists]
    if min(lengths) == 0 or len(set(lengths)) > 1:
        raise ValueError(f"teacher and student need the same number of scales, at least one; got {lengths}")
    devices = {tap.device for taps in lists for tap in taps}
    if len(devices) > 1:
        raise ValueError(f"all scales must be on one device; got {', '.join(sorted(map(str, devices)))}")


def check_upstream(upstream: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Raise ValueError unless the gradient `upstream` has this shape and is on the device of `like`."""
    if tuple(upstream.shape) != tuple(shape) or upstream.device != like.device:
        raise ValueError(
            f"an upstream gradient of {tuple(shape)} on {like.device} is needed; "
            f"got {tuple(upstream.shape)} on {upstream.device}"
        )


def check_sums(sums: Tensor, like: Tensor) -> None:
    """Raise ValueError unless `sums` are contiguous [N, 3] float64, as `flattened_cosine` keeps of features `like`."""
    usable = sums.shape == (like.shape[0], 3) and sums.dtype == torch.float64 and sums.is_contiguous()
    if not usable or sums.device != like.device:
        raise ValueError(f"sums must be [{like.shape[0]}, 3] float64 on {like.device}; got {tuple(sums.shape)}")


def check_option(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError unless `value` is known."""
    if value not in known:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")


def check_maps(maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> None:
    """Raise ValueError unless the maps are non-empty [N,h,w] of one batch and device."""
    if not maps:
        raise ValueError("at least one map is needed; got none")
    for m in maps:
        if m.dim() != 3 or 0 in m.shape[1:] or m.shape[0] != maps[0].shape[0] or m.device != maps[0].device:
            raise ValueError(f"maps must be [N, h, w] of one batch and device; got {[tuple(x.shape) for x in maps]}")
    if size is not None:
        check_size("size", size)


def check_size(name: str, size: Sequence[int]) -> None:
    """Raise ValueError unless `size` is (height, width), whole numbers from 1."""
    if len(size) != 2 or min(size) < 1 or any(isinstance(side, float) for side in size):
        raise ValueError(f"{name} must be (height, width), both whole and at least 1; got {size}")


def check_blur(sigma: float, border: str, radius: int | None) -> int:
    """The radius to use; raises ValueError for a sigma that is not positive and finite, a negative radius or an unknown
    border."""
    check_option("border", border, BORDERS)
    if not 0 < sigma < inf:
        raise ValueError(f"sigma must be positive and finite; got {sigma}")
    if radius is not None and radius < 0:
        raise ValueError(f"radius must not be negative; got {radius}")
    return reference.blur_radius(sigma) if radius is None else radius
