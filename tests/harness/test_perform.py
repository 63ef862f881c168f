"""What is said of a job that failed."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kdad_bench.cli.progress import summary
from kdad_bench.harness.output import Work
from kdad_bench.harness.perform import holding, perform, reason_of, record_failure
from kdad_bench.harness.surroundings import NoResult
from kdad_bench.harness.teachers import find
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods.backbones.weights import load_teacher
from kdad_bench.methods.pixel_mean import PixelMeanSettings
from kdad_bench.metrics.exact import MetricError, pixel_metrics
from tests.harness.planned import jobs_of


def test_a_reason_is_one_line_with_the_place_in_this_package(tmp_path: Path) -> None:
    try:
        pixel_metrics(torch.zeros(2, 3), None, region_index=None)
        pixel_metrics(torch.zeros(2, 3), torch.zeros(2, 3))
    except MetricError as error:
        reason = reason_of(error)
    assert "\n" not in reason
    assert "exact.py:" in reason


def test_the_place_is_in_this_package_and_not_in_a_folder_that_is_called_like_it(tmp_path: Path) -> None:
    stranger = ModuleType("stranger")
    file = str(tmp_path / "kdad_bench_work" / "stranger.py")
    exec(compile("def wrong(maps):\n    raise ValueError('no')\n", file, "exec"), stranger.__dict__)
    with pytest.raises(ValueError, match="no") as caught:
        stranger.wrong(None)
    assert reason_of(caught.value) == "ValueError: no"


@pytest.mark.parametrize(
    ("number", "ours"),
    [(errno.EWOULDBLOCK, False), (errno.EACCES, False), (errno.ENOLCK, True), (errno.ENOTSUP, True), (None, True)],
)
def test_a_lock_that_is_held_is_told_from_a_file_system_without_any(
    number: int | None, ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        if number is not None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with holding(tmp_path / "lock") as found:
        assert found is ours


@dataclass(frozen=True, kw_only=True, slots=True)
class Speechless(PixelMeanSettings):
    """Settings whose words fail."""

    @property
    def deviations(self) -> tuple[str, ...]:
        raise SystemExit("no word")


def test_a_job_of_which_no_row_can_be_made_is_no_result_and_ends_no_run(tiny_tree: Path, tmp_path: Path) -> None:
    job = jobs_of(tiny_tree, methods=(("pixel_mean", ""),))[0]
    mute, work = replace(job, settings=Speechless(**asdict(job.settings))), Work(out=str(tmp_path))
    for ended in (perform(mute, work), record_failure(mute, work, "it was too slow")):
        assert isinstance(ended, NoResult)
        assert "no row can be made" in ended.reason
        assert "no word" in ended.reason
        assert json.loads(json.dumps(summary(mute, ended)))["job_id"] == mute.id
    longest = replace(job, preset="x" * 20_001)
    assert isinstance(perform(longest, work), NoResult)


@pytest.mark.parametrize("timed", [False, True])
def test_networks_that_raise_cost_their_figures_and_not_the_training(
    timed: bool, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def networks() -> object:
        raise RuntimeError("forgotten")

    monkeypatch.setattr("kdad_bench.harness.cost.networks_on", lambda method, images: networks)
    job = jobs_of(tiny_tree, methods=(("pixel_mean", ""),))[0]
    with pytest.warns(UserWarning, match="its row is complete, but for its") as told:
        row = perform(job, Work(out=str(tmp_path), time_every_job=timed))
    assert isinstance(row, Row)
    assert (row.status, row.gflops, row.latency_ms) == ("ok", None, None)
    assert row.image_auroc is not None
    assert row.parameters is not None
    lacking = ["operations", "speed"] if timed else ["operations"]
    wanted = [f"{job.label}: its row is complete, but for its {what} (RuntimeError: forgotten)" for what in lacking]
    assert [str(one.message) for one in told] == wanted


def test_weights_that_changed_after_the_plan_are_not_learnt_from_under_the_old_hash(
    tiny_tree: Path, tmp_path: Path
) -> None:
    teacher, path = load_teacher("efficientnet_lite0", source="random")[0], tmp_path / "mine.pth"
    torch.save(teacher.state_dict(), path)
    given = find("efficientnet_lite0", str(path))
    small = {"steps": 1, "image_size": 32, "batch_size": 2}
    job, other = (
        replace(job, weights=given)
        for job in jobs_of(tiny_tree, methods=(("stfpm", ""),), seeds=(0,), resolution=32, overrides=small)
    )
    work = Work(out=str(tmp_path / "out"))
    before = perform(job, work)
    assert isinstance(before, Row)
    assert (before.status, before.teacher_sha256) == ("ok", given.sha256), before.reason
    with torch.no_grad():
        next(teacher.parameters()).add_(1e-3)
    torch.save(teacher.state_dict(), path)
    row = perform(other, work)
    assert isinstance(row, Row)
    assert row.status == "failed"
    assert f"{path}: changed since the run was planned; run again" in str(row.reason)
