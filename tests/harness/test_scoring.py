"""What the harness checks of a method's answer, and what it does when a GPU runs out of memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdad_bench.harness import scoring
from kdad_bench.harness.perform import reason_of
from kdad_bench.harness.scoring import SCORE_BATCH, ScoreError, as_images, batch_invariance, let_go_of, score_all
from kdad_bench.harness.view import SHORT_SIDE, WHOLE, View
from kdad_bench.harness.windows import windowed
from kdad_bench.leaderboard.row import MOST_FLOAT
from kdad_bench.methods.protocol import Scores
from kdad_bench.metrics import MetricError, pixel_metrics
from tests.methods.toys import normals, small_method

METHOD = "some_method"
IMAGES = torch.rand(20, 3, 8, 8)


class Answering:
    """A method that answers with what a function makes of the images."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.settings, self.module = SimpleNamespace(image_size=8), nn.Identity()
        self.batches: list[int] = []

    def score(self, images: Tensor) -> Scores:
        self.batches.append(len(images))
        found: Scores = self.answer(images)
        return found


def honest(images: Tensor) -> Scores:
    return Scores(images.amax((1, 2, 3)), images.mean(1))


def test_scores_come_back_for_all_images_in_order() -> None:
    scores = score_all(Answering(honest), IMAGES, METHOD)  # type: ignore[arg-type]
    assert torch.equal(scores.image, honest(IMAGES).image)
    assert torch.equal(scores.pixel, honest(IMAGES).pixel)


@pytest.mark.parametrize(
    "answer",
    [
        lambda images: Scores(images.amax((1, 2, 3)), images.mean(1)[:, :4]),
        lambda images: Scores(images.amax((1, 2, 3))[:1], images.mean(1)),
        lambda images: Scores(images.amax((1, 2, 3)).double(), images.mean(1)),
        lambda images: Scores(images.amax((1, 2, 3)), images.mean(1).half()),
        lambda images: Scores(images.amax((1, 2, 3)), images.mean(1, keepdim=True)),
        lambda images: Scores(images.amax((1, 2, 3)), images.mean(1).to("meta")),
    ],
    ids=["map of another size", "a score missing", "float64 score", "float16 map", "a channel too many", "no numbers"],
)
def test_an_answer_that_breaks_the_protocol_names_the_method(answer: Any) -> None:
    with pytest.raises(ScoreError, match="method 'some_method'"):
        score_all(Answering(answer), IMAGES, METHOD)  # type: ignore[arg-type]


def test_a_nan_in_a_map_is_an_error_that_names_method_and_image_never_a_number() -> None:
    maps = IMAGES.mean(1)
    maps[7, 3, 3] = torch.nan
    masks = torch.zeros(20, 8, 8, dtype=torch.bool)
    masks[0, :2] = True
    names = [f"{index:03}.png" for index in range(20)]
    with pytest.raises(MetricError, match=r"some_method.*007\.png"):
        pixel_metrics(maps, masks, names=names, method="some_method")


def test_a_gpu_out_of_memory_gets_one_more_try_with_smaller_batches() -> None:
    def tight(images: Tensor) -> Scores:
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(images)

    method = Answering(tight)
    scores = score_all(method, IMAGES, METHOD)  # type: ignore[arg-type]
    assert torch.equal(scores.image, honest(IMAGES).image)
    assert method.batches == [10, *[2] * 10]  # 20 images in two equal batches, at most SCORE_BATCH each


def test_a_gpu_that_stays_out_of_memory_fails_the_job_with_the_reason() -> None:
    def full(images: Tensor) -> Scores:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        score_all(Answering(full), IMAGES, METHOD)  # type: ignore[arg-type]
    assert "Tried to allocate 2.00 GiB" in reason_of(caught.value)


VIEWS = {"whole": WHOLE, "squares": View(tile=8), "pictures": View(fit=SHORT_SIDE)}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_method_that_normalises_over_the_batch_shows_in_the_invariance_column(view: View) -> None:
    def over_the_batch(images: Tensor) -> Scores:
        maps = images.mean(1)
        return Scores(maps.amax((1, 2)), (maps - maps.min()) / (maps.max() - maps.min()))

    images: Any = np.random.default_rng(0).integers(
        0, 256, (6, 3, 8, 16) if view.fit == SHORT_SIDE else (6, 3, 16, 16), np.uint8
    )
    for answer, invariant in ((honest, True), (over_the_batch, False)):
        method = windowed(cast(Any, Answering(answer)), view, 8 if view.fit == SHORT_SIDE else 16)
        pictures = list(images) if view.fit == SHORT_SIDE else images
        scores = score_all(method, pictures, METHOD)
        if invariant:
            assert batch_invariance(method, pictures, scores, METHOD) < 1e-6
            continue
        with pytest.warns(UserWarning, match="its maps depend on the other images of the batch"):
            assert batch_invariance(method, pictures, scores, METHOD) > 1e-3


def test_image_scores_that_are_stretched_over_the_batch_show_in_the_invariance_column_and_in_one_line() -> None:
    def over_the_batch(images: Tensor) -> Scores:
        found = honest(images)
        low = found.image.min()
        return Scores((found.image - low) / (found.image.max() - low) if len(images) > 1 else found.image, found.pixel)

    method: Any = Answering(over_the_batch)
    scores = score_all(method, IMAGES, METHOD)
    with pytest.warns(UserWarning, match="'some_method': its image scores depend on the other images") as said:
        found = batch_invariance(method, IMAGES, scores, METHOD)
    assert len(said) == 1
    assert found == float((honest(IMAGES).image - scores.image)[:4].abs().max()) > 0.1


def test_image_scores_that_differ_by_rounding_alone_are_no_line() -> None:
    def rounded(images: Tensor) -> Scores:
        found = honest(images)
        return Scores(found.image.to(torch.bfloat16).float() if len(images) > 1 else found.image, found.pixel)

    method: Any = Answering(rounded)
    assert 0 < batch_invariance(method, IMAGES, score_all(method, IMAGES, METHOD), METHOD) < 5e-3


@pytest.mark.parametrize("part", ["map", "score"])
@pytest.mark.parametrize("bad", [0, 1, 3])
@pytest.mark.parametrize("tile", [None, 8])
def test_an_image_that_is_finite_only_in_its_batch_ends_in_one_line(tile: int | None, bad: int, part: str) -> None:
    def answer(images: Tensor) -> Scores:
        scores = honest(images)
        if len(images) == 1 and (tile or torch.equal(images[0], IMAGES[bad])):
            (scores.pixel[0, 2] if part == "map" else scores.image)[:] = torch.nan
        return scores

    method = windowed(cast(Any, Answering(answer)), View(tile=tile), 8)
    images = IMAGES.repeat(1, 1, 2, 2) if tile else IMAGES
    scores = score_all(method, images, METHOD)
    assert bool(scoring.finite(scores).all())
    place = rf"^method 'some_method': score or map of image '{0 if tile else bad}\.png' holds a NaN"
    with pytest.raises(ScoreError, match=place):
        batch_invariance(method, images, scores, METHOD, names=[f"{k}.png" for k in range(20)])


def test_maps_may_differ_by_what_float32_holds_no_more() -> None:
    def answer(images: Tensor) -> Scores:
        return Scores(images.amax((1, 2, 3)), torch.full_like(images[:, 0], 3e38 if len(images) > 1 else -3e38))

    method: Any = Answering(answer)
    with pytest.warns(UserWarning, match="its maps depend on the other images"):
        assert batch_invariance(method, IMAGES, score_all(method, IMAGES, METHOD), METHOD) == MOST_FLOAT


@pytest.mark.parametrize("count", [1, 16, 17, 33, 50])
@pytest.mark.parametrize("name", ["pixel_mean", "stfpm", "mkd", "patchcore"])
def test_scores_of_uint8_images_are_those_of_float_images_to_the_last_bit(name: str, count: int) -> None:
    method = small_method(name)
    method.fit(normals(8, seed=2))
    pixels = (normals(count, seed=3) * 255).round().to(torch.uint8).numpy()
    every = as_images(pixels, torch.device("cpu"))
    with torch.inference_mode():  # all of them as float32 at first, cut by torch, put together at the end
        parts = [method.score(chunk) for chunk in torch.chunk(every, max(1, -(-count // SCORE_BATCH)))]
    found = score_all(method, pixels, name)
    assert torch.equal(found.image, torch.cat([part.image for part in parts]))
    assert torch.equal(found.pixel, torch.cat([part.pixel for part in parts]))


def test_uint8_images_come_a_batch_at_a_time_and_maps_lie_in_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[int] = []

    def counted(pixels: Any, device: torch.device) -> Tensor:
        converted.append(len(pixels))
        return as_images(pixels, device)

    monkeypatch.setattr(scoring, "as_images", counted)
    joined = torch.cat
    monkeypatch.setattr(torch, "cat", None)
    pixels = (IMAGES * 255).to(torch.uint8).numpy()
    scores = score_all(Answering(honest), pixels, METHOD)  # type: ignore[arg-type]
    monkeypatch.setattr(torch, "cat", joined)
    assert converted == [10, 10]
    assert scores.pixel.shape == (20, 8, 8)


def test_pages_of_a_mapped_file_leave_the_process_and_their_content_stays(tmp_path: Path) -> None:
    file = tmp_path / "pixels"
    content = np.arange(20 * 3 * 64 * 64, dtype=np.uint32).astype(np.uint8).reshape(20, 3, 64, 64)
    file.write_bytes(content.tobytes())
    mapped = np.memmap(file, np.uint8, "r", shape=content.shape)
    private = np.memmap(file, np.uint8, "c", shape=content.shape)
    private[0] = 7
    for images in (mapped[2:], private, content[:3]):
        let_go_of(images)
    assert np.array_equal(mapped, content)
    assert (private[0] == 7).all()
