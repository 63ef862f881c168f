"""The ops by the compiled C++ of cpp/, reached through ctypes; they run on the thread pool torch already has.

Each raises MemoryError where the buffers that it works in cannot be had.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
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
NONE, RELU, RESIDUAL = range(3)  # what follows an exact norm: y, relu(y), relu(y + identity)
ABSENT = (0, 0, 0, 0, 0, 0)

# struct Job of cpp/sweep.h: sizes, teacher, student, map, two gradients, upstream, factor, weight, sums, chained
JOB = struct.Struct("<4q6q6qq6q6q4q2d2q")
# struct Epilogue of cpp/fusion.cpp
EPILOGUE = struct.Struct("<12q8q8q8q")
MOST_MAPS = 8
WINOGRAD_TILE, WINOGRAD_LANES, WINOGRAD_APART = 4, 16, 16  # results across a tile; channels; of cpp/winograd.cpp
WINOGRAD_TAPS = (WINOGRAD_TILE + 2) ** 2
WEIGHT_TILES = 128  # that the gradient to a weight is summed over at a time


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


def norm_statistics(
    pieces: Iterable[Tensor],
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    running_mean: Tensor,
    running_variance: Tensor,
    momentum: float,
) -> Tensor:
    """[4, C]: mean, biased variance, scale and shift (y = x scale + shift) of a batch norm; moves the running ones.

    `pieces` [M, C], contiguous float32, are the batch together; each is read once, as it comes.
    """
    loaded, values, threads, channels = library(), 0, torch.get_num_threads(), weight.numel()
    sums = torch.zeros(2, channels, dtype=torch.float64, device="cpu")
    first, second = sums.data_ptr(), sums.data_ptr() + 8 * channels
    made = floats(5, channels)  # the four results and a pilot, from which deviations are measured
    found, pilot = made.data_ptr(), made.data_ptr() + 16 * channels
    for piece in pieces:
        if values == 0:
            made[4].copy_(piece[0])
        loaded.kdad_norm_moments(piece.data_ptr(), piece.shape[0], channels, pilot, first, second, threads)
        values += piece.shape[0]
    loaded.kdad_norm_finish(
        values, channels, weight.data_ptr(), bias.data_ptr(), epsilon, pilot, first, second, found,
        running_mean.data_ptr(), running_variance.data_ptr(), momentum,
    )  # fmt: skip
    return made[:4]


def norm_apply(x: Tensor, scale: Tensor, shift: Tensor, low: float, high: float) -> Tensor:
    """clamp(x * scale + shift, low, high) of `x` [N,C,H,W] in channels_last."""
    out, channels = torch.empty_like(x), x.shape[1]
    library().kdad_norm_apply(
        x.data_ptr(), out.data_ptr(), x.numel() // channels, channels, scale.data_ptr(), shift.data_ptr(),
        low, high, torch.get_num_threads(),
    )  # fmt: skip
    return out


def norm_sums(upstream: Tensor, x: Tensor, statistics: Tensor, facts: tuple[float, float, float]) -> Tensor:
    """[7, C]: the gradients to weight and bias, then the five terms of `norm_input_gradient`.

    `upstream` and `x` [N,C,H,W] in channels_last; `statistics` come from `norm_statistics`; `facts` are epsilon,
    low and high.
    """
    channels = statistics.shape[1]
    found = floats(7, channels)
    library().kdad_norm_sums(
        x.data_ptr(), upstream.data_ptr(), x.numel() // channels, channels, statistics.data_ptr(),
        *facts, found.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return found


def norm_input_gradient(
    upstream: Tensor, x: Tensor, terms: Tensor, facts: tuple[float, float, float], out: Tensor
) -> None:
    """Write the gradient to `x`, or to some of its pixels, into `out`, all channels last in memory."""
    channels = terms.shape[1]
    library().kdad_norm_input_gradient(
        x.data_ptr(), upstream.data_ptr(), out.data_ptr(), x.numel() // channels, channels, terms.data_ptr(),
        *facts[1:], torch.get_num_threads(),
    )  # fmt: skip


def depthwise_weight_gradient(
    upstream: Tensor, x: Tensor, size: int, stride: int, top: int, left: int
) -> Tensor | None:
    """Gradient [C,1,K,K] to the weight of a depthwise convolution, channels_last float32; None if it cannot.

    `top` and `left` are the pixels of zero padding before the image.
    """
    n, c, h, w = x.shape
    out = x.new_empty((c, 1, size, size))
    done = library().kdad_depthwise_weight_gradient(
        x.data_ptr(), upstream.data_ptr(), out.data_ptr(), n, h, w, *upstream.shape[2:], c,
        size, stride, top, left, torch.get_num_threads(),
    )  # fmt: skip
    if done < 0:
        raise MemoryError(f"no memory for the sums of {n} images of a depthwise gradient")
    return out if done else None


def exact_norm(
    x: Tensor,
    identity: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    momentum: float,
    running: tuple[Tensor, Tensor],
    kind: int,
    fused: bool,
) -> tuple[Tensor, Tensor]:
    """The answer of `residual.ExactNorm`, and [4, C]: mean, 1 / deviation, scale and shift; moves mean and variance.

    x and identity [N, C, H, W] in channels_last. `fused`: where PyTorch multiplies and adds it rounds once.
    """
    y, channels = torch.empty_like(x), x.shape[1]
    found = floats(4, channels)
    library().kdad_exact_norm(
        x.data_ptr(), 0 if identity is None else identity.data_ptr(), y.data_ptr(), x.numel() // channels, channels,
        weight.data_ptr(), bias.data_ptr(), epsilon, momentum, running[0].data_ptr(), running[1].data_ptr(),
        found.data_ptr(), kind, fused, torch.get_num_threads(),
    )  # fmt: skip
    return y, found


def exact_norm_gradients(
    upstream: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    found: Tensor,
    kind: int,
    fused: bool,
    wanted: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Gradients to x (None unless `wanted`), to identity (None without one), to weight and to bias.

    `y` and `found` are what `exact_norm` gave; all images in channels_last.
    """
    channels = x.shape[1]
    to_x = torch.empty_like(x) if wanted else None
    to_identity = torch.empty_like(x) if kind == RESIDUAL else None
    to_weight, to_bias = floats(channels), floats(channels)
    library().kdad_exact_norm_gradients(
        x.data_ptr(), upstream.data_ptr(), 0 if y is None else y.data_ptr(), x.numel() // channels, channels,
        weight.data_ptr(), found.data_ptr(), 0 if to_x is None else to_x.data_ptr(),
        0 if to_identity is None else to_identity.data_ptr(), to_weight.data_ptr(), to_bias.data_ptr(),
        kind, fused, torch.get_num_threads(),
    )  # fmt: skip
    return to_x, to_identity, to_weight, to_bias


def add_rectified(y: Tensor, other: Tensor) -> Tensor:
    """relu(y + other), written over `y`; both float32 and of one layout."""
    library().kdad_add_rectified(y.data_ptr(), other.data_ptr(), y.numel(), torch.get_num_threads())
    return y


def max_pool(x: Tensor) -> Tensor:
    """Maxima of windows of 3x3 at stride 2 with a border of 1 of `x` [N,C,H,W] in channels_last; NaN wins."""
    n, c, h, w = x.shape
    out = floats(n, c, (h + 1) // 2, (w + 1) // 2, memory_format=torch.channels_last)
    library().kdad_max_pool(x.data_ptr(), out.data_ptr(), n, h, w, c, torch.get_num_threads())
    return out


def winograd_weight(weight: Tensor, *, turned: bool) -> Tensor:
    """What `winograd` takes of `weight` [K, C, 3, 3]; `turned`: for the gradient to the image, from K channels to C."""
    strides = weight.stride()
    outputs, inputs = weight.shape[:2]
    if turned:
        outputs, inputs, strides = inputs, outputs, (strides[1], strides[0], *strides[2:])
    made = floats(WINOGRAD_TAPS, outputs, inputs)
    library().kdad_winograd_pack(
        weight.data_ptr(), outputs, inputs, *strides, turned, made.data_ptr(), torch.get_num_threads()
    )
    return made


def winograd(x: Tensor, transformed: Tensor, bias: Tensor | None, outputs: int, padding: int) -> Tensor:
    """A 3x3 convolution at stride 1 of `x` [N, C, H, W] in channels_last by a `winograd_weight`: [N, outputs, H', W'].

    Its buffers, a few MB, stay with each thread.
    """
    n, inputs, h, w = x.shape
    y = floats(n, outputs, h + 2 * padding - 2, w + 2 * padding - 2, memory_format=torch.channels_last)
    added = None if bias is None else bias.detach().contiguous()
    library().kdad_winograd(
        x.data_ptr(), transformed.data_ptr(), 0 if added is None else added.data_ptr(), y.data_ptr(),
        n, h, w, inputs, outputs, padding, tiles_at_a_time(inputs + outputs), torch.get_num_threads(),
    )  # fmt: skip
    return y


def tiles_at_a_time(channels: int) -> int:
    """How many tiles are transformed and multiplied at a time: as many as the second cache holds beside the weight; of
    a weight that is too large for any cache, so many that it is seldom read."""
    return 12 if channels <= 256 else 6 if channels <= 512 else 48


def winograd_weight_gradient(x: Tensor, upstream: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The gradient to `weight` [K, C, 3, 3], in its layout, of x [N, C, H, W] and upstream [N, K, H', W'], both in
    channels_last."""
    n, inputs, h, w = x.shape
    outputs = len(weight)
    size = inputs * outputs + WEIGHT_TILES * (inputs + outputs) + 3 * WINOGRAD_APART
    spare, made = floats(WINOGRAD_TAPS, size), torch.empty_like(weight)
    library().kdad_winograd_weight(
        x.data_ptr(), upstream.data_ptr(), made.data_ptr(), spare.data_ptr(), n, h, w, inputs, outputs, padding,
        WEIGHT_TILES, *made.stride(), torch.get_num_threads(),
    )  # fmt: skip
    return made
