"""`kdad-bench results`: keep a results folder in order."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from kdad_bench.cli import BadInput
from kdad_bench.cli.left_out import whole
from kdad_bench.cli.parameters import DataRoot, LocalPath, MethodName, Place, refuse_both, refuse_to_overwrite_rows
from kdad_bench.files import FULL
from kdad_bench.leaderboard.metric import HEADLINE
from kdad_bench.leaderboard.text import counted, printable

if TYPE_CHECKING:
    from kdad_bench.harness.reproduce import Reproduced
    from kdad_bench.harness.upload import Submission
    from kdad_bench.harness.upload_check import Checked

OF_DRAWINGS = "of drawn images: no server takes it"


@click.group(name="results")
def results() -> None:
    """Keep, check, export, reproduce and pass on a results folder (a path or an fsspec URL such as s3://bucket/results)."""


@results.command()
@click.argument("folder", type=Place())
def compact(folder: str) -> None:
    """Put all rows into one Parquet file: ten thousand jobs are then read in milliseconds.

    Safe at any moment: other processes may be writing, and a crash loses nothing.
    """
    from kdad_bench.leaderboard import store

    try:
        replaced, paths = store.compact(folder)
        whole(store.read(folder))
    except store.StoreError as error:
        raise BadInput(str(error)) from error
    now = f"{counted(replaced, 'file')} put into {' and '.join(map(str, paths))}"
    click.echo(printable(now if paths else f"{folder}: nothing to compact"))


@results.command()
@click.argument("folder", type=Place())
@click.option(
    "--expect", type=click.IntRange(min=0), help="Fail unless exactly this many jobs are finished (status ok)."
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_context
def verify(context: click.Context, folder: str, expect: int | None, as_json: bool) -> None:
    """Read every value of every file, with checksums, and count each job once.

    Exit code 1 if a file is torn, foreign or holds impossible values, if there is no row at all, or if --expect does
    not hold.
    """
    from kdad_bench.leaderboard import store

    try:
        found = store.verify(folder)
    except store.StoreError as error:
        raise BadInput(str(error)) from error
    short = found.rows == 0 and not found.problems if expect is None else found.ok != expect
    if as_json:
        report = {name: getattr(found, name) for name in ("files", "rows", "ok", "failed", "superseded", "unfinished")}
        problems = [problem._asdict() for problem in found.problems]
        click.echo(json.dumps({**report, "problems": problems, "sound": found.sound and not short}))
    else:
        click.echo(printable(f"{found.where}: {counted(found.files, 'file')}, {counted(found.rows, 'row')}"))
        click.echo(f"{counted(found.jobs, 'job')}, each counted once: {found.ok} ok, {found.failed} failed")
        if found.superseded:
            click.echo(f"{counted(found.superseded, 'row')} superseded by a newer row of the same job")
        for name in found.unfinished:
            click.echo(printable(f"interrupted write, ignored: {name}"))
        for problem in found.problems:
            click.echo(printable(f"{problem.file}: {problem.what}"), err=True)
        if short:
            no_row = "no row; name a results folder, or --expect 0"
            other = f"expected {counted(expect or 0, 'finished job')}, found {found.ok}"
            click.echo(no_row if expect is None else other, err=True)
    if short or not found.sound:
        context.exit(1)


@results.command()
@click.argument("folder", type=Place())
@click.argument("kind", type=click.Choice(["csv", "json", "sqlite"]))
@click.option("--out", type=LocalPath(dir_okay=False), help="File to write.  [default: results.KIND]")
def export(folder: str, kind: str, out: Path | None) -> None:
    """Write all rows as CSV, JSON or an SQLite database (table `results`)."""
    from kdad_bench.leaderboard import store

    path = out or Path(f"results.{kind}")
    refuse_to_overwrite_rows(path, folder)
    try:
        number = store.export(folder, path, kind, whole(store.read(folder)))
    except store.StoreError as error:
        raise BadInput(str(error)) from error
    click.echo(printable(f"{counted(number, 'row')} in {path}"))


@results.command()
@click.argument("folder", type=Place())
@click.option(
    "--out", type=LocalPath(dir_okay=False), default="results.kdad.zip", show_default=True, help="File to write."
)
@click.option("--maps", is_flag=True, help="With the anomaly maps that `run --save-maps` kept.")
def pack(folder: str, out: Path, maps: bool) -> None:
    """Put all rows, with hashes of their models and maps, into one file that `results check` verifies."""
    from kdad_bench.harness import submission
    from kdad_bench.leaderboard.store import StoreError

    refuse_to_overwrite_rows(out, folder)
    try:
        found = submission.pack(folder, out, maps=maps)
    except (submission.SubmissionError, StoreError) as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        if error.errno in FULL:
            raise
        raise BadInput(f"{error.filename or out}: {error.strerror}; choose another --out") from error
    click.echo(printable(f"{out}: {counted(found.jobs, 'job')}, {found.maps} with maps"))
    if found.without_maps:
        lack = f"{counted(found.without_maps, 'finished job')} without maps"
        click.echo(f"{lack}; `run --save-maps --force` makes them", err=True)
    if found.external:
        what = "of `evaluate` packed without maps: no results folder keeps those"
        click.echo(f"{counted(found.external, 'row')} {what}", err=True)
    click.echo(f"SHA-256 {found.sha256}")


@results.command()
@click.argument("file", type=LocalPath(dir_okay=False))
@click.option("--data-root", type=DataRoot(), envvar="KDAD_DATA", show_envvar=True, help="Folder that holds data sets.")
@click.option("--dataset", "-d", "datasets", multiple=True, help="Where data of its rows lie here, as folder:PATH.")
@click.option("--sample", type=click.IntRange(min=0), default=8, show_default=True, help="Maps to score anew.")
@click.option("--all", "everything", is_flag=True, help="Score all of its maps anew.")
@click.option(
    "--results", "beside", type=LocalPath(file_okay=False, exists=True), help="Compare models and maps there."
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_context
def check(
    context: click.Context, file: Path, data_root: Path | None, datasets: tuple[str, ...], sample: int,
    everything: bool, beside: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Verify a FILE of `results pack`: hashes, rows, and a sample of its maps, scored anew where the data are at hand.

    Exit code 1 if anything in it is not as it should be, 2 if it is no such file.
    """
    from kdad_bench.cli.evaluate import remarks_said, say_some
    from kdad_bench.datasets import DatasetError
    from kdad_bench.harness.checking import Asked
    from kdad_bench.harness.checking import check as look
    from kdad_bench.harness.submission import SubmissionError

    refuse_both("--sample", "--all")
    asked = Asked(data_root=data_root, datasets=datasets, sample=None if everything else sample, beside=beside)
    try:
        with remarks_said():
            found = look(file, asked)
    except (DatasetError, SubmissionError) as error:
        raise BadInput(str(error)) from error
    if as_json:
        click.echo(json.dumps({"file": printable(str(file)), **asdict(found), "sound": not found.problems}))
        context.exit(1 if found.problems else 0)
    derived = f"{counted(found.derived, 'row')} {'follows' if found.derived == 1 else 'follow'} from scores"
    click.echo(printable(f"{file}: {counted(found.jobs, 'job')}, {found.failed} failed; {derived}"))
    for line in (*found.judged, *found.notes):
        click.echo(printable(line))
    say_some(found.problems)
    context.exit(1 if found.problems else 0)


@results.command()
@click.argument("folder", type=Place())
@click.option("--job", "jobs", multiple=True, metavar="ID", help="Of these jobs: the beginnings of their ids.")
@click.option("--method", "-m", "methods", type=MethodName(), multiple=True, help="Of these methods alone.")
@click.option(
    "--all", "every", is_flag=True, help="Every finished job.  [default: of each method the one that took least]"
)
@click.option("--weights", multiple=True, metavar="[TEACHER=]FILE", help="As for `run`.")
@click.option("--data-root", type=DataRoot(), envvar="KDAD_DATA", show_envvar=True, help="Folder that holds data sets.")
@click.option("--dataset", "-d", "datasets", multiple=True, help="Where data of its rows lie here, as folder:PATH.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, max=1),
    default=0.0,
    show_default=True,
    help="By how much a figure may differ: another machine rounds otherwise.",
)
@click.option("--out", type=LocalPath(file_okay=False), help="Keep the new rows in this folder.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, an object per job.")
@click.pass_context
def reproduce(
    context: click.Context, folder: str, jobs: tuple[str, ...], methods: tuple[tuple[str, str], ...], every: bool,
    weights: tuple[str, ...], data_root: Path | None, datasets: tuple[str, ...], tolerance: float, out: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Run jobs of a results FOLDER once more, from what their rows say, and compare: losses, scores and all figures.

    The rows stay as they are. On the same machine and code everything is the same to the last bit. Exit code 1 where a
    figure differs by more than --tolerance or only one of the two has it, or a job cannot be run: a line says why.
    """
    import tempfile

    from kdad_bench.cli.run import answered
    from kdad_bench.harness import reproduce as again
    from kdad_bench.leaderboard import store

    if every and jobs:
        raise click.UsageError("--all and --job: every job, or these; not both")
    if out is not None and out.resolve() == Path(folder.removeprefix("file://")).resolve():
        raise BadInput(f"--out {out}: the rows to reproduce lie there; choose another folder")
    with answered(), tempfile.TemporaryDirectory(prefix="kdad-bench-reproduce-") as scratch:
        rows = again.chosen(folder, jobs, methods, every=every, found=whole(store.read(folder)))
        given = again.Asked(out=str(out or scratch), data_root=data_root, datasets=datasets, weights=weights)
        asked = again.settled(rows, given)
        told = [row["total_seconds"] for row in rows if row["total_seconds"] is not None]
        silent = f"; {len(rows) - len(told)} do not say" if len(told) < len(rows) else ""
        click.echo(f"{counted(len(rows), 'job')}, which took {sum(told):.0f} s by their rows{silent}", err=True)
        different = 0
        for found in again.reproduced(rows, asked, lambda job: click.echo(printable(f"run {job.label}"), err=True)):
            different += not found.within(tolerance)
            click.echo(json.dumps(asdict(found)) if as_json else printable(reproduction(found)))
    context.exit(1 if different else 0)


def reproduction(found: Reproduced) -> str:
    """What came of one row, in a line."""
    if found.why_not:
        return f"{found.label}: not reproduced: {found.why_not}"
    if found.identical:
        return f"{found.label}: identical"
    shown = [name for name in found.apart or {} if name in HEADLINE or name in found.differ]
    apart = [f"{name} {(found.apart or {})[name]:+.4f}" for name in shown]
    figures = ", ".join([*apart, *found.one_sided])
    scores = "of other images" if found.scores_apart is None else f"up to {found.scores_apart:.1e} of their range apart"
    machine = f"; here: {', '.join(found.elsewhere)}" if found.elsewhere else ""
    differ = ", ".join(found.differ)
    return f"{found.label}: not identical ({differ}): {figures}; image scores {scores}{machine}"


@results.command()
@click.argument("folder", type=Place(), required=False)
@click.option("--check", "file", type=LocalPath(), help="Only examine this submission, a .tar.gz or a folder.")
@click.option(
    "--out", type=LocalPath(dir_okay=False), default="submission.tar.gz", show_default=True, help="File to write."
)
@click.option("--method", "-m", type=MethodName(), help="Whose models, where there are several.")
@click.option("--seed", type=click.IntRange(min=0), help="Of which seed.")
@click.option("--preset", help="Of which preset, as the rows name it.")
@click.option("--dataset", "-d", default="mvtec_ad_2", show_default=True, help="The data set, or a stand-in of it.")
@click.option("--data-root", type=DataRoot(), envvar="KDAD_DATA", show_envvar=True, help="Folder that holds data sets.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def submission(folder: str | None, file: Path | None, as_json: bool, **given: Any) -> None:
    """Pack anomaly maps of the images without labels, as the evaluation server of MVTec AD 2 takes them.

    The models that `run --save-models` kept in the results FOLDER score them: float16 TIFF files in the size of the
    images, and PNG files of the pixels above mean + 3 standard deviations of the validation images. What is packed is
    examined before it appears, whole. Exit code 2 for what the server would refuse: a line for each kind of fault.
    """
    from kdad_bench.datasets import DatasetError
    from kdad_bench.harness.choices import SelectionError
    from kdad_bench.harness.decision import DecisionError
    from kdad_bench.harness.scoring import ScoreError
    from kdad_bench.harness.upload_check import UploadError
    from kdad_bench.leaderboard.store import StoreError
    from kdad_bench.methods.checkpoint import ModelError

    if (folder is None) == (file is None):
        raise click.UsageError("give a results FOLDER to pack from, or --check FILE")
    for option in ("--out", "--method", "--seed", "--preset", "--device"):
        refuse_both("--check", option)
    if folder is not None:
        refuse_to_overwrite_rows(given["out"], folder)
    try:
        if file is not None:
            told = partial(examined, *examine(file, given["dataset"], given["data_root"]))
        else:
            told = partial(told_of, packed(str(folder), given))
    except (DatasetError, DecisionError, ModelError, ScoreError, SelectionError, StoreError, UploadError) as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        if error.errno in FULL:
            raise
        raise BadInput(f"{error.filename or given['out']}: {error.strerror}; choose another --out") from error
    told(as_json=as_json)


def examine(file: Path, dataset: str, data_root: Path | None) -> tuple[Path, Checked, str]:
    """The file, what is in it, and what it is sound against: the images of the data set where they are at hand, else
    what is published of it."""
    from kdad_bench import datasets
    from kdad_bench.harness.upload_check import check as look

    name = datasets.named(dataset)[0]
    if name in datasets.DATASETS and (data_root is None or name not in datasets.find(data_root)):
        one, found, against = datasets.entry(name), [], "the published numbers and sizes"
    else:
        place = datasets.located(dataset, data_root)
        one, found, against = place.entry, datasets.categories(dataset, data_root), str(place.root)
    return file, look(file, one, found), against


def examined(file: Path, there: Checked, against: str, *, as_json: bool) -> None:
    """Say that a submission is sound."""
    if as_json:
        click.echo(json.dumps({"file": printable(str(file)), "sound": True, "against": against, **asdict(there)}))
        return
    click.echo(printable(f"{file}: {there.maps} maps and {there.thresholded} decisions, sound against {against}"))
    if there.drawn:
        click.echo(OF_DRAWINGS, err=True)
    if not there.thresholded:
        click.echo("without decisions the server measures nothing that needs a threshold", err=True)


def packed(folder: str, given: dict[str, Any]) -> Submission:
    """Pack, with the progress on stderr."""
    from kdad_bench.cli.amounts import Amounts
    from kdad_bench.harness.upload import Asked, submit

    with Amounts(unit="maps") as shown:
        return submit(Asked(results=folder, progress=lambda done, total: shown("score", done, total), **given))


def told_of(made: Submission, *, as_json: bool) -> None:
    """What was packed, and what its thresholds are worth."""
    if as_json:
        click.echo(json.dumps(asdict(made)))
        return
    for part in made.parts:
        for line in part.lines:
            click.echo(printable(line))
    click.echo(printable(f"{made.out}: {made.maps} maps and as many decisions, {made.bytes / 1e6:.1f} MB"))
    if made.drawn:
        click.echo(OF_DRAWINGS)
    else:
        click.echo(f"submit it at {made.page}")
