"""The ops by the compiled C++ of cpp/, reached through ctypes; they run on the thread pool torch already has.

Each raises MemoryError where the buffers that it works in cannot be had.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdad_bench.kernels import compiled
from kdad_bench.kernels.reference import blur_weights
from kdad_bench.kernels.torch_path import flat_distance

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
KINDS = {"unit_l2": 0, "cosine": 1, "l2": 2}
FLAT_SUMS, FLAT_GRADIENT, ATTENTION, FLAT_LOSS = 3, 4, 5, 6
ABSENT = (0, 0, 0, 0, 0, 0)

# struct Job of cpp/sweep.h: sizes, teacher, student, map, two gradients, upstream, factor, weight, sums, chained
JOB = struct.Struct("<4q6q6qq6q6q4q2d2q")
# struct Epilogue of cpp/fusion.cpp
EPILOGUE = struct.Struct("<12q8q8q8q")
MOST_MAPS = 8


@cache
def library() -> ctypes.CDLL:
    """`compiled.library`, which then runs on torch's threads; raises compiled.Missing."""
    loaded = compiled.library()
    pool = torch_thread_pool()
    if pool is not None:
        loaded.kdad_use_gomp(pool)
    return loaded


def torch_thread_pool() -> ctypes.c_void_p | None:
    """GOMP_parallel of the OpenMP runtime torch runs on: a second runtime would fight it for the cores."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        file = Path(torch.__file__).parent / "lib" / name
        if file.exists():
            try:
                return ctypes.cast(ctypes.CDLL(str(file)).GOMP_parallel, ctypes.c_void_p)
            except (OSError, AttributeError):
                return None
    return None


@cache
def missing() -> str | None:
    """Why the compiled kernels cannot be used, or None if they can."""
    try:
        library()
    except compiled.Missing as error:
        return str(error)
    return None


def view(t: Tensor) -> tuple[int, ...]:
    """struct View of cpp/sweep.h: address, strides in elements, dtype."""
    return (t.data_ptr(), *t.stride(), DTYPES[t.dtype])


def job(
    teacher: Tensor,
    student: Tensor,
    *,
    out: Tensor | None = None,
    student_grad: Tensor | None = None,
    teacher_grad: Tensor | None = None,
    upstream: Tensor | None = None,
    factor: float = 1.0,
    weight: float = 1.0,
    sums: Tensor | None = None,
    chained: bool = False,
) -> bytes:
    """One struct Job. `upstream` is [N,H,W] or [N] float32 with any strides; `sums` is [N,3] float64."""
    if upstream is None:
        above: tuple[int, ...] = (0, 0, 0, 0)
    elif upstream.dim() == 1:
        above = (upstream.data_ptr(), upstream.stride(0), 0, 0)
    else:
        above = (upstream.data_ptr(), *upstream.stride())
    return JOB.pack(
        *student.shape,
        *view(teacher),
        *view(student),
        0 if out is None else out.data_ptr(),
        *(ABSENT if student_grad is None else view(student_grad)),
        *(ABSENT if teacher_grad is None else view(teacher_grad)),
        *above,
        factor,
        weight,
        0 if sums is None else sums.data_ptr(),
        int(chained),
    )


def floats(*shape: int, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """An uninitialised result that C++ writes: float32 on the CPU, whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=memory_format)


def weighted(factors: Sequence[float], totals: Sequence[float]) -> Tensor:
    """The sum of `totals`, each times its factor, as a scalar on the CPU."""
    return torch.tensor(sum(map(float.__mul__, factors, totals)), dtype=torch.float32, device="cpu")


def sweep(jobs: Sequence[bytes], kind: int) -> list[float]:
    """Run the jobs in one parallel region; returns the sum of the discrepancies of each."""
    totals = (ctypes.c_double * len(jobs))()
    library().kdad_sweep(b"".join(jobs), len(jobs), kind, torch.get_num_threads(), totals)
    return list(totals)


def pixel_maps(
    teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]], kind: str, weight: float
) -> list[list[Tensor]]:
    """Maps [N,H,W] of each student (one or two per scale) to the teacher of its scale, all in one parallel region."""
    maps, jobs = [], []
    for t, several in zip(teachers, students, strict=True):
        n, _, h, w = t.shape
        outs = [floats(n, h, w) for _ in several]
        for i, (s, out) in enumerate(zip(several, outs, strict=True)):
            jobs.append(job(t, s, out=out, weight=weight, chained=i > 0))
        maps.append(outs)
    sweep(jobs, KINDS[kind])
    return maps


def pixel_gradients(
    teacher: Tensor, student: Tensor, upstream: Tensor, kind: str, weight: float, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to (teacher, student) of the map under the upstream gradient [N,H,W] float32."""
    to_teacher = torch.empty_like(teacher) if wants[0] else None
    to_student = torch.empty_like(student) if wants[1] else None
    made = job(teacher, student, student_grad=to_student, teacher_grad=to_teacher, upstream=upstream, factor=weight)
    sweep([made], KINDS[kind])
    return to_teacher, to_student


def pixel_loss(
    teachers: Sequence[Tensor],
    students: Sequence[Sequence[Tensor]],
    kind: str,
    weights: Sequence[float],
    wants: tuple[bool, bool],
) -> tuple[Tensor, list[Tensor | None], list[list[Tensor | None]]]:
    """The loss, and the gradients to teachers and students under an upstream gradient of 1, from one sweep."""
    jobs, factors, to_teachers, to_students = [], [], [], []
    for t, several, w in zip(teachers, students, weights, strict=True):
        factor = w * t.shape[1] / t.numel()
        to_teacher = torch.empty_like(t) if wants[0] else None
        grads = [torch.empty_like(s) if wants[1] else None for s in several]
        for i, (s, grad) in enumerate(zip(several, grads, strict=True)):
            jobs.append(job(t, s, student_grad=grad, teacher_grad=to_teacher, factor=factor, chained=i > 0))
            factors.append(factor)
        to_teachers.append(to_teacher)
        to_students.append(grads)
    totals = sweep(jobs, KINDS[kind])
    return weighted(factors, totals), to_teachers, to_students


def dense_order(tensors: Sequence[Tensor]) -> tuple[int, ...] | None:
    """The order of dimensions in which all `tensors` are contiguous: NCHW, channels_last or None."""
    for order in ((0, 1, 2, 3), (0, 2, 3, 1)):
        if all(x.permute(order).is_contiguous() for x in tensors):
            return order
    return None


def flat_job(
    order: tuple[int, ...] | None,
    teacher: Tensor,
    student: Tensor,
    sums: Tensor,
    grads: Sequence[Tensor | None] = (None, None),
    **more: Any,
) -> bytes:
    """One struct Job of a flattened kind; `grads` to teacher and student.

    Which value is whose channel does not matter there: with an `order`, dense samples become plain rows.
    """

    def rows(x: Tensor) -> Tensor:
        return x if order is None else x.permute(order).reshape(x.shape[0], 1, 1, x.shape[1:].numel())  # a view

    to_teacher, to_student = (None if g is None else rows(g) for g in grads)
    return job(rows(teacher), rows(student), teacher_grad=to_teacher, student_grad=to_student, sums=sums, **more)


def flat_sums(teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    """(A, B, P [N,3] float64, distance [N] float32) of each student (one or two per scale), in one parallel region."""
    jobs, found = [], []
    for t, several in zip(teachers, students, strict=True):
        sums = [torch.zeros((t.shape[0], 3), dtype=torch.float64, device="cpu") for _ in several]
        order = dense_order([t, *several])
        for i, (s, out) in enumerate(zip(several, sums, strict=True)):
            jobs.append(flat_job(order, t, s, out, chained=i > 0))
        found.append(sums)
    sweep(jobs, FLAT_SUMS)
    return [[(out, flat_distance(out)) for out in sums] for sums in found]


def flat_gradients(
    teacher: Tensor, student: Tensor, sums: Tensor, upstream: Tensor, factor: float, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to (teacher, student) of the flattened cosine distance under the upstream gradient [N] float32."""
    to_teacher = torch.empty_like(teacher) if wants[0] else None
    to_student = torch.empty_like(student) if wants[1] else None
    order, grads = dense_order([teacher, student]), (to_teacher, to_student)
    sweep([flat_job(order, teacher, student, sums, grads, upstream=upstream, factor=factor)], FLAT_GRADIENT)
    return to_teacher, to_student


def flat_loss(
    teachers: Sequence[Tensor],
    students: Sequence[Sequence[Tensor]],
    weights: Sequence[float],
    wants: tuple[bool, bool],
) -> tuple[Tensor, list[list[Tensor]], list[Tensor | None], list[list[Tensor | None]]]:
    """The weighted sum of the mean distances, A, B, P of each student, and the gradients to teachers and students.

    The gradients are those under an upstream gradient of 1.
    A thread takes a whole sample, whose second reading then comes from its cache; fewer samples than threads are shared
    out by tiles, in two sweeps.
    """
    jobs, factors, found, to_teachers, to_students = [], [], [], [], []
    for t, several, w in zip(teachers, students, weights, strict=True):
        to_teacher = torch.empty_like(t) if wants[0] else None
        grads = [torch.empty_like(s) if wants[1] else None for s in several]
        sums = [torch.zeros((t.shape[0], 3), dtype=torch.float64, device="cpu") for _ in several]
        order = dense_order([t, *several])
        for i, (s, grad, out) in enumerate(zip(several, grads, sums, strict=True)):
            factors.append(w / t.shape[0])
            jobs.append(flat_job(order, t, s, out, (to_teacher, grad), factor=factors[-1], chained=i > 0))
        found.append(sums)
        to_teachers.append(to_teacher)
        to_students.append(grads)
    if teachers[0].shape[0] >= torch.get_num_threads():
        totals = sweep(jobs, FLAT_LOSS)
    else:
        totals = sweep(jobs, FLAT_SUMS)
        sweep(jobs, FLAT_GRADIENT)
    return weighted(factors, totals), found, to_teachers, to_students


def attention_weighting(teachers: Sequence[Tensor], students: Sequence[Tensor]) -> list[Tensor]:
    """(1 - cos)/2 · student at every scale, in one parallel region."""
    outs = [torch.empty_like(s) for s in students]
    sweep([job(t, s, student_grad=o) for t, s, o in zip(teachers, students, outs, strict=True)], ATTENTION)
    return outs


@lru_cache(64)  # a method may draw a new sigma for every image
def blur_table(sigma: float, radius: int) -> Tensor:
    """The blur's weights in float32."""
    return torch.tensor(blur_weights(sigma, radius), dtype=torch.float32, device="cpu")


def fuse_blur_score(
    maps: Sequence[Tensor],
    size: tuple[int, int],
    mode: str,
    align_corners: bool,
    sigma: float | None,
    radius: int,
    border: str,
    score: str | None,
) -> tuple[Tensor, Tensor | None]:
    """Upsample and fuse the maps, blur unless `sigma` is None, score unless `score` is None, in one parallel region."""
    n = maps[0].shape[0]
    kept = [m.float().contiguous() for m in maps]
    out = floats(n, *size)
    scores = floats(n) if score is not None else None
    weights = None if sigma is None else blur_table(sigma, radius)
    padding = (0,) * (MOST_MAPS - len(kept))
    packed = EPILOGUE.pack(
        n, *size, out.data_ptr(), 0 if scores is None else scores.data_ptr(),
        0 if weights is None else weights.data_ptr(), -1 if weights is None else radius,
        mode == "product", align_corners, border == "torch", score == "mean", len(kept),
        *(m.data_ptr() for m in kept), *padding, *(m.shape[1] for m in kept), *padding,
        *(m.shape[2] for m in kept), *padding,
    )  # fmt: skip
    library().kdad_epilogue(packed, torch.get_num_threads())
    return out, scores


def scale_in_place(grads: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply every gradient by the scalar `factor`."""
    for g in grads:
        g.mul_(factor)


def anomaly_map(
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
) -> tuple[Tensor, Tensor]:
    """The whole map: discrepancies, fusion (at `fuse_size` first, if given), blur, score."""
    maps = [m[0] for m in pixel_maps(teachers, [[s] for s in students], kind, weight)]
    if fuse_size is not None:
        maps = [fuse_blur_score(maps, fuse_size, mode, align_corners, None, 0, border, None)[0]]
    out, scores = fuse_blur_score(maps, size, mode, align_corners, sigma, radius, border, score)
    assert scores is not None
    return out, scores
