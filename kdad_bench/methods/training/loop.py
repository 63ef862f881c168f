"""The one training loop of all student-teacher methods: seeds, batches, budget, precision, held-out selection, log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from math import isfinite
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdad_bench.kernels.sending import sent
from kdad_bench.methods.backbones.folding import channels_last
from kdad_bench.methods.protocol import Fitting, Scores
from kdad_bench.methods.training.ahead import drawn_ahead
from kdad_bench.methods.training.chance import seeded
from kdad_bench.methods.training.course import Course, Drawing
from kdad_bench.methods.training.resume import Progress, fingerprint_of
from kdad_bench.methods.training.settings import DTYPES, SCHEDULES, Batch, DistillationSettings, planned_steps
from kdad_bench.methods.training.teacher import Teacher, cached_taps, chunks
from kdad_bench.methods.training.watching import due, show


class Trainable(Protocol):
    """What the loop needs of a method."""

    settings: Any  # DistillationSettings or more
    device: torch.device
    student: nn.Module
    teacher: Teacher
    reads_teacher: bool
    clean_taps: bool

    def learners(self) -> Sequence[nn.Module]:
        """The modules that `loss` calls and that learn."""
        ...

    def optimiser(self) -> torch.optim.Optimizer:
        """The optimiser of all of the student's parameters."""
        ...

    def progress(self, step: int, total: int) -> float:
        """How far the schedule of the learning rate is in step `step` (from 1), in [0, 1)."""
        ...

    def comparable(self, step: int, total: int) -> bool:
        """Whether the state after `step` may be the one that is kept."""
        ...

    def drawing(self, images: Tensor, total: int) -> Drawing | None:
        """What `loss` draws on the CPU of a fit of `total` steps on `images`, if that may be done beforehand."""
        ...

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """The named terms of the loss of one batch, scalars."""
        ...

    def score(self, images: Tensor) -> Scores:
        """Scores of held-out normals."""
        ...


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast of the networks for `precision`, one of DTYPES."""
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def exactly(device: torch.device) -> AbstractContextManager[None]:
    """Float32 inside, whatever precision a step has; what autocast keeps of weights is of those outside."""
    return torch.autocast(device.type, enabled=False)


@contextmanager
def compiled(modules: Sequence[nn.Module], mode: str) -> Iterator[None]:
    """Inside, `modules` run through torch.compile in `mode`, one of COMPILED.

    Each batch size is compiled for itself: the last batch of an epoch may be smaller.
    """
    if mode == "off":
        yield
        return
    before = [module._compiled_call_impl for module in modules]
    for module in modules:
        module.compile(mode=mode, dynamic=False)
    try:
        yield
    finally:
        for module, call in zip(modules, before, strict=True):
            module._compiled_call_impl = call  # back to what it was; there is no public way


def optimiser_of(parameters: Iterator[nn.Parameter], settings: DistillationSettings) -> torch.optim.Optimizer:
    """The fused optimiser that `settings` name."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimiser == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=settings.momentum, weight_decay=decay, fused=True)
    if settings.optimiser == "adam":
        return torch.optim.Adam(parameters, rate, betas=settings.betas, weight_decay=decay, fused=True)
    return torch.optim.AdamW(parameters, rate, betas=settings.betas, weight_decay=decay, fused=True)


def mark_as_written(optimiser: torch.optim.Optimizer) -> None:
    """Count a step as a write to the parameters that it moved: fused optimisers tell PyTorch nothing of theirs, and an
    inference copy of a network without batch norms, whose statistics move, would be taken for current."""
    moved = [one for group in optimiser.param_groups for one in group["params"] if one.grad is not None]
    torch.autograd.graph.increment_version(moved)


def course_of(settings: DistillationSettings, images: int) -> Course:
    """The course of a fit on `images` normals, held-out ones not counted among them."""
    total, per_epoch = planned_steps(settings, images)
    size = min(settings.batch_size, images)
    return Course(images=images, size=size, per_epoch=per_epoch, total=total, seed=settings.seed)


def distil(method: Trainable, images: Tensor, fitting: Fitting, *, held_out: Tensor | None) -> None:
    """Train `method.student` on `images` by `method.loss` for the budget of its settings; the last state is kept.

    `images` [N, 3, S, S], N > 0, and the normals `held_out` [M, 3, S, S] are on the method's device, at the side that
    its networks see. With the latter, the state of the epoch whose mean map on them is least is kept instead. All
    chance comes from the settings' seed. Raises ValueError, naming the method, for a loss of no such terms;
    FloatingPointError for one that is not finite, CheckpointError for a checkpoint of another fit.
    """
    settings, device, student = method.settings, method.device, method.student
    began = time.perf_counter()
    with seeded(settings.seed, device), compiled(method.learners(), settings.compiled), ExitStack() as processes:
        course = course_of(settings, len(images))
        total = course.total
        with torch.no_grad(), autocast(settings.precision, device):
            if method.teacher.standardise and method.reads_teacher:
                method.teacher.learn_statistics(images)
            cache = cached_taps(method.teacher, images) if method.clean_taps else ()
        optimiser = method.optimiser()
        rates = [group["lr"] for group in optimiser.param_groups]
        scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        seen = [images] if held_out is None else [images, held_out]
        state = Progress(student, optimiser, scaler, fitting, partial(fingerprint_of, settings, *seen), device, began)
        step = state.resume()
        student.train()
        drawing_of = partial(method.drawing, images, total)
        drawn = processes.enter_context(drawn_ahead(drawing_of, course, step, fitting.drawers))
        while step < total:
            step += 1
            chosen = sent(course.chosen(step), device)
            if settings.compiled != "off":  # its CUDA graphs may overwrite what they answered at the step before
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            batch_images = channels_last(images[chosen])
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * SCHEDULES[settings.schedule](method.progress(step, total))
            with autocast(settings.precision, device):
                with torch.no_grad():
                    taps = tuple(tap[chosen] for tap in cache)
                    if method.clean_taps and not cache:
                        taps = method.teacher(batch_images)
                batch = Batch(
                    images=batch_images, teacher=taps, step=step, generator=course.generator(step), total=total,
                    drawn=drawn(step),
                )  # fmt: skip
                terms = method.loss(batch)
            refuse_no_terms(method, terms)
            loss = torch.stack([term.float().reshape(()) for term in terms.values()]).sum()
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimiser)
            scaler.update()
            mark_as_written(optimiser)
            if step % fitting.log_every == 0 or step in (1, total):
                _report(step, terms, loss, fitting)
            if held_out is not None and (step % course.per_epoch == 0 or step == total):
                if method.comparable(step, total):
                    state.keep_if_better(_mean_map(method, held_out))
                student.train()
            if due(step, total, fitting):  # before it is saved: what goes on from there has been watched
                with state.aside():
                    show(method, step, fitting)
            state.save_when_due(step)
        student.eval()
        state.finish()


def refuse_no_terms(method: Trainable, terms: Any) -> None:
    """Raises ValueError where `loss` gave anything but named tensors of one value, one of them with a gradient."""
    where = f"{type(method).__name__}.loss"
    if not isinstance(terms, Mapping) or not terms:
        what = "no term" if isinstance(terms, Mapping) else f"a {type(terms).__name__}"
        raise ValueError(f"{where} gives {what}; give a mapping from names to scalar tensors")
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.numel() != 1:
            what = f"of shape {tuple(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
            raise ValueError(f"{where}: the term {name!r} is {what}; give a scalar tensor")
    if not any(term.requires_grad for term in terms.values()):
        raise ValueError(f"{where}: no term has a gradient ({', '.join(map(str, terms))}); compute it from the student")


def _report(step: int, terms: Mapping[str, Tensor], loss: Tensor, fitting: Fitting) -> None:
    """Tell the log the terms and their sum as floats; FloatingPointError if the sum is none."""
    values = {name: float(term.detach()) for name, term in terms.items()} | {"loss": float(loss.detach())}
    if not isfinite(values["loss"]):
        raise FloatingPointError(f"step {step}: the loss is not finite ({values}); lower the learning rate")
    fitting.log(step, values)


@torch.no_grad()
def _mean_map(method: Trainable, images: Tensor) -> float:
    """The mean of the method's maps of `images`: small where the student has learnt what is normal."""
    method.student.eval()
    means = [method.score(chunk).pixel.double().mean((1, 2)) for chunk in chunks(images, method.settings.batch_size)]
    return float(torch.cat(means).mean())
