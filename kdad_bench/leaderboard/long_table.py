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
# column -> what it holds, in the order of all three files; docs/results.md has the same table
MEANINGS = {
    "dataset": "name of the data set; this and the next eight: the board, what all rows behind the line share",
    "modality": "what the method sees: rgb, depth, ...",
    "resolution": "side of the evaluated maps, px",
    "preset": "quick, standard or paper, what was changed in brackets",
    "synthetic": "the data are procedurally generated",
    "protocol_version": "version of the evaluation protocol; empty where rows have none",
    "device": "cpu or cuda; empty for maps of other code",
    "device_name": "name of the processor or card; empty for maps of other code",
    "origin": "who vouches for the maps where other code made them; empty: a run of this benchmark",
    "method": "registered name of the method",
    "variant": "named variant of the method; null for the default",
    "title": "name of the method in tables",
    "family": "floor, yardstick or student-teacher",
    "teacher": "teacher network; null without one",
    "teacher_weights": "where the teacher's weights came from",
    "rank": "average rank on the board over categories and ranked metrics, 1 is best; null for an entrant that is not "
    "ranked. The same in all lines of an entrant",
    "rank_in_family": "the same among the entrants of its family alone",
    "scope": "what the line sums up: category (an accuracy in one category), mean (an accuracy over all categories) or "
    "jobs (a cost over all jobs of the entrant)",
    "category": "the category of a line of scope category, else null",
    "metric": "column of the rows that is summed up",
    "unit": "its unit; empty for a share or a count",
    "higher_is_better": "which way is better",
    "mean": "of a category: over seeds; of scope mean: over categories of these means; of jobs: over jobs, where what "
    "jobs share counts once",
    "median": "of scope jobs: over the same values, what tables show; else null",
    "std": "standard deviation (n - 1): of a category over seeds; of scope mean over the seeds' means over categories; "
    "of jobs over the same values as the mean. Null for a single one",
    "low": "95 % interval of an accuracy's mean, from: of a category for other seeds, of scope mean for other "
    "categories of the same kind",
    "high": "the same, to",
    "these_low": "of scope mean: 95 % interval for these very categories, from, with other seeds and, where known, "
    "other test images",
    "these_high": "the same, to",
    "seeds": "of an accuracy the fewest seeds behind any category; of jobs how many different ones",
    "categories": "how many categories are behind the line",
    "complete": "of an accuracy: no category lacks that any entrant of the board has in this metric; of jobs: each has "
    "a value",
    "readings": "what no source settles and was chosen",
    "deviations": "where a source settles it and the runs did otherwise",
}
COLUMNS = tuple(MEANINGS)
BOARD = COLUMNS[: COLUMNS.index("method")]
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
                        line = {
                            **_identity(board, key), "scope": scope, "category": category, "metric": metric,
                            "unit": about.unit, "higher_is_better": about.higher_is_better, "mean": estimate.mean,
                            "median": board.typical(key, metric) if scope == JOBS else None, "std": estimate.std,
                            "low": estimate.low, "high": estimate.high, "these_low": estimate.these_low,
                            "these_high": estimate.these_high, "seeds": estimate.seeds,
                            "categories": estimate.categories, "complete": estimate.complete,
                        }  # fmt: skip
                        made.append({name: line[name] for name in COLUMNS})
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
    group = {name: getattr(board.group, name) for name in BOARD}
    names = ("method", "variant", "title", "family", "teacher", "teacher_weights")
    own = {name: getattr(entrant, name) for name in names}
    ranks = {"rank": board.average_ranks.get(key), "rank_in_family": board.ranks_in_family.get(key)}
    words = {"readings": list(board.readings(key)), "deviations": list(board.deviations(key))}
    return {**group, **own, **ranks, **words}


def schema() -> pa.Schema:
    """The columns with their types."""
    import pyarrow as pa

    kinds = {
        **dict.fromkeys(("resolution", "seeds", "categories"), pa.int32()),
        **dict.fromkeys(("synthetic", "higher_is_better", "complete"), pa.bool_()),
        **dict.fromkeys(LISTS, pa.list_(pa.string())),
        **dict.fromkeys(("rank", "rank_in_family", "mean", "median", "std", *BOUNDS), pa.float64()),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])


def describe() -> list[tuple[str, str, str]]:
    """(column, Parquet type, meaning) of every column, in order."""
    known = schema()
    kinds = {name: str(known.field(name).type).replace("item: ", "") for name in COLUMNS}
    return [(name, kinds[name], meaning) for name, meaning in MEANINGS.items()]


def as_table(made: Sequence[dict[str, Any]]) -> pa.Table:
    """The lines as an Arrow table."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(made), schema=schema())


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
