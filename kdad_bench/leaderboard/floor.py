"""Which entrants do worse than the floor, which every method must beat, and where."""

from __future__ import annotations

from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.families import FLOOR
from kdad_bench.leaderboard.metric import METRICS


def below_floor(board: Board, metric: str) -> str:
    """`Below the floor: bottle: STAD, EfficientAD; mean: STAD.` by means over seeds; nothing where the board has no
    floor, or nobody is below it. Of several floors the best of each category counts. An entrant that lacks a category
    has no part in `mean`."""
    floors = [key for key in board.order if board.family(key) == FLOOR]
    others = [key for key in board.order if key not in floors]
    categories = board.categories(metric)
    sign = 1 if METRICS[metric].higher_is_better else -1

    def value(key: str, category: str | None) -> float | None:
        whole = all(board.cell(key, one, metric) for one in categories)
        found = board.cell(key, category, metric) if category else board.overall(key, metric) if whole else None
        return None if found is None else sign * found.mean

    parts = []
    for category in (*categories, *([None] if len(categories) > 1 else [])):
        known = [there for key in floors if (there := value(key, category)) is not None]
        under = [key for key in others if known and (own := value(key, category)) is not None and own < max(known)]
        if under:
            parts.append(f"{category or 'mean'}: {', '.join(board.labels[key] for key in under)}")
    return f"Below the floor: {'; '.join(parts)}." if parts else ""
