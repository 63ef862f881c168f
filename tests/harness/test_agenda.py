"""What planning costs where thousands of jobs are finished: counted, as seconds depend on the machine."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from kdad_bench.harness import environment
from kdad_bench.harness.agenda import agenda
from kdad_bench.harness.axes import Axes
from kdad_bench.harness.endings import put_back
from kdad_bench.harness.job import Job, values_of
from kdad_bench.harness.lone_batch import learns_from_one
from kdad_bench.harness.on_ray import Ending
from kdad_bench.harness.options import options_from
from kdad_bench.harness.output import Work
from kdad_bench.harness.run import columns_of
from kdad_bench.harness.surroundings import NoResult
from kdad_bench.harness.view import View
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.folder import LocalFolder
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.stad import Stad
from tests.conftest import write_tree
from tests.harness.planned import jobs_of


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each file of a results folder was opened."""
    counted: Counter[str] = Counter()
    real = LocalFolder.open

    def open_and_count(self: LocalFolder, name: str) -> Any:
        counted[name] += 1
        return real(self, name)

    monkeypatch.setattr(LocalFolder, "open", open_and_count)
    return counted


def failed(job: Job) -> Row:
    return Row.failed(reason="a test", **columns_of(job))


def ended(job: Job, auroc: float) -> Row:
    return Row(image_auroc=auroc, **columns_of(job))


def test_a_plan_opens_each_finished_row_once(tiny_tree: Path, tmp_path: Path, opened: Counter[str]) -> None:
    jobs = jobs_of(tiny_tree, methods=(("pixel_mean", ""),))
    for job in jobs:
        store.write(failed(job), tmp_path)
    opened.clear()
    said = {"methods": ["pixel_mean"], "datasets": [f"folder:{tiny_tree}"], "seeds": "2", "preset": "quick"}
    found = agenda(options_from({**said, "device": "cpu", "out": str(tmp_path)}))
    assert len(found.kept) == len(jobs) == 4
    assert sorted(opened.values()) == [1] * 4


def test_data_that_moved_keep_their_name_and_are_looked_at_where_they_lie(tmp_path: Path) -> None:
    first, then = write_tree(tmp_path / "first"), tmp_path / "then"
    said = {"methods": ["pixel_mean"], "seeds": "2", "preset": "quick", "device": "cpu", "out": str(tmp_path / "out")}
    before = agenda(options_from({**said, "datasets": [f"folder:{first}"]}))
    for job in before.jobs:
        store.write(failed(job), tmp_path / "out")
    shutil.move(first, then)
    (then / "bolt" / "train" / "scrap").mkdir()
    (then / "bolt" / "train" / "scrap" / "a.png").write_bytes(b"")
    found = agenda(options_from({**said, "datasets": [f"folder:{then}"]}))
    assert {job.id for job in found.jobs} == {job.id for job in before.jobs} == set(found.kept)
    assert {job.category.dataset for job in found.jobs} == {f"folder:{first}"}
    assert any("scrap" in line and str(then) in line for line in found.remarks)


def test_after_a_run_only_its_own_rows_are_looked_for(tiny_tree: Path, tmp_path: Path, opened: Counter[str]) -> None:
    first, *others = (failed(job) for job in jobs_of(tiny_tree, methods=(("pixel_mean", ""),)))
    for row in others:
        store.write(row, tmp_path)
    opened.clear()
    work = Work(out=str(tmp_path))
    assert put_back([], work) == 0
    assert not opened
    job = jobs_of(tiny_tree, methods=(("pixel_mean", ""),))[0]
    assert put_back([(job, first)], work) == 1
    assert not {store.file_name(row) for row in others} & set(opened)
    opened.clear()
    assert put_back([(job, first)], work) == 0
    assert dict(opened) == {store.file_name(first): 1}


@pytest.mark.parametrize("before", ["failed", "ok"])
def test_an_older_row_of_its_job_stands_for_no_row_that_found_no_place(
    before: str, tiny_tree: Path, tmp_path: Path
) -> None:
    """Such a row lies there in every run with --retry-failed or --force."""
    job, work = jobs_of(tiny_tree, methods=(("pixel_mean", ""),))[0], Work(out=str(tmp_path))
    old, new = ended(job, 0.5), ended(job, 0.9)
    store.write(failed(job) if before == "failed" else replace(old, created_at="2030-01-01T00:00:00+00:00"), tmp_path)
    endings: list[tuple[Job, Ending]] = [(job, NoResult("no space left", new))]
    assert put_back(endings, work) == 1
    ((_, put),) = endings  # of the date that it has on disk, later than the other's
    assert isinstance(put, Row)
    assert replace(put, created_at=new.created_at) == new
    assert [row["image_auroc"] for row in store.read(tmp_path).rows()] == [0.9]
    assert put_back(endings, work) == 0


def test_a_row_is_written_again_where_an_earlier_state_of_the_folder_was_put_back(
    tiny_tree: Path, tmp_path: Path
) -> None:
    job, work = jobs_of(tiny_tree, methods=(("pixel_mean", ""),))[0], Work(out=str(tmp_path))
    old = replace(ended(job, 0.5), created_at="2020-01-01T00:00:00+00:00")
    store.write(old, tmp_path)
    assert put_back([(job, ended(job, 0.9))], work) == 1
    assert put_back([(job, failed(job))], work) == 0  # it would count for nobody
    assert put_back([(job, old)], work) == 0  # another run has redone it


def test_a_row_that_is_refused_keeps_no_other_from_its_place(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = jobs_of(tiny_tree, methods=(("pixel_mean", ""),))
    write = store.write

    def refuse(row: Row, folder: str) -> str:
        if row.job_id == first.id:
            raise store.StoreError("no space left; free some")
        return write(row, folder)

    monkeypatch.setattr(store, "write", refuse)
    endings: list[tuple[Job, Ending]] = [(one, NoResult("full", ended(one, 0.9))) for one in (first, second)]
    assert put_back(endings, Work(out=str(tmp_path))) == 1
    assert isinstance(endings[0][1], NoResult)
    assert endings[0][1].reason == "no space left; free some"
    assert set(store.finished(tmp_path)) == {second.id}


def test_a_student_without_batch_norms_is_not_tried_with_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of the embedded data would otherwise train STAD for a step: four seconds before any job begins."""

    def fit(self: Stad, *_: object) -> None:
        raise AssertionError("trained by a plan")

    monkeypatch.setattr(Stad, "fit", fit)
    assert learns_from_one("stad", replace(entry("stad").presets["quick"], seed=0))
    assert not learns_from_one("rd4ad", replace(entry("rd4ad").presets["quick"], image_size=32, seed=0))


def test_the_values_of_settings_are_those_of_asdict() -> None:
    every = [settings for name in METHODS for settings in entry(name).presets.values()]
    assert all(values_of(settings) == asdict(settings) for settings in every)
    assert all(list(values_of(settings)) == list(asdict(settings)) for settings in every)


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Loose:
    """Settings of code that is not ours may hold anything."""

    inner: Inner = Inner()
    values: Any = ((1, [2]),)


def test_values_that_can_change_are_copied_and_dataclasses_are_taken_apart() -> None:
    loose = Loose()
    found = values_of(loose)
    assert found == asdict(loose) == {"inner": {"depth": 1}, "values": ((1, [2]),)}
    assert found["values"][0][1] is not loose.values[0][1]


@pytest.mark.parametrize(
    ("made", "used"),
    [
        (View(), {}),
        (View(fit="pad", tile=128, overlap=0), {"fit": "pad", "tile": 128, "overlap": 0}),
        (Axes(), {}),
        (
            Axes(train_images=4, contamination=0.0, corruption="blur:3"),
            {"train_images": 4, "contamination": 0.0, "corruption": "blur:3"},
        ),
    ],
)
def test_what_is_used_names_every_field_that_is_set(made: Any, used: dict[str, Any]) -> None:
    assert made.used == used
    assert not used or list(used) == [field.name for field in fields(made)]


def test_versions_of_packages_are_read_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def version(name: str) -> str:
        read.append(name)
        return metadata.version(name)

    monkeypatch.setattr(environment, "version", version)
    environment.package_version.cache_clear()
    first, second = environment.describe("cpu"), environment.describe("cpu")
    assert first["environment"]["packages"] == second["environment"]["packages"]
    assert len(read) == len(set(read))
