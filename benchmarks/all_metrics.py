"""All pixel metrics together against one `np.sort`: 40 maps of 1024 px, one thread, its processor seconds.

    python benchmarks/all_metrics.py

Of thread seconds the least of some rounds, in turn: they hold on a machine that other work shares, as far as any do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from metrics import draw, known_of

from kdad_bench.metrics import Finer, every_pixel_metric, exact, region_index

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
    whole, index = known_of(maps, masks), region_index(masks)
    plain = Finer(normal=whole.normal, threshold=whole.threshold)
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
