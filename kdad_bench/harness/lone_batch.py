"""A last batch of one image whose maps end at one value per channel: batch norm cannot learn from it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from kdad_bench.datasets import single_modalities
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.job import Job, held_out_of, id_of, values_of
from kdad_bench.harness.material import lot_of
from kdad_bench.methods import outside

if TYPE_CHECKING:
    from kdad_bench.methods.backbones.backbone import Backbone
    from kdad_bench.methods.protocol import Method

SMALL = 4  # images up to so many strides wide are looked at: a network may halve the deepest tap once or twice more
TRIED: dict[str, bool] = {}  # hash of a method and its settings -> whether it learns from one image, of this process


def refuse_lone_batches(job: Job) -> None:
    """Raises SelectionError for a job whose training would meet such a batch.

    Only where a batch of one comes up on small images is the method asked, with random weights, by a step on one image.
    """
    if not job.view.plain:  # windows, whose number follows from the files
        return
    where = f"{job.name} on {job.category.dataset}/{job.category.name}"
    refuse_a_lone_batch(job.method, job.settings, learnt_from(job), where)


def refuse_a_lone_batch(method: str, settings: Any, count: int, where: str) -> None:
    """Raises SelectionError, which begins with `where`, if a training on `count` images would meet such a batch."""
    if settings.image_size > SMALL * max(settings.strides) or not has_a_batch_of_one(settings, count):
        return
    if not learns_from_one(method, replace(settings, seed=0)):
        raise SelectionError(
            f"{where}: {count} images in batches of {settings.batch_size} leave one alone, and at "
            f"{settings.image_size} px batch norm gets one value per channel; take another --batch-size or a larger "
            "--image-size"
        )


def learnt_from(job: Job) -> int:
    """How many images the optimiser sees: neither those that the harness holds out nor those that the method does."""
    from kdad_bench.methods.training import parting

    parts = single_modalities(job.category)
    lot = lot_of(job)
    count = len(parts[0].train) if lot is None else len(lot.places) * max(1, len(job.together))
    if lot is None and not parts[0].validation:
        count = parting.learners(count, held_out_of(job))
    return parting.learnt_from(count, job.settings)


def has_a_batch_of_one(settings: Any, count: int) -> bool:
    """Whether a training on `count` images comes to a batch of one image."""
    size = min(settings.batch_size, count)
    if size <= 1:
        return True
    reached = settings.steps is None or settings.steps > count // size
    return count % size == 1 and not getattr(settings, "drop_last", False) and reached


def norms_that_learn(method: Method, teacher: Backbone | None) -> int:
    """How many batch norms a method has beside those of its teacher, which is frozen."""
    from torch.nn.modules.batchnorm import _BatchNorm

    frozen = set() if teacher is None else set(teacher.modules())
    return sum(isinstance(one, _BatchNorm) and one not in frozen for one in method.module.modules())


def learns_from_one(method: str, settings: Any) -> bool:
    """Whether a step on one image of the size in `settings` is possible; each is tried once in a process."""
    key = id_of({"method": method, "settings": values_of(settings)})  # settings may hold lists, which have no hash
    if key not in TRIED:
        TRIED[key] = tried_on_one(method, settings)
    return TRIED[key]


def tried_on_one(method: str, settings: Any) -> bool:
    """The same, found out; a method of ours whose student has no batch norm is taken at its word: a plan must not wait
    for that."""
    import torch

    from kdad_bench.methods import entry
    from kdad_bench.methods.backbones.weights import load_teacher

    found, cpu = entry(method), torch.device("cpu")
    names = {field.name for field in fields(settings)}
    one_step = {"steps": 1, "batch_size": 1, "held_out": 0.0, "compiled": "off", "precision": "fp32"}
    settings = replace(settings, **{name: value for name, value in one_step.items() if name in names})
    side = settings.image_size
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    random = {"strides": settings.strides, "source": "random"}
    teacher = load_teacher(settings.teacher, **random)[0] if found.needs_teacher else None
    built = found.build(settings, teacher, cpu)
    if method not in outside.ADDED and not norms_that_learn(built, teacher):
        return True
    try:
        built.fit(image)
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            return False
        raise
    return True
