"""The one training loop of all student-teacher methods, and the frame a method of that kind fills in.

A method writes its student, its loss and its map; seeds, batches, budget, precision, the frozen teacher, the cache of
its features, the step log, checkpoints and held-out selection are here.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import ceil, cos, isfinite, pi
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.methods.backbones import Attention, Backbone, build
from kdad_bench.methods.backbones.folding import Folded, channels_last
from kdad_bench.methods.protocol import Fitting, Range, Scores, Settings

Taps = tuple[Tensor, ...]
CACHE_BYTES = 4 << 30  # teacher features above this are recomputed per batch; a constant, so that results repeat
CACHE_CHUNK = 32  # images per teacher pass when the cache is filled
LEAST_DEVIATION = 1e-6  # a tap channel that never varies is centred and not scaled
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILED = ("off", "default", "reduce-overhead", "max-autotune")  # torch.compile's modes
SCHEDULES: Mapping[str, Callable[[float], float]] = {  # progress in [0, 1) -> factor of the learning rate
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1.0 + cos(pi * progress)),
    # up over the first tenth, then a cosine down: Smith & Topin 2019 without the momentum cycle
    "one_cycle": lambda progress: (
        0.1 + 9.0 * progress if progress < 0.1 else 0.5 * (1.0 + cos(pi * (progress - 0.1) / 0.9))
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationSettings(Settings):
    """The settings of every method trained by this loop."""

    optimiser: str = "sgd"  # sgd | adam | adamw
    learning_rate: float = 0.4
    momentum: float = 0.9  # sgd
    betas: tuple[float, float] = (0.9, 0.999)  # adam, adamw
    weight_decay: float = 0.0
    schedule: str = "constant"  # of the learning rate: constant | cosine | one_cycle
    norm_momentum: float | None = None  # of the student's batch norms; None: the architecture's own
    taps: str = "raw"  # raw | standardised: per channel over the normal images, before any distance
    drop_last: bool = False  # leave out the incomplete batch at an epoch's end
    # torch.compile of the student's training pass: off | default | reduce-overhead (CUDA graphs) | max-autotune.
    # Off: on a CPU it does not pay (docs/performance.md).
    compiled: str = "off"
    held_out: float = 0.0  # share of the normals that select the epoch kept; 0: the last epoch, all normals

    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {
        **Settings.CHOICES,
        "optimiser": ("sgd", "adam", "adamw"),
        "schedule": tuple(SCHEDULES),
        "taps": ("raw", "standardised"),
        "compiled": COMPILED,
    }
    RANGES: ClassVar[Mapping[str, Range]] = {
        **Settings.RANGES,
        "epochs": Range(1),
        "learning_rate": Range(0, open_low=True),
        "momentum": Range(0, 1),
        "betas": Range(0, 1, open_high=True),
        "weight_decay": Range(0),
        "norm_momentum": Range(0, 1, open_low=True),
        "held_out": Range(0, 0.9),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What a loss sees of one step."""

    images: Tensor  # [B, 3, S, S] float32 in [0, 1], on the device
    teacher: Taps  # the frozen teacher's taps of `images`; () for a method without `clean_taps`
    step: int  # from 1
    generator: torch.Generator  # on the CPU, a function of seed and step: all chance of an augmentation


class CheckpointError(ValueError):
    """A mid-fit checkpoint is of another fit."""


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random state is a function of `seed` inside, and what it was before outside."""
    devices = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    deterministic = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with torch.random.fork_rng(devices=devices):
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        try:
            torch.manual_seed(seed)
            yield
        finally:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic


def chance(seed: int, purpose: str, index: int) -> torch.Generator:
    """A CPU generator that is a function of its three arguments, so that a resumed fit needs no generator's state."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast of the networks for `precision`, one of DTYPES."""
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


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


def resized(images: Tensor, size: int) -> Tensor:
    """Square images of side `size`, antialiased bilinear; unchanged if they are that already."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


class Teacher(nn.Module):
    """The frozen teacher, always in eval mode; its folded copy does the work, its taps are standardised if asked for.

    `network` stays as it was handed in, bit for bit; nothing of a teacher is ever trained.
    """

    def __init__(self, network: Backbone, standardise: bool) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.standardise = standardise
        self.folded = Folded(network)
        for k, channels in enumerate(network.channels):
            self.register_buffer(f"centre{k}", torch.zeros(channels))
            self.register_buffer(f"deviation{k}", torch.ones(channels))

    def train(self, mode: bool = True) -> Teacher:
        """Eval mode whatever is asked for: its batch norms' buffers are frozen too."""
        return super().train(False)

    def forward(self, images: Tensor) -> Taps:
        """Taps of `images` [N, 3, S, S] in [0, 1]; no gradient reaches the teacher's weights, the images' flows."""
        found = []
        for k, tap in enumerate(self.folded(images)):
            if self.standardise:
                centre, deviation = getattr(self, f"centre{k}"), getattr(self, f"deviation{k}")
                tap = (tap - centre.view(-1, 1, 1)) / deviation.view(-1, 1, 1)
            found.append(tap)
        return tuple(found)

    @torch.no_grad()
    def learn_statistics(self, images: Tensor) -> None:
        """Set centre and deviation of every channel from the raw taps of `images` (normals, nothing else)."""
        sums: list[Tensor] = []
        squares: list[Tensor] = []
        counts: list[int] = []
        for chunk in chunks(images, CACHE_CHUNK):
            for k, tap in enumerate(self.folded(chunk)):
                if k == len(sums):
                    sums.append(torch.zeros_like(getattr(self, f"centre{k}"), dtype=torch.float64))
                    squares.append(torch.zeros_like(sums[k]))
                    counts.append(0)
                sums[k] += tap.double().sum((0, 2, 3))
                squares[k] += tap.double().square().sum((0, 2, 3))
                counts[k] += tap.numel() // tap.shape[1]
        for k, (total, square, count) in enumerate(zip(sums, squares, counts, strict=True)):
            mean = total / count
            deviation = (square / count - mean.square()).clamp_min(0).sqrt()
            getattr(self, f"centre{k}").copy_(mean)
            getattr(self, f"deviation{k}").copy_(torch.where(deviation > LEAST_DEVIATION, deviation, 1.0))


def chunks(images: Tensor, size: int) -> Iterator[Tensor]:
    """`images` in order, at most `size` at a time."""
    return (images[start : start + size] for start in range(0, len(images), size))


S = TypeVar("S", bound=DistillationSettings)


class StudentTeacher(Generic[S]):
    """The frame of a student-teacher detector: a method of this kind says what its student, loss and map are.

    `student` holds everything that learns, `teacher` nothing that does. A subclass defines `build_student`, `loss`,
    `networks` and `judge`; `fit` and `score` follow from them.
    """

    settings: S
    clean_taps = True  # whether the loss reads `batch.teacher`; without it the taps are neither computed nor kept

    def __init__(self, settings: S, teacher: Backbone | None, device: torch.device) -> None:
        if teacher is None or teacher.strides != tuple(settings.strides):
            have = "no teacher" if teacher is None else f"strides {teacher.strides}"
            raise ValueError(
                f"{type(self).__name__} needs a teacher with taps at strides {settings.strides}; got {have}"
            )
        self.settings, self.device = settings, device
        self.teacher = Teacher(teacher, settings.taps == "standardised").to(device)
        with seeded(settings.seed, device):
            self.student = self.build_student(teacher)
        if settings.norm_momentum is not None:
            for module in self.student.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = settings.norm_momentum
        self.student = self.student.to(device).eval()
        self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.folded_student = Folded(self.student)
        self.module: nn.Module = nn.ModuleDict({"teacher": self.teacher, "student": self.student})

    def build_student(self, teacher: Backbone) -> nn.Module:
        """Everything that learns, with random weights from torch's global generator (seeded around this call)."""
        raise NotImplementedError(f"{type(self).__name__} builds no student")

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """The named terms of the loss of one batch, scalars; their sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def networks(self, images: Tensor) -> Any:
        """What the networks say of `images` [N, 3, S, S] in [0, 1] at inference: the argument of `judge`."""
        raise NotImplementedError(f"{type(self).__name__} runs no networks")

    def judge(self, outputs: Any, size: tuple[int, int]) -> Scores:
        """Map at `size` and image score from what `networks` returned."""
        raise NotImplementedError(f"{type(self).__name__} gives no scores")

    def learners(self) -> Sequence[nn.Module]:
        """The modules that `loss` calls and that learn: what `settings.compiled` compiles."""
        return (self.student,)

    def optimiser(self) -> torch.optim.Optimizer:
        """The optimiser of all of the student's parameters, from the settings."""
        return optimiser_of(self.student.parameters(), self.settings)

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        """Train the student on `normal` [N, 3, H, W] float32 in [0, 1], images without a defect; then it can score."""
        distil(self, normal, fitting or Fitting())
        self.folded_student.current()  # so that the first image waits for no more than any other

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Scores of `images` [N, 3, H, W] float32 in [0, 1], each independent of the others."""
        size = int(images.shape[-2]), int(images.shape[-1])
        images = channels_last(resized(images.to(self.device), self.settings.image_size))  # once for all networks
        with autocast(self.settings.precision, self.device):
            outputs = self.networks(images)
        return self.judge(outputs, size)


class ChannelAffine(nn.Module):
    """A learnt scale and shift per channel: lets a student that ends in a ReLU answer with negative values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Student(nn.Module):
    """A network of the teacher's architecture with random weights, that sees the images and answers with taps."""

    def __init__(self, teacher: Backbone, *, standardised: bool, attention: Attention | None = None) -> None:
        super().__init__()
        self.network = build(teacher.name, strides=teacher.strides, attention=attention, batch_norm=True)
        shifted = standardised and not teacher.signed
        self.heads = nn.ModuleList(
            ChannelAffine(channels) if shifted else nn.Identity() for channels in teacher.channels
        )

    def forward(self, images: Tensor) -> Taps:
        """Taps of `images` [N, 3, S, S] in [0, 1], shaped as the teacher's."""
        return tuple(head(tap) for head, tap in zip(self.heads, self.network(images), strict=True))


def optimiser_of(parameters: Iterator[nn.Parameter], settings: DistillationSettings) -> torch.optim.Optimizer:
    """The fused optimiser that `settings` name."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimiser == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=settings.momentum, weight_decay=decay, fused=True)
    if settings.optimiser == "adam":
        return torch.optim.Adam(parameters, rate, betas=settings.betas, weight_decay=decay, fused=True)
    return torch.optim.AdamW(parameters, rate, betas=settings.betas, weight_decay=decay, fused=True)


def planned_steps(settings: DistillationSettings, images: int) -> tuple[int, int]:
    """(steps in all, steps per epoch) of a fit on `images` normals, held-out ones not counted among them."""
    size = min(settings.batch_size, images)
    per_epoch = images // size if settings.drop_last else ceil(images / size)
    return (settings.epochs * per_epoch if settings.steps is None else settings.steps), per_epoch


def distil(method: StudentTeacher[Any], normal: Tensor, fitting: Fitting) -> None:
    """Train `method.student` on `normal` by `method.loss` for the budget of its settings; the last state is kept.

    With `held_out`, the state of the epoch whose mean map on the held-out normals is least is kept instead. All chance
    comes from the settings' seed. Raises ValueError for no images, FloatingPointError for a loss that is not finite,
    CheckpointError for a checkpoint of another fit.
    """
    settings, device, student = method.settings, method.device, method.student
    if normal.ndim != 4 or normal.shape[0] == 0:
        raise ValueError(f"fit needs images [N, 3, H, W] with N > 0; got {tuple(normal.shape)}")
    with seeded(settings.seed, device), compiled(method.learners(), settings.compiled):
        images, held_out = _split(resized(normal.to(device), settings.image_size), settings)
        total, per_epoch = planned_steps(settings, len(images))
        with torch.no_grad(), autocast(settings.precision, device):
            if method.teacher.standardise:
                method.teacher.learn_statistics(images)
            cache = _cached_taps(method.teacher, images) if method.clean_taps else ()
        optimiser = method.optimiser()
        rates = [group["lr"] for group in optimiser.param_groups]
        scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        state = _State(student, optimiser, scaler, fitting, _fingerprint(settings, normal, fitting), device)
        step = state.resume()
        student.train()
        while step < total:
            chosen = _batch_of(step, per_epoch, len(images), settings).to(device)
            step += 1
            if settings.compiled != "off":  # its CUDA graphs may overwrite what they answered at the step before
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            batch_images = channels_last(images[chosen])
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * SCHEDULES[settings.schedule]((step - 1) / total)
            with autocast(settings.precision, device):
                with torch.no_grad():
                    taps = tuple(tap[chosen] for tap in cache)
                    if method.clean_taps and not cache:
                        taps = method.teacher(batch_images)
                generator = chance(settings.seed, "augmentation", step)
                terms = method.loss(Batch(images=batch_images, teacher=taps, step=step, generator=generator))
            loss = torch.stack([term.float() for term in terms.values()]).sum()
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimiser)
            scaler.update()
            if step % fitting.log_every == 0 or step in (1, total):
                _report(step, terms, loss, fitting)
            if held_out is not None and (step % per_epoch == 0 or step == total):
                state.keep_if_better(_mean_map(method, held_out))
                student.train()
            state.save_when_due(step)
        student.eval()
        state.finish()


def _split(images: Tensor, settings: DistillationSettings) -> tuple[Tensor, Tensor | None]:
    """(images to learn from, held-out images or None): a seeded share, at least one image on either side."""
    if not settings.held_out:
        return images, None
    if len(images) < 2:
        raise ValueError(f"held_out {settings.held_out} of {len(images)} images: needs two or more")
    count = min(max(round(settings.held_out * len(images)), 1), len(images) - 1)
    order = torch.randperm(len(images), generator=chance(settings.seed, "held out", 0)).to(images.device)
    kept, held_out = order[count:].sort().values, order[:count].sort().values
    return images[kept], images[held_out]


def _cached_taps(teacher: Teacher, images: Tensor) -> Taps:
    """The teacher's taps of all `images`, channels last; () if they would take more than CACHE_BYTES."""
    one = teacher(images[:1])
    if sum(tap.numel() * tap.element_size() for tap in one) * len(images) > CACHE_BYTES:
        return ()
    cache = tuple(
        torch.empty(
            (len(images), *tap.shape[1:]), dtype=tap.dtype, device=tap.device, memory_format=torch.channels_last
        )
        for tap in one
    )
    for start in range(0, len(images), CACHE_CHUNK):
        for whole, part in zip(cache, teacher(images[start : start + CACHE_CHUNK]), strict=True):
            whole[start : start + CACHE_CHUNK] = part
    return cache


def _batch_of(step: int, per_epoch: int, images: int, settings: DistillationSettings) -> Tensor:
    """The images of step `step` (from 0): every epoch is a new order, a function of seed and epoch."""
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(images, generator=chance(settings.seed, "order", epoch))
    size = min(settings.batch_size, images)
    return order[position * size : (position + 1) * size]


def _report(step: int, terms: Mapping[str, Tensor], loss: Tensor, fitting: Fitting) -> None:
    """Tell the log the terms and their sum as floats; FloatingPointError if the sum is none."""
    values = {name: float(term.detach()) for name, term in terms.items()} | {"loss": float(loss.detach())}
    if not isfinite(values["loss"]):
        raise FloatingPointError(f"step {step}: the loss is not finite ({values}); lower the learning rate")
    fitting.log(step, values)


@torch.no_grad()
def _mean_map(method: StudentTeacher[Any], images: Tensor) -> float:
    """The mean of the method's maps of `images`: small where the student has learnt what is normal."""
    method.student.eval()
    means = [method.score(chunk).pixel.double().mean((1, 2)) for chunk in chunks(images, method.settings.batch_size)]
    return float(torch.cat(means).mean())


def _fingerprint(settings: DistillationSettings, normal: Tensor, fitting: Fitting) -> str:
    """What a checkpoint belongs to; only worth its time if there is one."""
    if fitting.checkpoint is None:
        return ""
    digest = hashlib.sha256(f"{settings!r} {tuple(normal.shape)} {normal.dtype}".encode())
    digest.update(normal.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class _State:
    """Everything a fit needs to go on as if it had never stopped, and the file it is kept in."""

    def __init__(
        self,
        student: nn.Module,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        fitting: Fitting,
        fingerprint: str,
        device: torch.device,
    ) -> None:
        self.student, self.optimiser, self.scaler = student, optimiser, scaler
        self.path, self.every, self.fingerprint = fitting.checkpoint, fitting.checkpoint_every_seconds, fingerprint
        self.device, self.saved_at = device, time.monotonic()
        self.best: dict[str, Tensor] | None = None
        self.best_value = float("inf")

    def resume(self) -> int:
        """Load the file if there is one; the number of steps done. A damaged one is dropped with a warning.

        Raises CheckpointError for the checkpoint of another fit.
        """
        if self.path is None or not self.path.exists():
            return 0
        try:
            kept = torch.load(self.path, map_location="cpu", weights_only=True)
            fingerprint = kept["fingerprint"]
        except Exception as error:  # torch.load raises many types on damaged files
            text = f"{self.path}: damaged checkpoint ({type(error).__name__}): the training starts from its beginning"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            self.path.unlink(missing_ok=True)
            return 0
        if fingerprint != self.fingerprint:
            raise CheckpointError(f"{self.path}: the checkpoint of another fit (settings or images differ); delete it")
        self.student.load_state_dict(kept["student"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.scaler.load_state_dict(kept["scaler"])
        self.best, self.best_value = kept["best"], kept["best_value"]
        torch.set_rng_state(kept["rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(kept["cuda_rng"], self.device)
        return int(kept["step"])

    def keep_if_better(self, value: float) -> None:
        """Remember the student's state if `value` is the least so far."""
        if value < self.best_value:
            self.best_value = value
            self.best = {key: tensor.detach().cpu().clone() for key, tensor in self.student.state_dict().items()}

    def save_when_due(self, step: int) -> None:
        """Write the file, whole or not at all, if the last time is long enough ago."""
        if self.path is None or time.monotonic() - self.saved_at < self.every:
            return
        state = {
            "fingerprint": self.fingerprint,
            "step": step,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "best_value": self.best_value,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        write_whole(state, self.path)
        self.saved_at = time.monotonic()

    def finish(self) -> None:
        """Take the best state if states were compared; the file has served."""
        if self.best is not None:
            self.student.load_state_dict(self.best)
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def write_whole(state: Mapping[str, Any], path: Path) -> None:
    """torch.save to a temporary name beside `path`, flushed to disk, then renamed onto it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
