"""`kdad-bench run`: from a selection on the command line to rows in a results folder and a leaderboard."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.shell_completion import CompletionItem
from rich.console import Console

from kdad_bench.cli import SIDE, BadInput, Number
from kdad_bench.methods import METHODS

if TYPE_CHECKING:
    from kdad_bench.datasets import Category
    from kdad_bench.harness.executors import Outcomes
    from kdad_bench.harness.job import Job, Selection
    from kdad_bench.harness.work import Work
    from kdad_bench.leaderboard.row import Row
    from kdad_bench.leaderboard.store import Finished


MOST_BUSY = 0.2  # share of the processors that other work may hold without a word
SPINS = "10000"  # at a barrier, on a busy machine; OpenMP's default is 300,000
CONNECT_SECONDS = 10.0  # for a Ray cluster to answer
WIDTH_OF_FILES = 110  # columns of tables that go to a file or a pipe


class MethodName(click.ParamType[Any]):
    """`name` or `name:variant`; completes names without importing torch."""

    name = "method"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Split and check the name; the variant is checked when the method is imported."""
        if isinstance(value, tuple):
            return value
        from kdad_bench.harness.job import SelectionError, method_choice

        try:
            return method_choice(value)
        except SelectionError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The methods that begin so."""
        return [CompletionItem(name) for name in METHODS if name.startswith(incomplete)]


def complete_category(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Category names of the chosen data sets."""
    from kdad_bench import datasets

    root = ctx.params.get("data_root") or os.environ.get("KDAD_DATA")
    names = ctx.params.get("datasets") or ([*datasets.find(Path(root))] if root else ["synthetic"])
    found = [one.name for name in names for one in datasets.categories(name, Path(root) if root else None)]
    return [CompletionItem(name) for name in dict.fromkeys(found) if name.startswith(incomplete)]


@click.command(context_settings={"show_default": True})
@click.option("--all", "everything", is_flag=True, help="Every method on every category of every data set found.")
@click.option(
    "--method", "-m", "methods", type=MethodName(), multiple=True, help="A method, or METHOD:VARIANT. Repeatable."
)
@click.option(
    "--dataset",
    "-d",
    "datasets",
    multiple=True,
    metavar="NAME",
    help="mvtec_ad, mvtec_3d_ad, folder:PATH or synthetic. Repeatable.",
)
@click.option(
    "--category",
    "-c",
    "categories",
    multiple=True,
    shell_complete=complete_category,
    help="A category. Repeatable.",
)
@click.option(
    "--seeds", metavar="N|A,B", help="A count (3: seeds 0, 1, 2) or a list (3,7).  [default: 2 quick, 3 paper]"
)
@click.option(
    "--preset",
    type=click.Choice(["quick", "paper"]),
    help="Budget and teacher.  [default: paper with CUDA, else quick]",
)
@click.option("--device", metavar="auto|cpu|cuda:N", help="Where to train and time.  [default: auto]")
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar="KDAD_DATA",
    show_envvar=True,
    help="Folder that holds data sets.",
)
@click.option("--out", metavar="DIR|URL", help="Results folder, local or any fsspec URL.  [default: results]")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with the same choices.")
@click.option("--dry-run", is_flag=True, help="Print the plan and an estimate, run nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per job on stdout; progress on stderr.")
@click.option("--force", is_flag=True, help="Redo jobs that are finished.")
@click.option("--retry-failed", is_flag=True, help="Redo jobs whose row is a failure.")
@click.option("--teacher", metavar="NAME", help="Another teacher for every method.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE|random",
    help="The teacher's weights; `random` only for tests.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps, in place of the preset's budget.")
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs, in place of the preset's budget.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Training batch.")
@click.option("--image-size", type=SIDE, help="Side of what the networks see, px, divisible by 32.")
@click.option("--resolution", type=SIDE, help="Side at which images are loaded and maps evaluated, px.")
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
    "--executor", type=click.Choice(["in-process", "local", "ray"]), default="in-process", help="Where jobs run."
)
@click.option(
    "--workers", type=click.IntRange(1, 1024), default=1, help="Worker processes; more than one are --executor local."
)
@click.option("--address", metavar="HOST:PORT", help="Ray cluster; without it Ray starts one on this machine.")
@click.option(
    "--gpu-fraction",
    type=Number(min=0.0, max=1.0, min_open=True),
    default=1.0,
    help="GPU share of one Ray job.",
)
@click.option(
    "--job-timeout",
    type=Number(min=0.0, min_open=True),
    metavar="SECONDS",
    help="Give a job up after this long; it then runs in a process of its own.",
)
@click.option(
    "--checkpoint-every",
    "checkpoint_every_seconds",
    type=Number(min=0.0),
    default=60.0,
    metavar="SECONDS",
    help="Keep the state of a running training so often; an interrupted job goes on from it.",
)
@click.option(
    "--threads", type=click.IntRange(1, 512), help="CPU threads of a job.  [default: the cores, shared by the workers]"
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
@click.option("--save-models", is_flag=True, help="Keep the trained models in models/ (for `predict`).")
@click.option("--save-maps", is_flag=True, help="Keep the raw anomaly maps as float16 in maps/.")
@click.option("--tensorboard", is_flag=True, help="Loss terms as TensorBoard events (needs the tensorboard package).")
def run(**given: Any) -> None:
    """Train and evaluate methods; every finished job leaves one row, and running again goes on where it stopped.

    A plain run needs a choice: `--all`, or any of `--method --dataset --category --config`.
    """
    from kdad_bench.datasets import DatasetError
    from kdad_bench.harness.config import ConfigError
    from kdad_bench.harness.job import SelectionError
    from kdad_bench.leaderboard.store import StoreError

    try:
        code = carry_out(given)
    except (SelectionError, DatasetError, StoreError) as error:
        raise BadInput(str(error)) from error
    except ConfigError as error:
        for line in str(error).splitlines():
            click.echo(f"kdad-bench: {line}", err=True)
        sys.exit(2)
    sys.exit(code)


def carry_out(given: dict[str, Any]) -> int:
    """Plan, run, report; returns the exit code."""
    busy = make_room_for_other_work()  # before torch is imported
    from kdad_bench.harness.config import Config, read
    from kdad_bench.harness.job import plan
    from kdad_bench.leaderboard.store import finished

    config = read(given["config"]) if given["config"] else Config()
    merge(given, config)
    refuse_contradictions(given)
    console = Console(stderr=given["as_json"], highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH_OF_FILES
    if not (given["everything"] or given["methods"] or given["datasets"] or given["categories"] or given["config"]):
        raise click.UsageError("nothing chosen: say --all, or choose with --method, --dataset, --category or --config")
    selection = selection_from(given, config, console)
    weights = {name: weights_of(name, given, config) for name in teachers_of(selection)}
    jobs = plan(selection, weights)
    work = work_from(given)
    done = finished(work.out)
    left = [job for job in jobs if must_run(done.get(job.id), given)]
    if given["dry_run"]:
        return show_plan(jobs, left, console, given["as_json"])
    say_plan(jobs, left, selection, console)
    again = {job.id for job in left}
    say_what_is_not_redone({job.id: done[job.id] for job in jobs if job.id not in again}, work, console)
    if left and busy > MOST_BUSY:
        console.print(
            f"other work keeps {busy:.0%} of the processors busy: times will be too long; "
            "wait for it, or try fewer --threads",
            markup=False,
        )
    began = time.perf_counter()
    rows = run_jobs(left, work, given, console)
    if rows is None:
        return stopped(len(left), console)
    return report(jobs, rows, work, console, time.perf_counter() - began, given["as_json"])


def refuse_contradictions(given: dict[str, Any]) -> None:
    """Raises BadInput for options that would be ignored, or that lack a package every job would then miss."""
    if given["save_models"] and given["modality"] != "rgb":
        raise BadInput(f"--save-models keeps rgb models, which `predict` can use; not --modality {given['modality']}")
    if given["executor"] != "ray":
        for option, default in (("address", None), ("gpu_fraction", 1.0)):
            if given[option] != default:
                raise BadInput(f"--{option.replace('_', '-')} is for --executor ray; add that, or leave it out")
    if given["executor"] == "ray" and given["workers"] > 1:
        raise BadInput("--workers is for --executor local; Ray runs as many jobs as its cluster has CPUs")
    if given["tensorboard"] and find_spec("tensorboard") is None:
        raise BadInput("--tensorboard needs the tensorboard package: pip install tensorboard")
    scheme, separator, rest = given["out"].partition("://")
    if separator and not rest:
        raise BadInput(f"--out {given['out']}: names no place; give a bucket and a folder, {scheme}://bucket/results")
    if separator:
        for option in ("save_models", "save_maps", "tensorboard"):
            if given[option]:
                raise BadInput(
                    f"--{option.replace('_', '-')} writes beside the rows, on this machine: not with a URL as --out"
                )


def merge(given: dict[str, Any], config: Any) -> None:
    """Fill what the command line left open from the config file."""
    table = config.run
    for key in ("datasets", "categories"):
        given[key] = given[key] or tuple(getattr(table, key))
    if not given["methods"] and table.methods:
        from kdad_bench.harness.job import method_choice

        given["methods"] = tuple(method_choice(name) for name in table.methods)
    for key in ("preset", "device", "out", "resolution", "modality"):
        if given[key] is None:
            given[key] = getattr(table, key)
    if given["data_root"] is None and table.data_root:
        given["data_root"] = Path(table.data_root)
    if given["seeds"] is None and table.seeds is not None:
        given["seeds"] = str(table.seeds) if isinstance(table.seeds, int) else ",".join(map(str, table.seeds)) + ","
    given["device"] = given["device"] or "auto"
    given["out"] = given["out"] or "results"
    given["modality"] = given["modality"] or "rgb"


def selection_from(given: dict[str, Any], config: Any, console: Console) -> Selection:
    """The checked selection; raises SelectionError or DatasetError with one line."""
    from kdad_bench.harness.job import PRESETS, Selection, SelectionError, seeds_from, suggestion
    from kdad_bench.kernels import dispatch

    device = device_from(given["device"])
    try:
        dispatch.path(device)
    except ValueError as error:  # KDAD_KERNELS asks for what this device has not
        raise SelectionError(str(error)) from error
    preset = given["preset"] or ("paper" if device.startswith("cuda") else "quick")
    if preset not in PRESETS:
        raise SelectionError(f"preset '{preset}'{suggestion(preset, PRESETS)} is not one of {', '.join(PRESETS)}")
    names = ("teacher", "steps", "epochs", "batch_size", "image_size", "precision")
    overrides = {**config.shared_settings, **{name: given[name] for name in names if given[name] is not None}}
    if overrides.get("epochs") is not None and overrides.get("steps") is None:
        overrides["steps"] = None
    per_method = {name: dict(values) for name, values in config.method_settings.items()}
    for assignment in given["assignments"]:
        method, field, value = parse_assignment(assignment)
        if method and given["methods"] and method not in [name for name, _ in given["methods"]]:
            raise SelectionError(f"--set '{assignment}': {method} is not among the chosen methods")
        (per_method.setdefault(method, {}) if method else overrides)[field] = value
    chosen = given["methods"] or tuple((name, "") for name in METHODS)
    return Selection(
        methods=tuple(dict.fromkeys(chosen)),
        categories=categories_from(given, console),
        seeds=seeds_from(given["seeds"]) if given["seeds"] else tuple(range(PRESETS[preset].seeds)),
        preset=preset,
        device=device,
        resolution=given["resolution"],
        overrides=overrides,
        method_overrides=per_method,
        deterministic=given["deterministic"],
        hold_out=given["hold_out"],
    )


def parse_assignment(text: str) -> tuple[str, str, Any]:
    """`stfpm.loss_scale=0.5` -> ("stfpm", "loss_scale", 0.5); the value is read as TOML, else as a bare string."""
    import tomllib

    from kdad_bench.harness.job import SelectionError

    target, equals, raw = text.partition("=")
    if not equals or not target.strip():
        raise SelectionError(f"--set '{text}' is not [METHOD.]FIELD=VALUE")
    try:
        value: Any = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    method, _, field = target.strip().rpartition(".")
    if method and method not in METHODS:
        from kdad_bench.harness.job import suggestion

        raise SelectionError(f"--set '{text}': unknown method '{method}'{suggestion(method, METHODS)}")
    return method, field, tuple(value) if isinstance(value, list) else value


def device_from(text: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> `cpu` or `cuda:N`; raises SelectionError for a device that is not there."""
    import torch

    from kdad_bench.harness.job import SelectionError

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return "cuda:0" if count else "cpu"
    if text == "cpu":
        return text
    kind, _, number = text.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise SelectionError(f"device '{text}' is not one of auto, cpu, cuda, cuda:N")
    if int(number or 0) >= count:
        raise SelectionError(
            f"device '{text}' is not there: torch sees {count} CUDA device(s); take --device cpu or auto"
        )
    return f"cuda:{int(number or 0)}"


def categories_from(given: dict[str, Any], console: Console) -> tuple[Category, ...]:
    """Every selected category; falls back to the embedded data, in one line, when no data set is found."""
    from kdad_bench import datasets
    from kdad_bench.harness.job import SelectionError, suggestion

    root: Path | None = given["data_root"]
    names = list(given["datasets"])
    if not names:
        names = datasets.find(root) if root else ["synthetic"]
        if root is None:
            console.print("no --data-root and no KDAD_DATA: running the embedded synthetic data", markup=False)
        elif not names:
            raise SelectionError(no_data(root))
    found = [
        one for name in dict.fromkeys(names) for one in datasets.categories(name, root, modality=given["modality"])
    ]
    wanted = dict.fromkeys(given["categories"])
    known = [one.name for one in found]
    for name in wanted:
        if name not in known:
            raise SelectionError(
                f"category '{name}'{suggestion(name, known)} not in {', '.join(names)}; have: {', '.join(known)}"
            )
    return tuple(one for one in found if not wanted or one.name in wanted)


def no_data(root: Path) -> str:
    """Why nothing can be run from a data root that was named, and what to do."""
    from kdad_bench.datasets import mvtec_3d_ad, mvtec_ad

    remedy = "or take the embedded data with --dataset synthetic"
    if not root.is_dir():
        return f"data root {root}: no such folder; name the one that holds mvtec_ad/, {remedy}"
    if mvtec_ad.category_names(root) or mvtec_3d_ad.category_names(root):
        return f"data root {root}: is a data set itself; give the folder it lies in, or --dataset folder:{root}"
    return f"data root {root}: no mvtec_ad/ or mvtec_3d_ad/ there; fetch one (`kdad-bench data fetch`), {remedy}"


def teachers_of(selection: Selection) -> tuple[str, ...]:
    """The teachers to find weights for; raises SelectionError for a name that is no teacher."""
    from kdad_bench.harness.job import SelectionError, suggestion, teachers
    from kdad_bench.methods.backbones.names import BACKBONES

    names = teachers(selection)
    for name in names:
        if name not in BACKBONES:
            raise SelectionError(f"unknown teacher '{name}'{suggestion(name, BACKBONES)}; have: {', '.join(BACKBONES)}")
    return names


def weights_of(name: str, given: dict[str, Any], config: Any) -> Any:
    """The weights of teacher `name`; weights that cannot be downloaded make failed rows, not a stopped run."""
    from kdad_bench.harness.teachers import find

    source = given["weights"] or config.run.weights.get(name)
    return find(name, str(source) if source else None, may_download=not given["dry_run"])


def work_from(given: dict[str, Any]) -> Work:
    """Where and how results are kept; raises StoreError for a folder that cannot be written."""
    from kdad_bench.harness.work import Work

    names = ("force", "retry_failed", "pictures", "save_models", "save_maps", "tensorboard")
    out = given["out"] if "://" in given["out"] else str(Path(given["out"]).absolute())
    every = given["checkpoint_every_seconds"]
    work = Work(out=out, checkpoint_every_seconds=every, **{name: given[name] for name in names})
    folder = work.beside
    if folder is not None and not given["dry_run"]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
                pass
        except OSError as error:
            raise BadInput(f"{folder}: no results can be written there ({error.strerror}); choose --out") from error
    elif folder is not None and folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: not a folder; choose another --out")
    return work


def must_run(row: Finished | None, given: dict[str, Any]) -> bool:
    """Whether a job with this row is to be run."""
    return row is None or given["force"] or (row.status == "failed" and given["retry_failed"])


def say_plan(jobs: Sequence[Job], left: Sequence[Job], selection: Selection, console: Console) -> None:
    """One line on what is about to happen."""
    methods = counted(len({job.name for job in jobs}), "method")
    categories, seeds = counted(len(selection.categories), "category"), counted(len(selection.seeds), "seed")
    skipped = len(jobs) - len(left)
    rest = f", {skipped} already finished" if skipped else ""
    console.print(
        f"{counted(len(jobs), 'job')}: {methods} x {categories} x {seeds}, "
        f"preset {selection.preset}, {selection.device}{rest}",
        markup=False,
    )


def counted(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`, `3 categories`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def make_room_for_other_work() -> float:
    """The share of the processors that other work holds; if that is much, threads here spin less for each other.

    By default the threads of OpenMP (GNU's, torch's on Linux) spin for milliseconds at every barrier. That is best on
    an idle machine; where other work holds a core, the late thread needs the very core that spins
    (docs/performance.md). It reads its settings once, when torch is imported; those that a person made stay.
    """
    from kdad_bench.harness.environment import busy_elsewhere

    busy = busy_elsewhere()
    if busy > MOST_BUSY and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    return busy


def say_what_is_not_redone(kept: Mapping[str, Finished], work: Work, console: Console) -> None:
    """Tell what finished jobs lack of what this call asks for: other code ran them, or they left no model or maps."""
    from kdad_bench.harness.environment import git_state

    known = [(row.git_commit, row.git_dirty) for row in kept.values() if row.git_commit]
    own = git_state() if known else (None, None)
    others = sum(state != own for state in known) if own[0] else 0
    if others:
        console.print(f"{others} of the finished jobs were run by another state of the code; --force redoes them")
    asked = {"model": work.save_models, "map": work.save_maps}
    for what, file in (("model", "models/*-{}"), ("map", "maps/{}.npz")):
        if asked[what] and work.beside is not None:
            without = sum(not any(work.beside.glob(file.format(id))) for id in kept)
            if without:
                console.print(f"{without} of the finished jobs have no saved {what}; --force redoes them")


def show_plan(jobs: Sequence[Job], left: Sequence[Job], console: Console, as_json: bool) -> int:
    """Print what would run and how long it should take; exit code 0."""
    from kdad_bench.harness.estimate import estimate

    ids = {job.id for job in left}
    guess = estimate(left)
    if as_json:
        for job in jobs:
            click.echo(json.dumps({"job_id": job.id, "label": job.label, "preset": job.preset, "run": job.id in ids}))
        click.echo(
            json.dumps(
                {"jobs": len(jobs), "to_run": len(left), "estimate_seconds": guess.seconds, "basis": guess.basis}
            )
        )
        return 0
    for job in jobs:
        mark = "run " if job.id in ids else "done"
        console.print(f"{mark}  {job.id}  {job.label}  [{job.preset}]", markup=False)
        if job.weights and job.weights.problem:
            console.print(f"      will fail: {job.weights.problem}", markup=False)
    console.print(f"{len(jobs)} jobs, {len(jobs) - len(left)} finished, {len(left)} to run; {guess.text}", markup=False)
    return 0


def run_jobs(left: Sequence[Job], work: Work, given: dict[str, Any], console: Console) -> list[tuple[Job, Row]] | None:
    """Run the jobs and show each as it ends; None when Ctrl-C stopped them."""
    from kdad_bench.cli.progress import Progress

    if given["threads"]:  # a worker takes its own
        import torch

        torch.set_num_threads(given["threads"])
    rows: list[tuple[Job, Row]] = []
    if not left:
        return rows
    with Progress(console, left, as_json=given["as_json"]) as progress:
        try:
            with closing(outcomes(left, work, given, progress)) as stream:
                for job, row in stream:
                    rows.append((job, row))
                    progress.ended(job, row)
        except KeyboardInterrupt:
            return None
    return rows


def outcomes(left: Sequence[Job], work: Work, given: dict[str, Any], progress: Any) -> Outcomes:
    """The (job, row) stream of the chosen executor."""
    from kdad_bench.harness import executors

    kind = given["executor"]
    if kind == "in-process" and (given["job_timeout"] or given["workers"] > 1):
        kind = "local"  # only a process of its own can be stopped
    if kind == "local":
        return executors.local(
            left,
            work,
            progress.started,
            workers=given["workers"],
            job_timeout=given["job_timeout"],
            threads=given["threads"],
        )
    if kind == "ray":
        try:
            import ray  # noqa: F401
        except ModuleNotFoundError as error:
            raise BadInput("--executor ray needs Ray: pip install 'kdad-bench[ray]'") from error
        if given["address"]:
            refuse_silence(given["address"])
        return executors.on_ray(
            left,
            work,
            progress.started,
            address=given["address"],
            job_timeout=given["job_timeout"],
            gpu_fraction=given["gpu_fraction"],
        )
    return executors.in_process(left, work, progress.started)


def refuse_silence(address: str) -> None:
    """Raises BadInput if nobody listens at the address of a Ray cluster: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        if address in ("auto", "local"):
            return
        raise BadInput(f"--address {address}: not HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise BadInput(f"--address {address}: nobody answers there ({error}); is the Ray cluster running?") from error


def stopped(total: int, console: Console) -> int:
    """Say that nothing finished is lost and how to go on; exit code 130."""
    command = shlex.join(["kdad-bench", *sys.argv[1:]])
    console.print(f"Stopped. Finished jobs are kept ({total} were to run); go on with: {command}", markup=False)
    return 130


def report(
    jobs: Sequence[Job], rows: Sequence[tuple[Job, Row]], work: Work, console: Console, seconds: float, as_json: bool
) -> int:
    """The summary table, the leaderboard files, the failures; exit code 1 if any planned job has a failed row."""
    from kdad_bench.cli.summary_table import summary_table
    from kdad_bench.leaderboard import store
    from kdad_bench.leaderboard.board import DRAWN

    ids = {job.id for job in jobs}
    found = store.read(work.out, DRAWN)
    ours = [row for row in found.rows() if row["job_id"] in ids]
    failed = [row for row in ours if row["status"] != "ok"]
    if not as_json:
        console.print(summary_table(ours))
    if work.beside is not None:
        from kdad_bench.leaderboard.pages import draw_pages

        draw_pages(work.out, work.beside, found=found)
        pages = ", ".join(os.path.relpath(work.beside / name) for name in ("leaderboard.md", "leaderboard.html"))
        console.print(f"{counted(len(rows), 'job')} run in {seconds:.0f} s; leaderboard: {pages}", markup=False)
    else:
        console.print(f"{counted(len(rows), 'job')} run in {seconds:.0f} s; rows: {work.out}", markup=False)
    for row in failed:
        console.print(
            f"failed: {row['method']} {row['dataset']}/{row['category']} seed {row['seed']}: {row['reason']}",
            markup=False,
        )
    if failed:
        console.print(f"{len(failed)} of {len(jobs)} jobs failed; retry them with --retry-failed", markup=False)
    return 1 if failed else 0
