"""`kdad-bench advise`: from rows and the normals of a folder to a method, with what the evidence does not say."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.core import ParameterSource

from kdad_bench.cli import BadInput, Number
from kdad_bench.cli.left_out import whole
from kdad_bench.cli.parameters import DataRoot, Place, spelt
from kdad_bench.leaderboard.metric import ACCURACY, METRICS
from kdad_bench.leaderboard.text import counted, printable

if TYPE_CHECKING:
    from kdad_bench.harness.advising import Shortage
    from kdad_bench.leaderboard.advice import Advice, Candidate

SEPARATOR = re.compile(r",(?![^(]*\))")  # of the changes that a label names: a comma that is in no tuple
NEW = "folder:FOLDER"  # in place of a folder that no run takes as it is
OWN = "FILE.py"  # in place of a method's file, of which rows know the hash alone
MOST_PERHAPS = 3  # methods that are told at length though rows do not know whether they keep the memory


@click.command()
@click.option("--data", required=True, metavar="folder:PATH", help="Your images; only the normal ones are counted.")
@click.option(
    "--results",
    type=Place(),
    default="results",
    show_default=True,
    help="Results folder or URL with the rows to judge by.",
)
@click.option(
    "--latency-ms", type=Number(min=0, min_open=True), help="Most ms per image that is decoded, batch 1, median."
)
@click.option(
    "--memory-mb", type=Number(min=0, min_open=True), help="Most memory beyond Python and its libraries, 10^6 bytes."
)
@click.option(
    "--false-alarms",
    type=Number(min=0, max=1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Share of normal images that may be called anomalous.",
)
@click.option("--metric", default="image_auroc", show_default=True, help="The accuracy to rank by.")
@click.option("--data-root", type=DataRoot(), envvar="KDAD_DATA", show_envvar=True, help="Folder that holds data sets.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_context
def advise(
    context: click.Context,
    data: str,
    results: str,
    latency_ms: float | None,
    memory_mb: float | None,
    false_alarms: float,
    metric: str,
    data_root: Path | None,
    as_json: bool,
) -> None:
    """Which method for these images: on the front of accuracy and latency, within the limits, by existing rows.

    Nothing is trained and no image is decoded. Exit code 1 if no method keeps the limits.
    """
    from kdad_bench.datasets import DatasetError
    from kdad_bench.harness.advising import normals_at, shortage
    from kdad_bench.leaderboard import advice as advising
    from kdad_bench.leaderboard.board import DRAWN, boards
    from kdad_bench.leaderboard.store import StoreError, read

    if metric not in ACCURACY:
        raise BadInput(f"--metric {spelt(metric, ACCURACY)}: no accuracy; have: {', '.join(ACCURACY)}")
    given = {"latency_ms": latency_ms, "memory_mb": memory_mb}
    limits = {name: value for name, value in given.items() if value is not None}
    try:
        rows = whole(read(results, _columns(DRAWN, metric))).table
        found = advising.advise(boards(rows), metric, limits)
        normals = normals_at(data, data_root)
    except advising.NothingKnown as error:
        raise BadInput(f"{results}: {error}") from error
    except (StoreError, DatasetError) as error:
        raise BadInput(str(error)) from error
    learnt_from = advising.images_learnt_from(found.board)
    short = [shortage(one, false_alarms, learnt_from) for one in normals]
    ends = [*advising.limits_of_evidence(found), *found.left_out]
    if as_json:
        click.echo(json.dumps(_as_json(found, short, false_alarms, ends), indent=1, allow_nan=False))
    else:
        said = context.get_parameter_source("data_root") is ParameterSource.COMMANDLINE
        data = NEW if any(one.normals.bare for one in short) else data
        where = ["-d", data, *(["--data-root", str(data_root)] if said else [])]
        for line in _lines(found, short, shlex.join(where), false_alarms, ends):
            click.echo(printable(line))
    context.exit(0 if found.best else 1)


def _columns(drawn: tuple[str, ...], metric: str) -> tuple[str, ...]:
    wanted = (*drawn, metric, "peak_memory_mb", "latency_p95_ms", "parameters", "environment")
    return tuple(dict.fromkeys(wanted))


def _lines(found: Advice, short: list[Shortage], where: str, false_alarms: float, ends: list[str]) -> Iterator[str]:
    """The advice in words; `where` are the options of a run on the same data."""
    label = found.board.heading(found.metric)
    yield f"By {counted(sum(map(len, found.board.rows.values())), 'row')}: {found.board.title}"
    yield ""
    if found.best is None:
        yield f"No method is known to keep {_limits(found)}."
        if found.nearest is not None:
            yield f"nearest  {_told(found.nearest, label)}: {_misses(found, found.nearest)}"
    else:
        yield f"take     {_told(found.best, label)}"
        if found.fast is not None:
            told = f"{_told(found.fast, label)}: the fastest that the paired test does not find worse"
            yield f"or       {told}; {_apart(found)}"
    for one in found.perhaps[:MOST_PERHAPS]:
        yield f"perhaps  {_told(one, label)}: its weights are {one.weights_mb:.0f} MB; measure inference alone"
    if len(found.perhaps) > MOST_PERHAPS:
        more = ", ".join(one.key for one in found.perhaps[MOST_PERHAPS:])
        yield f"         and in the same way, less accurate: {more}"
    yield ""
    kept = f" (* keeps {_limits(found)})" if found.limits else ""
    yield f"The front of {label} and latency, the fastest first{kept}:"
    for one in found.front:
        mark = "*" if found.limits and not one.over(found.limits) else " "
        yield f"{mark} {_told(one, label)}"
    yield ""
    yield from _normals(short, false_alarms)
    yield ""
    yield _machine(found)
    yield "Where the evidence ends:"
    yield from (f"- {line}" for line in ends)
    command = _command(found, short, where)
    if command:
        yield ""
        yield f"Next, with {_beside(short)}: {command}"
        yield from _about(found)


def _beside(short: list[Shortage]) -> str:
    """What a run needs besides the images that were counted."""
    if any(one.normals.bare for one in short):
        return "the normal ones in FOLDER/train/good, test images in FOLDER/test/good and FOLDER/test/KIND"
    return "test images beside the normal ones"


def _limits(found: Advice) -> str:
    """The limits as they were given."""
    return " and ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in found.limits.items())


def _told(one: Candidate, label: str) -> str:
    """A candidate in one line."""
    p95 = "" if one.latency_p95_ms is None else f" (95th percentile {one.latency_p95_ms:.1f})"
    memory = (
        "" if one.memory_mb is None else f", {one.memory_mb:.0f} MB{'' if one.beyond_start else ' (whole process)'}"
    )
    return f"{one.key}: {label} {one.shown}, {one.latency_ms:.1f}{'~' if one.unsteady else ''} ms{p95}{memory}"


def _apart(found: Advice) -> str:
    """By how much the fast method is worse than the best, and how far that is known."""
    one = _loss(found)
    if one is None or one["difference"] is None:
        return "nothing tells by how much they differ"
    by = f"{one['difference']:.3f} worse"
    if one["low"] is None or one["high"] is None:
        p = "" if one["p"] is None else f", p {one['p']:.2g}"
        return f"{by}, without an interval{p}"
    return f"{by}, 95 % interval {one['low']:.3f} to {one['high']:.3f}"


def _loss(found: Advice) -> dict[str, Any] | None:
    """The same for programs: positive where the fast method is worse."""
    if found.apart is None:
        return None
    one = found.apart if METRICS[found.metric].higher_is_better else found.apart.turned()
    return {name: getattr(one, name) for name in ("difference", "low", "high", "p", "evidence")}


def _misses(found: Advice, one: Candidate) -> str:
    """By how much a candidate misses the limits."""
    from kdad_bench.leaderboard.advice import LIMITS

    said = []
    for name in one.over(found.limits):
        value, limit, option = getattr(one, name), found.limits[name], f"--{name.replace('_', '-')}"
        beyond = "is not known" if value is None else f"is {value - limit:.3g} {LIMITS[name]} over"
        times = 0.0 if value is None else value / limit
        share = f"{times - 1:.0%}" if times < 10 else f"{times:.3g} times the limit"
        said.append(f"{option} {limit:g} {beyond}" + ("" if value is None else f" ({share})"))
    return ", ".join(said)


def _normals(short: list[Shortage], false_alarms: float) -> Iterator[str]:
    """What each category has and lacks for the false-alarm rate."""
    yield (
        f"False alarms of {false_alarms:g}: at least {short[0].needed} held-out normals, as n of them can promise no "
        "less than 1/(n + 1)."
    )
    for one in short:
        there = f"{one.normals.train} normals" + (
            f" and {one.normals.validation} held out" if one.normals.validation else ""
        )
        if one.normals.unreadable:
            there += f" ({counted(one.normals.unreadable, 'file')} beside them cannot be read as images)"
        more = "enough" if not one.more_at_least else f"{one.more_at_least} more are needed to have one to learn from"
        like = ""
        if one.more_like_rows:
            like = f"; {one.more_like_rows} more to learn from as many as the rows did"
        yield f"- {one.normals.category}: {there}: {more}{like}"


def _machine(found: Advice) -> str:
    """On which machine the latency was measured, and which this one is."""
    name = found.board.group.device_name or "an unknown device"
    threads = " or ".join(map(str, found.board.alone)) if found.board.alone else ""
    on = f"{name}" + (f" with {threads} thread{'' if threads == '1' else 's'}" if threads else "")
    device = found.board.group.device
    mine = _this_machine(device)
    if mine == name and device == "cpu":
        return f"Latency was measured on {on}; this machine has the same processor, and may have other cores and load."
    if mine == name:
        return f"Latency was measured on {on}; this machine has such a GPU, and may have another processor and load."
    return f"Latency was measured on {on}; this machine has {mine}, where it will differ: measure there."


def _this_machine(device: str) -> str:
    """The name of what here is of the kind of `device` ("cpu", "cuda"); of the processor where there is no such."""
    from kdad_bench.harness.environment import cpu_model

    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
        return f"{cpu_model()} and no GPU for CUDA"
    return cpu_model()


def _about(found: Advice) -> Iterator[str]:
    """What is to be known of the next command: the file that it names, and what of the rows' label it is without."""
    one = found.best or found.nearest
    if one is not None and _method(found, one) != one.key:
        row = found.board.rows[one.key][0]
        yield f"{OWN}: the file of the method {row['method']} whose SHA-256 begins {row['code_sha256'][:8]}"
    without = [
        f"one model for {found.board.together} categories" if name == "setting" else f"{name}={value}"
        for name, value in _parts(found.board.group.preset)[1].items()
        if _of_data(name)
    ]
    if without:
        yield f"The rows are of {', '.join(without)}; the command is of the plain setting"


def _method(found: Advice, one: Candidate) -> str:
    """How `run` is told the method of a candidate."""
    from kdad_bench.methods.outside import installed

    row = found.board.rows[one.key][0]
    if not row["code_sha256"] or row["method"] in installed():
        return one.key
    return f"{OWN}::{row['variant']}" if row["variant"] else OWN


def _of_data(name: str) -> bool:
    """Whether a change that a label names is no matter of the configuration: what is learnt from, the test images."""
    from kdad_bench.harness.axes import PLAIN

    return name in (*PLAIN.__slots__, "setting")


def _command(found: Advice, short: list[Shortage], where: str) -> str:
    """What to run next, in the configuration that the rows are of; nothing without a method, or of scans."""
    one = found.best or found.nearest
    if one is None or "@" in one.key or found.board.group.modality not in ("", "rgb"):
        return ""  # models of other modalities are not saved
    preset, changed = _parts(found.board.group.preset)
    shares = [part.hold_out for part in short]
    if any(shares):
        changed["hold_out"] = f"{max(share for share in shares if share):g}"
    words = ["kdad-bench", "run", "-m", _method(found, one), "--preset", preset]
    return f"{shlex.join(words)} {where} {shlex.join([*_options(changed), '--save-models'])}"


def _parts(label: str) -> tuple[str, dict[str, str]]:
    """`quick[steps=5,strides=(8, 16)]` -> ("quick", {"steps": "5", "strides": "(8, 16)"})."""
    preset, _, rest = label.partition("[")
    parts = SEPARATOR.split(rest.removesuffix("]")) if rest else []
    return preset, {name: value for name, _, value in (part.partition("=") for part in parts)}


def _options(changed: dict[str, str]) -> Iterator[str]:
    """What a label says was changed of the configuration of a preset, as options of `run`."""
    from kdad_bench.harness.selection import EVERYWHERE
    from kdad_bench.harness.view import WHOLE

    for name, value in changed.items():
        if _of_data(name):
            continue
        if name in (*EVERYWHERE, *WHOLE.__slots__, "resolution", "hold_out"):
            yield from (f"--{name.replace('_', '-')}", value)
        else:
            said = {"True": "true", "False": "false"}.get(value, value)  # as TOML has them
            yield from ("--set", f"{name}=[{said[1:-1]}]" if said.startswith("(") else f"{name}={said}")


def _as_json(found: Advice, short: list[Shortage], false_alarms: float, ends: list[str]) -> dict[str, Any]:
    """The same for programs."""

    def told(one: Candidate | None) -> dict[str, Any] | None:
        return (
            None
            if one is None
            else {**asdict(one), "beyond_start": one.beyond_start, "over": _finite(one.over(found.limits))}
        )

    return {
        "board": found.board.title,
        "metric": found.metric,
        "limits": dict(found.limits),
        "best": told(found.best),
        "fastest_not_told_apart": told(found.fast),
        "worse_by": _loss(found),
        "nearest": told(found.nearest),
        "perhaps": [told(one) for one in found.perhaps],
        "front": [told(one) for one in found.front],
        "candidates": [told(one) for one in found.candidates],
        "false_alarms": false_alarms,
        "normals": [{**asdict(one), "hold_out": one.hold_out} for one in short],
        "measured_on": found.board.group.device_name,
        "this_machine": _this_machine(found.board.group.device),
        "evidence_ends": ends,
    }


def _finite(over: dict[str, float]) -> dict[str, float | None]:
    """limit -> by how many times it is passed; None where the value is not known."""
    return {name: None if value == float("inf") else value for name, value in over.items()}
