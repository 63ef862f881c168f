"""What the last step under a constant rate owes to the running statistics of a student's batch norms.

    python benchmarks/norm_statistics.py --method eca_mskdad --category capsule --steps 900 --every 15 \
        --data-root DATA --teacher resnet18 --weights FILE

A job's training is looked at every so many steps, twice: as it is, so with the running mean and variance that a row's
networks have, and with both taken anew from all normal images in one pass, without distortions (as Wu and Johnson do,
arXiv 2105.07576, section 3). The test set is judged each time, and the mean of the maps of the first normals is told
beside it, which needs no test image. It changes no row; the weights are the same both times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdad_bench.api.keywords import fields_of
from kdad_bench.harness.agenda import agenda
from kdad_bench.harness.audit import FIGURES, figures
from kdad_bench.harness.environment import keep_freed_memory
from kdad_bench.harness.job import Job
from kdad_bench.harness.material import normals, pictures_of, test_set
from kdad_bench.harness.options import options_from
from kdad_bench.harness.run import build, learnable, squares
from kdad_bench.harness.scoring import score_all
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.resizing import resized

FEW = 64  # normals whose maps are averaged
WAYS = ("as it is", "from all normals")


def asked(given: argparse.Namespace, out: Path) -> Job:
    """The one job of the command line."""
    said = {
        "methods": [given.method], "datasets": [given.dataset], "categories": [given.category], "seeds": [given.seed],
        "preset": given.preset, "device": given.device, "out": out, "steps": given.steps,
    }  # fmt: skip
    options = {name: getattr(given, name) for name in ("data_root", "teacher", "weights", "image_size")}
    found = agenda(options_from(fields_of(said | {name: value for name, value in options.items() if value})))
    (job,) = found.jobs
    return job


def take_statistics_from(student: torch.nn.Module, images: Tensor, size: int, batch: int) -> None:
    """Mean and variance of each batch norm of `student` are the means over batches of `images` [N, 3, H, W]."""
    norms = [one for one in student.modules() if isinstance(one, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise SystemExit("the student has no batch norms")
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
    student.train()
    with torch.no_grad():
        for chunk in images.split(batch):
            student(resized(chunk, size))
    student.eval()


def main() -> int:
    """Train, look, print a table."""
    given = arguments()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        job = asked(given, Path(folder))
    device = torch.device(job.device)
    fit, _ = normals(job)
    images, test = learnable(job, squares(job, fit), device), test_set(job)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}

    def look(step: int, method: Any) -> None:
        for way in WAYS:
            if way != WAYS[0]:
                take_statistics_from(method.student, images, job.settings.image_size, job.settings.batch_size)
            scores = score_all(method, pictures_of(test), job.name, device)
            point = figures(scores.image, scores.pixel, test, job)
            normal = float(score_all(method, images[:FEW], job.name, device).pixel.mean())
            found[way].append({"step": step, **point, "map of normals": normal})
            print(json.dumps({"statistics": way, **found[way][-1]}), flush=True)

    build(job, device, None).fit(images, Fitting(watch=look, watch_every=given.every))
    print(table(found))
    return 0


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Least, median and last of each figure over the second half of the points."""
    lines = ["", "| statistics | " + " | ".join(f"{name}: least, median, last" for name in FIGURES) + " |"]
    lines.append("| --- |" + " ---: |" * len(FIGURES))
    for way, points in found.items():
        half = points[len(points) // 2 :]
        told = []
        for name in FIGURES:
            values = [point[name] for point in half if point[name] is not None]
            told.append(f"{min(values):.3f}, {statistics.median(values):.3f}, {values[-1]:.3f}")
        lines.append(f"| {way} | " + " | ".join(told) + " |")
    return "\n".join([*lines, "", f"over the last {len(half)} of {len(points)} points"])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="eca_mskdad", help="METHOD or METHOD:VARIANT that trains a student")
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--category", default="gear")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--every", type=int, default=15)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--teacher")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
