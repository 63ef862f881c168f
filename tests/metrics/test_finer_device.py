"""The finer pixel metrics as they are computed on a GPU, here on tensors of the CPU, against those of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdad_bench.metrics import (
    FINER,
    PIXEL_METRICS,
    Finer,
    MetricError,
    Saturated,
    every_pixel_metric,
    finer,
    finer_device,
    region_index,
    threshold_of,
)
from kdad_bench.metrics.device import flattened
from tests.metrics.fixed_order import NoChance
from tests.metrics.metric_cases import KINDS, Drawn, Marked, case, cases, marked_regions, normal_of, packed

BOUND = 1e-12  # of sums of float64 in another order; counts are equal
TYPES = (np.float32, np.float64, np.float16)


def on_device(maps: np.ndarray, masks: np.ndarray, about: Finer, **more: Any) -> dict[str, float | None]:
    groups = finer.groups_of(about.normal, about.kinds if about.regions else ())
    return finer_device.every_pixel_metric_on_device(
        torch.from_numpy(maps), region_index(masks), groups, regions=about.regions, threshold=about.threshold, **more
    )


def agree(maps: np.ndarray, masks: np.ndarray, about: Finer) -> dict[str, float | None]:
    found, expected = on_device(maps, masks, about), every_pixel_metric(maps, region_index(masks), about)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=BOUND)
    assert found["seg_f1"] == expected["seg_f1"]
    return found


def of_type(maps: np.ndarray, kind: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = maps.astype(kind)
    return np.where(np.isfinite(found), found, 0).astype(kind)


@settings(max_examples=200)
@given(marked_regions(), st.sampled_from(TYPES), st.integers(1, 200), st.sampled_from([None, 0.0, 0.25, -1.0, 1e300]))
def test_all_are_those_of_the_cpu(drawn: Marked, kind: Any, chunk: int, threshold: float | None) -> None:
    """Heavy ties, regions that overlap, without a pixel or on none, no normal image, none but these."""
    maps, masks, regions, kinds, normal = drawn
    saturated = packed(regions, masks.shape[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdad_bench.metrics.device._CHUNK", chunk)
        about = Finer(normal=normal, kinds=kinds, regions=saturated, threshold=threshold)
        agree(of_type(maps, kind), masks, about)


@settings(max_examples=100)
@given(cases(), st.sampled_from([(1e-5, 1e-4), (1e-3, 0.01), (0.01, 0.3), (0.05, 1.0)]), st.booleans())
def test_aupimo_is_that_of_the_cpu_at_all_rates_and_with_marks_on_normal_images(
    drawn: Drawn, limits: tuple[float, float], all_normal: bool
) -> None:
    maps, masks = drawn
    index, normal = region_index(masks), np.ones(len(masks), bool) if all_normal else normal_of(masks)
    groups = finer.groups_of(normal)
    passed = finer_device.Passed.of(flattened(torch.from_numpy(maps)), index, groups)
    found = finer_device.aupimo(passed, index, groups, limits=limits)
    assert found == pytest.approx(finer.aupimo(maps, index, normal, limits=limits), abs=BOUND)


@settings(max_examples=60)
@given(marked_regions(), st.sampled_from([0.05, 0.3, 1.0]))
def test_au_spro_is_that_of_the_cpu_up_to_all_rates(drawn: Marked, limit: float) -> None:
    maps, masks, regions, kinds, normal = drawn
    index, groups = region_index(masks), finer.groups_of(normal, kinds)
    expected = finer.au_spro(maps, index, packed(regions, masks.shape[1:]), kinds, normal, limit=limit)
    if index.count and not masks.all():
        flat = flattened(torch.from_numpy(maps))
        passed = finer_device.Passed.of(flat, index, groups)
        saturated = packed(regions, masks.shape[1:])
        found = finer_device.au_spro(flat, passed, index, saturated, groups, limit=limit)
        assert found == pytest.approx(expected, abs=BOUND)


def large(side: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray, Finer]:
    """Maps that have all metrics."""
    masks = np.zeros((5, side, side + 7), bool)
    masks[1, 3:9, 4:40] = masks[1, 60:63, 60:63] = masks[2, 50:90, 30:70] = masks[4, 1, 1] = True
    maps = (np.random.default_rng(seed).random(masks.shape) * 0.6 + 0.3 * masks).astype(np.float32)
    regions = packed([(i, masks[i], 0.9) for i in (1, 2, 4)], masks.shape[1:])
    kinds = ["good", "logical", "structural", "good", "logical"]
    return maps, masks, Finer(normal=normal_of(masks), kinds=kinds, regions=regions, threshold=0.55)


@pytest.mark.parametrize("side", [97, 160, 256])
@pytest.mark.parametrize("kind", TYPES)
def test_maps_that_have_all_metrics_agree(side: int, kind: Any) -> None:
    maps, masks, about = large(side)
    found = agree(maps.astype(kind), masks, about)
    assert all(value is not None and 0 < value < 1 for value in found.values()), found


@pytest.mark.parametrize("value", [True, False])
def test_without_one_of_the_two_classes_all_are_none(value: bool) -> None:
    maps, masks, about = large(97)
    every = np.full_like(masks, value)
    assert agree(maps, every, about) == dict.fromkeys((*PIXEL_METRICS, *FINER))
    assert set(agree(maps[:1, :1, :1], every[:1, :1, :1], Finer(normal=np.array([not value]))).values()) == {None}
    assert set(agree(maps[:0], every[:0], Finer(normal=np.ones(0, bool))).values()) == {None}


@pytest.mark.parametrize("constant", [0.0, -0.0, 0.7])
def test_constant_maps_agree(constant: float) -> None:
    maps, masks, about = large(160)
    assert agree(np.full_like(maps, constant), masks, about)["pixel_auroc"] == 0.5


def test_two_pixels_and_images_that_are_all_anomalous_agree() -> None:
    masks = np.array([[[True, False]]])
    about = Finer(normal=np.array([False]), kinds=["a"], regions=Saturated(masks, np.array([0]), np.ones(1)))
    for maps in ([[[1.0, 0.0]]], [[[0.0, 1.0]]], [[[1.0, 1.0]]]):
        found = agree(np.array(maps, np.float32), masks, about)
        assert found["aupimo"] is None
        assert found["au_spro_05"] is not None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_a_score_that_is_not_finite_is_refused_by_name(bad: float, marked: bool, kind: Any) -> None:
    maps, masks, about = large(97)
    maps, masks[3, 5, 7] = maps.astype(kind), marked
    maps[3, 5, 7] = bad
    with pytest.raises(MetricError, match=rf"^mine: anomaly map at row 5, column 7 of image 'd' is {bad};"):
        on_device(maps, masks, about, names="abcde", method="mine")


def test_what_the_cpu_refuses_is_refused_in_the_same_words() -> None:
    maps, masks, about = large(97)
    maps[1, 0, 0] = 9.0  # no mask marks it: above every score that one marks
    assert about.regions is not None
    faulty = [
        {"regions": about.regions._replace(shares=np.array([0.3, share, 0.3]))} for share in (0.0, -0.5, 1.5, np.nan)
    ]
    beyond = about.regions._replace(masks=np.ones_like(about.regions.masks))
    for fault in (*faulty, {"regions": beyond}, {"threshold": np.nan}):
        wrong = Finer(**{"normal": about.normal, "kinds": about.kinds, "regions": about.regions, **fault})
        with pytest.raises(MetricError) as expected:
            every_pixel_metric(maps, region_index(masks), wrong)
        with pytest.raises(MetricError) as found:
            on_device(maps, masks, wrong)
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("threshold", [0.5, np.nextafter(0.5, 1), np.nextafter(0.5, 0), 0.1, 1e300, -np.inf, np.inf])
@pytest.mark.parametrize("kind", TYPES)
def test_a_score_at_the_threshold_is_not_called(threshold: float, kind: Any) -> None:
    maps = np.array([[[0.5, np.nextafter(kind(0.5), kind(1)), 0.1, 0.2]]], kind)
    masks = np.array([[[True, True, False, False]]])
    called = maps.astype(np.float64) > threshold
    found = on_device(maps, masks, Finer(normal=np.array([False]), threshold=threshold))
    assert found["seg_f1"] == 2 * (called & masks).sum() / (called.sum() + 2)


def test_everything_is_added_in_one_order_only() -> None:
    maps, masks, about = large(97)
    for scores in (maps, np.round(maps, 1)):
        with NoChance():
            found = on_device(scores, masks, about)
        assert found == on_device(scores, masks, about)


# --- which maps go there


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU pass for those of a GPU, which no array may be made of."""
    monkeypatch.setattr(finer, "on_device", lambda maps: isinstance(maps, torch.Tensor))
    monkeypatch.setattr(finer, "numpy_of", lambda maps: pytest.fail("the maps were copied"))


@pytest.mark.usefixtures("_gpu")
def test_maps_on_a_gpu_are_not_copied() -> None:
    maps, masks, about = large(97)
    index, words = region_index(masks), {"names": "abcde", "method": "mine"}
    with torch.inference_mode():
        given = torch.from_numpy(maps) + 0
    found = every_pixel_metric(given, index, about, **words)
    assert found == on_device(maps, masks, about)
    given = given.clone()
    given[2, 0, 1] = torch.nan
    with pytest.raises(MetricError, match=r"^mine: .* row 0, column 1 of image 'c' is nan"):
        every_pixel_metric(given, index, about, **words)
    with pytest.raises(MetricError, match="region index of shape"):
        every_pixel_metric(given[:4], index, about)


def test_maps_on_a_gpu_that_are_filled_in_part_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks, about = large(97)
    index, sizes = region_index(masks), np.tile(masks.shape[1:], (len(masks), 1))
    expected = every_pixel_metric(maps, index, about)
    monkeypatch.setattr(finer, "on_device", lambda maps: True)
    monkeypatch.setattr(finer_device, "every_pixel_metric_on_device", lambda *_, **__: pytest.fail("sizes are lost"))
    whole = Finer(normal=about.normal, kinds=about.kinds, regions=about.regions, threshold=0.55, sizes=sizes)
    assert every_pixel_metric(torch.from_numpy(maps), index, whole) == pytest.approx(expected, abs=BOUND)


@settings(max_examples=60)
@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from(TYPES))
def test_the_threshold_is_that_of_the_cpu(kind: str, seed: int, count: int, dtype: Any) -> None:
    maps = of_type(case(kind, np.zeros((count, 6, 5), bool), np.random.default_rng(seed)), dtype)
    expected = threshold_of(maps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finer, "on_device", lambda maps: True)
        patch.setattr(finer, "numpy_of", lambda maps: pytest.fail("the maps were copied"))
        assert threshold_of(torch.from_numpy(maps)) == pytest.approx(expected, rel=1e-12, abs=1e-300)


@pytest.mark.usefixtures("_gpu")
def test_the_threshold_of_no_map_is_none_and_of_one_that_is_not_finite_no_number() -> None:
    assert threshold_of(torch.zeros(0, 3, 3)) is None
    for bad in (torch.nan, torch.inf):
        assert np.isnan(threshold_of(torch.tensor([[[0.0, bad]]])))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_deterministic_maps_on_a_gpu_give_one_value_that_of_the_cpu() -> None:
    maps, masks, about = large(256)
    index = region_index(masks)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (every_pixel_metric(torch.from_numpy(maps).cuda(), index, about) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert first == second
    assert first == pytest.approx(every_pixel_metric(maps, index, about), abs=BOUND)
    assert threshold_of(torch.from_numpy(maps).cuda()) == pytest.approx(threshold_of(maps), rel=1e-12)
