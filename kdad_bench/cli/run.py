"""`kdad-bench run`: from a selection on the command line to rows in a results folder and a leaderboard."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.core import ParameterSource
from rich.console import Console

from kdad_bench.cli import COUNT, SIDE, BadInput, Number
from kdad_bench.cli.measuring import measure_speed
from kdad_bench.cli.parameters import (
    DataRoot,
    LocalPath,
    MethodName,
    Place,
    complete_category,
    complete_dataset,
    refuse_rows_in_memory,
)
from kdad_bench.cli.plan_report import (
    say,
    say_plan,
    say_remarks,
    say_that_it_is_busy,
    say_what_is_not_redone,
    show_plan,
)
from kdad_bench.cli.run_report import PlainConsole, report, stopped
from kdad_bench.cli.terminal import outlived
from kdad_bench.interrupts import Terminated
from kdad_bench.leaderboard.text import printable

if TYPE_CHECKING:
    from kdad_bench.harness.agenda import Agenda
    from kdad_bench.harness.job import Job
    from kdad_bench.harness.on_ray import Ending
    from kdad_bench.harness.options import RunOptions
    from kdad_bench.harness.workforce import Workforce

WIDTH_OF_FILES = 110  # columns of tables that go to a file or a pipe


@click.command(context_settings={"show_default": True})
@click.option("--all", "everything", is_flag=True, help="Every method on every category of every data set found.")
@click.option(
    "--method",
    "-m",
    "methods",
    type=MethodName(),
    multiple=True,
    help="METHOD[:VARIANT], or FILE.py[:ENTRY[:VARIANT]]. Repeatable.",
)
@click.option(
    "--dataset",
    "-d",
    "datasets",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_dataset,
    help="mvtec_ad, visa, ..., folder:PATH, tabular:TABLE, synthetic, or FILE.py[:ENTRY]. Repeatable.",
)
@click.option(
    "--category", "-c", "categories", multiple=True, shell_complete=complete_category, help="A category. Repeatable."
)
@click.option(
    "--seeds", metavar="N|A,B", help="A count (3: seeds 0, 1, 2) or a list (3,7).  [default: 2 quick, else 3]"
)
@click.option(
    "--preset",
    type=click.Choice(["quick", "standard", "paper"]),
    help="Budget and teacher.  [default: paper with CUDA; on a CPU standard for real images, else quick]",
)
@click.option("--device", metavar="auto|cpu|cuda:N", help="Where to train and time.  [default: auto]")
@click.option(
    "--data-root",
    type=DataRoot(),
    envvar="KDAD_DATA",
    show_envvar=True,
    help="Folder that holds data sets.",
)
@click.option("--out", type=Place(), help="Results folder, local or any fsspec URL.  [default: results]")
@click.option("--config", type=LocalPath(dir_okay=False), help="TOML file with the same choices.")
@click.option("--dry-run", is_flag=True, help="Print the plan and an estimate, run nothing.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="A JSON object per job on stdout; progress, and the measurements of speed, on stderr.",
)
@click.option("--force", is_flag=True, help="Redo jobs that are finished.")
@click.option("--retry-failed", is_flag=True, help="Redo jobs whose row is a failure.")
@click.option("--teacher", metavar="NAME", help="Another teacher for every method.")
@click.option(
    "--weights",
    "all_weights",
    multiple=True,
    metavar="[TEACHER=]FILE|random",
    help="Weights of the teachers that the file fits; may be repeated. `random` only for tests.",
)
@click.option("--steps", type=COUNT, help="Optimiser steps, in place of the preset's budget.")
@click.option("--epochs", type=COUNT, help="Epochs, in place of the preset's budget.")
@click.option("--batch-size", type=COUNT, help="Training batch.")
@click.option("--image-size", type=SIDE, help="Side of what the networks see, px, divisible by 32 (a ViT: by 14).")
@click.option("--resolution", type=SIDE, help="Side at which images are loaded and maps evaluated, px.")
@click.option(
    "--fit",
    metavar="squash|short-side|pad",
    help="How an image comes to the resolution: squeezed into a square, or with its proportions.  [default: squash]",
)
@click.option("--tile", type=SIDE, help="Learn and score in tiles of this side, px at the resolution.")
@click.option(
    "--overlap",
    type=click.IntRange(0, 8192),
    help="Least overlap of neighbouring tiles, px.  [default: a quarter of a tile]",
)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Autocast of the networks.")
@click.option(
    "--set", "assignments", multiple=True, metavar="[METHOD.]FIELD=VALUE", help="Any other setting. Repeatable."
)
@click.option(
    "--modality",
    type=click.Choice(["rgb", "depth", "rgb+depth"]),
    help="What methods see of MVTec 3D-AD.  [default: rgb]",
)
@click.option(
    "--executor",
    type=click.Choice(["in-process", "local", "ray"]),
    help="Where jobs run.  [default: local where processes are worth their start, else in-process]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    help="Jobs side by side, in processes; 1: one after another in this one.  [default: by cores, memory and jobs; "
    "1 where starting processes takes longer than they save, and with CUDA]",
)
@click.option("--address", metavar="HOST:PORT", help="Ray cluster; without it Ray starts one on this machine.")
@click.option(
    "--gpu-fraction",
    type=Number(min=0.0, max=1.0, min_open=True),
    metavar="SHARE",
    help="Share of a GPU's memory for each job; 0.25: four at a time.  [default: what --workers leave each]",
)
@click.option(
    "--drawers",
    type=click.IntRange(0, 256),
    help="Processes that draw training samples ahead of each job; no number changes.  [default: by cores with CUDA, "
    "else 0]",
)
@click.option(
    "--job-timeout",
    type=Number(min=0.0, min_open=True),
    metavar="SECONDS",
    help="Give a job up after this long; it then runs in a process of its own.",
)
@click.option(
    "--checkpoint-every",
    type=Number(min=0.0),
    default=60.0,
    metavar="SECONDS",
    help="Keep the state of a running training so often; an interrupted job goes on from it.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 512),
    help="CPU threads of a job; another number rounds sums otherwise.  [default: 1 on a CPU]",
)
@click.option("--deterministic", is_flag=True, help="Deterministic algorithms only (slower on CUDA).")
@click.option("--pictures/--no-pictures", default=True, help="A contact sheet per job in pictures/.")
@click.option(
    "--hold-out",
    type=Number(min=0.0, max=0.9),
    default=0.0,
    metavar="SHARE",
    help="Keep so many of the normals from the method and fit the saved model's threshold on them.",
)
@click.option(
    "--train-images",
    metavar="K[,K...]",
    help="Learn from K of the training images, drawn by seed and category; `all` for the plain job.",
)
@click.option(
    "--contamination",
    metavar="SHARE[,...]",
    help="So much of what is learnt from is defective (0 to 0.4), out of the test set; `none` for the plain job.",
)
@click.option(
    "--corruption",
    metavar="NAME:LEVEL[,...]",
    help="Test images with brightness, contrast, blur, noise, jpeg, shift or rotation, level 1 to 5; `none`: as are.",
)
@click.option(
    "--setting",
    type=click.Choice(["single", "multi-class"]),
    help="A model for each category, or one for all chosen categories of a data set.  [default: single]",
)
@click.option("--save-models", is_flag=True, help="Keep the trained models in models/ (for `predict`).")
@click.option("--save-maps", is_flag=True, help="Keep the raw anomaly maps in maps/.")
@click.option(
    "--measure-speed/--no-measure-speed",
    default=None,
    show_default=False,
    help="Measure speed anew, after the jobs, or not at all.  [default: what has no measurement yet]",
)
@click.option("--time-every-job", is_flag=True, help="Time each job as it runs, in place of one measurement alone.")
@click.option(
    "--audit", is_flag=True, help="Judge each training on its test set as it goes, in audits/; no row changes by it."
)
@click.option(
    "--audit-every",
    type=COUNT,
    metavar="STEPS",
    help="Judge every so many steps.  [default: a twentieth of the training]",
)
@click.option("--tensorboard", is_flag=True, help="Loss terms as TensorBoard events (needs the tensorboard package).")
def run(**given: Any) -> None:
    """Train and evaluate methods; every finished job leaves one row, and running again goes on where it stopped.

    A plain run needs a choice: `--all`, or any of `--method --dataset --category`, here or in the file of `--config`.
    Where no `--method` is named, one that cannot be run so is left out: a line says why, and the exit code is 1. A dry
    run ends as the run would, as far as the plan tells.
    """
    from kdad_bench.harness.environment import busy_elsewhere

    busy = busy_elsewhere()  # before torch is imported: that is work too
    with outlived(), answered(), going_on():
        from kdad_bench.harness.endings import put_back
        from kdad_bench.harness.workforce import hint, workforce

        options = options_of(given)
        console = console_for(options)
        found = agenda_of(options, console)
        if options.dry_run:
            say_remarks(found, console)
            if not options.as_json:
                say_what_is_not_redone(found, console)
            if found.left:
                say_that_it_is_busy(busy, console)
            show_plan(found, options, console)
            sys.exit(1 if found.incomplete else 0)
        force = workforce(found.left, options)
        say_plan(found, force, console)
        say_what_is_not_redone(found, console)
        if found.left:
            say_that_it_is_busy(busy, console)
            say(hint(found.left, force), console)
        began = time.perf_counter()
        endings: list[tuple[Job, Ending]] = []
        unmeasured: list[str] = []
        try:
            went_on = run_jobs(found, options, force, console, endings)
        finally:  # also of a run that is stopped: what ended well is kept
            restored = put_back(endings, found.work)
        if not went_on or not measure_speed(found, options, console, endings, unmeasured):
            sys.exit(stopped(len(found.left), console, endings, force=options.force))
        restored += put_back(endings, found.work)  # what was lost while speed was measured
        code = report(found, endings, restored, console, time.perf_counter() - began, options.as_json)
        for line in unmeasured:
            console.print(line, markup=False)
        sys.exit(code)


@contextmanager
def going_on() -> Iterator[None]:
    """Whoever stops a run by TERM is told what is left of it."""
    try:
        yield
    except Terminated as error:
        error.add_note("finished jobs are kept, the same command goes on")
        raise


@contextmanager
def answered() -> Iterator[None]:
    """What a person can mend is one line and exit code 2."""
    from kdad_bench.datasets import DatasetError
    from kdad_bench.harness.choices import SelectionError
    from kdad_bench.harness.config import ConfigError
    from kdad_bench.leaderboard.store import StoreError

    try:
        yield
    except (SelectionError, DatasetError, StoreError) as error:
        raise BadInput(str(error)) from error
    except ConfigError as error:
        for line in str(error).splitlines():
            click.echo(f"kdad-bench: {printable(line)}", err=True)
        sys.exit(2)


def options_of(given: Mapping[str, Any]) -> RunOptions:
    """The options, where the command line says nothing those of the config file, then the environment's.

    Raises SelectionError for contradictions, ConfigError for the file.
    """
    from kdad_bench.harness.config import options_and_file
    from kdad_bench.harness.selection import refuse_contradictions

    said = {name: value for name, value in given.items() if value not in (None, ())}
    context = click.get_current_context(silent=True)
    of_environment = context is not None and context.get_parameter_source("data_root") is ParameterSource.ENVIRONMENT
    options = options_and_file(said, said.pop("data_root", None) if of_environment else None)
    refuse_contradictions(options)
    refuse_rows_in_memory(options.out)
    return options


def console_for(options: RunOptions) -> Console:
    """Where a run tells how it goes: stderr where stdout is for JSON."""
    console = PlainConsole(stderr=options.as_json, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH_OF_FILES
    return console


def agenda_of(options: RunOptions, console: Console) -> Agenda:
    """What there is to do; tells where the embedded data stand in."""
    from kdad_bench.harness.agenda import agenda

    if not options.datasets and options.data_root is None:
        console.print("no --data-root and no KDAD_DATA: running the embedded synthetic data", markup=False)
    return agenda(options)


def run_jobs(
    found: Agenda, options: RunOptions, force: Workforce, console: Console, endings: list[tuple[Job, Ending]]
) -> bool:
    """Run what is left, show each job as it ends and append it to `endings`; false when Ctrl-C stopped them."""
    from kdad_bench.cli.progress import Progress
    from kdad_bench.harness.executors import outcomes

    if not found.left:
        return True
    with Progress(console, found.left, as_json=options.as_json) as progress:
        try:
            with closing(outcomes(found.left, found.work, progress.started, options, force)) as stream:
                for job, ended in stream:
                    endings.append((job, ended))
                    progress.ended(job, ended)
        except KeyboardInterrupt:
            return False
    return True
