"""The frame of a detector that trains no network: a frozen teacher's features, and what is remembered of the normals.

A method of this kind writes what it keeps of the normal images' features and how it judges others by that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from kdad_bench.kernels import fuse_scales, gaussian_blur, image_scores
from kdad_bench.methods.backbones import FACTS, Backbone
from kdad_bench.methods.backbones.folding import channels_last
from kdad_bench.methods.protocol import BLURS, WHOLE_IMAGES, Blur, Fitting, Range, Scores, Settings
from kdad_bench.methods.resizing import resized
from kdad_bench.methods.training.chance import seeded
from kdad_bench.methods.training.loop import autocast
from kdad_bench.methods.training.settings import Taps
from kdad_bench.methods.training.teacher import Teacher, chunks


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenSettings(Settings):
    """The settings of every method of this kind; `batch_size` is how many images the teacher sees at a time."""

    epochs: int = 0  # nothing is trained
    taps: str = "raw"  # raw | standardised: per channel over the normal images, before any distance
    sigma: float = 4.0  # of the blur, px of the map; all three papers

    BLUR: ClassVar[Blur | None] = Blur("paper", 4.0, 256)  # their maps are the central 224 of 256 px
    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {**Settings.CHOICES, "taps": ("raw", "standardised")}
    RANGES: ClassVar[Mapping[str, Range]] = {**Settings.RANGES, "sigma": BLURS}
    DEPARTURES: ClassVar[Mapping[str, Callable[[Any], str]]] = {
        "input": lambda settings: f"{WHOLE_IMAGES} at {settings.image_size} px (paper: the central 224 of 256 px)",
        "precision": lambda settings: (
            "" if settings.precision == "fp32" else f"{settings.precision} (public codes: fp32)"
        ),
    }


def pixels(settings: Any, stride: int) -> int:
    """How many pixels the tap at that stride has of an image."""
    return int((-(-settings.image_size // stride)) ** 2)


def channels_of(settings: Any, stride: int) -> int:
    """The channels of that tap; 0 of a teacher that is not known."""
    facts = FACTS.get(settings.teacher)
    return 0 if facts is None else facts.channels.get(stride, 0)


class Kept(nn.Module):
    """What a fit keeps, as buffers whose shapes follow from the data; empty before, and filled by a saved model too."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_buffer(name, torch.empty(0))

    def keep(self, **tensors: Tensor) -> None:
        """Replace the buffers."""
        for name, tensor in tensors.items():
            self.get_buffer(name)  # AttributeError for a name that is none
            setattr(self, name, tensor)

    @property
    def empty(self) -> bool:
        """Whether nothing was learnt yet."""
        return any(buffer.numel() == 0 for buffer in self.buffers())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        """Take the shapes of the saved tensors, then load as any module."""
        for name, buffer in list(self.named_buffers(recurse=False)):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *others)


S = TypeVar("S", bound=FrozenSettings)


class FrozenFeatures(Generic[S]):
    """A detector that compares a frozen teacher's features with those of the normal images.

    A subclass defines `build_kept`, `learn` and `judge`; `fit`, `score` and the saved model follow from them.
    """

    settings: S

    def __init__(self, settings: S, teacher: Backbone | None, device: torch.device) -> None:
        if teacher is None or teacher.strides != tuple(settings.strides):
            have = "no teacher" if teacher is None else f"strides {teacher.strides}"
            raise ValueError(
                f"{type(self).__name__} needs a teacher with taps at strides {settings.strides}; got {have}"
            )
        self.settings, self.device = settings, device
        self.teacher = Teacher(teacher, settings.taps == "standardised").to(device)
        self.kept = self.build_kept(teacher).to(device)
        self.module: nn.Module = nn.ModuleDict({"teacher": self.teacher, "kept": self.kept})

    def build_kept(self, teacher: Backbone) -> Kept:
        """The buffers that `learn` fills; raises ValueError for settings that do not fit the teacher."""
        raise NotImplementedError(f"{type(self).__name__} keeps nothing")

    def learn(self, images: Tensor) -> None:
        """Fill the buffers from the normal `images` [N, 3, S, S]; chance comes from the settings' seed alone."""
        raise NotImplementedError(f"{type(self).__name__} learns nothing")

    def judge(self, outputs: Taps, size: tuple[int, int]) -> Scores:
        """Map at `size` and image score of float32 taps; only called once something was learnt."""
        raise NotImplementedError(f"{type(self).__name__} gives no scores")

    @torch.no_grad()
    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        """Learn from `normal` [N, 3, H, W] float32 in [0, 1]; one pass of the teacher, no optimiser step."""
        if normal.ndim != 4 or normal.shape[0] == 0:
            raise ValueError(f"fit needs images [N, 3, H, W] with N > 0; got {tuple(normal.shape)}")
        with seeded(self.settings.seed, self.device):
            images = resized(normal.to(self.device), self.settings.image_size)
            if self.teacher.standardise:
                with autocast(self.settings.precision, self.device):
                    self.teacher.learn_statistics(images)
            self.learn(images)

    def taps_of(self, images: Tensor) -> Iterator[Taps]:
        """The float32 taps of `images`, a batch at a time, in order."""
        for chunk in chunks(images, self.settings.batch_size):
            yield self._taps(channels_last(chunk))

    def _taps(self, images: Tensor) -> Taps:
        with autocast(self.settings.precision, self.device):
            taps = self.networks(images)
        return tuple(tap.float() for tap in taps)

    def gathered(self, images: Tensor, features: Callable[[Taps], Sequence[Tensor]]) -> list[Tensor]:
        """`features` [n, ...] of the taps of each batch, each kind in one tensor [N, ...]; one batch more of memory."""
        whole: list[Tensor] = []
        start = 0
        for taps in self.taps_of(images):
            parts = features(taps)
            whole = whole or [part.new_empty(len(images), *part.shape[1:]) for part in parts]
            for target, part in zip(whole, parts, strict=True):
                target[start : start + len(part)] = part
            start += len(parts[0])
        return whole

    def networks(self, images: Tensor) -> Taps:
        """The teacher's taps, all that is run of networks."""
        taps: Taps = self.teacher(images)
        return taps

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Scores of `images` [N, 3, H, W] float32 in [0, 1], each independent of the others; zeros before any fit."""
        size = int(images.shape[-2]), int(images.shape[-1])
        if self.kept.empty:
            nothing = torch.zeros(len(images), *size, device=self.device)
            return Scores(nothing.amax((1, 2)), nothing)
        return self.judge(self._taps(channels_last(resized(images.to(self.device), self.settings.image_size))), size)

    def smoothed(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The sum of `maps` [N, h, w], upsampled bilinearly to `size` and blurred: [N, H, W]."""
        return gaussian_blur(fuse_scales(maps, size), self.settings.sigma)


def with_maximum(pixel: Tensor) -> Scores:
    """Scores whose image score is the map's maximum."""
    return Scores(image_scores(pixel), pixel)
