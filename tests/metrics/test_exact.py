"""The fast metrics against scikit-learn, against the definitions, and in every degenerate case."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdad_bench.kernels import counting
from kdad_bench.metrics import (
    IMAGE_METRICS,
    PIXEL_METRICS,
    PRESORTED,
    MetricError,
    image_metrics,
    mask_conflicts,
    pixel_metrics,
    region_index,
)
from kdad_bench.metrics import exact as metrics
from kdad_bench.metrics.device import pixel_metrics_on_device
from tests.metrics import metrics_by_definition as definition
from tests.metrics.fixed_order import NoChance
from tests.metrics.metric_cases import KINDS, case, cases

EXACT = 1e-9  # sums in another order; observed differences lie near 1e-15


def blobs(count: int = 6, side: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy maps that see most of the square defects; the last third of the images is good."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, side, side), bool)
    for image in range(count - count // 3):
        for y, x in rng.integers(0, side - 8, (2, 2)):
            masks[image, y : y + 6, x : x + 8] = True
    return (rng.random(masks.shape) + 0.6 * masks * rng.random((count, 1, 1))).astype(np.float32), masks


@settings(max_examples=150)
@given(cases())
def test_all_five_agree_with_the_definitions_under_heavy_ties(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    maps, masks = drawn
    assert pixel_metrics(maps, masks, threads=1) == pytest.approx(definition.pixel_metrics(maps, masks), abs=EXACT)


@settings(max_examples=60)
@given(cases(), st.integers(2, 5), st.integers(1, 7), st.integers(1, 100))
def test_neither_threads_nor_pieces_nor_blocks_change_a_value(
    drawn: tuple[np.ndarray, np.ndarray], threads: int, block: int, piece: int
) -> None:
    maps, masks = drawn
    expected = pixel_metrics(maps, masks, threads=1)
    assert pixel_metrics(maps, masks, threads=threads) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_MOST", piece)
        assert pixel_metrics(maps, masks, threads=threads) == expected
        patch.setattr(counting, "library", lambda: None)
        patch.setattr(counting, "_PIECE", piece)
        patch.setattr(metrics, "_BLOCK", block)
        assert pixel_metrics(maps, masks, threads=threads) == pytest.approx(expected, abs=1e-14)


def test_any_number_of_threads_can_be_asked_for() -> None:
    maps, masks = blobs()
    assert pixel_metrics(maps, masks, threads=10**6) == pixel_metrics(maps, masks, threads=1)


needs_compiled = pytest.mark.skipif(counting.library() is None, reason="the C++ library was not built")


@needs_compiled
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@settings(max_examples=150)
@given(cases())
def test_the_compiled_counting_equals_the_sorting(double: bool, drawn: tuple[np.ndarray, np.ndarray]) -> None:
    maps, masks = drawn
    if double:
        maps = maps.astype(np.float64) * (1 + 1e-9 * np.arange(maps.size).reshape(maps.shape))
    expected = pixel_metrics(maps, masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "library", lambda: None)
        assert pixel_metrics(maps, masks, threads=2) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("kind", ["compiled", "sorting"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", ["even", "one far away", "many octaves", "few", "both signs"])
def test_counts_are_those_of_a_plain_search(
    kind: str, dtype: type, spread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "sorting":
        monkeypatch.setattr(counting, "library", lambda: None)
    elif counting.library() is None:
        pytest.skip("the C++ library was not built")
    rng = np.random.default_rng(1)
    scores = {
        "even": rng.random(5000),
        "one far away": np.append(rng.random(4999) * 1e-3, -3e38),  # nearly all in one bucket of the table
        "many octaves": rng.normal(size=5000) * 10.0 ** rng.integers(-44, 38, 5000),
        "few": rng.integers(-3, 3, 5000) / 3,
        "both signs": np.append(rng.normal(size=4900), rng.normal(size=100) * 1e-30),  # keys crowd at both ends
    }[spread].astype(dtype)
    wanted = np.unique(counting.keys(scores[rng.random(5000) < 0.3]))
    if spread == "one far away":
        wanted = np.unique(np.append(wanted, counting.keys(scores[-1:])))
    every = np.sort(counting.keys(scores))
    found = counting.Counter(wanted)(scores, 2)
    upto = np.cumsum(found)
    np.testing.assert_array_equal(upto[:-1:2], np.searchsorted(every, wanted))
    np.testing.assert_array_equal(upto[1::2], np.searchsorted(every, wanted, side="right"))
    assert upto[-1] == scores.size


@pytest.mark.parametrize("kind", ["compiled", "numpy"])
@pytest.mark.parametrize("shift", [0, 7, 32, 55])
@pytest.mark.parametrize("count", [0, 1, 2, 257, 3000])
def test_words_are_sorted(kind: str, shift: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "numpy":
        monkeypatch.setattr(counting, "library", lambda: None)
    elif counting.library() is None:
        pytest.skip("the C++ library was not built")
    words = np.random.default_rng(count).integers(-(2**63), 2**63 - 1, count, np.int64) >> shift  # of any length
    expected = np.sort(words)
    counting.sort_words(words)
    np.testing.assert_array_equal(words, expected)


def test_a_table_of_scores_crowded_in_one_octave_ends_most_searches_at_once() -> None:
    if counting.library() is None:
        pytest.skip("the C++ library was not built")
    scores = np.random.default_rng(0).random(20_000, np.float32)
    counter = counting.Counter(np.unique(counting.keys(np.concatenate([scores, -scores]))))
    entries = np.diff(counter._table[: counter._parts[-1, 0] + 1])
    assert (entries * entries).sum() < 3 * counter.wanted.size  # wanted keys in the entry of a wanted key, on average


@needs_compiled
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("wanted", [10, 3_000_000])
def test_threads_that_cannot_be_had_end_no_process(wanted: int) -> None:
    """Within a limit of processes or memory fewer threads count; without memory for one there is an error."""
    code = (
        "import resource, sys\nimport numpy as np\nfrom kdad_bench.kernels.counting import Counter, keys\n"
        "scores = np.random.default_rng(0).random(1 << 24, np.float32)\n"
        "counter = Counter(np.unique(keys(scores[: int(sys.argv[1])])))\n"
        "one, found = counter(scores, 1), []\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "for room in (40, 200, 320):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + (room << 20), resource.RLIM_INFINITY))\n"
        "    try:\n"
        "        found.append((counter(scores, 10**4) == one).all())\n"
        "    except MemoryError:\n"
        "        found.append(None)\n"
        "print(*found)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(wanted)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.split()
    assert others == ["True", "True"]
    assert first == ("True" if wanted == 10 else "None")


def test_the_sorting_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_COUNTING", "numpy")
    assert counting.library.__wrapped__() is None


def test_the_sorting_counts_no_scores_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "library", lambda: None)
    count = counting.Counter(counting.keys(np.array([0.5, 1.0], np.float32)))
    assert count(np.empty(0, np.float32), 2).tolist() == [0] * 5


def test_image_metrics_of_columns_slices_and_reversed_scores() -> None:
    rng = np.random.default_rng(0)
    table, labels = rng.normal(size=(50, 4)), rng.random(50) < 0.4
    for dtype in (np.float32, np.float64):
        typed = table.astype(dtype)
        expected = image_metrics(typed[:, 1].copy(), labels)
        assert image_metrics(typed[:, 1], labels) == expected
        assert image_metrics(torch.from_numpy(typed)[:, 1], torch.from_numpy(labels)) == expected
        assert image_metrics(typed[::-1, 1], labels[::-1]) == expected


@pytest.mark.parametrize("labels", [[-1, 1, 1], ["good", "bad", "good"], [float("nan"), 1, 0], [0, 2, 1]], ids=str)
def test_labels_that_are_neither_good_nor_anomalous_are_refused(labels: list[object]) -> None:
    with pytest.raises(MetricError, match="neither good"):
        image_metrics(np.zeros(3), np.array(labels))
    with pytest.raises(MetricError, match="neither good"):
        mask_conflicts(np.zeros((3, 2, 2), bool), np.array(labels))


def test_no_images_have_no_metrics() -> None:
    nothing = np.zeros((0, 4, 4), np.float32)
    assert set(pixel_metrics(nothing, nothing > 0).values()) == {None}
    assert set(image_metrics([], []).values()) == {None}
    assert mask_conflicts(nothing > 0, []) == ([], [])


@settings(max_examples=60)
@given(cases(), st.integers(1, 200))
def test_the_device_path_equals_the_numpy_path(drawn: tuple[np.ndarray, np.ndarray], chunk: int) -> None:
    maps, masks = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdad_bench.metrics.device._CHUNK", chunk)
        found = pixel_metrics_on_device(torch.from_numpy(maps), region_index(masks))
    assert found == pytest.approx(pixel_metrics(maps, masks), abs=1e-13)


def test_the_device_path_adds_in_one_order_only() -> None:
    maps, masks = blobs()
    tied = np.round(maps, 1)
    for scores in (maps, tied, tied.astype(np.float64)):
        with NoChance():
            found = pixel_metrics_on_device(torch.from_numpy(scores), region_index(masks))
        assert found == pytest.approx(pixel_metrics(scores, masks), abs=1e-13)
    with NoChance(), pytest.raises(AssertionError, match="cumsum of floats"):
        torch.ones(3).cumsum(0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_deterministic_maps_on_a_gpu_give_one_value() -> None:
    maps, masks = blobs()
    torch.use_deterministic_algorithms(True)
    try:
        found = [pixel_metrics(torch.from_numpy(np.round(maps, 1)).cuda(), masks) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert found[0] == found[1] == found[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_maps_on_a_gpu_give_the_same_values() -> None:
    maps, masks = blobs()
    found = pixel_metrics(torch.from_numpy(maps).cuda(), torch.from_numpy(masks).cuda())
    assert found == pytest.approx(pixel_metrics(maps, masks), abs=1e-13)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_image_metrics_agree_with_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([p[0] / 3 for p in pairs], np.float32)
    labels = np.array([p[1] for p in pairs])
    found = image_metrics(scores, labels)
    if labels.all() or not labels.any():
        assert found == dict.fromkeys((*IMAGE_METRICS, *PRESORTED))
    else:
        expected = dict(zip(IMAGE_METRICS, definition.ranking(scores, labels), strict=True))
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [31, 32, 33])
def test_larger_maps_of_every_kind_agree_with_scikit_learn(kind: str, side: int) -> None:
    rng = np.random.default_rng(side)
    masks = rng.random((5, side, side)) < 0.1
    maps = case(kind, masks, rng)
    expected = definition.ranking(maps, masks)
    assert list(pixel_metrics(maps, masks, threads=2).values())[:3] == pytest.approx(expected, abs=EXACT)


def test_a_perfect_map_scores_one_and_its_negation_as_badly_as_can_be() -> None:
    _, masks = blobs()
    perfect = pixel_metrics(masks.astype(np.float32), masks)
    assert perfect == pytest.approx(dict.fromkeys(PIXEL_METRICS, 1.0), abs=1e-12)
    inverse = pixel_metrics(-masks.astype(np.float32), masks)
    assert inverse["pixel_auroc"] == 0
    assert inverse["aupro_30"] == 0


def test_only_the_order_of_scores_matters() -> None:
    maps, masks = blobs()
    expected = pixel_metrics(maps, masks)
    assert pixel_metrics(maps * np.float32(4) - np.float32(8), masks) == pytest.approx(expected, abs=1e-4)  # rounding
    assert pixel_metrics(maps * np.float32(2**-130), masks) != {}  # subnormal
    assert pixel_metrics(np.float32(-1) * (-maps), masks) == expected
    assert pixel_metrics(maps * np.float32(2**20), masks) == expected


def test_the_order_of_images_does_not_matter() -> None:
    maps, masks = blobs()
    order = np.random.default_rng(1).permutation(len(maps))
    assert pixel_metrics(maps[order], masks[order]) == pytest.approx(pixel_metrics(maps, masks), abs=1e-13)


def test_every_region_weighs_the_same_whatever_its_size() -> None:
    masks = np.zeros((1, 20, 20), bool)
    masks[0, 0, 0] = True
    masks[0, 5:15, 5:15] = True
    maps = np.zeros((1, 20, 20), np.float32)
    maps[0, 0, 0] = 1  # the small region is found, the large one is not
    rest = 0.3 / 2  # 0.3 of the other pixels, called at random: the ramp of the tie, averaged up to the limit
    assert pixel_metrics(maps, masks)["aupro_30"] == pytest.approx((1 + rest) / 2)


def test_corners_join_regions_and_images_part_them() -> None:
    masks = np.zeros((2, 4, 4), bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 3, 3] = True
    masks[0, 3, 0] = masks[1, 0, 0] = True
    index = region_index(masks)
    assert index.count == 4
    assert sorted(index.sizes.tolist()) == [1, 1, 1, 2]
    assert index.images.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_numpy_and_torch_inputs_of_any_layout_agree(wrap: object) -> None:
    maps, masks = blobs()
    expected = pixel_metrics(maps, masks)
    assert pixel_metrics(wrap(maps), wrap(masks)) == expected
    assert pixel_metrics(wrap(maps.astype(np.float64)), wrap(masks.astype(np.uint8) * 255)) == pytest.approx(expected)
    turned = wrap(np.ascontiguousarray(maps.transpose(2, 1, 0)))
    turned = turned.transpose(2, 1, 0) if isinstance(turned, np.ndarray) else turned.permute(2, 1, 0)
    assert pixel_metrics(turned, wrap(masks)) == expected


def test_half_precision_maps_are_widened_not_rounded() -> None:
    maps, masks = blobs()
    half = maps.astype(np.float16)
    expected = pixel_metrics(half.astype(np.float32), masks)
    assert pixel_metrics(half, masks) == expected
    assert pixel_metrics(torch.from_numpy(half), masks) == expected
    assert pixel_metrics_on_device(torch.from_numpy(half), region_index(masks)) == pytest.approx(expected, abs=1e-13)
    brain = torch.from_numpy(maps).bfloat16()
    assert pixel_metrics(brain, masks) == pixel_metrics(brain.float(), masks)


def test_double_precision_differences_are_kept() -> None:
    masks = np.array([[[True, False]]])
    maps = np.array([[[1.0 + 1e-12, 1.0]]])
    assert pixel_metrics(maps, masks)["pixel_auroc"] == 1
    assert pixel_metrics(maps.astype(np.float32), masks)["pixel_auroc"] == 0.5
    assert pixel_metrics(-maps, masks)["pixel_auroc"] == 0


def test_inputs_are_left_as_they_were() -> None:
    maps, masks = blobs()
    before = maps.copy(), masks.copy()
    pixel_metrics(maps, masks)
    np.testing.assert_array_equal(maps, before[0])
    np.testing.assert_array_equal(masks, before[1])


def test_read_only_maps_are_read() -> None:
    maps, masks = blobs()
    expected = pixel_metrics(maps, masks)
    maps.flags.writeable = False
    assert pixel_metrics(maps, masks) == expected


def test_scores_that_would_be_rounded_are_refused() -> None:
    with pytest.raises(MetricError, match="int64 would be rounded"):
        pixel_metrics(np.zeros((1, 2, 2), np.int64), np.zeros((1, 2, 2), bool))
    index = region_index(np.eye(2, dtype=bool)[None])
    for kind in ("int64", "uint64", "complex64"):
        maps = torch.zeros(1, 2, 2, dtype=getattr(torch, kind))
        for compute in (lambda maps=maps: pixel_metrics(maps, None, region_index=index),
                        lambda maps=maps: pixel_metrics_on_device(maps, index)):  # fmt: skip
            with pytest.raises(MetricError, match=f"^scores of type {kind} would be rounded"):
                compute()
    with pytest.raises(MetricError, match="maps of truth values, which rank nothing"):
        pixel_metrics(torch.eye(2).bool()[None], None, region_index=index)
    for kind in ("int32", "uint8", "float16", "bfloat16"):
        maps = torch.eye(2).to(getattr(torch, kind))[None]
        assert pixel_metrics_on_device(maps, index) == pixel_metrics(maps, None, region_index=index)


# --- degenerate cases


def test_without_masks_all_pixel_metrics_are_null() -> None:
    assert pixel_metrics(np.zeros((2, 3, 3), np.float32), None) == dict.fromkeys(PIXEL_METRICS)


@pytest.mark.parametrize("value", [False, True], ids=["no anomalous pixel", "no normal pixel"])
def test_one_class_of_pixels_gives_null(value: bool) -> None:
    maps, masks = blobs()
    assert pixel_metrics(maps, np.full_like(masks, value)) == dict.fromkeys(PIXEL_METRICS)
    found = pixel_metrics_on_device(torch.from_numpy(maps), region_index(np.full_like(masks, value)))
    assert found == dict.fromkeys(PIXEL_METRICS)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]], ids=["no anomalous image", "no good image"])
def test_one_class_of_images_gives_null(labels: list[int]) -> None:
    assert image_metrics([0.1, 0.2, 0.3], labels) == dict.fromkeys((*IMAGE_METRICS, *PRESORTED))


def test_without_good_images_the_pixels_of_anomalous_ones_still_rank() -> None:
    maps, masks = blobs()
    found = pixel_metrics(maps[:4], masks[:4])
    assert found == pytest.approx(definition.pixel_metrics(maps[:4], masks[:4]), abs=EXACT)


def test_constant_maps_are_chance() -> None:
    _, masks = blobs()
    found = pixel_metrics(np.full(masks.shape, 0.5, np.float32), masks)
    share = masks.mean()
    assert found["pixel_auroc"] == 0.5
    assert found["pixel_ap"] == pytest.approx(share)
    assert found["pixel_f1_max"] == pytest.approx(2 * share / (1 + share))
    assert found["aupro_30"] == pytest.approx(0.15)
    assert found["aupro_05"] == pytest.approx(0.025)


def test_a_single_region_of_a_single_pixel_works() -> None:
    masks = np.zeros((1, 5, 5), bool)
    masks[0, 2, 2] = True
    maps = np.arange(25, dtype=np.float32).reshape(1, 5, 5)
    assert pixel_metrics(maps, masks) == pytest.approx(definition.pixel_metrics(maps, masks), abs=EXACT)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("how", ["float32", "sorting", "device", "float64", "no anomaly"])
def test_a_value_that_is_not_finite_is_an_error_that_names_method_and_image(
    bad: float, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "sorting":
        monkeypatch.setattr(counting, "library", lambda: None)
    maps, masks = blobs()
    maps[3, 7, 11] = bad
    names = [f"spot/{i:03}.png" for i in range(len(maps))]
    compute = {
        "float32": lambda: pixel_metrics(maps, masks, names=names, method="stfpm", threads=2),
        "sorting": lambda: pixel_metrics(maps, masks, names=names, method="stfpm"),
        "device": lambda: pixel_metrics_on_device(
            torch.from_numpy(maps), region_index(masks), names=names, method="stfpm"
        ),
        "float64": lambda: pixel_metrics(maps.astype(np.float64), masks, names=names, method="stfpm"),
        "no anomaly": lambda: pixel_metrics(maps, np.zeros_like(masks), names=names, method="stfpm"),
    }[how]
    place = r"stfpm: anomaly map at row 7, column 11 of image 'spot/003.png' is -?(nan|inf)"
    with pytest.raises(MetricError, match=place):
        compute()


def test_an_image_score_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(MetricError, match=r"mkd: image score of image 'b' is nan"):
        image_metrics([0.0, np.nan, 1.0], [0, 1, 1], names=["a", "b", "c"], method="mkd")
    with pytest.raises(MetricError, match=r"image score of image 0 is inf"):
        image_metrics([np.inf, 0.0], [0, 1])


def test_the_largest_finite_scores_are_scores() -> None:
    top = np.finfo(np.float32).max
    maps = np.array([[[top, -top, 0.0]]], np.float32)
    assert pixel_metrics(maps, np.array([[[True, False, False]]]))["pixel_auroc"] == 1


def test_shapes_that_do_not_match_are_named() -> None:
    maps, masks = blobs()
    with pytest.raises(MetricError, match=r"maps of shape \(6, 40, 40\) for masks of shape \(6, 40, 39\)"):
        pixel_metrics(maps, masks[:, :, :-1])
    with pytest.raises(MetricError, match=r"maps of shape \(6, 40, 40\) for a region index of shape \(5, 40, 40\)"):
        pixel_metrics(maps, masks, region_index=region_index(masks[:5]))
    with pytest.raises(MetricError, match=r"must be \[N, H, W\]"):
        pixel_metrics(maps[0], masks[0])
    with pytest.raises(MetricError, match="3 image scores for 2 labels"):
        image_metrics([0.0, 1.0, 2.0], [0, 1])


@pytest.mark.parametrize("wrap", [np.asarray, np.ndarray.tolist, torch.from_numpy], ids=["numpy", "list", "torch"])
def test_maps_and_masks_that_are_swapped_are_told_and_no_five_nones(wrap: Any) -> None:
    maps = np.random.default_rng(0).random((4, 8, 8), dtype=np.float32)
    with pytest.raises(MetricError, match=r"^maps of truth values, which rank nothing; are maps and masks swapped\?$"):
        pixel_metrics(wrap(maps > 0.9), wrap(maps))
    with pytest.raises(
        MetricError, match=r"^the mask of image 0 has the value 0\.\d+; give truth values, or 0 for what"
    ):
        pixel_metrics(wrap((maps > 0.9).astype(np.uint8)), wrap(maps))


@pytest.mark.parametrize("value", [-1, -0.5, 0.37, 2.5, np.nan, np.inf])
def test_a_mask_marks_what_is_above_0_and_refuses_what_marks_nothing(value: float) -> None:
    maps = np.random.default_rng(0).random((4, 8, 8), dtype=np.float32)
    masks = np.zeros((4, 8, 8), np.int64 if isinstance(value, int) else np.float32)
    masks[2, 3, 4] = value
    with pytest.raises(MetricError, match=f"^the mask of image 2 has the value {value}; give truth values"):
        pixel_metrics(maps, masks)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("marked", [1, 255])
def test_masks_of_every_type_mean_the_same(kind: Any, marked: int) -> None:
    maps = np.random.default_rng(0).random((4, 8, 8), dtype=np.float32)
    assert pixel_metrics(maps, (maps > 0.9).astype(kind) * kind(marked)) == pixel_metrics(maps, maps > 0.9)


def test_conflicts_of_masks_and_labels_are_found() -> None:
    masks = np.zeros((3, 2, 2), bool)
    masks[0, 0, 0] = True
    names = ["good/0", "good/1", "spot/0"]
    assert mask_conflicts(masks, [False, False, True], names=names) == (["image 'good/0'"], ["image 'spot/0'"])
    assert mask_conflicts(None, [False, True]) == ([], [])
    with pytest.raises(MetricError, match="3 masks for 2 labels"):
        mask_conflicts(masks, [False, True])


def test_an_anomalous_image_with_an_empty_mask_counts_as_normal_pixels() -> None:
    maps, masks = blobs()
    masks[0] = False
    assert pixel_metrics(maps, masks) == pytest.approx(definition.pixel_metrics(maps, masks), abs=EXACT)


# --- memory


@pytest.mark.parametrize(("kind", "most"), [("compiled", 4.0), ("sorting", 9.0)])
def test_extra_memory_per_pixel_is_bounded(kind: str, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    if kind == "sorting":
        monkeypatch.setattr(counting, "library", lambda: None)
    elif counting.library() is None:
        pytest.skip("the C++ library was not built")
    rng = np.random.default_rng(0)
    masks = np.zeros((40, 256, 256), bool)
    masks[:30, 100:150, 100:140] = True  # 2.3 % of the pixels
    maps = rng.random(masks.shape, dtype=np.float32)
    index = region_index(masks)
    pixel_metrics(maps[:1], masks[:1])  # first-use imports
    tracemalloc.start()
    pixel_metrics(maps, masks, region_index=index, threads=2)
    extra = tracemalloc.get_traced_memory()[1] / maps.size
    tracemalloc.stop()
    assert extra < most  # below 4: together with the maps less than twice the maps


def test_many_callers_at_once_do_not_disturb_each_other() -> None:
    maps, masks = blobs()
    expected, found = pixel_metrics(maps, masks), []
    workers = [threading.Thread(target=lambda: found.append(pixel_metrics(maps, masks))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [expected] * 4
