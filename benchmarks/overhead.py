"""What the harness itself costs: the share of a job that is neither forward, backward nor metric.

    python benchmarks/overhead.py                          # STFPM, quick preset, embedded data
    python benchmarks/overhead.py --method rd4ad --method mkd --pictures

Each job is run as `kdad-bench run` runs it, row and log written, in this process, once to warm up (imports, caches) and
then measured. Counted as work: the networks and losses forward and backward, the optimiser's step, scoring and the
timing protocol (all of them forward passes), and the metrics. Everything else is overhead: reading the data from the
cache, choosing batches, logging, checkpoints, folding networks, loading the teacher, writing the row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from kdad_bench import datasets
from kdad_bench.harness import run
from kdad_bench.harness.output import Work
from kdad_bench.harness.perform import perform
from kdad_bench.harness.plan import plan, teachers
from kdad_bench.harness.selection import Selection
from kdad_bench.harness.teachers import find
from kdad_bench.methods import METHODS
from kdad_bench.methods.distillation import StudentTeacher
from kdad_bench.methods.training.teacher import Teacher


class Stopwatch:
    """Seconds inside the outermost watched call, by kind."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inside = False

    def watched(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            if self.inside:
                return call(*arguments, **named)
            self.inside = True
            start = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - start
                self.inside = False

        return timed

    def watch(self, owner: Any, name: str, kind: str) -> None:
        setattr(owner, name, self.watched(kind, getattr(owner, name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", choices=sorted(METHODS), help="default: stfpm")
    parser.add_argument("--pictures", action="store_true", help="also the contact sheet that `run` draws")
    chosen = parser.parse_args()
    watch = Stopwatch()
    watch.watch(Teacher, "forward", "forward")
    watch.watch(torch.Tensor, "backward", "backward")
    watch.watch(torch.optim.SGD, "step", "optimiser")
    watch.watch(torch.optim.Adam, "step", "optimiser")
    watch.watch(torch.optim.AdamW, "step", "optimiser")
    for name in ("score", "networks"):
        watch.watch(StudentTeacher, name, "forward")
    for name in ("image_metrics", "pixel_metrics", "region_index"):
        watch.watch(run, name, "metrics")
    category = next(iter(datasets.categories("synthetic", None)))
    print("| method | whole job, s | forward | backward | optimiser | metrics | overhead |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for method in chosen.method or ["stfpm"]:
        selection = Selection(methods=((method, ""),), categories=(category,), seeds=(0,), preset="quick", device="cpu")
        (job,) = plan(selection, {name: find(name, None, may_download=False) for name in teachers(selection)})
        implementation = type(run.build(job, torch.device("cpu"), torch.empty(0)))
        for name in ("loss", "score", "networks"):
            if name in vars(implementation):
                watch.watch(implementation, name, "forward")
        for _ in range(2):
            watch.seconds.clear()
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                row = perform(job, Work(out=folder, pictures=chosen.pictures))
                total = time.perf_counter() - start
            if row is None or row.status != "ok":
                raise SystemExit(f"{method}: the job failed")
        parts = [watch.seconds.get(name, 0.0) for name in ("forward", "backward", "optimiser", "metrics")]
        cells = " | ".join(f"{100 * part / total:.1f} %" for part in (*parts, total - sum(parts)))
        print(f"| {method} | {total:.2f} | {cells} |")


if __name__ == "__main__":
    main()
