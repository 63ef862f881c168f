"""`results check`: is a pack whole, do its rows follow from what they say, and do its maps give their figures?

The file is untrusted. Whoever writes a pack can write its hashes too, so that these only tell damage: what can be
derived anew is derived: the ids of jobs, the figures of images, and with the data at hand those of pixels.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from kdad_bench import __version__, datasets
from kdad_bench.datasets import SQUASH, Category, DatasetError
from kdad_bench.datasets.archive import extract
from kdad_bench.files import DamagedError, read_json
from kdad_bench.harness.axes import axes_of
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.job import id_of_row
from kdad_bench.harness.judging import judged
from kdad_bench.harness.maps import MapError
from kdad_bench.harness.material import judged_category, judged_on
from kdad_bench.harness.submission import (
    FORMAT,
    MANIFEST,
    MAPS,
    ROWS,
    Manifest,
    SubmissionError,
    beside_row,
    listed_below,
    maps_file,
    maps_of,
    sha256_of,
)
from kdad_bench.harness.trust import figures_of
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import SINCE_7
from kdad_bench.leaderboard.text import printable
from kdad_bench.metrics import MetricError, image_metrics

TOLERANCE = 1e-9  # of a figure: a GPU adds in another order
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a pack is checked with."""

    data_root: Path | None = None
    datasets: tuple[str, ...] = ()  # where data sets of its rows lie here, if elsewhere: folder:PATH
    sample: int | None = None  # how many of its maps are scored anew; None: all
    beside: Path | None = None  # a results folder, whose models and maps are compared with the hashes


@dataclass(kw_only=True, slots=True)
class Report:
    """What was found: `problems` speak against the pack, `notes` do not."""

    jobs: int = 0
    failed: int = 0
    derived: int = 0  # rows whose image figures were computed anew from their scores
    judged: list[str] = field(default_factory=list)  # a line for each job whose maps were scored anew
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(path: Path, asked: Asked) -> Report:
    """Everything that speaks for and against the pack `path`.

    Raises DatasetError for a file that is no archive, cut short, or holds what is never unpacked; SubmissionError for
    an archive that is no pack, and the first for a data set that was given and is not there.
    """
    refuse_absent(asked.datasets, asked.data_root)
    with tempfile.TemporaryDirectory(prefix="kdad-bench-pack-") as name:
        folder = Path(name)
        extract(path, folder)
        manifest = manifest_of(folder, path)
        report = Report()
        report.problems += wrong_files(folder, manifest)
        if not (folder / ROWS).is_file():
            return report
        rows = rows_of(folder, report)
        report.problems += wrong_jobs(rows, manifest)
        for row in rows:
            check_row(row, report)
        check_maps(folder, rows, asked, report)
        if asked.beside is not None:
            compare_beside(asked.beside, manifest, report)
        return report


def manifest_of(folder: Path, path: Path) -> Manifest:
    """The checked manifest; raises SubmissionError."""
    try:
        content = read_json(folder / MANIFEST, dict, remedy="pack the results again")
        if content.get("format") != FORMAT:
            found = str(content.get("format"))[:20]
            raise SubmissionError(
                f"{path}: a pack of format {found}, this version reads {FORMAT}; upgrade, or pack again"
            )
        return Manifest.model_validate(content)
    except OSError as error:
        raise SubmissionError(
            f"{path}: no pack of results (it has no {MANIFEST}); give one of `results pack`"
        ) from error
    except DamagedError as error:
        raise SubmissionError(f"{path}: {str(error).removeprefix(f'{folder}/')}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = printable(".".join(map(str, first["loc"])))[:80]
        raise SubmissionError(
            f"{path}: {MANIFEST} is damaged ({where}: {first['msg']}); pack the results again"
        ) from error


def wrong_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    """A line for each file that is missing, changed, or in no list."""
    there = {name for name in listed_below(folder) if name != MANIFEST}
    for name in sorted({*manifest.files, ROWS} - there):
        yield f"{name}: missing from the pack"
    for name in sorted(there - set(manifest.files)):
        yield f"{name}: in the pack and not in its manifest"
    for name, digest in manifest.files.items():
        if name in there and sha256_of(folder / name) != digest:
            yield f"{name}: its SHA-256 is not the manifest's: it was changed or damaged"


def rows_of(folder: Path, report: Report) -> Rows:
    """The rows that can be, counted; what cannot is a problem each."""
    found = store.read(folder)
    report.problems += [f"{problem.file}: {problem.what}" for problem in found.problems]
    rows = found.rows()
    if found.superseded:
        report.problems.append(f"{ROWS}: {found.superseded} jobs stand there twice")
    report.failed = sum(row["status"] != "ok" for row in rows)
    report.jobs = len(rows)
    return rows


def wrong_jobs(rows: Rows, manifest: Manifest) -> Iterator[str]:
    """A line for each job that is in one of the two alone."""
    there = {row["job_id"] for row in rows}
    for job in sorted(set(manifest.jobs) - there):
        yield f"job {job}: in the manifest and without a row"
    for job in sorted(there - set(manifest.jobs)):
        yield f"job {job}: a row and not in the manifest"
    for job, beside in sorted(manifest.jobs.items()):
        packed = manifest.files.get(f"{MAPS}/{job}.npz")
        if packed not in (None, beside.maps):
            yield f"job {job}: the manifest has two hashes of its maps"


def label(row: Mapping[str, Any]) -> str:
    """How people read a row."""
    name = f"{row['method']}:{row['variant']}" if row["variant"] else row["method"]
    return f"{row['job_id']} {name} {row['dataset']}/{row['category']} seed {row['seed']}"


def check_row(row: Mapping[str, Any], report: Report) -> None:
    """Derive anew what a row holds twice: its id, and the figures of its image scores."""
    if row["status"] != "ok":
        return
    if row["origin"] is None and row["kdad_bench"] == __version__ and id_of_row(row) != row["job_id"]:
        report.problems.append(f"{label(row)}: its id is not that of its settings, data and seed")
    scores, labels = row["image_scores"] or (), row["image_labels"] or ()
    if not len(scores) == len(labels) == len(row["image_names"] or ()) == row["test_images"]:
        report.problems.append(f"{label(row)}: it has not one score, label and name for each test image")
        return
    figures = image_metrics(np.array(scores, np.float32), np.array(labels, bool))
    figures |= figures_of(row["normal_scores"] or (), scores, labels)
    report.derived += 1
    report.problems += differences(row, figures, "from its image scores")
    found, most = row["seg_f1"], row["pixel_f1_max"]
    if found is not None and (most is None or found > most + TOLERANCE):
        report.problems.append(
            f"{label(row)}: seg_f1 is {found}, above {most}, its pixel_f1_max, the F1 of any threshold"
        )


def differences(row: Mapping[str, Any], figures: Mapping[str, Any], how: str) -> Iterator[str]:
    """A line for each figure of a row that is another when it is computed anew."""
    older = all(row[name] is None for name in SINCE_7)
    for name, value in figures.items():
        if older and name in SINCE_7:
            continue
        said = row[name]
        same = said is value if said is None or value is None else abs(said - value) <= TOLERANCE
        if not same:
            yield f"{label(row)}: {name} is {said}, and {value} {how}"


def check_maps(folder: Path, rows: Rows, asked: Asked, report: Report) -> None:
    """Score a sample of the maps in the pack anew, drawn at random, where their data are at hand."""
    having = [row for row in rows if row["status"] == "ok" and maps_file(folder, row["job_id"]).is_file()]
    count = len(having) if asked.sample is None else min(asked.sample, len(having))
    for row in random.SystemRandom().sample(having, count):
        check_maps_of(maps_file(folder, row["job_id"]), row, asked, report)
    unseen = sum(row["seg_f1"] is not None for row in having)
    if unseen:
        number = "1 row" if unseen == 1 else f"{unseen} rows"
        report.notes.append(
            f"SegF1 of {number} was not computed anew: its threshold is of maps that are in no pack; "
            "it was only compared with pixel F1-max"
        )
    if not having:
        report.notes.append("the pack has no maps: pixel metrics were not computed anew")
    elif count < len(having):
        report.notes.append(f"{count} of {len(having)} maps, drawn at random, were looked at; --all looks at each")


def check_maps_of(path: Path, row: Mapping[str, Any], asked: Asked, report: Report) -> None:
    """Score the maps of one row anew: all figures with its data, else what needs the labels alone."""
    try:
        maps = np.ascontiguousarray(maps_of(path, row).maps)
        peaks = maps.reshape(len(maps), -1).max(axis=1)
        category, why = data_of(row, asked)
        if category is None and row["fit"] is not None:
            report.notes.append(f"{label(row)}: {why}; which part of its maps is a picture cannot be told")
            return
        if category is None:
            report.notes.append(f"{label(row)}: {why}; only the maxima of its maps were looked at")
            found = image_metrics(peaks, np.array(row["image_labels"], bool))
            report.problems += differences(row, {"image_auroc_max": found["image_auroc"]}, "from its maps")
            return
        axes = axes_of(row)
        test = datasets.load_test(datasets.single_modalities(category)[0], row["resolution"], row["fit"] or SQUASH)
        test = judged_on(axes, category, row["seed"], test)
        category = judged_category(axes, category, row["seed"])
        if test.names != tuple(row["image_names"]) or test.labels.tolist() != list(row["image_labels"]):
            report.problems.append(f"{label(row)}: its images or labels are not those of the data")
            return
        if maps.shape[1:] != test.images.shape[2:]:
            report.problems.append(f"{label(row)}: its maps are {maps.shape[1:]}, its images {test.images.shape[2:]}")
            return
        if test.sizes is not None:
            peaks = np.array([one[:h, :w].max() for one, (h, w) in zip(maps, test.sizes, strict=True)])
        scores = np.array(row["image_scores"], np.float32)
        figures = judged(
            scores, maps, peaks, test, category=category, resolution=row["resolution"], method=row["method"]
        )
    except (MapError, MetricError, DatasetError, SelectionError) as error:
        report.problems.append(f"{label(row)}: {error}")
        return
    del figures["seg_f1"]  # its threshold is of held-out normals, whose maps are in no pack
    wrong = list(differences(row, figures, "from its maps and the data"))
    report.problems += wrong
    if not wrong:
        report.judged.append(f"{label(row)}: its maps give its {len(figures)} figures")


def places_of(row: Mapping[str, Any], given: Sequence[str]) -> tuple[list[str], str]:
    """(the data sets in which a row's category may lie: its own, and those that were given; why there is none, or "").

    A row names no path and no code to run: only a data set of this version is taken by its name.
    """
    own = [row["dataset"]] if row["dataset"] in datasets.entries() else []
    places = list(dict.fromkeys([*own, *given]))
    return places, "" if places else f"say where {row['dataset']} lies here, with --dataset"


def refuse_absent(given: Sequence[str], data_root: Path | None) -> None:
    """Raises DatasetError for the first of the data sets that were given, not by a row, that is not there."""
    for name in given:
        if not datasets.names_at_hand(name, data_root):  # one that is drawn is not drawn for this
            datasets.located(name, data_root)


def data_of(row: Mapping[str, Any], asked: Asked) -> tuple[Category | None, str]:
    """(the category of a row with the very files that it saw, "") or (None, why it is not at hand)."""
    places, why = places_of(row, asked.datasets)
    for name in places:
        try:
            (found,) = datasets.categories(name, asked.data_root, [row["category"]], modality=row["modality"])
            sealed = datasets.sealed(found)
        except DatasetError as error:
            why = why or f"its data are not at hand ({error})"
            continue
        if datasets.fingerprint(sealed) == row["data_fingerprint"]:
            return sealed, ""
        why = f"the files of {name} here are not those that it saw"
    return None, why


def compare_beside(folder: Path, manifest: Manifest, report: Report) -> None:
    """Compare the hashes of the manifest with the models and maps in a results folder."""
    compared = 0
    for job, noted in manifest.jobs.items():
        here = beside_row(folder, job)
        pairs = {"maps": (noted.maps, here.maps)}
        pairs |= {name: (digest, here.model.get(name)) for name, digest in noted.model.items()}
        for name, (wanted, found) in pairs.items():
            compared += None not in (wanted, found)
            if None not in (wanted, found) and wanted != found:
                report.problems.append(f"job {job}: its {name} in {folder} has another SHA-256 than the pack says")
    report.notes.append(f"{compared} files beside rows in {folder} were compared with their hashes")
