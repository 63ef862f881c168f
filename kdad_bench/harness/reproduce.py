"""`results reproduce`: run the job of a row once more, and say whether the same numbers come of it.

A row holds everything that decides its numbers. The job is made anew from that alone; its id has to be the row's, or
what differs is named and nothing is run. The new row goes to a folder of its own, never beside the old one.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdad_bench import __version__
from kdad_bench.datasets import DatasetError
from kdad_bench.harness.agenda import Agenda, agenda
from kdad_bench.harness.checking import label, places_of, refuse_absent
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.executors import outcomes
from kdad_bench.harness.job import Job, hold_out_of, id_of_row, identity_of_row, together_of
from kdad_bench.harness.options import RunOptions, options_from
from kdad_bench.harness.plan import NOT_SETTINGS
from kdad_bench.harness.surroundings import NoResult
from kdad_bench.harness.teachers import weights_given
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.metric import ACCURACY, HEADLINE
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods.backbones.names import BACKBONES

if TYPE_CHECKING:
    from kdad_bench.methods.protocol import Entry

FIGURES = ACCURACY
NUMBERS = ("weights_sha256", "losses", "image_scores", "normal_scores", *FIGURES)  # what a job computes
MACHINE = ("device_name", "threads", "torch", "numpy", "python", "git_commit")  # what may move its last digits
OTHERWISE = {  # a part of a job's identity -> what its difference means
    "kdad_bench": "it is of another version of kdad-bench",
    "protocol": "it is of another version of the protocol",
    "data": "the files of its category here are not those that it saw",
    "teacher_sha256": "its teacher had other weights; give them with --weights",
    "code": "the code of its method is another",
    "together": "the categories that its model learnt from are others here",
    "device": "it ran on another kind of device",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """With what rows are reproduced."""

    out: str  # where the new rows go
    data_root: Path | None = None
    datasets: tuple[str, ...] = ()  # where data sets of the rows lie here, if elsewhere: folder:PATH
    weights: tuple[str, ...] = ()  # [TEACHER=]FILE, as for a run


@dataclass(frozen=True, kw_only=True, slots=True)
class Reproduced:
    """What came of one row's job when it ran once more."""

    job_id: str
    label: str
    why_not: str = ""  # why it could not be run, or failed; everything below is empty then
    identical: bool = (
        False  # the same losses, scores, figures and, where the row has their hash, weights, to the last bit
    )
    differ: tuple[str, ...] = ()  # those of NUMBERS that are others
    apart: Mapping[str, float] | None = None  # figure -> new less old, of those that both have
    one_sided: tuple[str, ...] = ()  # figures that one of the two alone has, and which: no distance tells of them
    scores_apart: float | None = None  # largest difference of an image score, by the range of the old ones
    elsewhere: tuple[str, ...] = ()  # what the machine has that the row's had not

    def within(self, tolerance: float) -> bool:
        """Whether it ran, has the figures that the row has, and none is further than `tolerance` from the row's."""
        if self.why_not or self.one_sided:
            return False
        return self.identical or all(abs(value) <= tolerance for value in (self.apart or {}).values())


def chosen(
    folder: str,
    jobs: Sequence[str] = (),
    methods: Sequence[tuple[str, str]] = (),
    *,
    every: bool = False,
    found: store.Results | None = None,
) -> list[dict[str, Any]]:
    """The finished rows (all columns) to reproduce: those named, else of each method the one that took least.

    `jobs` are beginnings of ids, `found` is what `store.read` gave of the folder, where the caller has it. Raises
    SelectionError for one that no finished row or more than one has, and where there is none to reproduce; StoreError.
    """
    rows = [
        row
        for row in (found or store.read(folder)).rows()
        if row["status"] == "ok" and row["origin"] is None and (not methods or _is_one_of(row, methods))
    ]
    if not rows:
        raise SelectionError(f"{folder}: no finished row of {'these methods' if methods else 'a job'} to reproduce")
    if jobs:
        return list({row["job_id"]: row for row in (_named(rows, beginning, folder) for beginning in jobs)}.values())
    if every:
        return rows
    quickest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: math.inf if row["total_seconds"] is None else row["total_seconds"]):
        quickest.setdefault((row["method"], row["variant"] or ""), row)
    return list(quickest.values())


def _is_one_of(row: Mapping[str, Any], methods: Iterable[tuple[str, str]]) -> bool:
    return any(row["method"] == method and (not variant or row["variant"] == variant) for method, variant in methods)


def _named(rows: Sequence[dict[str, Any]], beginning: str, folder: str) -> dict[str, Any]:
    found = [row for row in rows if beginning and row["job_id"].startswith(beginning)]
    if len(found) != 1:
        several = "several finished rows have ids that begin so" if found else "no finished row has such an id"
        remedy = f"`{shlex.join(['kdad-bench', 'results', 'export', folder, 'csv'])}` lists them all"
        raise SelectionError(f"{folder}: job '{beginning}': {several}; {remedy}")
    return found[0]


def settled(rows: Iterable[Mapping[str, Any]], asked: Asked) -> Asked:
    """`asked` with each file of weights under the name of the teacher that it fits, as no row has all teachers.

    Raises SelectionError for weights, and DatasetError for a data set, that serve no row: nothing is run then.
    """
    refuse_absent(asked.datasets, asked.data_root)
    names = list(dict.fromkeys(row["teacher"] for row in rows if row["teacher"] in BACKBONES))
    given = weights_given(names, asked.weights)
    return replace(asked, weights=tuple(f"{name}={found.path or found.source}" for name, found in given.items()))


def reproduced(rows: Iterable[Mapping[str, Any]], asked: Asked, started: Callable[[Job], None]) -> Iterator[Reproduced]:
    """What comes of each row's job, one after another in this process."""
    for row in rows:
        try:
            options, found, job = _again(row, asked)
        except (SelectionError, DatasetError) as error:
            yield Reproduced(job_id=row["job_id"], label=label(row), why_not=str(error))
            continue
        with closing(outcomes([job], found.work, started, options)) as stream:
            for _, ended in stream:
                yield _beside(row, ended)


def _again(row: Mapping[str, Any], asked: Asked) -> tuple[RunOptions, Agenda, Job]:
    """The job of a row, as this version and this machine make it; raises SelectionError where it is another."""
    if row["kdad_bench"] != __version__:
        raise SelectionError(f"it is of kdad-bench {row['kdad_bench']}, this is {__version__}; install that one")
    if id_of_row(row) != row["job_id"]:
        raise SelectionError("its id is not that of what it says: the row was changed")
    places, why = places_of(row, asked.datasets)
    problem: SelectionError | DatasetError = SelectionError(why)
    for place in places:
        options = options_of(row, place, asked)
        try:
            found = agenda(options)
            return options, found, _the_same(row, found.jobs)
        except (SelectionError, DatasetError) as error:
            problem = error
    raise problem


def options_of(row: Mapping[str, Any], place: str, asked: Asked) -> RunOptions:
    """The options of a run whose job is that of `row` (all columns), on the data set `place`."""
    from kdad_bench.methods import entry

    identity = identity_of_row(row)
    try:
        method = entry(row["method"])
    except KeyError as error:
        raise SelectionError(f"there is no method {error} here; name its file with --method") from error
    unsaid = {*NOT_SETTINGS, method.modality_setting, *([] if method.needs_teacher else ["teacher"])}
    said = _settings_said(method, identity["settings"])
    settings = {name: value for name, value in said.items() if name not in unsaid}
    beside = {}
    if settings.get("steps") is not None and "epochs" in settings:  # they rule nothing, but are part of the id
        beside["epochs"] = settings.pop("epochs")  # said in one place with the steps, they would be a second budget
    return options_from({
        "methods": ((row["method"], row["variant"] or ""),),
        "datasets": (place,),
        "categories": tuple(together_of(row)) or (row["category"],),
        "seeds": (row["seed"],),
        "preset": row["preset"].partition("[")[0],
        "device": "auto" if row["device"] != "cpu" else "cpu",
        "data_root": asked.data_root,
        "out": asked.out,
        "resolution": row["resolution"],
        "modality": row["modality"],
        "settings": beside,
        "method_settings": {row["method"]: settings},
        "all_weights": asked.weights,
        "train_images": (row["k_shot"],),
        "contamination": (row["contamination"],),
        "corruption": (row["corruption"],),
        "fit": row["fit"] or "squash",
        "tile": row["tile"],
        "overlap": row["tile_overlap"],
        "setting": row["setting"] or "single",
        "hold_out": hold_out_of(row["preset"]),
        "deterministic": bool(identity["deterministic"]),
        "threads": row["threads"],
        "executor": "in-process",
        "pictures": False,
        "measure_speed": False,
    })  # fmt: skip


def _settings_said(method: Entry, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings `values` of a row as the method's class has them: JSON knows no tuples, nor classes of others.

    Those that the class has not are as they stand; a run says what is wrong with them. Raises SelectionError.
    """
    from kdad_bench.methods.kept_settings import settings_of

    preset = next(iter(method.presets.values()))
    there = asdict(preset)
    own = {name: value for name, value in values.items() if name in there}
    try:
        found = settings_of(type(preset), there | own, method.name)
    except ValueError as error:
        raise SelectionError(str(error)) from error
    return {name: getattr(found, name) if name in own else value for name, value in values.items()}


def _the_same(row: Mapping[str, Any], jobs: Sequence[Job]) -> Job:
    """The one of `jobs` that has the id of `row`; raises SelectionError that says what is different."""
    for job in jobs:
        if job.id == row["job_id"]:
            return job
    own = next((job for job in jobs if job.category.name == row["category"]), None)
    here, there = (own.identity if own else {}), identity_of_row(row)
    parts = [name for name in there if _json(here.get(name)) != _json(there[name])]
    words = [OTHERWISE.get(part) or f"another {part} here{_changed(part, here, there)}" for part in parts]
    raise SelectionError("; ".join(words))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _changed(part: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Which settings are others."""
    if part != "settings":
        return ""
    new, old = here.get(part, {}), there[part]
    names = sorted({*new, *old})
    told = [
        f"{name} {old.get(name)}, not {new.get(name)}" for name in names if _json(new.get(name)) != _json(old.get(name))
    ]
    return f" ({'; '.join(told[:3])}{'; ...' if len(told) > 3 else ''})"


def _beside(row: Mapping[str, Any], ended: Row | NoResult) -> Reproduced:
    """What the job came to, beside what its row says."""
    about = {"job_id": row["job_id"], "label": label(row)}
    if isinstance(ended, NoResult) or ended.status != "ok":
        return Reproduced(**about, why_not=f"it failed: {ended.reason}")
    new = {name: _listed(getattr(ended, name)) for name in (*NUMBERS, *MACHINE)}
    old = {name: _listed(row[name]) for name in new}
    # a row may be older than a figure that later code of its version adds
    since = {name for name in FIGURES if name not in HEADLINE and old[name] is None}
    differ = tuple(name for name in NUMBERS if new[name] != old[name] and name not in since)
    figures = {name: new[name] - old[name] for name in FIGURES if None not in (new[name], old[name])}
    lone = [name for name in FIGURES if (new[name] is None) != (old[name] is None) and name not in since]
    return Reproduced(
        **about,
        identical=not differ,
        differ=differ,
        apart=figures,
        one_sided=tuple(f"{name} {old[name]}, now {new[name]}" for name in lone),
        scores_apart=_apart(old["image_scores"] or (), new["image_scores"] or ()),
        elsewhere=tuple(f"{name} {new[name]}, not {old[name]}" for name in MACHINE if new[name] != old[name]),
    )


def _listed(value: Any) -> Any:
    """A value of a row as a file has it: older ones have nulls where a row has an empty list."""
    return None if value in ((), []) else list(value) if isinstance(value, tuple) else value


def _apart(old: Sequence[float], new: Sequence[float]) -> float | None:
    """The largest difference of two scores by the range of the old ones; None where they are of other images."""
    if len(old) != len(new) or not old:
        return None
    largest = max(abs(a - b) for a, b in zip(old, new, strict=True))
    return largest / ((max(old) - min(old)) or 1.0)
