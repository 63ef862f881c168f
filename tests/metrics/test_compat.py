"""The metrics of other codes, each against its own slow loop, and never under a protocol's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from scipy import ndimage
from scipy.integrate import trapezoid

from kdad_bench.leaderboard.row import COLUMNS
from kdad_bench.metrics import IMAGE_METRICS, PIXEL_METRICS, MetricError
from kdad_bench.metrics import compat as compat
from tests.metrics import metrics_by_definition as definition
from tests.metrics.metric_cases import cases
from tests.metrics.metrics_by_definition import regions_of


def blobs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = np.zeros((5, 24, 24), bool)
    for image in range(4):
        y, x = rng.integers(0, 16, 2)
        masks[image, y : y + 5, x : x + 7] = True
    masks[0, 20:, 0:2] = True
    return ndimage.gaussian_filter(rng.random(masks.shape) + 0.7 * masks, (0, 1, 1)).astype(np.float32), masks


def looped_curve(maps: np.ndarray, masks: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(FPR, PRO) with one binary map per threshold."""
    regions = [(i, tuple(np.array(r).T)) for i, mask in enumerate(masks) for r in regions_of(mask)]
    fpr = [(maps > t)[~masks].mean() for t in thresholds]
    pro = [np.mean([(maps > t)[i][where].mean() for i, where in regions]) for t in thresholds]
    return np.array(fpr), np.array(pro)


def stretch(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return (wide - wide.min()) / (wide.max() - wide.min())


def area(x: np.ndarray, y: np.ndarray) -> float:
    return float(abs(trapezoid(y, x)))


@pytest.mark.parametrize("seed", range(3))
def test_stfpm_stretches_both_axes(seed: int) -> None:
    maps, masks = blobs(seed)
    low, high = float(maps.min()), float(maps.max())
    fpr, pro = looped_curve(maps, masks, np.array([high - k * (high - low) / 4000 for k in range(4000)]))
    kept = fpr <= 0.3
    expected = area(stretch(fpr[kept]), stretch(pro[kept]))
    assert compat.stfpm_rescaled_pro(maps, masks) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_rd4ad_takes_each_anomalous_image_by_itself(seed: int) -> None:
    maps, masks = blobs(seed)
    values = []
    for one, mask in zip(maps[:4], masks[:4], strict=True):
        low, high = float(one.min()), float(one.max())
        fpr, pro = looped_curve(one[None], mask[None], low + (high - low) / 200 * np.arange(200))
        kept = fpr < 0.3
        values.append(area(fpr[kept] / fpr[kept].max(), pro[kept]))
    assert compat.rd4ad_per_image_pro(maps, masks) == pytest.approx(np.mean(values), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_usual_loop_has_200_thresholds(seed: int) -> None:
    maps, masks = blobs(seed)
    low, high = float(maps.min()), float(maps.max())
    fpr, pro = looped_curve(maps, masks, low + (high - low) / 200 * np.arange(200))
    kept = fpr < 0.3
    assert compat.pro_200_thresholds(maps, masks) == pytest.approx(area(stretch(fpr[kept]), pro[kept]), abs=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_mkd_opens_each_binary_map_and_weighs_by_fractional_masks(seed: int) -> None:
    maps, masks = blobs(seed)
    soft = ndimage.gaussian_filter(masks.astype(float), (0, 1, 1)).clip(0, 1)
    stretched = np.stack([stretch(one) for one in maps])
    true, false = [], []
    cross = ndimage.generate_binary_structure(2, 1)
    for threshold in 0.001 * np.arange(1000):
        called = np.stack([cv_opening(one >= threshold, cross) for one in stretched])
        true.append((called * soft).sum() / soft.sum())
        false.append((called * (1 - soft)).sum() / (1 - soft).sum())
    assert compat.mkd_pixel_auroc(maps, soft) == pytest.approx(area(np.array(false), np.array(true)), abs=1e-9)


def cv_opening(binary: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """A morphological opening in which pixels outside the image play no part, as in OpenCV."""
    eroded = ndimage.binary_erosion(binary, structure, border_value=1)
    return ndimage.binary_dilation(eroded, structure, border_value=0)


def test_binned_scores_are_those_of_the_bins() -> None:
    maps, masks = blobs()
    edges = np.linspace(maps.min(), maps.max(), 51)
    bins = np.clip(np.digitize(maps, edges) - 1, 0, 49)
    expected = definition.pixel_metrics(bins.astype(float), masks)
    for metric in ("pixel_auroc", "pixel_ap", "aupro_30"):
        assert compat.histogram_50(maps, masks, metric) == pytest.approx(expected[metric], abs=1e-4)


def test_f1_at_21_thresholds_is_no_better_than_the_best() -> None:
    maps, masks = blobs()
    stretched = stretch(maps)
    best = 0.0
    for threshold in np.arange(21) * 0.05:
        called = stretched > threshold
        best = max(best, 2 * (called & masks).sum() / (called.sum() + masks.sum()))
    assert compat.f1_max_21_thresholds(maps, masks) == pytest.approx(best, abs=1e-6)


@settings(max_examples=60)
@given(cases())
def test_every_variant_is_a_ratio_or_null(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    for name, value in compat.compat_metrics(*drawn).items():
        assert value is None or -1e-9 <= value <= 1 + 1e-9, name


def test_variants_of_one_class_are_null() -> None:
    maps, masks = blobs()
    assert set(compat.compat_metrics(maps, np.zeros_like(masks)).values()) == {None}


def test_a_map_that_is_not_finite_has_no_variants() -> None:
    maps, masks = blobs()
    maps[0, 0, 0] = np.nan
    with pytest.raises(MetricError, match="not finite"):
        compat.compat_metrics(maps, masks)


def test_no_variant_bears_the_name_of_a_protocol_metric_or_a_column() -> None:
    assert not set(compat.COMPAT) & {*IMAGE_METRICS, *PIXEL_METRICS, *COLUMNS}
    assert all(variant.like in PIXEL_METRICS for variant in compat.COMPAT.values())


def test_every_variant_stands_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert not [name for name in compat.COMPAT if f"`{name}`" not in page]
