"""What surrounds a job fails: no result, and no failed row that the next run would skip."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kdad_bench.datasets import DatasetError
from kdad_bench.harness import perform as performing
from kdad_bench.harness.endings import put_back
from kdad_bench.harness.job import Job
from kdad_bench.harness.output import Work, keep_beside, work_of
from kdad_bench.harness.perform import perform
from kdad_bench.harness.surroundings import NUMBERS, NoResult, of_surroundings
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods.backbones.weights import WeightsError
from tests.conftest import write_tree
from tests.harness.planned import jobs_of


def floor_job(tree: Path) -> Job:
    """The first job of the method that trains in no time."""
    return next(job for job in jobs_of(tree) if job.method == "pixel_mean")


def raising(error: BaseException, cause: BaseException | None = None) -> Callable[..., Row]:
    """A stand-in for `run` that ends so."""

    def run(*given: object) -> Row:
        raise error from cause

    return run


@pytest.mark.parametrize("number", sorted(NUMBERS))
def test_a_fault_of_the_surroundings_is_no_result(
    number: int, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performing, "run", raising(OSError(number, os.strerror(number))))
    found = perform(floor_job(tiny_tree), Work(out=str(tmp_path)))
    assert isinstance(found, NoResult)
    assert os.strerror(number) in found.reason
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize(
    ("error", "cause", "expected"),
    [
        (DatasetError("x: the cache cannot be written"), OSError(errno.ENOSPC, "No space left on device"), True),
        (RuntimeError("writing failed: No space left on device (os error 28)"), None, True),
        (WeightsError("cannot be read"), OSError(errno.ESTALE, "Stale file handle"), True),
        (store.StoreError("cannot be listed"), None, True),
        (DatasetError("x.png: no such file"), FileNotFoundError(errno.ENOENT, "No such file"), False),
        (DatasetError("x.png: changed since the run was planned"), None, False),
        (FloatingPointError("the loss is not finite"), None, False),
        (MemoryError(), None, False),
        (FileNotFoundError(errno.ENOENT, "No such file"), None, False),
    ],
)
def test_what_is_of_the_surroundings(
    error: BaseException, cause: BaseException | None, expected: bool, tiny_tree: Path
) -> None:
    error.__cause__ = cause
    assert of_surroundings(error, floor_job(tiny_tree)) is expected


def test_a_drive_that_went_away_is_no_result_and_a_folder_that_was_deleted_a_failure(tmp_path: Path) -> None:
    for places, expected in ((("bolt",), True), (("bolt", "cloth"), False)):
        tree = write_tree(tmp_path / f"tree{len(places)}", categories=places)
        job = floor_job(tree)
        (tree / "bolt").rename(tmp_path / f"bolt{len(places)}")
        assert of_surroundings(DatasetError("x: no such file"), job) is expected
        assert not of_surroundings(FloatingPointError("not finite"), job)
        found = perform(job, Work(out=str(tmp_path / "out")))
        assert isinstance(found, NoResult) is expected


def test_a_row_that_cannot_be_written_is_kept_in_memory(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store.write

    def full(row: Row, folder: str) -> str:
        raise store.StoreError("no space")

    monkeypatch.setattr(store, "write", full)
    found = perform(floor_job(tiny_tree), Work(out=str(tmp_path)))
    assert isinstance(found, NoResult)
    assert found.row is not None
    assert found.row.status == "ok"
    write(found.row, str(tmp_path))
    assert store.verify(str(tmp_path)).ok == 1


def test_where_no_row_can_be_written_nothing_is_trained(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performing, "run", raising(AssertionError("it was trained")))
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        found = perform(floor_job(tiny_tree), Work(out=str(out)))
        assert isinstance(found, NoResult), out
        assert str(out) in found.reason


def test_a_job_that_a_compaction_swallowed_is_not_run_again(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [job for job in jobs_of(tiny_tree) if job.method == "pixel_mean"][:2]
    work = Work(out=str(tmp_path))
    rows = [perform(job, work) for job in chosen]
    store.compact(tmp_path)
    assert [path.name[:10] for path in tmp_path.glob("*.parquet")] == ["compacted-"]
    monkeypatch.setattr(performing, "run", raising(AssertionError("it was trained again")))
    for job, row in zip(chosen, rows, strict=True):
        again = perform(job, work)
        assert isinstance(again, Row)
        assert isinstance(row, Row)
        assert again.created_at == row.created_at


@pytest.mark.parametrize("failed", [False, True])
def test_a_failed_row_is_redone_only_where_that_is_asked_for(
    failed: bool, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, work = floor_job(tiny_tree), Work(out=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(performing, "run", raising(FloatingPointError("not finite")))
        first = perform(job, work)
    assert isinstance(first, Row)
    assert first.status == "failed"
    again = perform(job, replace(work, retry_failed=failed))
    assert isinstance(again, Row)
    assert again.status == ("ok" if failed else "failed")


def test_a_row_of_a_clock_that_ran_ahead_loses_to_force(tiny_tree: Path, tmp_path: Path) -> None:
    job, work = floor_job(tiny_tree), Work(out=str(tmp_path))
    first = perform(job, work)
    assert isinstance(first, Row)
    ahead = (datetime.now(UTC) + timedelta(hours=9)).isoformat(timespec="microseconds")
    store.write(replace(first, created_at=ahead, total_seconds=123.0), str(tmp_path))
    store.write(replace(first, job_id="0" * 16), str(tmp_path))
    store.compact(tmp_path)
    forced = perform(job, replace(work, force=True))
    assert isinstance(forced, Row)
    (kept,) = (row for row in store.read(tmp_path).rows() if row["job_id"] == job.id)
    assert kept["total_seconds"] == forced.total_seconds != 123.0
    assert kept["created_at"] == forced.created_at > ahead
    (path,) = (path for path in tmp_path.glob("*.parquet") if job.id in path.name)
    path.unlink()
    assert put_back([(job, forced)], work) == 1, "the row of before is none of this call"
    (kept,) = (row for row in store.read(tmp_path).rows() if row["job_id"] == job.id)
    assert kept["total_seconds"] == forced.total_seconds


@pytest.mark.parametrize("place", ["models", "maps", "pictures", "logs"])
def test_what_lies_beside_a_row_never_costs_it(place: str, tiny_tree: Path, tmp_path: Path) -> None:
    (tmp_path / place).write_text("a file in the way")
    work = Work(out=str(tmp_path), save_models=True, save_maps=True, pictures=True)
    words = "no more is logged" if place == "logs" else "its row is complete, its .* is not kept"
    with pytest.warns(UserWarning, match=words) as said:
        found = perform(floor_job(tiny_tree), work)
    assert isinstance(found, Row)
    assert found.status == "ok"
    assert len([one for one in said if words[:6] in str(one.message)]) == 1
    for other in {"models", "maps", "pictures", "logs"} - {place}:
        assert any((tmp_path / other).iterdir()), other


def test_an_error_of_a_library_while_it_keeps_something_is_a_warning(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from kdad_bench.harness import output

    def failing(*given: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(output, "keep_model", failing)
    with pytest.warns(UserWarning, match="its model is not kept .SafetensorError"):
        keep_beside(floor_job(tiny_tree), Work(out=str(tmp_path), save_models=True), *[None] * 4)  # type: ignore[arg-type]


def test_what_killed_runs_left_is_swept_at_the_start_of_the_next(tmp_path: Path) -> None:
    from kdad_bench.harness.options import options_from

    places = ["checkpoints", "figures", "logs", "maps", "models/a-b", "pictures", "."]
    for place in places:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / ".file.0123456789ab.tmp").write_bytes(b"half")
        (tmp_path / place / "mine.tmp").write_bytes(b"mine")
    work_of(options_from({"out": str(tmp_path), "dry_run": True}))
    assert len(list(tmp_path.rglob(".*.tmp"))) == len(places)
    work_of(options_from({"out": str(tmp_path)}))
    assert not list(tmp_path.rglob(".*.tmp"))
    assert len(list(tmp_path.rglob("mine.tmp"))) == len(places)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".probe")]


def test_no_warning_where_nothing_is_wrong(tiny_tree: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = perform(floor_job(tiny_tree), Work(out=str(tmp_path), save_models=True, pictures=True))
    assert isinstance(found, Row)
