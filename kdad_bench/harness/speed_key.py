"""What the speed of a job depends on, and the key that all rows of one configuration share."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import torch

from kdad_bench import __version__, allowance, kernels
from kdad_bench.datasets import SHORT_SIDE
from kdad_bench.harness.cost import is_quick
from kdad_bench.harness.environment import cpu_model, kernels_path
from kdad_bench.harness.graphs import wanted
from kdad_bench.harness.job import Job, values_of
from kdad_bench.harness.output import Work
from kdad_bench.methods import entry


def speed_key(job: Job, work: Work) -> str | None:
    """What a row of `job` calls its measurement of speed; None where each job is timed as it runs."""
    return None if work.time_every_job else key_of(job)


def key_of(job: Job) -> str:
    """16 hex digits of the SHA-256 of the canonical JSON of `configuration`."""
    text = json.dumps(configuration(job), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def configuration(job: Job) -> dict[str, Any]:
    """Everything that the speed of a job's method depends on, on this machine.

    Neither category, seed, budget nor weights are among it. The data set is, with what of the preset's label decides
    how many images are learnt from, where what a method keeps of them may make its scoring dearer (`learns_its_cost`).
    With `--fit short-side` data set and category are: the more oblong their images, the more there is to score.
    """
    device = job.device.partition(":")[0]
    learns = learns_its_cost(job)
    budget = ("seed",) if learns else ("seed", "steps", "epochs")
    settings = {name: value for name, value in values_of(job.settings).items() if name not in budget}
    data = {"dataset": job.category.dataset, "label": label_of(job)} if learns else {}
    if job.view.fit == SHORT_SIDE:
        data |= {"dataset": job.category.dataset, "category": job.category.name}
    return {
        "kdad_bench": __version__,
        "method": job.method,
        "code": job.code,
        "settings": settings,
        "resolution": job.resolution,
        **({"view": job.view.used} if job.view.used else {}),
        "modality": job.category.modality,
        "deterministic": job.deterministic,
        "quick": is_quick(job),
        "device": device,
        "device_name": torch.cuda.get_device_name(torch.device(job.device)) if device == "cuda" else cpu_model(),
        "cores": allowance.cores(),
        "torch": torch.__version__,
        "kernels": kernels_path(kernels, device),
        **({"graphs": True} if wanted(device) else {}),
        **data,
    }


def label_of(job: Job) -> str:
    """The preset's label without what changes neither number nor size of the images learnt from.

    That is the corruption of the test images, and which share of a contaminated set is defective: its size is that of
    the share 0. The label of any other job is its own, so that measurements of before this rule stay valid.
    """
    name, bracket, inside = job.preset.partition("[")
    parts = inside.removesuffix("]").split(",") if bracket else []
    kept = [re.sub("^contamination=.*", "contamination=0.0", part) for part in parts]
    kept = [part for part in kept if not part.startswith("corruption=")]
    return f"{name}[{','.join(kept)}]" if kept else name


def learns_its_cost(job: Job) -> bool:
    """Whether the cost of scoring may depend on the images learnt from: a memory of features, or code not ours."""
    return bool(job.code) or entry(job.method).family == "yardstick"
