"""Pixel metrics against scikit-learn, torchmetrics, adeval and the textbook loop: seconds, memory, agreement.

    python benchmarks/metrics.py                 # A: 83 maps of 256x256 (minutes, most of them in the loop)
    python benchmarks/metrics.py --cases A B C   # and 160 of 256x256, and 40 of 1024x1024
    python benchmarks/metrics.py --device cuda   # maps on a GPU: all metrics there, against a copy to the host

All implementations see the same maps and masks in one process; this package and `np.sort` are timed in turn. Memory is
the growth of the peak resident memory of a fresh process for each. Compare ratios, not seconds: they move with the
machine. A library that is not installed, or fails, says so in its line.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from kdad_bench.allowance import cores
from kdad_bench.harness import clock
from kdad_bench.kernels import counting
from kdad_bench.metrics import (
    PIXEL_METRICS,
    Finer,
    RegionIndex,
    Saturated,
    every_pixel_metric,
    finer,
    pixel_metrics,
    region_index,
)

Values = dict[str, float]
CASES = {"A": (83, 256), "B": (160, 256), "C": (40, 1024)}
LOOP_LIMIT = 20_000_000  # pixels above which the 200-threshold loop is left out: it takes minutes
EIGHT = np.ones((3, 3), bool)


def draw(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth noisy maps that see most of one to three round defects in three quarters of the images."""
    rng = np.random.default_rng(0)
    masks = np.zeros((count, side, side), bool)
    y, x = np.mgrid[:side, :side]
    for image in range(3 * count // 4):
        for _ in range(rng.integers(1, 4)):
            centre, radius = rng.integers(0, side, 2), rng.integers(side // 40, side // 8)
            masks[image] |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    maps = rng.random(masks.shape, dtype=np.float32) + masks * rng.random((count, 1, 1), dtype=np.float32)
    return ndimage.gaussian_filter(maps, (0, 1, 1), output=np.float32), masks


def known_of(maps: np.ndarray, masks: np.ndarray, share: float = 0.3) -> Finer:
    """What every finer metric needs, as if a data set had it: two kinds of defects, each region with a saturation."""
    normal = ~masks.any(axis=(1, 2))
    labelled = [ndimage.label(mask, structure=EIGHT) for mask in masks]
    owners = np.array([image for image, (_, count) in enumerate(labelled) for _ in range(count)])
    regions = np.array([labels == k + 1 for labels, count in labelled for k in range(count)])
    kinds = ["good" if good else "a" if image % 2 else "b" for image, good in enumerate(normal)]
    return Finer(
        normal=normal, kinds=kinds, regions=Saturated(regions, owners, np.full(len(owners), share)),
        threshold=float(np.quantile(maps[::4, ::8, ::8], 0.99)),
    )  # fmt: skip


# --- implementations: (maps, masks, index) -> the metrics they give


def ours(threads: int) -> Callable[[np.ndarray, np.ndarray, RegionIndex], Values]:
    def compute(maps: np.ndarray, masks: np.ndarray, index: RegionIndex) -> Values:
        return dict(pixel_metrics(maps, masks, region_index=index, threads=threads))  # type: ignore[arg-type]

    return compute


def without_counting(maps: np.ndarray, masks: np.ndarray, index: RegionIndex) -> Values:
    """What runs where no compiler was: one thread, `np.sort` in place of the compiled counting."""
    compiled, counting.library = counting.library, lambda: None  # type: ignore[assignment]
    try:
        return ours(1)(maps, masks, index)
    finally:
        counting.library = compiled


def only_the_sort(maps: np.ndarray, masks: np.ndarray, index: RegionIndex) -> Values:
    np.sort(maps.reshape(-1))
    return {}


def sklearn_auroc(maps: np.ndarray, masks: np.ndarray, index: RegionIndex) -> Values:
    from sklearn.metrics import roc_auc_score

    return {"pixel_auroc": float(roc_auc_score(masks.reshape(-1), maps.reshape(-1)))}


def sklearn_ap(maps: np.ndarray, masks: np.ndarray, index: RegionIndex) -> Values:
    from sklearn.metrics import average_precision_score

    return {"pixel_ap": float(average_precision_score(masks.reshape(-1), maps.reshape(-1)))}


def sklearn_f1(maps: np.ndarray, masks: np.ndarray, index: RegionIndex) -> Values:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(masks.reshape(-1), maps.reshape(-1))
    return {"pixel_f1_max": float((2 * precision * recall / np.maximum(precision + recall, 1e-300)).max())}


def aupro_by_definition(maps: np.ndarray, masks: np.ndarray, index: RegionIndex) -> Values:
    """Exact: sort all pixels, accumulate false positives and region mass, trapezoids up to the limit."""
    gain = np.zeros(masks.shape)
    regions = 0
    for image in range(len(masks)):
        labels, number = ndimage.label(masks[image], structure=EIGHT)
        sizes = np.bincount(labels.reshape(-1), minlength=number + 1)
        gain[image] = np.where(labels > 0, 1 / sizes[labels], 0)
        regions += number
    order = np.argsort(maps, axis=None)[::-1]
    ordered = maps.reshape(-1)[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of each run of equal scores
    overlap = np.concatenate([[0], (np.cumsum(gain.reshape(-1)[order]) / regions)[last]])
    rate = np.concatenate([[0], (np.cumsum(~masks.reshape(-1)[order]) / (~masks).sum())[last]])
    found = {}
    for name, limit in (("aupro_30", 0.3), ("aupro_05", 0.05)):
        inside = rate <= limit
        x, y = np.append(rate[inside], limit), np.append(overlap[inside], np.interp(limit, rate, overlap))
        found[name] = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit)
    return found


def loop_of_200_thresholds(maps: np.ndarray, masks: np.ndarray, index: RegionIndex) -> Values:
    """The textbook loop: one binary map per threshold, one overlap per region."""
    labelled = [ndimage.label(mask, structure=EIGHT) for mask in masks]
    objects = [ndimage.find_objects(labels) for labels, _ in labelled]
    rates, overlaps = [], []
    for threshold in np.linspace(maps.min(), maps.max(), 200):
        called = maps > threshold
        overlap = [
            called[image][box][labels[box] == region + 1].mean()
            for image, (labels, _) in enumerate(labelled)
            for region, box in enumerate(objects[image])
        ]
        overlaps.append(np.mean(overlap))
        rates.append(np.logical_and(~masks, called).sum() / (~masks).sum())
    x, y = np.array(rates)[::-1], np.array(overlaps)[::-1]
    x, y = np.append(x[x <= 0.3], 0.3), np.append(y[x <= 0.3], np.interp(0.3, x, y))
    return {"aupro_30": float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / 0.3)}


def torchmetrics_auroc(maps: np.ndarray, masks: np.ndarray, index: RegionIndex) -> Values:
    import torch
    from torchmetrics.functional.classification import binary_auroc

    scores, truth = torch.from_numpy(maps).reshape(-1), torch.from_numpy(masks).reshape(-1).int()
    return {"pixel_auroc": float(binary_auroc(scores, truth))}


def torchmetrics_ap(maps: np.ndarray, masks: np.ndarray, index: RegionIndex) -> Values:
    import torch
    from torchmetrics.functional.classification import binary_average_precision

    scores, truth = torch.from_numpy(maps).reshape(-1), torch.from_numpy(masks).reshape(-1).int()
    return {"pixel_ap": float(binary_average_precision(scores, truth))}


def adeval_1000_bins(maps: np.ndarray, masks: np.ndarray, index: RegionIndex) -> Values:
    if not hasattr(np, "trapz"):
        vars(np)["trapz"] = np.trapezoid  # it calls the name that numpy 2.4 removed
    import adeval

    auroc, ap, aupro = adeval.auroc_aupr_aupro(maps, masks.astype(np.uint8))
    return {"pixel_auroc": auroc, "pixel_ap": ap, "aupro_30": aupro}


IMPLEMENTATIONS = {
    "np.sort of the keys": only_the_sort,
    "kdad-bench, 1 thread": ours(1),
    "kdad-bench, 2 threads": ours(2),
    "kdad-bench, 1 thread, not compiled": without_counting,
    "scikit-learn AUROC": sklearn_auroc,
    "scikit-learn AP": sklearn_ap,
    "scikit-learn F1-max": sklearn_f1,
    "AUPRO by definition": aupro_by_definition,
    "200-threshold AUPRO": loop_of_200_thresholds,
    "torchmetrics AUROC": torchmetrics_auroc,
    "torchmetrics AP": torchmetrics_ap,
    "adeval, 1000 bins": adeval_1000_bins,
}
QUICK = tuple(IMPLEMENTATIONS)[:4]
TOGETHER = ("scikit-learn AUROC", "scikit-learn AP", "scikit-learn F1-max", "AUPRO by definition")


def extra_megabytes(name: str, folder: Path) -> float:
    """The growth of the peak resident memory in a process that does nothing else."""
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": str(cores())}
    command = [sys.executable, __file__, "--memory", name, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_memory(name: str, folder: Path) -> None:
    """The child's part: load, warm up on a corner, then measure."""
    warnings.simplefilter("ignore")
    maps, masks = np.load(folder / "maps.npy"), np.load(folder / "masks.npy")
    index = region_index(masks)
    small = maps[:2, :64, :64].copy(), np.zeros((2, 64, 64), bool)
    small[1][0, 5:9, 5:9] = True
    IMPLEMENTATIONS[name](*small, region_index(small[1]))
    with clock.peak_memory() as peak:
        IMPLEMENTATIONS[name](maps, masks, index)
    print(peak.growth_mb)


def run(case: str, rounds: int, memory_of: str) -> None:
    """Print the table of one case."""
    count, side = CASES[case]
    maps, masks = draw(count, side)
    start = time.perf_counter()
    index = region_index(masks)
    built = time.perf_counter() - start
    print(
        f"\n{case}: {count} maps of {side}x{side}, {maps.size / 1e6:.1f} M pixels, {100 * masks.mean():.1f} % defective"
    )
    print(f"{index.count} regions; their index took {built:.3f} s and is not part of the times below")
    budget = clock.Budget(rounds, 60)
    calls = {name: (lambda f=IMPLEMENTATIONS[name]: f(maps, masks, index)) for name in QUICK}
    timings = clock.interleaved(calls, warmup=clock.Budget(2, 5), budget=budget)
    seconds = {name: timing.median_ms / 1000 for name, timing in timings.items()}
    exact = pixel_metrics(maps, masks, region_index=index)
    results: dict[str, Values | str] = {name: IMPLEMENTATIONS[name](maps, masks, index) for name in QUICK}
    for name in tuple(IMPLEMENTATIONS)[len(QUICK) :]:
        if name == "200-threshold AUPRO" and maps.size > LOOP_LIMIT:
            results[name] = "left out: minutes"
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                start = time.perf_counter()
                results[name] = IMPLEMENTATIONS[name](maps, masks, index)
                seconds[name] = time.perf_counter() - start
        except Exception as error:
            results[name] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:60]}"
    extra: dict[str, float] = {}
    if memory_of != "none":
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "maps.npy", maps)
            np.save(Path(folder) / "masks.npy", masks)
            extra = {name: extra_megabytes(name, Path(folder)) for name in (seconds if memory_of == "all" else QUICK)}
    floor = seconds["np.sort of the keys"]
    print("\n| implementation | seconds | x np.sort | extra MB | bytes/pixel | furthest from kdad-bench |")
    print("|---|---:|---:|---:|---:|---|")
    for name, found in results.items():
        if isinstance(found, str):
            print(f"| {name} | | | | | {found} |")
            continue
        gaps = {metric: abs(value - (exact[metric] or 0.0)) for metric, value in found.items()}
        worst = max(gaps, key=lambda metric: gaps[metric], default=None)
        apart = f"{gaps[worst]:.0e} ({worst})" if worst else ""
        flag = "" if name not in timings or timings[name].steady else f" (unsteady: {100 * timings[name].spread:.0f} %)"
        size = f"{extra[name]:.0f} | {extra[name] * 1e6 / maps.size:.1f}" if name in extra else " | "
        print(f"| {name} | {seconds[name]:.4f}{flag} | {seconds[name] / floor:.2f} | {size} | {apart} |")
    print(f"\nkdad-bench, all {len(PIXEL_METRICS)} metrics, against the same in one run:")
    together = sum(seconds[name] for name in TOGETHER)
    for name in QUICK[1:]:
        own, sort = np.array(timings[name].samples_ms), np.array(timings[QUICK[0]].samples_ms)
        pairs = own[: sort.size] / sort[: own.size]
        print(f"  {name}: {together / seconds[name]:.0f} x faster than scikit-learn's three and AUPRO by definition")
        print(f"    ({together:.2f} s); {np.median(pairs):.2f} x np.sort in the median of {pairs.size} pairs,", end=" ")
        print(f"{own.min() / sort.min():.2f} x by the fastest of each")


def run_on_device(case: str, rounds: int, device: str) -> None:
    """Print the table of one case whose maps lie on `device`; on a CPU it only shows that everything runs."""
    import torch

    from kdad_bench.metrics import finer_device as there
    from kdad_bench.metrics.device import pixel_metrics_on_device

    maps, masks = draw(*CASES[case])
    known, index = known_of(maps, masks), region_index(masks)
    assert known.regions is not None
    assert known.threshold is not None
    regions, threshold, groups = known.regions, known.threshold, finer.groups_of(known.normal, known.kinds)
    on = torch.from_numpy(maps).to(device)
    flat, found = on.reshape(-1), there.Passed.of(on.reshape(-1), index, groups)
    copied = "all metrics, copied to the host and counted there"
    calls = {
        copied: lambda: every_pixel_metric(on.cpu().numpy(), index, known),
        "all metrics there": lambda: there.every_pixel_metric_on_device(
            on, index, groups, regions=regions, threshold=threshold
        ),
        "the protocol's five": lambda: pixel_metrics_on_device(on, index),
        "the pass of the finer ones": lambda: there.Passed.of(flat, index, groups),
        "AP by size after it": lambda: there.ap_by_size(found, index),
        "AUPIMO after it": lambda: there.aupimo(found, index, groups),
        "AU-sPRO after it": lambda: there.au_spro(flat, found, index, regions, groups),
        "SegF1": lambda: there.seg_f1(flat, index, threshold),
        "torch.sort of the maps": lambda: torch.sort(flat),
    }
    timings = clock.interleaved(calls, device, warmup=clock.Budget(3, 5), budget=clock.Budget(rounds, 60))
    mine, host = calls["all metrics there"](), calls[copied]()
    apart = max(abs((mine[name] or 0.0) - (host[name] or 0.0)) for name in host)
    name = torch.cuda.get_device_name(device) if on.is_cuda else device
    print(
        f"\n{case}: {len(maps)} maps of {maps.shape[1]}x{maps.shape[2]} on {name}, {100 * masks.mean():.1f} % defective"
    )
    print(f"the figures of both lie at most {apart:.0e} apart\n")
    print("| what | ms | x the copy |")
    print("|---|---:|---:|")
    for what, timing in timings.items():
        flag = "" if timing.steady else f" (unsteady: {100 * timing.spread:.0f} %)"
        print(f"| {what} | {timing.median_ms:.2f}{flag} | {timing.median_ms / timings[copied].median_ms:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["A"])
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of np.sort and kdad-bench")
    parser.add_argument(
        "--memory-of", choices=["all", "ours", "none"], default="all", help="memory columns: a process for each line"
    )
    parser.add_argument("--device", help="time maps that lie there, cuda for one, and nothing of other code")
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory:
        print_memory(chosen.memory[0], Path(chosen.memory[1]))
        return
    load = os.getloadavg()[0]
    print(f"numpy {np.__version__}, {cores()} CPUs, load {load:.1f} before the start")
    for case in chosen.cases:
        if chosen.device:
            run_on_device(case, chosen.rounds, chosen.device)
        else:
            run(case, chosen.rounds, chosen.memory_of)


if __name__ == "__main__":
    main()
