"""`kdad-bench check-method`: the rules that every method keeps, for one from outside the package."""

from __future__ import annotations

import sys

import rich_click as click

from kdad_bench.cli import BadInput
from kdad_bench.leaderboard.text import printable


@click.command("check-method")
@click.argument("method", metavar="FILE[:ENTRY]")
def check_method(method: str) -> None:
    """Check a method: FILE.py[:ENTRY], or the name of one that is known. Exit code 1 if it breaks a rule.

    It is trained for a few steps on small drawn images, with a teacher of random weights; nothing is downloaded.
    """
    from kdad_bench.harness.check_method import check
    from kdad_bench.harness.choices import SelectionError, method_choice

    try:
        name, variant = method_choice(method)
    except SelectionError as error:
        raise BadInput(str(error).removeprefix("--method ")) from error
    if variant:
        raise BadInput(f"{method}: variants are not checked apart; leave ':{variant}' out")
    broken = 0
    for verdict in check(name):
        mark = "ok    " if verdict.kept else "BROKEN"
        said = verdict.reason or (f"not applicable, {verdict.remark}" if verdict.remark else "")
        click.echo(printable(f"{mark}  {verdict.rule}{f': {said}' if said else ''}"))
        broken += not verdict.kept
    click.echo(f"{name}: {f'{broken} rules broken' if broken else 'keeps every rule'}")
    sys.exit(1 if broken else 0)
