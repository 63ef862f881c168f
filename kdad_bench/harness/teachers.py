"""Which weights a job's teacher gets: found, downloaded or given; their content hash enters the job's identity."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from kdad_bench.harness.choices import SelectionError, suggestion
from kdad_bench.harness.job import Job, TeacherWeights
from kdad_bench.harness.options import RunOptions, teacher_and_file
from kdad_bench.harness.plan import configurations_of, teachers
from kdad_bench.harness.selection import Selection
from kdad_bench.leaderboard.row import UNAVAILABLE
from kdad_bench.methods.backbones import facts_of, weights
from kdad_bench.methods.backbones.names import BACKBONES

RANDOM = "random"
EMBEDDED = "efficientnet_lite0"  # its weights come with the package's own requirements


def weights_for(selection: Selection, options: RunOptions) -> Mapping[str, TeacherWeights]:
    """Teacher -> its weights, for all that `selection` needs; a dry run downloads none.

    A file that names no teacher is for every teacher that it fits; the others have what they would have without it.
    Raises SelectionError for a name that is no teacher, and for a file of weights that is none or fits no teacher.
    """
    names = teachers(selection)
    refuse_unknown(names)
    refuse_unknown(options.weights)
    for name, source in options.weights.items():
        refuse_missing(source, name)
    found = weights_given(names, options.all_weights)
    for name in names:
        if name not in found:
            found[name] = find(name, options.weights.get(name), may_download=not options.dry_run)
    return {name: found[name] for name in names}


def weights_given(names: Sequence[str], texts: tuple[str, ...]) -> dict[str, TeacherWeights]:
    """Teacher -> the weights that `texts`, each [TEACHER=]FILE, give it, for those of `names` that they fit.

    Raises SelectionError for a name that is no teacher, for a file that is not there, and for one that fits nobody.
    """
    named, loose = files_given(texts)
    refuse_unknown(named)
    for name, source in named.items():
        refuse_missing(source, name)
    found = {name: find(name, source) for name, source in named.items() if name in names}
    for source in loose:
        found = {**fitting(source, [name for name in names if name not in named]), **found}
    return found


def refuse_unknown(names: Iterable[str]) -> None:
    """Raises SelectionError for the first that is no teacher."""
    for name in names:
        if name not in BACKBONES:
            raise SelectionError(f"unknown teacher '{name}'{suggestion(name, BACKBONES)}; have: {', '.join(BACKBONES)}")


def refuse_missing(source: str, name: str) -> None:
    """Raises SelectionError for a file of weights that is not there."""
    path = Path(source).expanduser()
    if source != RANDOM and not path.is_file():
        what = "is no file" if path.exists() else "no such file"
        raise SelectionError(f"--weights {source}: {what}; give a checkpoint of {name}, or 'random' for a test")


def files_given(texts: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """(teacher -> file, files of no named teacher) of `[TEACHER=]FILE`."""
    pairs = [teacher_and_file(text) for text in texts]
    return {name: file for name, file in pairs if name}, [file for name, file in pairs if not name]


def fitting(source: str, names: list[str]) -> dict[str, TeacherWeights]:
    """Those of the teachers `names` whose weights `source` holds; raises SelectionError where it is nobody's."""
    found: dict[str, TeacherWeights] = {}
    problems: list[SelectionError] = []
    for name in names:
        try:
            found[name] = find(name, source)
        except SelectionError as error:
            problems.append(error)
    if not found and source != RANDOM:
        raise problems[0] if problems else SelectionError(f"--weights {source}: no teacher of this run needs a file")
    return found


def from_elsewhere(weights: Mapping[str, TeacherWeights], options: RunOptions) -> tuple[str, ...]:
    """A line for each teacher that has weights, and none of those that `--weights` gives."""
    named, loose = files_given(options.all_weights)
    files = {Path(file).expanduser() for file in (*named.values(), *loose)}
    others = (found for found in weights.values() if files and found.path and found.path not in files)
    return tuple(f"{found.teacher}: no file of --weights fits it; taking {found.source}" for found in others)


def with_teachers_at_hand(
    selection: Selection, weights: Mapping[str, TeacherWeights], options: RunOptions
) -> tuple[Selection, Mapping[str, TeacherWeights], tuple[str, ...]]:
    """`selection` and `weights`, the embedded teacher where one of the standard preset cannot be had; a line for each.

    A teacher that was asked for by name is never replaced, and neither is one in a dry run, which downloads nothing.
    """
    own = {method: dict(found) for method, found in (selection.method_overrides or {}).items()}
    missing: dict[str, list[str]] = {}
    if selection.preset == "standard" and not options.dry_run and "teacher" not in (selection.overrides or {}):
        for (method, _), (settings, _, needs_teacher) in configurations_of(selection):
            lost = needs_teacher and weights[settings.teacher].problem and settings.teacher != EMBEDDED
            if lost and "teacher" not in own.get(method, {}):
                own.setdefault(method, {})["teacher"] = EMBEDDED
                missing.setdefault(settings.teacher, []).append(method)
    lines = tuple(
        f"{', '.join(dict.fromkeys(methods))}: taking teacher {EMBEDDED}, as {weights[name].problem}"
        for name, methods in missing.items()
    )
    if not missing:
        return selection, weights, ()
    embedded = find(EMBEDDED, options.weights.get(EMBEDDED), may_download=True)
    return replace(selection, method_overrides=own), {**weights, EMBEDDED: embedded}, lines


def find(name: str, source: str | None, *, may_download: bool = True) -> TeacherWeights:
    """The weights of teacher `name` from `source` (a file, or "random"), else from this machine, else downloaded.

    Weights that cannot be had, or lie there damaged or unreadable, come back with `problem` set. Raises SelectionError
    for a `source` file that is missing or holds no weights of this teacher.
    """
    unavailable = partial(TeacherWeights, teacher=name, source=UNAVAILABLE, sha256=UNAVAILABLE)
    if source == RANDOM:
        return TeacherWeights(teacher=name, source=RANDOM, sha256=RANDOM)
    if source is not None:
        refuse_missing(source, name)
        path = Path(source).expanduser()
        if problem := problem_at(name, facts_of(name).usual_strides, path):
            raise SelectionError(f"--weights: {problem}")
        return TeacherWeights(teacher=name, source=path.name, sha256=sha256_of(path), path=path)
    found = weights.find_weights(name)
    if found is None and not may_download and facts_of(name).url:
        problem = (
            f"the weights of teacher '{name}' are not on this machine; a run downloads them, or give --weights FILE"
        )
        return unavailable(problem=problem, to_come=True)
    if found is None:
        try:
            found = weights.download(name)
        except weights.WeightsError as error:
            return unavailable(problem=str(error))
    try:
        sha256 = sha256_of(found)
        weights.refuse_unpublished(name, found, sha256)
    except OSError as error:
        reason = f"{found}: cannot be read ({error.strerror or error}); make it readable, or give --weights FILE"
        return unavailable(problem=reason)
    except weights.WeightsError as error:
        return unavailable(problem=str(error))
    return TeacherWeights(teacher=name, source=found.name, sha256=sha256, path=found)


def refuse_weights_that_do_not_reach(job: Job, problem_of: Callable[[str, tuple[int, ...], Path], str]) -> None:
    """Raises SelectionError where the taps of a job are of layers whose weights its teacher's file lacks.

    A file of a network's first layers serves the methods that tap those alone, so that `find`, which asks for the
    usual taps, takes it. `problem_of`: what `problem_at` says.
    """
    if job.weights is None or job.weights.path is None:
        return
    name, strides = job.settings.teacher, tuple(job.settings.strides or ())
    if set(strides) <= set(facts_of(name).usual_strides):
        return  # `find` has loaded these, or they are those of a published file
    if problem := problem_of(name, strides, job.weights.path):
        taps = " ".join(map(str, strides))
        raise SelectionError(f"method '{job.method}': taps at strides {taps}: {problem}")


def problem_at(name: str, strides: tuple[int, ...], path: Path) -> str:
    """Why the weights in `path` are none for teacher `name` with taps at `strides`; empty where they are."""
    try:
        weights.load_teacher(name, strides=strides, source=path)
    except weights.WeightsError as error:
        return str(error)
    return ""


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read again where it is another than the one last seen at this place."""
    there = path.stat()
    return _sha256_of(path, there.st_ino, there.st_size, there.st_mtime_ns)


@lru_cache(maxsize=32)
def _sha256_of(path: Path, *version: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
