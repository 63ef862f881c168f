"""Accuracy and cost against resolution, proportions and tiles, from the rows of a results folder.

    for side in 128 192 256; do
        kdad-bench run -m padim -m patchcore -d mvtec_ad -c capsule --preset standard --seeds 1 \\
            --resolution $side --image-size $side --time-every-job --out results
    done
    python benchmarks/resolution.py results

A line for each method, category and view; seeds are averaged, and their number is said. Pixel metrics of two
resolutions are those of two sets of pixels: AUPRO weighs a region alike whatever its pixels, pixel AUROC does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from kdad_bench.leaderboard import store

FIGURES = {
    "image_auroc": ("image AUROC", ".3f"),
    "pixel_auroc": ("pixel AUROC", ".3f"),
    "aupro_30": ("AUPRO@0.3", ".3f"),
    "latency_ms": ("ms/image", ".0f"),
    "train_seconds": ("training, s", ".0f"),
    "peak_memory_mb": ("peak, MB", ".0f"),
}
Rows = Iterable[Mapping[str, Any]]


def view(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a line stands for; lines are in this order."""
    name = f"{row['method']}:{row['variant']}" if row["variant"] else row["method"]
    return (row["category"], name, row["fit"] or "squash", row["resolution"], row["tile"] or 0, row["image_size"])


def table(rows: Rows) -> str:
    """The table in Markdown, of finished rows of this benchmark's own methods."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok" and row["origin"] is None:
            found.setdefault(view(row), []).append(row)
    titles = ["category", "method", "fit", "resolution", "tile", "networks see", "seeds"]
    titles += [title for title, _ in FIGURES.values()]
    lines = [titles, [*["---"] * 3, *["---:"] * (len(titles) - 3)]]
    for key, these in sorted(found.items()):
        cells = [*map(str, key[:4]), str(key[4] or "-"), str(key[5]), str(len(these))]
        for name, (_, form) in FIGURES.items():
            values = [row[name] for row in these if row[name] is not None]
            cells.append(format(fmean(values), form) if values else "-")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="a results folder or URL")
    print(table(store.read(parser.parse_args().results).rows()))


if __name__ == "__main__":
    main()
