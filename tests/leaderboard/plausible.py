"""Plausible rows for the tests of the renderers: invented numbers, never results."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kdad_bench.leaderboard.published import WEIGHTS
from kdad_bench.leaderboard.row import Row

METHODS: dict[str, dict[str, Any]] = {
    "pixel_mean": {"title": "Pixel mean", "level": 0.66, "ms": 0.4, "teacher": None, "parameters": 0},
    "stfpm": {"title": "STFPM", "level": 0.90, "ms": 6.1, "teacher": "resnet18", "parameters": 5_566_000},
    "rd4ad": {"title": "RD4AD", "level": 0.955, "ms": 21.5, "teacher": "wide_resnet50_2", "parameters": 117_000_000},
    "mkd": {"title": "MKD", "level": 0.86, "ms": 48.0, "teacher": "vgg16", "parameters": 19_600_000},
    "dskd": {
        "title": "DSKD (reading)",
        "level": 0.953,
        "ms": 14.2,
        "teacher": "resnet18",
        "parameters": 21_000_000,
        "readings": ("fusion: sum over scales", "optimiser: Adam, 0.005"),
    },
}
CATEGORIES = ("bottle", "cable", "carpet", "grid", "leather", "screw", "tile", "zipper")


def row(method: str, category: str, seed: int, **changes: Any) -> Row:
    """One row whose numbers are drawn from its identity alone."""
    facts = METHODS[method]
    identity = json.dumps([method, category, seed, sorted((k, str(v)) for k, v in changes.items())])
    digest = hashlib.sha256(identity.encode()).hexdigest()
    rng = random.Random(digest)
    shift = random.Random(category).uniform(-0.06, 0.04)
    own = random.Random(method + category).uniform(-0.01, 0.01)

    def accuracy(offset: float) -> float:
        return min(1.0, max(0.0, facts["level"] + shift + own + offset + rng.gauss(0, 0.002)))

    latency = facts["ms"] * rng.uniform(0.985, 1.015)
    columns: dict[str, Any] = {
        "job_id": digest[:16],
        "protocol_version": "1",
        "created_at": f"2026-01-{seed % 28 + 1:02d}T10:00:00+00:00",
        "method": method,
        "title": facts["title"],
        "dataset": "mvtec_ad",
        "category": category,
        "seed": seed,
        "preset": "paper",
        "teacher": facts["teacher"],
        "teacher_weights": "torchvision IMAGENET1K_V1" if facts["teacher"] else None,
        "teacher_sha256": f"{WEIGHTS[facts['teacher']]:5<64}" if facts["teacher"] else None,
        "resolution": 256,
        "image_size": 256,
        "steps": 1000,
        "batch_size": 32,
        "precision": "fp32",
        "readings": facts.get("readings", ()),
        "settings": json.dumps({"epochs": 200, "seed": seed}),
        "data_fingerprint": hashlib.sha256(category.encode()).hexdigest(),
        "train_images": 200,
        "test_images": 83,
        "image_auroc": accuracy(0.02),
        "image_ap": accuracy(0.025),
        "image_f1_max": accuracy(0.0),
        "image_auroc_max": accuracy(0.01),
        "pixel_auroc": accuracy(0.015),
        "pixel_ap": accuracy(-0.35),
        "pixel_f1_max": accuracy(-0.33),
        "aupro_30": accuracy(-0.04),
        "aupro_05": accuracy(-0.25),
        "train_seconds": 100 * rng.uniform(0.99, 1.01),
        "total_seconds": 120.0,
        "latency_ms": latency,
        "latency_p95_ms": latency * 1.1,
        "network_latency_ms": latency * 0.8,
        "images_per_second": 2500 / facts["ms"] * rng.uniform(0.99, 1.01),
        "best_batch": 32,
        "peak_memory_mb": 300 + facts["parameters"] / 1e5,
        "parameters": facts["parameters"],
        "trainable_parameters": facts["parameters"] // 2,
        "gflops": facts["ms"] / 4,
        "device": "cpu",
        "device_name": "Example CPU",
        "threads": 2,
        "python": "3.11.7",
        "torch": "2.13.0",
        "numpy": "2.4.6",
        "kdad_bench": "0.1.0",
        "platform": "Linux",
        "git_commit": "0123456789abcdef",
        "git_dirty": False,
        "image_scores": tuple(round(rng.random(), 3) for _ in range(4)),
        "image_labels": (False, True, True, False),
        "image_names": ("good/000.png", "crack/000.png", "crack/001.png", "good/001.png"),
        "latency_samples_ms": tuple(round(latency * rng.uniform(0.95, 1.1), 3) for _ in range(8)),
        "throughput": tuple(
            {"batch": batch, "images_per_second": 1000 / facts["ms"] * (1 + batch / 24)} for batch in (1, 4, 16, 32)
        ),
        "losses": json.dumps([[1, {"total": 1.0}], [10, {"total": 0.4}]]),
    }
    return Row(**{**columns, **changes})


def invented(method: str, category: str, seed: int, **changes: Any) -> Row:
    """The row of a method that does not exist, named as it likes."""
    return replace(row("stfpm", category, seed, **changes), method=method, job_id=f"{method}-{category}-{seed}")


def failed_row(method: str, category: str, seed: int, reason: str, **changes: Any) -> Row:
    """The row of a failed job of the same make."""
    good = row(method, category, seed, **changes)
    names = (
        *("protocol_version", "created_at", "title", "dataset", "preset", "resolution", "device", "device_name"),
        *("teacher", "teacher_weights", "teacher_sha256", "readings", "data_fingerprint", "synthetic", "variant"),
    )
    return Row.failed(
        reason=reason,
        job_id=good.job_id,
        method=method,
        category=category,
        seed=seed,
        **{name: getattr(good, name) for name in names},
    )


def full_table(
    methods: Sequence[str] = tuple(METHODS), categories: Sequence[str] = CATEGORIES, seeds: int = 3, **changes: Any
) -> list[Row]:
    """Every method on every category with every seed."""
    return [
        row(method, category, seed, **changes) for method in methods for category in categories for seed in range(seeds)
    ]


def mixed_table() -> list[Row]:
    """What a page must cope with: two data sets, two presets, readings, a failure, a missing category."""
    rows = full_table()
    rows += full_table(("pixel_mean", "stfpm", "dskd"), ("blobs", "weave"), 2, dataset="synthetic", preset="quick",
                       synthetic=True, resolution=128)  # fmt: skip
    rows = [one for one in rows if (one.method, one.category) != ("mkd", "screw") or one.seed == 0]
    rows = [one for one in rows if (one.method, one.category, one.dataset) != ("pixel_mean", "weave", "synthetic")]
    rows += [failed_row("mkd", "screw", seed, "CUDA out of memory | tried batch 16, then 8") for seed in (1, 2)]
    return rows
