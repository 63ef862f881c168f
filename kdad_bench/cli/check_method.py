"""`kdad-bench check-method`: the rules that every method keeps, for one from outside the package."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import rich_click as click

from kdad_bench.cli import BadInput, Number
from kdad_bench.leaderboard.text import printable

if TYPE_CHECKING:
    from kdad_bench.harness.check_method import Verdict


@click.command("check-method", context_settings={"show_default": True})
@click.argument("method", metavar="FILE[:ENTRY]")
@click.option(
    "--timeout",
    type=Number(min=0.0, min_open=True),
    default=600.0,
    metavar="SECONDS",
    help="Give a rule up after this long.",
)
def check_method(method: str, timeout: float) -> None:
    """Check a method: FILE.py[:ENTRY], or the name of one that is known. Exit code 1 if it breaks a rule.

    It is trained for a few steps on small drawn images, with a teacher of random weights; nothing is downloaded. It
    runs in a process of its own: exit code 2 where its code ends that, or where a rule takes longer than --timeout.
    """
    from contextlib import closing

    from kdad_bench.harness.check_method import Unfinished, check_apart
    from kdad_bench.harness.choices import SelectionError
    from kdad_bench.leaderboard.text import counted

    name, broken = method, 0
    try:
        with closing(check_apart(method, timeout)) as answers:
            for answer in answers:
                if isinstance(answer, str):
                    name = answer
                    continue
                click.echo(printable(line(answer)))
                broken += not answer.kept
    except (SelectionError, Unfinished) as error:
        raise BadInput(str(error).removeprefix("--method ")) from error
    click.echo(f"{name}: {counted(broken, 'rule') + ' broken' if broken else 'keeps every rule'}")
    sys.exit(1 if broken else 0)


def line(verdict: Verdict) -> str:
    """A verdict for people."""
    mark = "ok    " if verdict.kept else "BROKEN"
    said = verdict.reason or (f"not applicable, {verdict.remark}" if verdict.remark else "")
    return f"{mark}  {verdict.rule}{f': {said}' if said else ''}"
