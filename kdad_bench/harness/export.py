"""A saved model -> a graph that runs without this package, with a certificate; or nothing, and a reason."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdad_bench import __version__
from kdad_bench.files import write_text_whole
from kdad_bench.harness import decision
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.decision import Decision
from kdad_bench.harness.export_certificate import (
    FP32,
    INT8,
    Comparison,
    Tolerance,
    certificate_of,
    compared,
    fault,
)
from kdad_bench.harness.export_graph import graph_of
from kdad_bench.harness.export_images import Images, Normals, asked_for, calibration_of, drawn, normals_of, row_of
from kdad_bench.harness.export_runtimes import (
    INPUT,
    OUTPUTS,
    TARGETS,
    ExportError,
    Graph,
    NotHarmless,
    Runner,
    in_batches,
    missing,
    opened_graph,
    versions,
    write_graph,
)
from kdad_bench.harness.export_runtimes import INT8 as NNCF
from kdad_bench.harness.exported import (
    FILE,
    FORMAT,
    Certificate,
    Exported,
    GraphFile,
    Port,
    Provenance,
    Threshold,
    refuse_other_method,
    sha256,
)
from kdad_bench.harness.scoring import SCORE_BATCH
from kdad_bench.harness.view import View
from kdad_bench.methods import checkpoint, entry
from kdad_bench.methods.protocol import Method

CPU = torch.device("cpu")
SAME_SCORES = 0.05  # of the largest: held-out normals whose scores differ by more are other images


class Refused(ExportError):
    """The graph does not say what its model says; nothing of it was kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a person asked for."""

    model: Path
    target: str
    int8: bool = False
    out: Path | None = None  # None: a folder in the model's
    check_on: tuple[str, ...] = ()
    data_root: Path | None = None
    false_alarms: float = 0.1
    tolerance: float | None = None  # None: the precision's own
    method: str | None = None  # has to be the model's

    @property
    def folder(self) -> Path:
        """Where the graph goes."""
        return self.out or self.model / (f"{self.target}-int8" if self.int8 else self.target)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was written."""

    folder: Path
    exported: Exported
    seconds: float
    aside: str = ""  # why the graph was not compared on held-out normals that its model has


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The model, what is known of it, and the images to compare on."""

    name: str
    method: Method
    kept: Decision
    normals: Normals
    sets: tuple[Images, ...]


def export(wanted: Wanted) -> Report:
    """Export a model, compare the graph with it and keep it only if the two agree.

    Raises Refused if they do not, ExportError, ModelError, DecisionError, SelectionError or DatasetError for what
    cannot be exported or compared, and OSError for a folder that cannot be written. Nothing is then left.
    """
    began = time.perf_counter()
    refuse_contradictions(wanted)
    source = source_of(wanted)
    with unfinished(wanted.folder) as place:
        graph = graph_of(source.method, source.kept.resolution)
        found = written(wanted, source, graph, place)
        write_text_whole(place / FILE, found.model_dump_json(indent=2) + "\n")
    aside = source.normals.why if source.kept.normal_scores else ""
    return Report(folder=wanted.folder, exported=found, seconds=time.perf_counter() - began, aside=aside)


def refuse_contradictions(wanted: Wanted) -> None:
    """Raises SelectionError for what cannot be done here, before anything is loaded."""
    if wanted.int8 and wanted.target != "openvino":
        raise SelectionError(f"--int8 is for --to openvino, not for {wanted.target}")
    lacking = missing(wanted.target, int8=wanted.int8)
    if lacking:
        raise SelectionError(f"--to {lacking}")
    out = wanted.folder
    if out.resolve() == Path.cwd():
        raise SelectionError(f"{out}: is the current folder, which cannot be replaced; choose another --out")
    ours = {FILE, *(name for one in TARGETS.values() for name in one.files)}
    there = os.path.lexists(out)
    if there and (out.is_symlink() or not out.is_dir() or {one.name for one in out.iterdir()} - ours):
        raise SelectionError(f"{out}: something else is there; choose another --out")


def source_of(wanted: Wanted) -> Source:
    """The model and the images; raises SelectionError where there is no photograph to compare on, and for 8 bits where
    there are none to read the threshold from anew."""
    name, method = checkpoint.load(wanted.model, CPU)
    refuse_other_method(wanted.model, name, wanted.method)
    kept = decision.read(wanted.model)
    refuse_windows(wanted.model, kept)
    if kept.normal_scores:
        kept.threshold(wanted.false_alarms, "")  # DecisionError before the work
    normals = normals_of(wanted.model, kept, wanted.data_root)
    found = asked_for(wanted.check_on, kept.resolution, wanted.data_root)
    if normals.held_out is not None:
        found.insert(0, normals.held_out)
    elif wanted.int8 and kept.normal_scores:
        raise SelectionError(
            f"{normals.why}: 8 bits move the scores, and the threshold is read anew from the held-out normals; name "
            "their place with --data-root, or leave out --int8"
        )
    if not found:
        raise SelectionError(f"{normals.why}: nothing to compare on; name images with --check-on, or --data-root")
    if not wanted.int8:  # its ranges are those of photographs: nothing is promised beyond them
        found.append(drawn(kept.resolution))
    return Source(name=name, method=method, kept=kept, normals=normals, sets=tuple(found))


def refuse_windows(model: Path, kept: Decision) -> None:
    """Raises SelectionError for a model that sees more than one square of an image: a graph takes that alone."""
    view = View(fit=kept.fit, tile=kept.tile, overlap=kept.overlap)
    if not view.plain:
        raise SelectionError(
            f"{model}: sees images as {view.label}, and a graph takes one square; train without --fit, --tile and "
            "--overlap to export it"
        )


def written(wanted: Wanted, source: Source, graph: Graph, place: Path) -> Exported:
    """Write the graph into `place`, run it from there and describe it; raises Refused or ExportError."""
    images, words = calibration_of(source.normals, source.sets) if wanted.int8 else ([], "")
    cannot = f"{wanted.model}: method '{source.name}' cannot be exported to {wanted.target}"
    try:
        write_graph(graph, wanted.target, place, images)
        runner = opened_graph(wanted.target, place, graph.batch)
    except NotHarmless as error:  # it has just been written
        raise ExportError(f"{cannot} ({error.why}); try another --to") from error
    except ExportError:
        raise
    except Exception as error:  # converters raise anything
        said = " ".join(str(error).split())[:200]
        raise ExportError(f"{cannot} ({type(error).__name__}: {said}); try another --to") from error
    kept = refitted(source, runner) if wanted.int8 else source.kept
    certificate = certified(wanted, source, graph, runner, kept)
    return described(wanted, source, graph, place, kept, certificate, words)


def refitted(source: Source, runner: Runner) -> Decision:
    """The decision by the graph's own scores of the held-out normals: 8 bits shift them all."""
    if source.normals.held_out is None:
        return source.kept
    scores, maps = in_batches(runner, np.ascontiguousarray(source.normals.held_out.pixels), 1)
    return replace(
        source.kept, normal_scores=tuple(sorted(map(float, scores))), normal_map_peak=float(maps.max()),
        test_normal_scores=(),
    )  # fmt: skip


def certified(wanted: Wanted, source: Source, graph: Graph, runner: Runner, kept: Decision) -> Certificate:
    """The certificate of a graph; raises Refused for one that does not deserve any."""
    tolerance: Tolerance = INT8 if wanted.int8 else FP32
    if wanted.tolerance is not None:
        tolerance = tolerance._replace(score=wanted.tolerance, map=tolerance.map and wanted.tolerance)
    batches = (1,) if graph.batch == 1 else (1, SCORE_BATCH)
    limits = None
    if kept.normal_scores:
        limits = source.kept.threshold(wanted.false_alarms), kept.threshold(wanted.false_alarms)
    found = compared(source.method, runner, source.sets, batches, source.name)
    refuse_other_normals(wanted.model, source, found)
    if not found.finite():
        raise Refused(f"{wanted.model}: refused, the graph for {wanted.target} gives values that are not finite")
    if not np.isfinite([found.scores_apart(), found.maps_apart()]).all():
        raise Refused(
            f"{wanted.model}: refused, the model answers every photograph alike with nothing, and its graph for "
            f"{wanted.target} does not"
        )
    certificate = certificate_of(found, source.sets, batches, limits, tolerance)
    why = fault(certificate)
    if why:
        raise Refused(f"{wanted.model}: refused, the graph for {wanted.target} is not its model: {why}")
    return certificate


def refuse_other_normals(model: Path, source: Source, found: Comparison) -> None:
    """Raises ExportError where the images that a row leads to cannot be the normals that a threshold was read from: the
    model gives them other scores. Devices differ in the last digits, precisions in more."""
    held_out = source.normals.held_out
    if held_out is None:
        return
    kept, theirs = np.array(source.kept.normal_scores), np.sort(found.theirs[: len(held_out.pixels)])
    if kept.shape != theirs.shape or not np.allclose(theirs, kept, rtol=0, atol=SAME_SCORES * np.abs(kept).max()):
        raise ExportError(
            f"{model}: the {held_out.what} that its row leads to have other scores than its {decision.FILE} holds; "
            "export a copy of its folder elsewhere, with images named by --check-on"
        )


def said_of(model: Path, settings: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(readings, deviations) of what was trained: those of the row beside `model`, whose job knows which images and how
    many categories it learnt from; without a row those of its `settings` alone."""
    row = row_of(model)
    if row is None:
        return tuple(settings.readings), tuple(settings.deviations)
    return tuple(row.readings), tuple(row.deviations)


def described(
    wanted: Wanted, source: Source, graph: Graph, place: Path, kept: Decision, certificate: Certificate, words: str
) -> Exported:
    """All that export.json holds."""
    settings, side, model = source.method.settings, source.kept.resolution, wanted.model
    readings, deviations = said_of(model, settings)
    value = kept.threshold(wanted.false_alarms) if kept.normal_scores else None
    packages = versions(wanted.target)
    if wanted.int8:
        packages |= versions_of_rounding()
    return Exported.sealed(
        format=FORMAT,
        kdad_bench=__version__,
        method=source.name,
        title=entry(source.name).title,
        settings=asdict(settings),
        readings=readings,
        deviations=deviations,
        model=Provenance(
            weights_sha256=sha256(model / checkpoint.WEIGHTS),
            description_sha256=sha256(model / checkpoint.DESCRIPTION),
            decision_sha256=sha256(model / decision.FILE),
        ),
        target=wanted.target,  # checked by the model of the file
        precision="int8" if wanted.int8 else "fp32",
        calibration=words,
        graph={
            name: GraphFile(sha256=sha256(place / name), bytes=(place / name).stat().st_size)
            for name in TARGETS[wanted.target].files
        },
        input=Port(name=INPUT, shape=(graph.batch, 3, side, side), dtype="uint8", meaning=MEANINGS[0]),
        outputs=(
            Port(name=OUTPUTS[0], shape=(graph.batch,), dtype="float32", meaning=MEANINGS[1]),
            Port(name=OUTPUTS[1], shape=(graph.batch, side, side), dtype="float32", meaning=MEANINGS[2]),
        ),
        runtime=packages,
        decision=decision.Written(**asdict(kept)),
        threshold=None if value is None else Threshold(value=value, false_alarms=wanted.false_alarms),
        certificate=certificate,
    )


MEANINGS = (
    "RGB images, 0 to 255, channels first, reduced to this size with antialiasing; the graph does all else",
    "score of each image, higher is more anomalous; anomalous is what lies above the threshold",
    "anomaly map of each image, higher is more anomalous",
)


def versions_of_rounding() -> dict[str, str]:
    """The package that made 8 bits of the weights."""
    from importlib import metadata

    return {NNCF: metadata.version(NNCF)}


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A folder near `folder` that takes its place at the end; gone if that is never reached. Raises OSError.

    What was there before makes way by a new name, gets it back if anything fails, and is deleted last.
    """
    near = next(parent for parent in folder.absolute().parents if parent.exists())
    place = near / f".{folder.name[:100]}.{secrets.token_hex(6)}.tmp"
    place.mkdir()
    try:
        yield place
        folder.parent.mkdir(parents=True, exist_ok=True)
        before = place.with_suffix(".old")
        if folder.exists():
            folder.replace(before)
        try:
            place.replace(folder)
        except BaseException:
            if before.exists():
                before.replace(folder)
            raise
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
