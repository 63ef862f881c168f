"""The command line: the only place that prints, catches broadly, or exits. Commands are imported when they are used."""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib import import_module
from typing import Any

import rich_click as click
from click.exceptions import NoArgsIsHelpError

from kdad_bench import __version__
from kdad_bench.cli.ending import orderly, reader_left, silence_stdout
from kdad_bench.cli.ranges import Number, Whole, readable
from kdad_bench.files import FULL
from kdad_bench.leaderboard.text import printable

__all__ = ["COMMANDS", "COUNT", "SIDE", "BadInput", "Number", "Whole", "cli", "main"]

# command -> ("module:attribute", one line for --help, so that --help imports no command)
COMMANDS = {
    "run": ("kdad_bench.cli.run:run", "Train and evaluate methods; one result row per job."),
    "evaluate": ("kdad_bench.cli.evaluate:evaluate", "Judge anomaly maps that other code made."),
    "leaderboard": ("kdad_bench.cli.leaderboard:leaderboard", "Write the leaderboard of a results folder."),
    "compare": ("kdad_bench.cli.compare:compare", "Compare two methods or two results folders."),
    "advise": ("kdad_bench.cli.advise:advise", "Which method for a folder of images, by existing rows."),
    "audit": ("kdad_bench.cli.audit:audit", "Show what a choice on test images would have won."),
    "show": ("kdad_bench.cli.show:show", "Show everything about one job."),
    "logs": ("kdad_bench.cli.logs:logs", "Show the training log of one job."),
    "predict": ("kdad_bench.cli.predict:predict", "Score new images with a saved model."),
    "export": ("kdad_bench.cli.export:export", "Export a saved model to ONNX, OpenVINO or torch.export."),
    "results": (
        "kdad_bench.cli.results:results",
        "Look after a results folder: compact, verify, export, pack, check, reproduce, submission.",
    ),
    "data": ("kdad_bench.cli.data:data", "Fetch, verify, preview or generate data sets."),
    "kernels": ("kdad_bench.cli.kernels:kernels", "Inspect and benchmark the kernels."),
    "bench": ("kdad_bench.cli.bench:bench", "Time the harness against a plain loop, or a saved model in each runtime."),
    "new": ("kdad_bench.cli.new:new", "Write a method's file to begin with."),
    "check-method": ("kdad_bench.cli.check_method:check_method", "Check a method of yours against the rules."),
    "list": ("kdad_bench.cli.list:list_", "List methods, data sets or teachers."),
    "doctor": ("kdad_bench.cli.doctor:doctor", "Report what this machine has and lacks."),
    "completion": ("kdad_bench.cli.completion:completion", "Print the shell completion script."),
}


# environment variable -> its values; spelt out, so that no command has to import torch for them
VARIABLES = {
    "KDAD_KERNELS": ("reference", "torch", "cpp", "triton"),
    "KDAD_COUNTING": ("numpy",),
    "KDAD_GRAPHS": ("on", "off"),
    "KDAD_TRITON_LAUNCH": ("planned", "official"),
}


class BadInput(click.ClickException):
    """Input that cannot be used: one line naming it and the remedy, exit code 2."""

    exit_code = 2


COUNT = Whole(1, 10**9)  # of steps, calls, images of a batch
SIDE = Whole(32, 8192)  # of square images, px


class Commands(click.RichGroup):
    """A group that shows its commands from COMMANDS and imports only the one that is used."""

    def main(self, *arguments: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command and exit; an error is one plain line on stderr, whatever the width of the terminal."""
        speak_any_text()
        try:
            code = super().main(*arguments, standalone_mode=False, **extra)  # type: ignore[call-overload]
        except NoArgsIsHelpError as error:
            click.echo(error.message, err=True)
            sys.exit(2)
        except click.ClickException as error:
            if not standalone_mode:
                raise
            for line in getattr(error.__cause__, "lines", (error.format_message(),)):  # one for each kind of fault
                click.echo(f"kdad-bench: {printable(' '.join(line.split()))}", err=True)
            sys.exit(error.exit_code)
        except click.Abort as error:  # click's name for Ctrl-C
            raise KeyboardInterrupt from error
        except OSError as error:
            if error.errno == errno.EPIPE and reader_left():  # `| head` has seen enough
                silence_stdout()
                sys.exit(1)
            if error.errno not in FULL:
                raise
            silence_stdout()
            why = f"{error.strerror}; make room or lift the limit, and run again"
            click.echo(f"kdad-bench: {printable(str(error.filename or 'output'))}: {why}", err=True)
            sys.exit(2)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a pipe that breaks is the reader's leaving only where it is stdout."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if reader_left():
                raise
            raise RuntimeError(f"a pipe between processes broke ({error})") from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of COMMANDS: what people need first comes first."""
        return [*COMMANDS]  # `list` is a module of this package

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Replace the stand-in that help shows by the command itself."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        if name is None or stand_in is None:
            return name, stand_in, rest
        check_environment()
        module, _, attribute = COMMANDS[name][0].partition(":")
        return name, readable(getattr(import_module(module), attribute)), rest


def speak_any_text() -> None:
    """What an output stream cannot encode (ASCII, or a file name that is not UTF-8) is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def check_environment() -> None:
    """Raises BadInput for a variable whose value would only fail later, job by job."""
    for name, known in VARIABLES.items():
        value = os.environ.get(name)
        if value and value not in known:
            raise BadInput(f"{name}={value!r} is not one of {', '.join(known)}; unset it or choose one")


@click.group(
    cls=Commands,
    commands={name: click.Command(name, help=summary) for name, (_, summary) in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="kdad-bench")
def cli() -> None:
    """Benchmark knowledge-distillation (student-teacher) image anomaly detection.

    `kdad-bench run --all` trains and evaluates every method on every data set it finds and writes a leaderboard.
    Exit codes: 0 all done, 1 some job failed, something that a command looks for is not so, or an unexpected error,
    2 bad usage or input, 130 stopped by Ctrl-C, 143 by TERM.
    """


def main() -> None:
    """Entry point of the `kdad-bench` script."""
    with orderly():
        cli(prog_name="kdad-bench")
