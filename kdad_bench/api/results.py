"""`kdad_bench.Results`: the rows of a folder as tables, as a leaderboard, and set against others."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdad_bench.api.keywords import keywords, on_this_machine, said_as_keywords
from kdad_bench.api.tables import Table, html_of, text_of
from kdad_bench.harness.choices import SelectionError
from kdad_bench.leaderboard import compare as comparison
from kdad_bench.leaderboard import long_table, store
from kdad_bench.leaderboard.board import DRAWN, Board, boards
from kdad_bench.leaderboard.compare import TOLERANCE, Difference
from kdad_bench.leaderboard.metric import HEADLINE, METRICS, shown_in
from kdad_bench.leaderboard.numbers import interval, number
from kdad_bench.leaderboard.row import COLUMNS
from kdad_bench.leaderboard.text import counted

if TYPE_CHECKING:
    import pyarrow as pa

NOTHING = "no finished job"
OF_A_FAILURE = ("method", "dataset", "category", "seed", "status", "reason")
COSTS = tuple(name for name in shown_in("end") if name not in HEADLINE)


class Results:
    """The rows of a results folder, or those of some of its jobs; read anew at each call, so that a run may go on.

    `where` is a folder or an fsspec URL; `jobs` are the ids of the jobs that count, None for all. `remarks` are lines
    on what lies in the data of a run and is not used. Raises SelectionError, a ValueError, for what is no path.
    """

    def __init__(
        self, where: str | os.PathLike[str] = "results", *, jobs: Collection[str] | None = None,
        remarks: Sequence[str] = (),
    ) -> None:  # fmt: skip
        if not isinstance(where, (str, os.PathLike)) or not os.fspath(where):
            raise SelectionError(f"Results({where!r}): no results folder; give its path or URL")
        self.where = os.fspath(where)
        self.jobs = None if jobs is None else frozenset(jobs)
        self.remarks = tuple(remarks)

    def read(self, columns: Sequence[str]) -> store.Results:
        """The rows with these columns, and what was left out. Raises StoreError for a folder that cannot be read."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = store.read(self.where, {*columns, "job_id"})
        table = found.table
        if self.jobs is not None:
            table = table.filter(pc.is_in(table["job_id"], pa.array(sorted(self.jobs), pa.string())))
        return replace(found, table=table.select([name for name in COLUMNS if name in columns]))

    def frame(self, columns: Sequence[str] | str | None = None) -> pa.Table:
        """The rows as an Arrow table, each job once; `.to_pandas()` makes it a data frame where pandas is installed.

        `columns` are some of those in docs/results.md, all without it. Raises ValueError for one that is none.
        """
        asked = [columns] if isinstance(columns, str) else list(COLUMNS if columns is None else columns)
        for name in asked:
            if name not in COLUMNS:
                raise ValueError(f"no column {name!r}; have: {', '.join(COLUMNS)}")
        return self.read(asked).table.select(asked)

    def leaderboard(self) -> Leaderboard:
        """Means, intervals and ranks: a board for each group of rows that may be averaged."""
        return Leaderboard(self)

    def compare(
        self, first: str | Results, second: str | None = None, *, metrics: Sequence[str] | str = HEADLINE,
        tolerance: float = TOLERANCE,
    ) -> Comparison:  # fmt: skip
        """What changed from `first` to `second`: two methods of these results, paired by category, seed and image.

        With other Results as `first`, what changed from those to these, method by method. `metrics` are columns; a
        change of an accuracy up to `tolerance` is none. Raises NothingToCompare or ValueError in one line.
        """
        wanted = [metrics] if isinstance(metrics, str) else list(metrics)
        for name in wanted:
            if name not in METRICS:
                raise ValueError(f"no metric {name!r}; have: {', '.join(METRICS)}")
        columns = (*DRAWN, *(name for name in wanted if name not in DRAWN))
        own = self.read(columns).table
        with said_as_keywords():
            if isinstance(first, Results) and second is None:
                earlier = first.read(columns).table
                found = comparison.of_folders(earlier, own, wanted, tolerance)
                alone = comparison.one_sided_of_folders(earlier, own, wanted)
                away = comparison.ran_away_of_folders(earlier, own)
            elif isinstance(first, str) and isinstance(second, str):
                found = comparison.of_methods(own, first, second, wanted, tolerance)
                alone = comparison.one_sided_of_methods(own, first, second, wanted)
                away = comparison.ran_away_of_methods(own, first, second)
            else:
                raise ValueError(f"compare({first!r}, {second!r}): give the names of two methods, or other Results")
        return Comparison(tuple(found), tuple(alone), tuple(away))

    @property
    def failed(self) -> tuple[str, ...]:
        """A line for each job whose row is a failure."""
        return tuple(failure(row) for row in self.read(OF_A_FAILURE).rows() if row["status"] != "ok")

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each file, or row of one, that was left out."""
        return tuple(f"{one.file}: {one.what}" for one in self.read(COLUMNS).problems)

    def __len__(self) -> int:
        """The number of jobs that have a row."""
        return int(self.read(("job_id",)).table.num_rows)

    def __repr__(self) -> str:
        try:
            told = f"{counted(len(self), 'job')}, {len(self.failed)} failed"
        except store.StoreError as error:  # debuggers and notebooks show what they hold, whatever became of the folder
            told = str(error)
        return f"Results({self.where!r}): {told}"

    def _repr_html_(self) -> str:
        try:
            return self.leaderboard()._repr_html_()
        except store.StoreError as error:
            return html_of((), str(error))


def failure(row: Mapping[str, Any]) -> str:
    """`stfpm synthetic/weave seed 0: why`, of a failed row."""
    return f"{row['method']} {row['dataset']}/{row['category']} seed {row['seed']}: {keywords(row['reason'])}"


class Leaderboard:
    """The boards of some results as they were when this was made; `str()` and notebooks show them as tables."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.found = results.read(DRAWN)

    @cached_property
    def boards(self) -> tuple[Board, ...]:
        """A board for each group of rows that may be averaged."""
        return tuple(boards(self.found.table))

    def frame(self) -> pa.Table:
        """One line for each board, entrant, category (or the mean over them) and metric, as an Arrow table."""
        return long_table.as_table(long_table.lines(self.boards))

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write leaderboard.md, .html, .parquet, .csv and .json into `folder`; returns the files.

        Raises StoreError, and SelectionError, a ValueError, for a URL.
        """
        from kdad_bench.leaderboard.pages import draw_pages

        with said_as_keywords(out="folder"):
            return draw_pages(self.results.where, on_this_machine(folder), found=self.found).paths

    @property
    def tables(self) -> tuple[Table, ...]:
        """The ranking of each board: means over categories with their 95 % intervals, and costs."""
        return tuple(table_of(board) for board in self.boards if board.rows)

    def __str__(self) -> str:
        return text_of(self.tables, NOTHING)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_of(self.tables, NOTHING)


def table_of(board: Board) -> Table:
    """The ranking of one board; its caption says what must not be mistaken."""
    costs = [name for name in COSTS if any(board.typical(key, name) is not None for key in board.rows)]
    lines = tuple(
        (
            board.labels[key],
            *(interval(board.overall(key, name)) + board.fewer(key, name) for name in board.headline),
            number(board.average_ranks.get(key)),
            *(number(board.typical(key, name)) + (" ~" if board.unsteady(key, name) else "") for name in costs),
        )
        for key in board.order
    )
    caveats = f" ({', '.join(board.caveats)})" if board.caveats else ""
    heading = ("method", *(board.heading(name) for name in board.headline), "average rank")
    return Table(
        caption=board.title + caveats, heading=(*heading, *(METRICS[name].short for name in costs)), lines=lines
    )


@dataclass(frozen=True, slots=True)
class Comparison(Sequence[Difference]):
    """Differences, regressions first; `str()` and notebooks show them as tables."""

    differences: tuple[Difference, ...]
    one_sided: tuple[str, ...] = ()  # lines that name the jobs and figures that were not compared, as one side has none
    ran_away: tuple[str, ...] = ()  # lines that name the jobs for which a method was not judged

    def __getitem__(self, place: Any) -> Any:
        return self.differences[place]

    def __len__(self) -> int:
        return len(self.differences)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.differences)

    @property
    def worse(self) -> tuple[Difference, ...]:
        """What got worse beyond tolerance and noise."""
        return tuple(one for one in self.differences if one.verdict == "worse")

    @property
    def better(self) -> tuple[Difference, ...]:
        """What got better beyond tolerance and noise."""
        return tuple(one for one in self.differences if one.verdict == "better")

    def frame(self) -> pa.Table:
        """One line for each difference, as an Arrow table."""
        import pyarrow as pa

        columns = [one.name for one in fields(Difference)] + ["difference"]
        return pa.table({name: [getattr(one, name) for one in self.differences] for name in columns})

    @property
    def tables(self) -> tuple[Table, ...]:
        """One for each pair of entrants and board."""
        groups: dict[tuple[str, str], list[Difference]] = {}
        for one in self.differences:
            groups.setdefault((one.method, one.board), []).append(one)
        heading = (
            "category",
            "metric",
            "verdict",
            "first",
            "second",
            "difference",
            "95 % interval",
            "jobs",
            "judged by",
        )
        return tuple(
            Table(caption=f"{method}; {board}", heading=heading, lines=tuple(map(cells, members)))
            for (method, board), members in groups.items()
        )

    def __str__(self) -> str:
        return text_of(self.tables, "no difference")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_of(self.tables, "no difference")


def cells(one: Difference) -> tuple[str, ...]:
    """One line of a comparison."""
    around = "none" if one.low is None else f"[{one.low:+.4f}, {one.high:+.4f}]"
    numbers = (f"{one.first:.4f}", f"{one.second:.4f}", f"{one.difference:+.4f}")
    return (
        one.category,
        METRICS[one.metric].label,
        one.verdict,
        *numbers,
        around,
        str(one.pairs),
        one.judged_by,
    )
