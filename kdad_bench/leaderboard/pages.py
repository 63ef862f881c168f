"""Everything a person looks at, written from a results folder and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kdad_bench.leaderboard import html, long_table, markdown
from kdad_bench.leaderboard.board import DRAWN, boards
from kdad_bench.leaderboard.folder import StoreError
from kdad_bench.leaderboard.store import Results, read


def publish(results: str | Path, out: Path, *, figures: bool = False) -> tuple[Results, list[Path]]:
    """Write leaderboard.md, .html, .parquet, .csv and .json into `out`, and figures/ if asked; returns rows and files.

    Raises StoreError for a folder that cannot be read or written.
    """
    found = read(results, (*DRAWN, "throughput") if figures else DRAWN)
    drawn = boards(found.table)
    made = long_table.lines(drawn)
    contents: dict[str, Callable[[], bytes]] = {
        "leaderboard.md": lambda: markdown.page(drawn, found.table, found.problems).encode(),
        "leaderboard.html": lambda: html.page(drawn, found.table, found.problems, pictures(results)).encode(),
        "leaderboard.parquet": lambda: long_table.as_parquet(made),
        "leaderboard.csv": lambda: long_table.as_csv(made).encode(),
        "leaderboard.json": lambda: long_table.as_json(made).encode(),
    }
    paths = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            path = out / name
            path.write_bytes(content())
            paths.append(path)
    except OSError as error:
        raise StoreError(f"cannot write to {str(out)!r}: {error.strerror}; choose another place with --out") from error
    if figures:
        from kdad_bench.leaderboard.figures import draw

        paths += draw(drawn, found.table.to_pylist(), out / "figures")
    return found, paths


def pictures(results: str | Path) -> dict[str, bytes]:
    """job -> contact sheet, from the folder `pictures` of a local results folder; a URL has none."""
    if "://" in str(results):
        return {}
    return {path.stem: path.read_bytes() for path in sorted(Path(results).glob("pictures/*.png"))}
