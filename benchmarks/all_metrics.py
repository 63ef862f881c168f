"""All pixel metrics together against one `np.sort`: 40 maps of 1024 px, one thread, its processor seconds.

    python benchmarks/all_metrics.py

Of thread seconds the least of some rounds, in turn: they hold on a machine that other work shares, as far as any do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from metrics import EIGHT, draw
from scipy import ndimage

from kdad_bench.metrics import Finer, Saturated, every_pixel_metric, exact, region_index

ROUNDS = 5


def seconds(call: Callable[[], object]) -> float:
    """Processor seconds of this thread."""
    began = time.thread_time()
    call()
    return time.thread_time() - began


def main() -> None:
    """Print one line."""
    exact._MOST_THREADS = 1
    maps, masks = draw(40, 1024)
    normal, index = ~masks.any(axis=(1, 2)), region_index(masks)
    labelled = [ndimage.label(mask, structure=EIGHT) for mask in masks]
    owners = [image for image, (_, count) in enumerate(labelled) for _ in range(count)]
    regions = np.array([labels == k + 1 for labels, count in labelled for k in range(count)])
    saturated = Saturated(regions, np.array(owners), np.full(len(owners), 0.3))
    kinds = ["good" if good else "a" if image % 2 else "b" for image, good in enumerate(normal)]
    plain = Finer(normal=normal, threshold=float(np.quantile(maps[::4, ::8, ::8], 0.99)))
    whole = Finer(normal=normal, kinds=kinds, regions=saturated, threshold=plain.threshold)
    calls = (
        lambda: np.sort(maps.reshape(-1)),
        lambda: every_pixel_metric(maps, index, plain),
        lambda: every_pixel_metric(maps, index, whole),
    )
    least = np.min([[seconds(call) for call in calls] for _ in range(ROUNDS)], axis=0)
    ratios = least[1:] / least[0]
    print(f"np.sort {least[0]:.2f} s; all metrics {ratios[0]:.2f} times that, with saturated regions {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
