"""`kdad-bench leaderboard`: from a results folder to pages, tables and figures."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from kdad_bench.cli import BadInput
from kdad_bench.cli.left_out import whole
from kdad_bench.cli.parameters import LocalPath, Place


@click.command()
@click.argument("results", type=Place())
@click.option("--out", type=LocalPath(file_okay=False), help="Where to write.  [default: RESULTS]")
@click.option(
    "--figures",
    is_flag=True,
    help="Also draw figures/, SVG and PNG: Pareto, seeds, ranks, batch, image size, curves.",
)
@click.option(
    "--into",
    type=LocalPath(dir_okay=False, exists=True),
    help="Draw only the tables between `<!-- leaderboard begin: NAME -->` and `<!-- leaderboard end -->` of this file.",
)
@click.option(
    "--check", is_flag=True, help="With --into: write nothing, exit 1 if the tables there are not up to date."
)
@click.pass_context
def leaderboard(
    context: click.Context, results: str, out: Path | None, figures: bool, into: Path | None, check: bool
) -> None:
    """Write leaderboard.md, .html, .parquet, .csv and .json of a results folder (a path or an fsspec URL).

    Says how much of the spread of the figures is category, seed, image sample, and of number of threads and device
    where jobs differ in these. Exit code 0; with --check 1 if the tables are not up to date; 2 if nothing could be
    drawn.
    """
    from kdad_bench.leaderboard import pages
    from kdad_bench.leaderboard.store import StoreError
    from kdad_bench.leaderboard.text import counted, printable

    if check and into is None:
        raise click.UsageError("--check needs --into FILE")
    if into is not None and (figures or out is not None):
        raise click.UsageError("--into draws into that file alone: without --out and --figures")
    if out is None and into is None and "://" in results:
        raise BadInput(f"{results} is a URL: say with --out where to write the leaderboard")
    try:
        known = whole(pages.rows_of(results, figures=figures))
        if not known.table.num_rows:
            raise BadInput(f"{results}: no row there; give a results folder")
        if into is not None:
            text, fresh = pages.with_tables(into, results, known)
            if check:
                state = "up to date" if fresh == text else f"not those of {results}"
                click.echo(printable(f"{into}: the tables are {state}"))
                context.exit(0 if fresh == text else 1)
            pages.put_tables(into, fresh)
            click.echo(printable(f"{into}: tables of {results}"))
            return
        out = out or Path(results)
        found, boards, paths = pages.draw_pages(results, out, figures=figures, found=known)
    except StoreError as error:
        raise BadInput(str(error)) from error
    except ValueError as error:
        raise BadInput(f"{into or results}: {error}") from error
    drawn = [path for path in paths if path.parent == out]
    names = ", ".join(str(path) for path in drawn)
    click.echo(printable(f"{counted(found.table.num_rows, 'job')} of {counted(found.files, 'file')} -> {names}"))
    for line in pages.spread(boards):
        click.echo(printable(line))
    if len(drawn) < len(paths):
        click.echo(printable(f"{len(paths) - len(drawn)} figures -> {paths[-1].parent}"))
        from kdad_bench.leaderboard.figures import boxes, left_over

        if others := left_over([path for path in paths if path not in drawn]):
            click.echo(printable(f"figures of other rows, not drawn now, are there too: {', '.join(others)}"))
        if lacking := boxes(boards):
            click.echo(printable(lacking))
