"""The leaderboard as data: one line per board, entrant, category or the mean over them, and metric; nothing rounded."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from kdad_bench.leaderboard import measurement
from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.metric import ACCURACY, METRICS
from kdad_bench.leaderboard.summary import Estimate
from kdad_bench.leaderboard.text import cell

if TYPE_CHECKING:
    import pyarrow as pa

CATEGORY, MEAN, JOBS = "category", "mean", "jobs"  # what a line summarises: one category, all of them, all jobs
BOUNDS = ("low", "high", "these_low", "these_high")
COLUMNS = (
    *(
        "dataset",
        "modality",
        "resolution",
        "preset",
        "synthetic",
        "protocol_version",
        "device",
        "device_name",
        "origin",
    ),
    *("method", "variant", "title", "family", "teacher", "teacher_weights", "rank", "rank_in_family", "scope"),
    *("category", "metric", "unit"),
    *("higher_is_better", "mean", "median", "std", *BOUNDS, "seeds", "categories", "complete"),
    *("readings", "deviations"),
)
LISTS = ("readings", "deviations")


def lines(found: Sequence[Board]) -> list[dict[str, Any]]:
    """The lines of all boards.

    `scope` "category" and "mean" hold accuracies over seeds (`std`, and the 95 % interval `low` to `high`; of a mean
    for other categories of the same kind, `these_low` to `these_high` for these very ones), `scope` "jobs" the costs
    over all jobs of an entrant. `rank` is the entrant's average rank on its board, `rank_in_family` that among its
    family alone.
    """
    made = []
    for board in found:
        for key in board.order:
            for metric, about in METRICS.items():
                cells: list[tuple[str, str | None, Estimate | None]]
                if metric in ACCURACY:
                    cells = [(MEAN, None, board.overall(key, metric))]
                    cells += [(CATEGORY, name, board.cell(key, name, metric)) for name in board.categories(metric)]
                else:
                    cells = [(JOBS, None, _cost(board, key, metric))]
                for scope, category, estimate in cells:
                    if estimate is not None:
                        made.append({
                            **_identity(board, key), "scope": scope, "category": category, "metric": metric,
                            "unit": about.unit, "higher_is_better": about.higher_is_better, "mean": estimate.mean,
                            "median": board.typical(key, metric) if scope == JOBS else None, "std": estimate.std,
                            "low": estimate.low, "high": estimate.high, "these_low": estimate.these_low,
                            "these_high": estimate.these_high, "seeds": estimate.seeds,
                            "categories": estimate.categories, "complete": estimate.complete,
                        })  # fmt: skip
    return made


def _cost(board: Board, key: str, metric: str) -> Estimate | None:
    """Mean and deviation of a cost over the jobs of an entrant; what was measured once counts once."""
    rows = [row for row in board.rows[key] if row.get(metric) is not None]
    values = measurement.distinct(board.rows[key], metric) if rows else []
    if not values:
        return None
    return Estimate(
        mean=fmean(values),
        std=stdev(values) if len(values) > 1 else None,
        low=None,
        high=None,
        seeds=len({row["seed"] for row in rows}),
        categories=len({row["category"] for row in rows}),
        complete=len(rows) == len(board.rows[key]),
    )


def _identity(board: Board, key: str) -> dict[str, Any]:
    """What all lines of an entrant share."""
    entrant = board.summary.entrant(key)
    group = {name: getattr(board.group, name) for name in COLUMNS[:9]}
    names = ("method", "variant", "title", "family", "teacher", "teacher_weights")
    own = {name: getattr(entrant, name) for name in names}
    ranks = {"rank": board.average_ranks.get(key), "rank_in_family": board.ranks_in_family.get(key)}
    words = {"readings": list(board.readings(key)), "deviations": list(board.deviations(key))}
    return {**group, **own, **ranks, **words}


def as_table(made: Sequence[dict[str, Any]]) -> pa.Table:
    """The lines as an Arrow table."""
    import pyarrow as pa

    kinds = {
        **dict.fromkeys(("resolution", "seeds", "categories"), pa.int32()),
        **dict.fromkeys(("synthetic", "higher_is_better", "complete"), pa.bool_()),
        **dict.fromkeys(LISTS, pa.list_(pa.string())),
        **dict.fromkeys(("rank", "rank_in_family", "mean", "median", "std", *BOUNDS), pa.float64()),
    }
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    return pa.Table.from_pylist(list(made), schema=schema)


def as_parquet(made: Sequence[dict[str, Any]]) -> bytes:
    """The lines as one Parquet file."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(as_table(made), sink, compression="zstd")
    return sink.getvalue()


def as_csv(made: Sequence[dict[str, Any]]) -> str:
    """The lines as CSV with a header; lists are JSON text."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in made:
        lists = {name: json.dumps(line[name], ensure_ascii=False) for name in LISTS}
        writer.writerow({name: cell(value) for name, value in {**line, **lists}.items()})
    return sink.getvalue()


def as_json(made: Sequence[dict[str, Any]]) -> str:
    """The lines as a JSON array of objects."""
    return json.dumps(list(made), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
