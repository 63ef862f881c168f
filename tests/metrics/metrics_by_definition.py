"""The pixel metrics read straight off their definitions: one threshold after the other, slow and plain.

Shares no code with the package: regions come from a flood fill, thresholds are all distinct scores of the data set.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score


def regions_of(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """The 8-connected regions of one mask, by flood fill."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    regions = []
    while left:
        border = [left.pop()]
        region = []
        while border:
            y, x = border.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            border.extend(near)
        regions.append(region)
    return regions


def aupro(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """Area under (FPR, mean covered fraction of the regions) up to `limit`, divided by it; thresholds descend."""
    regions = [(i, tuple(np.array(r).T)) for i, mask in enumerate(masks) for r in regions_of(mask)]
    normal = ~masks.astype(bool)
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        called = maps >= threshold
        rates.append(float((called & normal).sum() / normal.sum()))
        overlaps.append(float(np.mean([called[i][where].mean() for i, where in regions])))
    area = 0.0
    for x0, x1, y0, y1 in zip(rates, rates[1:], overlaps, overlaps[1:], strict=False):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def ranking(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """AUROC, average precision and best F1, by scikit-learn."""
    truth, values = labels.reshape(-1).astype(int), scores.reshape(-1).astype(np.float64)
    precision, recall, _ = precision_recall_curve(truth, values)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return float(roc_auc_score(truth, values)), float(average_precision_score(truth, values)), float(f1.max())


def pixel_metrics(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """All five pixel metrics."""
    auroc, ap, f1 = ranking(maps, masks)
    return {
        "pixel_auroc": auroc,
        "pixel_ap": ap,
        "pixel_f1_max": f1,
        "aupro_30": aupro(maps, masks, 0.3),
        "aupro_05": aupro(maps, masks, 0.05),
    }
