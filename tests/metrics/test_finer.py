"""AP by size, AUPIMO, AU-sPRO and SegF1 against their definitions, in every degenerate case, and against faults."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdad_bench.kernels import counting
from kdad_bench.metrics import (
    FINER,
    PIXEL_METRICS,
    Finer,
    MetricError,
    Saturated,
    every_pixel_metric,
    finer,
    pixel_metrics,
    region_index,
    threshold_of,
)
from kdad_bench.metrics import pieces as pieces_module
from kdad_bench.metrics.device import pixel_metrics_on_device
from kdad_bench.metrics.pieces import pieces, values_at
from tests.metrics import finer_by_definition as definition
from tests.metrics.metric_cases import KINDS, Drawn, Marked, case, cases, marked_regions, normal_of, packed

EXACT = 1e-9
LIMITS = [(1e-5, 1e-4), (1e-3, 0.01), (0.01, 0.3), (0.2, 0.9), (0.05, 1.0)]


@settings(max_examples=150)
@given(cases())
def test_ap_by_size_is_its_definition(drawn: Drawn) -> None:
    maps, masks = drawn
    index = region_index(masks)
    found = every_pixel_metric(maps, index, Finer(normal=normal_of(masks)))
    expected = definition.ap_by_size(maps, masks)
    assert {name: found[name] for name in finer.SIZES} == pytest.approx(expected, abs=EXACT)
    assert {name: found[name] for name in PIXEL_METRICS} == pixel_metrics(maps, masks)


@settings(max_examples=150)
@given(cases(), st.sampled_from(LIMITS), st.integers(0, 3))
def test_aupimo_is_its_definition(drawn: Drawn, limits: tuple[float, float], more: int) -> None:
    maps, masks = drawn
    for _ in range(more):  # good images, whose pixels alone make the rate
        masks = np.concatenate([masks, np.zeros_like(masks[:1])])
        maps = np.concatenate([maps, np.roll(maps[:1], 1, axis=2)])
    normal = normal_of(masks)
    found = finer.aupimo(maps, region_index(masks), normal, limits=limits)
    expected = definition.aupimo(maps, masks, normal, limits)
    assert (found is None) == (expected is None)
    assert found == pytest.approx(expected, abs=EXACT)


@settings(max_examples=250)
@given(marked_regions(), st.sampled_from([0.05, 0.3, 1.0]), st.integers(1, 3))
def test_au_spro_is_its_definition(drawn: Marked, limit: float, threads: int) -> None:
    maps, masks, regions, kinds, normal = drawn
    found = finer.au_spro(
        maps, region_index(masks), packed(regions, masks.shape[1:]), kinds, normal, limit=limit, threads=threads
    )
    expected = definition.au_spro(maps, masks, regions, kinds, normal, limit)
    assert (found is None) == (expected is None)
    assert found == pytest.approx(expected, abs=EXACT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "library", lambda: None)
        again = finer.au_spro(maps, region_index(masks), packed(regions, masks.shape[1:]), kinds, normal, limit=limit)
    assert again == pytest.approx(found, abs=1e-14)


def test_full_saturation_of_whole_regions_is_aupro() -> None:
    masks = np.zeros((4, 12, 12), bool)
    masks[0, 1:4, 1:5] = masks[1, 6:9, 2:4] = masks[2, 0, 0] = True
    maps = (np.random.default_rng(1).random(masks.shape) + 0.5 * masks).astype(np.float32)
    regions = packed([(i, masks[i], 1.0) for i in range(3)], (12, 12))
    found = finer.au_spro(maps, region_index(masks), regions, ["a", "a", "a", "good"], normal_of(masks))
    assert found == pytest.approx(pixel_metrics(maps, masks)["aupro_05"], abs=1e-12)


@settings(max_examples=150)
@given(cases(), st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_seg_f1_is_its_definition(drawn: Drawn, kind: str, seed: int) -> None:
    maps, masks = drawn
    normals = case(kind, np.zeros((2, 5, 4), bool), np.random.default_rng(seed))
    threshold = threshold_of(normals)
    assert threshold is not None
    found = finer.seg_f1(maps, region_index(masks), threshold)
    called = maps.astype(np.float64) > threshold
    assert found == pytest.approx(2 * (called & masks).sum() / (called.sum() + masks.sum()), abs=EXACT)
    wide = normals.astype(np.float64)
    if not np.isclose(maps, wide.mean() + 3 * wide.std(), rtol=1e-9, atol=0).any():  # sums in another order
        assert found == pytest.approx(definition.seg_f1(maps, masks, normals), abs=EXACT)


@settings(max_examples=100)
@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_the_threshold_is_the_mean_and_three_deviations(kind: str, seed: int, count: int) -> None:
    maps = case(kind, np.zeros((count, 6, 5), bool), np.random.default_rng(seed))
    wide = maps.astype(np.float64)
    expected = wide.mean() + 3 * wide.std()
    assert threshold_of(maps) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert threshold_of(torch.from_numpy(maps)) == threshold_of(maps)


@pytest.mark.parametrize("threshold", [0.5, np.nextafter(0.5, 1), np.nextafter(0.5, 0), 0.1, 1e300, -1e300])
def test_a_score_at_the_threshold_is_not_called(threshold: float) -> None:
    maps = np.array([[[0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.1, 0.2]]], np.float32)
    masks = np.array([[[True, True, False, False]]])
    called = maps.astype(np.float64) > threshold
    expected = 2 * (called & masks).sum() / (called.sum() + 2)
    assert finer.seg_f1(maps, region_index(masks), threshold) == expected


def test_equal_areas_share_a_third_and_an_empty_third_has_no_value() -> None:
    assert finer.thirds(np.array([5, 1, 3, 2, 9, 4])).tolist() == [2, 0, 1, 0, 2, 1]
    assert finer.thirds(np.array([7, 7, 7])).tolist() == [0, 0, 0]
    assert finer.thirds(np.array([1, 1, 1, 8])).tolist() == [0, 0, 0, 2]
    assert finer.thirds(np.array([3])).tolist() == [0]
    masks = np.zeros((1, 6, 6), bool)
    masks[0, 0, 0] = True
    maps = np.random.default_rng(0).random((1, 6, 6)).astype(np.float32)
    found = every_pixel_metric(maps, region_index(masks), Finer(normal=np.array([False])))
    assert found["pixel_ap_small"] == pixel_metrics(maps, masks)["pixel_ap"]
    assert found["pixel_ap_middle"] is found["pixel_ap_large"] is None


def everything(maps: np.ndarray, masks: np.ndarray, **more: object) -> dict[str, float | None]:
    regions = packed([(i, mask, 0.5) for i, mask in enumerate(masks) if mask.any()], masks.shape[1:])
    kinds = ["a" if mask.any() else "good" for mask in masks]
    about = Finer(**{"normal": normal_of(masks), "kinds": kinds, "regions": regions, "threshold": 0.5, **more})
    return every_pixel_metric(maps, region_index(masks), about)


def noise(masks: np.ndarray, signal: float = 0.5) -> np.ndarray:
    return (np.random.default_rng(3).random(masks.shape) * 0.6 + signal * masks).astype(np.float32)


def defects(side: int = 160) -> np.ndarray:
    masks = np.zeros((4, side, side), bool)
    masks[1, 3:9, 4:40] = masks[1, 60:63, 60:63] = masks[2, 100:140, 100:140] = True
    return masks


def test_all_have_a_value_where_the_data_set_has_everything() -> None:
    found = everything(noise(defects()), defects())
    assert list(found) == [*PIXEL_METRICS, *FINER]
    assert all(value is not None and 0 < value <= 1 + EXACT for value in found.values()), found


@pytest.mark.parametrize("how", ["compiled", "sorting", "device"])
def test_maps_without_a_fault_have_figures_of_one_and_not_above(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "sorting":
        monkeypatch.setattr(counting, "library", lambda: None)
    highest: dict[str, list[float]] = {}
    for seed in range(25):
        rng = np.random.default_rng(seed)
        masks = np.zeros((4, 24, 24), bool)
        for image in (1, 1, 2, 2, 3, 3):
            top, left, height, width = *rng.integers(0, 16, 2), *rng.integers(1, 9, 2)
            masks[image, top : top + height, left : left + width] = True
        maps, index = (rng.random(masks.shape) * 0.5 + masks).astype(np.float32), region_index(masks)
        found = everything(maps, masks)
        found["aupimo"] = finer.aupimo(maps, index, normal_of(masks), limits=(1e-3, 1e-2))
        if how == "device":
            found = dict(pixel_metrics_on_device(torch.from_numpy(maps), index))
        for name, value in found.items():
            highest.setdefault(name, []).append(value or 0.0)
    for name in [*PIXEL_METRICS, *([] if how == "device" else ("aupimo", "au_spro_05"))]:
        assert max(highest[name]) == 1.0, name  # some end in a bit more than 1 before they are cut


def test_a_metric_that_a_data_set_has_not_is_none_and_never_zero() -> None:
    masks, maps = defects(), noise(defects())
    assert everything(maps, masks, regions=None)["au_spro_05"] is None
    assert everything(maps, masks, threshold=None)["seg_f1"] is None
    assert everything(maps, masks, normal=np.zeros(4, bool))["aupimo"] is None
    assert everything(maps[:, :40, :40], masks[:, :40, :40])["aupimo"] is None  # 3,200 normal pixels
    for constant in (np.zeros_like(masks), np.ones_like(masks)):
        assert set(everything(noise(constant), constant).values()) == {None}
    assert threshold_of(maps[:0]) is None


def test_tensors_and_other_types_and_orders_of_memory_give_the_same() -> None:
    masks, maps = defects(), noise(defects())
    expected = everything(maps, masks)
    for other in (
        torch.from_numpy(maps),
        maps.astype(np.float64),
        np.asfortranarray(maps),
        maps[:, :, ::-1][:, :, ::-1],
    ):
        assert everything(other, masks) == pytest.approx(expected, abs=1e-12)
    half = torch.from_numpy(maps).half()
    assert everything(half, masks) == everything(half.float().numpy(), masks)


def test_an_increasing_change_of_the_scores_changes_no_ranking_metric() -> None:
    masks, maps = defects(), noise(defects())
    changed = np.exp2(3 * maps.astype(np.float64))
    before, after = everything(maps, masks, threshold=None), everything(changed, masks, threshold=None)
    assert after == pytest.approx(before, abs=1e-12)


def test_a_score_that_is_not_finite_is_refused_by_name() -> None:
    maps = noise(defects())
    maps[2, 5, 7] = np.nan
    with pytest.raises(MetricError, match="image 2"):
        everything(maps, defects())


def test_maps_of_another_shape_are_refused() -> None:
    with pytest.raises(MetricError, match="region index of shape"):
        every_pixel_metric(noise(defects())[:, :9], region_index(defects()), Finer(normal=np.ones(4, bool)))


def by_definition(maps: np.ndarray, masks: np.ndarray) -> dict[str, float | None]:
    """What `everything` gives, straight off the definitions."""
    regions = [(i, mask, 0.5) for i, mask in enumerate(masks) if mask.any()]
    kinds = ["a" if mask.any() else "good" for mask in masks]
    called = maps.astype(np.float64) > 0.5
    return {
        **definition.ap_by_size(maps, masks),
        "aupimo": definition.aupimo(maps, masks, normal_of(masks), finer.PIMO_LIMITS),
        "au_spro_05": definition.au_spro(maps, masks, regions, kinds, normal_of(masks), 0.05),
        "seg_f1": float(2 * (called & masks).sum() / (called.sum() + masks.sum())),
    }


Fault = Callable[[pytest.MonkeyPatch], None]


def negatives_of_all(self: Any) -> np.ndarray:
    upto = np.cumsum(self.counts)
    return (upto[-1] - upto[:-1:2]).astype(float) - np.diff(self.ranked.ranks)


def never_saturated(values: Any, regions: Saturated, real: Any = finer._weighed) -> Any:
    return real(values, regions._replace(shares=np.ones_like(regions.shares)))


def rounded_up(values: Any, regions: Saturated, real: Any = finer._weighed) -> Any:
    areas = regions.masks.sum(axis=(1, 2))
    return real(values, regions._replace(shares=np.ceil(regions.shares * areas * 1.01) / areas))


def at_least(maps: Any, index: Any, threshold: float, sizes: Any = None) -> float:
    called = maps >= np.float32(threshold)
    return float(2 * called.reshape(-1)[index.positions].sum() / (called.sum() + index.positions.size))


def of_regions_alone(maps: Any, index: Any, threshold: float, sizes: Any = None) -> float:
    found = [finer_seg_f1(maps[i : i + 1], region_index(mask[None]), threshold) for i, mask in enumerate(defects())]
    return float(np.mean([one for one in found if one is not None]))


finer_seg_f1 = finer.seg_f1
# one fault each, as seen or close to it: the definitions must tell them from the real thing
FAULTS: dict[str, tuple[str, Fault]] = {
    "AP by size counts the other defects as normal": (
        "pixel_ap_small",
        lambda patch: patch.setattr("kdad_bench.metrics.exact.Counted.negatives_above", negatives_of_all),
    ),
    "thirds by even numbers": (
        "pixel_ap_middle", lambda patch: patch.setattr(finer, "thirds", lambda areas: np.arange(areas.size) % 3),
    ),
    "thirds of the largest area": (
        "pixel_ap_small",
        lambda patch: patch.setattr(finer, "thirds", lambda areas: np.minimum(3 * areas // areas.max(), 2)),
    ),
    "AUPIMO on a linear axis": (
        "aupimo",
        lambda patch: patch.setattr(
            finer, "log_shares",
            lambda x0, x1, low, high: (high - np.clip((x0 + x1) / 2, low, high)) / (high - low),
        ),
    ),
    "AUPIMO over all images": (
        "aupimo", lambda patch: patch.setattr(finer, "groups_of", lambda normal, kinds=(): np.full(4, finer.NORMAL)),
    ),
    "AUPIMO in steps": (
        "aupimo",
        lambda patch: patch.setattr(finer, "log_shares", lambda x0, x1, low, high, real=finer.log_shares: real(
            x1, x1, low, high
        )),
    ),
    "no saturation": ("au_spro_05", lambda patch: patch.setattr(finer, "_weighed", never_saturated)),
    "a saturation of a pixel more": ("au_spro_05", lambda patch: patch.setattr(finer, "_weighed", rounded_up)),
    "areas without the limit": (
        "au_spro_05",
        lambda patch: patch.setattr(finer, "ramp_areas", lambda x0, x1, limit: limit - np.minimum(x1, limit)),
    ),
    "defects among the false positives": (
        "au_spro_05", lambda patch: patch.setattr(finer, "_unmarked", lambda found, marked, group: np.cumsum(
            found.groups.get(group, np.zeros_like(found.counts)))),
    ),
    "a score at the threshold is called": ("seg_f1", lambda patch: patch.setattr(finer, "seg_f1", at_least)),
    "F1 of each image": ("seg_f1", lambda patch: patch.setattr(finer, "seg_f1", of_regions_alone)),
    "good images left out of F1": (
        "seg_f1",
        lambda patch: patch.setattr(finer, "pieces", lambda values, images, sizes, real=pieces: real(
            values, images[1:3], sizes
        )),
    ),
}  # fmt: skip


def rounded() -> tuple[np.ndarray, np.ndarray]:
    """Maps with ties, also at the threshold of SegF1, and masks."""
    masks = defects()
    return np.round(noise(masks, 0.3) * 100).astype(np.float32) / np.float32(100), masks


def test_the_faults_below_are_looked_for_where_all_is_right() -> None:
    maps, masks = rounded()
    assert (maps == 0.5).any()
    found = everything(maps, masks)
    assert {name: found[name] for name in FINER} == pytest.approx(by_definition(maps, masks), abs=EXACT)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change = FAULTS[fault]
    maps, masks = rounded()
    change(monkeypatch)
    assert everything(maps, masks)[name] != pytest.approx(by_definition_once()[name], abs=EXACT)


@functools.cache
def by_definition_once() -> dict[str, float | None]:
    return by_definition(*rounded())


ODD_MAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": lambda masks: np.full(masks.shape, 0.7, np.float32),
    "constant zero": lambda masks: np.zeros(masks.shape, np.float32),
    "the mask itself": lambda masks: masks.astype(np.float32),
    "the mask turned round": lambda masks: 1 - masks.astype(np.float32),
    "one hot pixel": lambda masks: (np.arange(masks.size).reshape(masks.shape) == 7).astype(np.float32),
    "integers": lambda masks: (np.arange(masks.size).reshape(masks.shape) % 5).astype(np.uint8),
    "as large as there is": lambda masks: np.where(masks, 3.4e38, -3.4e38).astype(np.float32),
    "zeros of both signs": lambda masks: np.where(masks, -0.0, 0.0).astype(np.float32),
}  # fmt: skip


@pytest.mark.parametrize("good", [0, 2])
@pytest.mark.parametrize("case", ODD_MAPS)
def test_odd_maps_have_the_figures_of_the_definitions(case: str, good: int) -> None:
    """Every image anomalous, too; the third mask of three is empty."""
    masks = np.zeros((3 + good, 90, 90), bool)
    masks[0, 2:5, 2:9] = masks[0, 40, 40] = masks[1, 10:30, 10:30] = True
    normal, maps = np.arange(3 + good) >= 3, ODD_MAPS[case](masks)
    kinds = ["a", "b", "a", "good", "good"][: 3 + good]
    drawn = [(0, masks[0], 0.3), (1, masks[1], 1.0), (2, masks[2], 0.5)]
    about = Finer(normal=normal, kinds=kinds, regions=packed(drawn, (90, 90)), threshold=0.5)
    found = every_pixel_metric(maps, region_index(masks), about)
    wide = np.asarray(maps, np.float64)
    expected = {
        **definition.ap_by_size(maps, masks),
        "aupimo": definition.aupimo(maps, masks, normal, finer.PIMO_LIMITS),
        "au_spro_05": definition.au_spro(maps, masks, drawn, kinds, normal, 0.05),
        "seg_f1": float(2 * ((wide > 0.5) & masks).sum() / ((wide > 0.5).sum() + masks.sum())),
    }
    assert {name: found[name] for name in FINER} == pytest.approx(expected, abs=EXACT)
    assert (found["aupimo"] is None) == (good == 0)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, np.nan, np.inf])
def test_a_saturation_that_is_no_share_of_its_region_is_refused(share: float) -> None:
    masks = defects()
    regions = packed([(1, masks[1], share)], masks.shape[1:])
    with pytest.raises(MetricError, match="must lie above 0 and be at most 1"):
        everything(noise(masks), masks, regions=regions)


def test_a_threshold_that_is_no_number_is_refused_and_one_beyond_every_score_is_taken() -> None:
    masks = defects()
    with pytest.raises(MetricError, match="the threshold of SegF1 is no number"):
        everything(noise(masks), masks, threshold=float("nan"))
    assert everything(noise(masks), masks, threshold=float("inf"))["seg_f1"] == 0.0
    called = 2 * masks.sum() / (masks.size + masks.sum())
    assert everything(noise(masks), masks, threshold=-float("inf"))["seg_f1"] == pytest.approx(called, abs=1e-15)


@settings(max_examples=60)
@given(marked_regions(), st.integers(0, 2**32 - 1), st.sampled_from([1, 40, 1 << 25]))
def test_pictures_that_fill_their_maps_in_part_have_the_figures_of_their_own_pixels(
    drawn: Marked, seed: int, piece: int
) -> None:
    """Whatever stands beside a picture, the highest and the lowest values included, changes no figure."""
    maps, masks, regions, kinds, normal = drawn
    rng = np.random.default_rng(seed)
    count, height, width = maps.shape
    about: dict[str, Any] = {"normal": normal, "kinds": kinds, "threshold": 0.3}
    about["regions"] = packed(regions, (height, width))
    expected = every_pixel_metric(maps, region_index(masks), Finer(**about))
    large = rng.choice([-3e38, -1.0, 0.0, 0.5, 3e38], (count, height + 3, width + 2)).astype(maps.dtype)
    wide = np.zeros(large.shape, bool)
    large[:, :height, :width], wide[:, :height, :width] = maps, masks
    grown = [(image, np.pad(mask, ((0, 3), (0, 2))), share) for image, mask, share in regions]
    about["regions"] = packed(grown, (height + 3, width + 2))
    sizes = np.tile(np.array([height, width]), (count, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdad_bench.metrics.pieces.PIECE", piece)
        found = every_pixel_metric(large, region_index(wide), Finer(**about, sizes=sizes))
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_map_that_is_not_finite_beside_its_picture_is_no_fault_and_within_it_is_named() -> None:
    maps, sizes = np.zeros((2, 5, 5), np.float32), np.array([[5, 3], [4, 5]])
    masks = np.zeros(maps.shape, bool)
    masks[0, 1, 1] = masks[1, 2, 2] = True
    maps[0, 2, 3:], maps[1, 4] = np.nan, np.inf
    assert pixel_metrics(maps, masks, sizes=sizes)["pixel_auroc"] == 0.5
    maps[1, 3, 4] = np.inf
    with pytest.raises(MetricError, match=r"row 3, column 4 of image 1 is inf"):
        pixel_metrics(maps, masks, sizes=sizes)


@pytest.mark.parametrize("piece", [1, 30, 64, 100, 1 << 25])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pieces_hold_each_pixel_of_the_images_once(piece: int, order: Literal["C", "F"]) -> None:
    values = np.asarray(np.arange(7 * 8 * 4, dtype=np.float32).reshape(7, 8, 4), order=order)
    images = np.array([0, 1, 3, 4, 5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module, "PIECE", piece)
        patch.setattr(pieces_module, "LEAST", 32)
        found = list(pieces(values, images))
        assert np.array_equal(np.sort(np.concatenate(found)), np.sort(values[images].ravel()))
        assert max(map(len, found)) <= max(piece, 32)
        at = np.array([3, 40, 41, 223])
        assert np.array_equal(values_at(values, at), values.ravel()[at])


def test_the_threshold_weighs_pictures_by_their_pixels() -> None:
    rng = np.random.default_rng(0)
    maps, sizes = rng.random((3, 6, 6)), np.array([[6, 6], [2, 6], [6, 1]])
    own = np.concatenate([one[:h, :w].ravel() for one, (h, w) in zip(maps, sizes, strict=True)])
    assert threshold_of(maps, sizes) == pytest.approx(own.mean() + 3 * own.std(), abs=1e-12)


def test_the_threshold_is_computed_in_float64_whatever_the_maps_are() -> None:
    """Before NumPy 2 a float32 array minus a float64 number was float32, which lacks both digits and range."""
    rng = np.random.default_rng(0)
    for maps in (1000 + rng.normal(size=(6, 64, 64)) / 100, rng.normal(size=(1, 64, 64)) * 1e25):
        small = maps.astype(np.float32)
        own = small.astype(np.float64)
        assert threshold_of(small) == pytest.approx(own.mean() + 3 * own.std(), rel=1e-13)


@pytest.mark.parametrize("kind", [np.asarray, list])
def test_a_mask_beyond_its_picture_is_refused_and_sizes_may_be_a_list(kind: Any) -> None:
    maps, masks = np.random.default_rng(0).random((2, 5, 5)), np.zeros((2, 5, 5), bool)
    masks[0, 1, 1] = True
    sizes = kind([[5, 3], [4, 5]])
    whole = pixel_metrics(maps, masks, sizes=sizes)
    assert whole["pixel_auroc"] is not None
    assert threshold_of(maps, sizes) == threshold_of(maps, np.array([[5, 3], [4, 5]]))
    masks[1, 4, 2] = True
    words = r"mine: a mask marks row 4, column 2 of image 'b', beyond its picture of 4 x 5"
    with pytest.raises(MetricError, match=words):
        pixel_metrics(maps, masks, sizes=sizes, names=("a", "b"), method="mine")
    for odd in ([[5, 3]], [[5, 3], [4, 6]], [[5, 3], [0, 5]], [[5.0, 3.0], [4.0, 5.0]]):
        with pytest.raises(MetricError, match=r"sizes of shape .* must be whole numbers \[N, 2\], from 1 x 1 to 5 x 5"):
            pixel_metrics(maps, masks, sizes=kind(odd))


def test_regions_of_pixels_that_no_mask_marks_are_refused() -> None:
    masks = np.zeros((2, 4, 4), bool)
    masks[0, 1, 1] = True
    regions = packed([(0, np.ones((4, 4), bool), 1.0)], (4, 4))
    maps = np.random.default_rng(0).random(masks.shape)
    with pytest.raises(MetricError, match="a region marks a pixel that no mask marks"):
        finer.au_spro(maps, region_index(masks), regions, ["a", "good"], normal_of(masks))
