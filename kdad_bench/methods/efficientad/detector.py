"""EfficientAD: how it learns and what it says of an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import fuse_scales, image_scores, pixel_discrepancies
from kdad_bench.kernels.sending import sent
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.backbones.pdn import LOST, Pdn, through
from kdad_bench.methods.distillation import Batch, StudentTeacher, Taps, autocast, chance
from kdad_bench.methods.drawn_images import drawn_images
from kdad_bench.methods.efficientad.drawing import EfficientAdDrawing, recoloured, sometimes_grey
from kdad_bench.methods.efficientad.networks import Networks, Outputs, enlarged
from kdad_bench.methods.efficientad.settings import PDN, EfficientAdSettings
from kdad_bench.methods.last_layer import solve
from kdad_bench.methods.protocol import Entry, Fitting, Scores
from kdad_bench.methods.training.chance import seeded
from kdad_bench.methods.training.loop import distil, exactly
from kdad_bench.methods.training.parting import drawn_evenly
from kdad_bench.methods.training.settings import planned_steps
from kdad_bench.methods.training.teacher import chunks, deviation_of

LOW, HIGH = 0.9, 0.995  # quantiles of normal maps that become 0 and 0.1
TENTH = 0.1
AT_ONCE = 8  # images, where statistics are taken
ENOUGH = 32  # images that last layers are solved on
LEAST = 1e-6  # of what is divided by


class EfficientAd(StudentTeacher[EfficientAdSettings]):
    """A student errs where a patch is new, and where it does not fit the image that the autoencoder makes of it."""

    clean_taps = False
    images: Tensor | None = None  # those that the fit under way learns from
    boundary = 0  # the last step in which the PDN learns
    kinds: Tensor | None = None  # of these images, as of `Parts`

    def build_student(self, teacher: Backbone) -> nn.Module:
        networks = Networks(self.settings)
        if isinstance(teacher, Pdn):
            networks.descriptor.load_state_dict(teacher.state_dict())
        networks.descriptor.requires_grad_(self.settings.distilled)
        self.reads_teacher = self.settings.distilled
        return networks

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        """Learn PDN, student and autoencoder from most of `normal`, and from the rest what maps are usual."""
        fitting = fitting or Fitting()
        learnt, apart, kinds = self.parted(normal, fitting)
        others = apart.get("validation", learnt)
        total, _ = planned_steps(self.settings, len(learnt))
        self.boundary = self.settings.stages(total).get(PDN, 0)
        self.forget_what_is_usual(LEAST)  # no state without targets is the best on held-out images
        self.images, self.kinds = learnt, kinds
        try:
            finished = fitting.after(lambda method: method.finish(learnt, others))
            distil(self, learnt, finished, held_out=apart.get("held_out"))
            self.finish(learnt, others)
        finally:
            self.images = self.kinds = None

    def finish(self, learnt: Tensor, others: Tensor) -> None:
        """What follows the last step: last layers are solved, and what is usual is learnt from `others`."""
        with seeded(self.settings.seed, self.device):
            if self.settings.solved:
                self.solve_last_layers(self.enough(learnt))
            self.learn_what_is_usual(others)
        self.folded_student.current()

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """The PDN's term up to the boundary, then those of student and autoencoder."""
        images = batch.images if self.images is None else self.images
        if batch.step <= self.boundary:
            return self.descriptors_term(batch, images)
        if batch.step == self.boundary + 1:
            with exactly(self.device):  # autocast would keep the last layer's cast of before it is rescaled
                self.learn_targets(images)
        return self.students_terms(batch)

    def descriptors_term(self, batch: Batch, images: Tensor) -> dict[str, Tensor]:
        """Mean squared difference of the PDN to the teacher's normalised features, of normal and of drawn images."""
        if batch.step == 1:
            self.learn_features(images)
        drawn: Any = batch.drawn or self.own_drawing.for_descriptor(len(batch.images), batch.generator)
        seen = sometimes_grey(torch.cat([batch.images, sent(drawn.pictures, self.device)]), drawn.greys)
        with torch.no_grad():
            target = self.embedding(seen)
        target = (target - self.own.get_buffer("centre")) / self.own.get_buffer("deviation")
        made = self.own.described(self.own.normalised(seen))
        return {"descriptor": F.mse_loss(made.float(), target)}

    def students_terms(self, batch: Batch) -> dict[str, Tensor]:
        """L_hard and the penalty, L_AE and L_STAE of one batch; the autoencoder's images differ in colour."""
        student, images, count = self.own, batch.images, len(batch.images)
        drawn: Any = batch.drawn or self.own_drawing.for_students(count, batch.generator)
        seen = [images, recoloured(images, drawn.changes)]
        if drawn.pictures is not None:
            seen.append(sometimes_grey(sent(drawn.pictures, self.device), drawn.greys))
        seen = [student.normalised(one) for one in seen]
        with torch.no_grad():
            target, other_target = student.described(torch.cat(seen[:2])).float().tensor_split(2)
        answers = student.half_of(torch.cat([seen[0], *seen[2:]]), 0).float()
        made, imitation = student.autoencoder(seen[1]).float(), student.half_of(seen[1], 1).float()
        terms = {
            "hard": hardest((answers[:count] - target).square(), self.settings.hard),
            "autoencoder": F.mse_loss(made, other_target),
            "imitation": F.mse_loss(imitation, made),
        }
        if self.settings.penalty == "drawn":
            terms["penalty"] = answers[count:].square().mean()
        return terms

    def enough(self, images: Tensor) -> Tensor:
        """Those of `images` that last layers are solved on: of several kinds as many of each."""
        if self.kinds is None:
            return images[:ENOUGH]
        return drawn_evenly(images, self.kinds, ENOUGH, self.settings.seed, "last layers")

    @property
    def own(self) -> Networks:
        """The student, as what it is."""
        assert isinstance(self.student, Networks)
        return self.student

    def drawing(self, images: Tensor, total: int) -> EfficientAdDrawing | None:
        """Images of nothing take long to draw, the rest does not."""
        drawing = self.own_drawing
        return drawing if drawing.boundary or drawing.penalised else None

    @property
    def own_drawing(self) -> EfficientAdDrawing:
        """What a step of the fit under way draws."""
        settings = self.settings
        penalised = settings.penalty == "drawn"
        return EfficientAdDrawing(side=settings.image_size, boundary=self.boundary, penalised=penalised)

    def with_drawn(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """`images` and as many drawn ones."""
        drawn = drawn_images(len(images), self.settings.image_size, generator)
        return torch.cat([images, sent(drawn, self.device)])

    def embedding(self, images: Tensor) -> Tensor:
        """The teacher's features [N, features, s, s], s as the PDN's: taps in a row, neighbouring channels averaged."""
        side = self.settings.enlarged * self.settings.image_size
        taps: Taps = self.teacher(enlarged(images, side))
        rest = self.settings.image_size // 4
        whole = torch.cat([enlarged(tap.float(), rest) for tap in taps], 1)
        margin = 0 if self.settings.padding else LOST // 2
        pixels = whole[:, :, margin : rest - margin, margin : rest - margin].permute(0, 2, 3, 1)
        pooled = F.adaptive_avg_pool1d(pixels.flatten(1, 2), self.settings.features)
        return pooled.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def learn_features(self, images: Tensor) -> None:
        """Mean and deviation of every value of the teacher's features, over `images` and as many drawn ones."""
        generator = chance(self.settings.seed, "features", 0)
        parts = chunks(images, AT_ONCE)
        found = moments(self.embedding(self.with_drawn(some, generator)) for some in parts)
        for name, value in zip(("centre", "deviation"), found, strict=True):
            self.own.get_buffer(name).copy_(value[:, None, None])

    @torch.no_grad()
    def learn_targets(self, images: Tensor) -> None:
        """Make the PDN's outputs those of mean 0 and deviation 1 over `images`, by its last layer's weights."""
        student = self.own
        if self.settings.solved and self.settings.distilled:
            solve(student.descriptor[-1], self.described_pairs(self.enough(images)))
        seen = (student.normalised(some) for some in chunks(images, AT_ONCE))
        mean, deviation = moments(student.described(some) for some in seen)
        *_, weight, bias = student.descriptor.parameters()
        weight.div_(deviation[:, None, None, None])
        bias.sub_(mean).div_(deviation)
        self.forget_what_is_usual(1.0)

    def described_pairs(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What the PDN's last layer sees of `images` and as many drawn ones, and the teacher's features."""
        generator, centre = chance(self.settings.seed, "least squares", 0), self.own.get_buffer("centre")
        for some in chunks(images, 1):
            seen = self.with_drawn(some, generator)
            wanted = (self.embedding(seen) - centre) / self.own.get_buffer("deviation")
            yield through(list(self.own.descriptor)[:-1], self.own.normalised(seen)), wanted

    def solve_last_layers(self, images: Tensor) -> None:
        """The autoencoder's for the PDN's outputs, then the student's for those of PDN and autoencoder."""
        own = self.own
        seen = [own.normalised(one) for one in chunks(images, 1)]
        with torch.no_grad(), autocast(self.settings.precision, self.device):
            described = [own.described(x) for x in seen]
            solve(own.autoencoder.last[-1], zip(map(own.autoencoder.hidden, seen), described, strict=True))
            hidden = [through(own.student, x) for x in seen]
            solve(own.halves[0], zip(hidden, described, strict=True))
            solve(own.halves[1], zip(hidden, map(own.autoencoder, seen), strict=True))

    def forget_what_is_usual(self, span: float) -> None:
        """Maps count from 0, in units of `span`."""
        self.own.get_buffer("low").zero_()
        self.own.get_buffer("span").fill_(span)

    @torch.no_grad()
    def learn_what_is_usual(self, images: Tensor) -> None:
        """The quantiles of both maps over all pixels of normal `images`."""
        with autocast(self.settings.precision, self.device):
            found = [torch.stack(self.maps(self.networks(some))) for some in chunks(images, AT_ONCE)]
        values = torch.cat(found, 1).flatten(1).double().cpu().numpy()
        low, high = np.quantile(values, (LOW, HIGH), axis=1)
        self.own.get_buffer("low").copy_(torch.from_numpy(low))
        self.own.get_buffer("span").copy_(torch.from_numpy(high - low).clamp_min(LEAST))

    def networks(self, images: Tensor) -> Outputs:
        found: Outputs = self.folded_student(images)
        return found

    def maps(self, outputs: Outputs) -> list[Tensor]:
        """Mean squared differences [N, s, s]: student and teacher, student and autoencoder."""
        pairs = (outputs.teacher, outputs.autoencoder), (outputs.student, outputs.imitation)
        return pixel_discrepancies(*pairs, kind="l2", weight=1 / self.settings.features)

    def judge(self, outputs: Outputs, size: tuple[int, int]) -> Scores:
        """Both maps so that the quantiles become 0 and 0.1, their mean, upsampled; the image score is the maximum."""
        units = zip(self.maps(outputs), *(self.own.get_buffer(name) for name in ("low", "span")), strict=True)
        combined = torch.stack([TENTH * (one - low) / span for one, low, span in units]).mean(0)
        if not self.settings.padding:
            margins = (LOST // 2,) * 4
            combined = F.pad(combined, margins, "constant" if self.settings.border == "zeros" else "replicate")
        pixel = fuse_scales([combined], size)
        return Scores(image_scores(pixel), pixel)


def hardest(squared: Tensor, share: float) -> Tensor:
    """The mean of the elements of `squared` [N, ...] that are not below their `share`-quantile, of each image alone."""
    values = squared.flatten(1)
    last = values.shape[1] - 1
    count = last + 1 - ceil(share * last - 1e-9)  # the quantile lies between two elements
    return values.topk(count, 1, sorted=False).values.mean()


def moments(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C] float32 of every channel over all `parts` [N, C, h, w]; 1 where nothing varies."""
    found, count = [], 0
    for part in parts:
        values = part.double()
        found.append(torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))]))
        count += part[:, 0].numel()
    mean, square = torch.stack(found).sum(0) / count
    return mean.float(), deviation_of(mean, square).float()


PUBLISHED = {"strides": (4,), "width": 128, "features": 384}  # what a published PDN asks for, whatever the preset

EFFICIENTAD = Entry(
    name="efficientad",
    title="EfficientAD",
    paper="Batzner, Heckler, König, WACV 2024, arXiv 2303.14535",
    presets={
        "paper": EfficientAdSettings(),
        "standard": EfficientAdSettings(
            teacher="resnet18",
            strides=(8, 16),
            initial="he",
            width=32,
            features=128,
            autoencoder=32,
            border="nearest",
            hard=0.9,
            penalty="none",
            distilling=0.6,
            solved=True,
            enlarged=1,
            steps=800,
            learning_rate=2e-3,
            schedule="one_cycle",
        ),
        "quick": EfficientAdSettings(
            teacher="efficientnet_lite0",
            strides=(8, 16),
            image_size=128,
            initial="he",
            width=16,
            features=64,
            autoencoder=16,
            border="nearest",
            hard=0.9,  # this, the rates and the budgets: docs/recipes.md
            penalty="none",
            distilling=0.35,
            solved=True,
            enlarged=1,
            steps=300,
            learning_rate=3e-3,
            schedule="one_cycle",
        ),
    },
    build=EfficientAd,
    variants={
        "small": {"teacher": "pdn_small", "network": "small", **PUBLISHED},
        "medium": {"teacher": "pdn_medium", "network": "medium", **PUBLISHED},
        "distilled": {"teacher": "resnet18", "strides": (8, 16)},
        "padded": {"padding": True},
        "penalised": {"penalty": "drawn"},
    },
)
