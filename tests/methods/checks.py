"""What every method has to satisfy, whatever it is; `tests/wrong` holds methods that these checks reject."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdad_bench.methods.protocol import Method
from tests.methods.toys import auroc, normals, score_all, with_defects

Build = Callable[[], Method]  # an untrained method; each call builds it anew
TOLERANCE = 2e-4  # convolutions of other batch sizes add in another order


def state(method: Method) -> dict[str, Tensor]:
    """A copy of everything with weights."""
    return {key: value.clone() for key, value in method.module.state_dict().items()}


def assert_same_state(before: dict[str, Tensor], after: dict[str, Tensor], what: str) -> None:
    """Bit for bit."""
    assert before.keys() == after.keys()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert not changed, f"{what}: {changed[:3]}"


def answers_have_the_shape_of_the_images(method: Method) -> None:
    """[N] and [N, H, W], float32, finite; images of any size, a single image too."""
    for count, height, width in ((3, 64, 64), (1, 96, 160)):
        scores = method.score(torch.rand(count, 3, height, width))
        assert scores.image.shape == (count,)
        assert scores.pixel.shape == (count, height, width)
        assert scores.image.dtype == scores.pixel.dtype == torch.float32
        assert bool(scores.image.isfinite().all())
        assert bool(scores.pixel.isfinite().all())


def the_teacher_is_never_trained(method: Method) -> None:
    """Its weights and its norms' buffers are the same bits before and after a fit."""
    teacher = getattr(method, "teacher").network  # noqa: B009  # Method knows no teacher; student-teacher methods do
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    method.fit(normals(8, seed=3))
    after = teacher.state_dict()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert not changed, f"the fit changed the teacher: {changed[:3]}"


def scoring_changes_nothing(method: Method) -> None:
    """Neither weights and buffers nor what the method says of images it has scored before."""
    images, _ = with_defects(4, seed=11)
    before = state(method)
    first = method.score(images)
    method.score(torch.rand(8, 3, 64, 64))
    again = method.score(images)
    assert_same_state(before, method.module.state_dict(), "scoring changed the state")
    assert torch.equal(first.pixel, again.pixel), "scores depend on what was scored before"
    assert torch.equal(first.image, again.image), "scores depend on what was scored before"


def scores_do_not_depend_on_the_batch(method: Method) -> None:
    """An image's answer is the same alone, in a batch, and in a batch of other images."""
    images, _ = with_defects(6, seed=12)
    image, pixel = score_all(method, images, batch=6)
    alone_image, alone_pixel = score_all(method, images, batch=1)
    scale = float(pixel.abs().max())
    assert float((pixel - alone_pixel).abs().max()) <= TOLERANCE * scale, "the map depends on the batch"
    assert float((image - alone_image).abs().max()) <= TOLERANCE * float(image.abs().max()), "the score does"


def defects_stand_out(method: Method, *, image: float = 0.8, pixel: float = 0.8) -> None:
    """Image and pixel AUROC of unseen toy images with and without a defect, seed apart from training."""
    bad, masks = with_defects(12, seed=21)
    good = normals(12, seed=22)
    scores, maps = score_all(method, torch.cat([good, bad]))
    labels = torch.arange(24) >= 12
    found = auroc(scores, labels), auroc(maps, torch.cat([torch.zeros_like(masks), masks]))
    assert found[0] >= image, f"image AUROC {found[0]:.3f} < {image}"
    assert found[1] >= pixel, f"pixel AUROC {found[1]:.3f} < {pixel}"


def the_seed_decides_everything(build: Build) -> None:
    """Bit-identical models alone and after other work; the global random state neither matters nor changes."""
    images = normals(8, seed=3)
    torch.manual_seed(1)
    first = build()
    first.fit(images)
    torch.manual_seed(2)
    torch.rand(7)
    before = torch.get_rng_state()
    second = build()
    second.fit(images)
    assert torch.equal(torch.get_rng_state(), before), "building or fitting moved the global random state"
    assert_same_state(state(first), state(second), "the same seed gave another model")
    probe = with_defects(3, seed=5)[0]
    assert torch.equal(first.score(probe).pixel, second.score(probe).pixel), "the same seed gave other maps"
