"""`kdad-bench completion`: the script that teaches a shell to complete commands, options, names and results folders."""

from __future__ import annotations

import rich_click as click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell; e.g. `eval "$(kdad-bench completion bash)"`."""
    from kdad_bench.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "kdad-bench", "_KDAD_BENCH_COMPLETE").source())
