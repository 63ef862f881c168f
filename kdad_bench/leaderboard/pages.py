"""Everything a person looks at, written from a results folder and nothing else: all pages whole, or none of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from kdad_bench import files
from kdad_bench.leaderboard import components, excerpts, html, long_table, markdown
from kdad_bench.leaderboard.axes import curves, shown_whole
from kdad_bench.leaderboard.board import DRAWN, Board, boards
from kdad_bench.leaderboard.folder import StoreError
from kdad_bench.leaderboard.gallery import pictures
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.store import Results, read
from kdad_bench.leaderboard.text import counted

MOST_BYTES = 50_000_000  # of a page that tables are put into


def rows_of(results: str | Path, *, figures: bool = False) -> Results:
    """What pages, and figures if asked, are drawn from; raises StoreError for a folder that cannot be read."""
    return read(results, (*DRAWN, "throughput") if figures else DRAWN)


class Pages(NamedTuple):
    """What was drawn from, and the files."""

    rows: Results
    boards: Sequence[Board]
    paths: list[Path]


def draw_pages(results: str | Path, out: Path, *, figures: bool = False, found: Results | None = None) -> Pages:
    """Write leaderboard.md, .html, .parquet, .csv and .json into `out`, and figures/ if asked.

    `found` is what `rows_of` gave, where the caller has read it already.

    Raises StoreError for a folder that cannot be read or written; what was there before is then still there, all of it.
    """
    found = found or rows_of(results, figures=figures)
    drawn = boards(found.table)
    made = long_table.lines(drawn)
    pages: dict[str, Callable[[], bytes]] = {
        "leaderboard.md": lambda: markdown.page(drawn, found.table, found.problems).encode(),
        "leaderboard.html": lambda: html.page(drawn, found.table, found.problems, pictures(results)).encode(),
        "leaderboard.parquet": lambda: long_table.as_parquet(made),
        "leaderboard.csv": lambda: long_table.as_csv(made).encode(),
        "leaderboard.json": lambda: long_table.as_json(made).encode(),
    }
    paths = [out / name for name in pages]
    try:
        files.write_all_whole({out / name: _writing(page) for name, page in pages.items()})
    except OSError as error:
        raise StoreError(f"cannot write to {files.why_not_written(error, out)}") from error
    if figures:
        from kdad_bench.leaderboard.figures import draw

        paths += draw(drawn, found.table.to_pylist(), out / "figures")
    return Pages(found, drawn, paths)


def _writing(page: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda temporary: temporary.write_bytes(page())


def spread(found: Sequence[Board]) -> list[str]:
    """How much of the spread is category, seed, image sample, number of threads or device: a line for each metric of
    each board that has a section of its own.

    Threads and device are sources only where jobs differ in them; where they do not, that is a line too.
    """
    told = [
        (board, line)
        for board in shown_whole(found, curves(found))
        for metric in board.headline
        if (line := components.in_words(board, metric))
    ]
    lines = [f"{board.title}: spread of {line}" for board, line in told]
    shared = {board.title: board for board, _ in told}
    lines += [components.left_out(board) for board in shared.values()] if len(shared) == 1 else []
    lines += [components.LEFT_OUT_OF_EACH] if len(shared) > 1 else []
    lines += [
        f"{one.of}: {one.first} and {one.second}: the same jobs' {METRICS[one.metric].label} lies "
        f"{one.deviation:.4f} apart (standard deviation, {counted(one.jobs, 'job')})"
        for one in components.of_devices(found)
    ]
    return lines


def with_tables(path: Path, results: str | Path, found: Results | None = None) -> tuple[str, str]:
    """(the text of the page at `path`, the same with its tables drawn anew from `results`); its line ends stay.

    `found` is what `rows_of` gave, where the caller has read it already.

    Raises StoreError for results or a page that cannot be read, ValueError for markers that do not fit.
    """
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise StoreError(f"{str(path)!r} is no text file of at most {MOST_BYTES // 10**6} MB")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise StoreError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{str(path)!r} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    ends = "\r\n" if "\r\n" in text else "\n"
    place = str(results) if "://" in str(results) else str(Path(results).resolve())
    fresh = excerpts.refreshed(text.replace("\r\n", "\n"), excerpts.sections(found or rows_of(results)), place)
    return text, fresh.replace("\n", ends)


def put_tables(path: Path, fresh: str) -> None:
    """Replace the page at `path` in one step; raises StoreError, and the page is then as it was."""
    try:
        files.write_text_whole(path, fresh)
    except OSError as error:
        raise StoreError(f"cannot write {str(path)!r}: {error.strerror}; it is as it was") from error
