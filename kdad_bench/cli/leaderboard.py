"""`kdad-bench leaderboard`: from a results folder to pages, tables and figures."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from kdad_bench.cli import BadInput


@click.command()
@click.argument("results")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where to write [default: RESULTS].")
@click.option(
    "--figures", is_flag=True, help="Also draw figures/ as SVG and PNG: Pareto, seeds, ranks, batch, image size."
)
@click.option(
    "--into",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Draw only the tables between `<!-- leaderboard begin: NAME -->` and `<!-- leaderboard end -->` of this file.",
)
@click.option(
    "--check", is_flag=True, help="With --into: write nothing, exit 1 if the tables there are not up to date."
)
@click.pass_context
def leaderboard(
    context: click.Context, results: str, out: Path | None, figures: bool, into: Path | None, check: bool
) -> None:
    """Write leaderboard.md, .html, .parquet, .csv and .json of a results folder (a path or an fsspec URL)."""
    from kdad_bench.leaderboard import markdown, pages, store

    if check and into is None:
        raise click.UsageError("--check needs --into FILE")
    if into is not None and (figures or out is not None):
        raise click.UsageError("--into draws into that file alone: without --out and --figures")
    try:
        if into is not None:
            text = into.read_text(encoding="utf-8")
            fresh = markdown.refreshed(text, markdown.sections(store.read(results)))
            if check:
                click.echo(f"{into}: the tables are {'up to date' if fresh == text else 'not those of ' + results}")
                context.exit(0 if fresh == text else 1)
            into.write_text(fresh, encoding="utf-8", newline="\n")
            click.echo(f"{into}: tables of {results}")
            return
        if out is None and "://" in results:
            raise BadInput(f"{results} is a URL: say with --out where to write the leaderboard")
        found, paths = pages.publish(results, out or Path(results), figures=figures)
    except store.StoreError as error:
        raise BadInput(str(error)) from error
    except ValueError as error:
        raise BadInput(f"{into}: {error}") from error
    for problem in found.problems:
        click.echo(f"left out: {problem.file}: {problem.what}", err=True)
    drawn = [path for path in paths if path.parent.name != "figures"]
    click.echo(f"{found.table.num_rows} jobs of {found.files} files -> {', '.join(str(path) for path in drawn)}")
    if len(drawn) < len(paths):
        click.echo(f"{len(paths) - len(drawn)} figures -> {paths[-1].parent}")
