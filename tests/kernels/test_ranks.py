"""The pixel metrics by Triton's kernels are those that are counted on a CPU."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kdad_bench.kernels import dispatch, ranks_triton
from kdad_bench.metrics import MetricError, device, pixel_metrics, region_index
from kdad_bench.metrics.device import pixel_metrics_on_device
from tests.metrics.metric_cases import case, cases

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "_told", set())
    monkeypatch.setattr(dispatch, "_broken", {})


def agree(maps: np.ndarray, masks: np.ndarray) -> None:
    found = pixel_metrics_on_device(torch.from_numpy(maps).to(DEVICE), region_index(masks))
    assert found == pytest.approx(pixel_metrics(maps, masks), abs=1e-13)


def some(kind: str, share: float, shape: tuple[int, int, int] = (3, 31, 33)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    masks = rng.random(shape) < share
    return case(kind, masks, rng), masks


@pytest.fixture(params=[True, False], ids=["all pixels", "negatives"])
def against(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What positives are counted against, however many there are."""
    monkeypatch.setattr(device, "_MANY", float(request.param))


@settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(cases(), st.integers(20, 200), st.sampled_from([np.float32, np.float64, np.float16]), st.booleans())
def test_small_maps_agree_in_any_number_of_chunks(
    drawn: tuple[np.ndarray, np.ndarray], chunk: int, dtype: Any, mixed: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch, np.errstate(over="ignore"):
        patch.setattr(device, "_CHUNK", chunk)
        patch.setattr(device, "_MANY", float(mixed))
        maps = drawn[0].astype(dtype)
        agree(np.where(np.isfinite(maps), maps, 0).astype(dtype), drawn[1])


@pytest.mark.usefixtures("against")
@pytest.mark.parametrize("kind", ["continuous", "few levels", "signed zeros", "all one value"])
def test_maps_whose_positives_fill_several_programs_agree(kind: str) -> None:
    agree(*some(kind, 0.5))


@pytest.mark.usefixtures("against")
@pytest.mark.parametrize("positives", [1, 511, 512, 513, 1025])
@pytest.mark.parametrize("kind", ["continuous"])
def test_the_last_program_counts_what_is_there(kind: str, positives: int) -> None:
    masks = np.zeros((2, 23, 24), bool)
    masks.reshape(-1)[:positives] = True
    agree(case(kind, masks, np.random.default_rng(4)), masks)


@pytest.mark.usefixtures("against")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("positive", [True, False])
def test_a_score_that_is_not_finite_is_refused_in_whichever_chunk_it_lies(
    bad: float, positive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, masks = some("continuous", 0.2, (2, 5, 7))
    maps[1, 2, 3], masks[1, 2, 3] = bad, positive
    for chunk in (9, 70):
        monkeypatch.setattr(device, "_CHUNK", chunk)
        with pytest.raises(MetricError, match=r"row 2, column 3 of image 1 is -?(nan|inf)"):
            pixel_metrics_on_device(torch.from_numpy(maps).to(DEVICE), region_index(masks))


def test_kernels_that_fail_give_way_to_pytorch_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = some("few levels", 0.3, (2, 6, 7))
    expected = pixel_metrics(maps, masks)
    given = torch.from_numpy(maps).to(DEVICE), region_index(masks)

    def fails(*_: object) -> None:
        raise RuntimeError("PTXAS error\nand more")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(ranks_triton, "sums", fails)
    with pytest.raises(RuntimeError, match="PTXAS"):  # it was asked for
        pixel_metrics_on_device(*given)
    monkeypatch.setattr(dispatch, "path", lambda device="cpu": "triton")
    monkeypatch.setattr(dispatch, "forced", lambda: None)
    with pytest.warns(RuntimeWarning, match=r"ranks failed \(RuntimeError: PTXAS error\); plain PyTorch"):
        assert pixel_metrics_on_device(*given) == pytest.approx(expected, abs=1e-13)
    monkeypatch.setattr(ranks_triton, "sums", full)
    assert pixel_metrics_on_device(*given) == pytest.approx(expected, abs=1e-13)  # not asked again
    monkeypatch.setattr(dispatch, "_broken", {})
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        pixel_metrics_on_device(*given)


def test_on_a_gpu_the_positives_are_sorted_beside_all_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def record_event(self) -> str:
            return f"{self.name} after {len(asked)}"

        def wait_event(self, event: str) -> None:
            asked.append(f"{self.name} waits for {event}")

        def wait_stream(self, other: Stream) -> None:
            asked.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        asked.append(f"on {stream.name}")
        yield
        asked.append("back")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(ranks_triton, "side_stream", lambda device: Stream("side"))
    gpu = torch.device("cuda", 0)
    keys, other = torch.zeros(1), (torch.zeros(2), torch.zeros(3))

    def sorting() -> torch.Tensor:
        asked.append("all pixels")
        return keys

    def full() -> tuple[torch.Tensor, ...]:
        raise torch.OutOfMemoryError("full")

    assert ranks_triton.beside(sorting, lambda: other, gpu) == (keys, *other)
    assert asked == ["all pixels", "side waits for main after 0", "on side", "back", "main waits for side"]
    with pytest.raises(torch.OutOfMemoryError):
        ranks_triton.beside(sorting, full, gpu)
    assert asked[-1] == "main waits for side"


@pytest.mark.parametrize(("share", "kept"), [(0.1, 0), (0.2, 4)])
def test_negatives_are_told_apart_where_positives_are_many(share: float, kept: int) -> None:
    masks = np.zeros((1, 10, 10), bool)
    masks.reshape(-1)[3 : 3 + int(100 * share)] = True
    index = region_index(masks)
    others = device.placed(index, torch.device("cpu")).others
    assert (others is not None) == bool(kept)
    if others is not None:
        assert others.tolist() == np.flatnonzero(~masks).tolist()
        assert others.element_size() == kept


def test_an_index_is_sent_once_and_forgotten_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = some("rounded blobs", 0.3, (2, 6, 7))
    gc.collect()
    index, kept = region_index(masks), len(device._sent)
    first = pixel_metrics_on_device(torch.from_numpy(maps).to(DEVICE), index)
    monkeypatch.setattr(device, "sent", lambda *_: pytest.fail("sent again"))
    assert pixel_metrics_on_device(torch.from_numpy(maps).to(DEVICE), index) == first
    assert len(device._sent) == kept + 1
    del index
    gc.collect()
    assert len(device._sent) == kept
