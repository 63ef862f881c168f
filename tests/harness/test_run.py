"""What `run` puts into a row."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from kdad_bench.harness import clock, run
from kdad_bench.harness.axes import Axes
from kdad_bench.harness.endings import line
from kdad_bench.harness.environment import cpu_model, said_by_git
from kdad_bench.harness.job import id_of_row
from kdad_bench.harness.output import Work
from kdad_bench.harness.run import columns_of, environment_columns, thinned
from kdad_bench.leaderboard.row import Row
from tests.harness.planned import jobs_of


def test_a_loss_curve_in_a_row_is_short_and_keeps_its_end() -> None:
    curve = [{"step": float(step), "loss": 1.0 / step} for step in range(1, 1001)]
    kept = thinned(curve)
    assert len(kept) <= 200
    assert kept[-1] == curve[-1]
    assert thinned([]) == []


@pytest.mark.parametrize("method", ["stad", "efficientad", "stfpm:held_out", "stfpm", "padim"])
def test_a_row_says_that_a_lone_image_is_on_both_sides(method: str, tiny_tree: Path) -> None:
    name, _, variant = method.partition(":")
    one, all_ = (
        columns_of(jobs_of(tiny_tree, methods=((name, variant),), axes=(Axes(train_images=count),))[0])["deviations"]
        for count in (1, None)
    )
    parts = method in ("stad", "efficientad", "stfpm:held_out")
    assert any(line.startswith("lone image: ") for line in one) is parts
    assert not any(line.startswith("lone image: ") for line in all_)


ONE_EPOCH = {"batch_size": 9, "steps": None, "epochs": 1, "solved": 0, "descriptors": 0.5}


@pytest.mark.parametrize(
    ("method", "changes", "images", "said"),
    [
        ("fractalad", {"batch_size": 4}, 3, "batches: of 3, all there are (settings: 4)"),
        ("fractalad", {"batch_size": 3}, 3, ""),
        ("stfpm", {"batch_size": 5, "held_out": 0.3}, None, "batches: of 4, all there are (settings: 5)"),
        ("stfpm", {"batch_size": 4, "held_out": 0.3}, None, ""),
        ("stad", ONE_EPOCH, 5, "steps: 0 for the descriptors, 1 for"),
        ("stad", ONE_EPOCH | {"epochs": 2}, 5, "batches: of 4, all there are"),
        ("padim", {"batch_size": 9}, 3, ""),
    ],
    ids=str,
)
def test_a_row_says_what_too_few_images_change(
    method: str, changes: dict[str, Any], images: int | None, said: str, tiny_tree: Path
) -> None:
    job = jobs_of(tiny_tree, methods=((method, ""),), method_overrides={method: changes},
                  axes=(Axes(train_images=images),))[0]  # fmt: skip
    found = [one for one in columns_of(job)["deviations"] if one.startswith(("batches: ", "steps: "))]
    assert found[-1].startswith(said) if said else not found


def test_the_line_of_a_job_names_no_seconds_that_are_not_known(tiny_tree: Path) -> None:
    job = jobs_of(tiny_tree, methods=(("pixel_mean", ""),))[0]
    figures = {"image_auroc": 0.9812, "pixel_auroc": None, "aupro_30": 0.5}
    row = Row(**columns_of(job), **figures)
    assert line(job, replace(row, total_seconds=7.32)).endswith(
        ": image AUROC 0.981, pixel AUROC -, AUPRO 0.500, 7.3 s"
    )
    assert line(job, row).endswith(": image AUROC 0.981, pixel AUROC -, AUPRO 0.500")


def test_a_job_begins_without_the_heap_of_the_one_before_and_its_total_holds_the_batch_check(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After RD4AD in the same process the peak of pixel_mean was 200 MB too high: freed, not given back."""
    job = jobs_of(tiny_tree, methods=(("pixel_mean", ""),))[0]
    order: list[str] = []
    peak, check = clock.peak_memory, run.batch_invariance

    def peak_memory(device: str) -> object:
        order.append("peak")
        return peak(device)

    def slow_check(*arguments: Any) -> float | None:
        time.sleep(0.5)
        return check(*arguments)

    monkeypatch.setattr(run, "give_freed_memory_back", lambda: order.append("given back"))
    monkeypatch.setattr(clock, "peak_memory", peak_memory)
    monkeypatch.setattr(run, "batch_invariance", slow_check)
    row = run.run(job, Work(out=str(tmp_path)), lambda step, terms: None)
    assert order[0] == "given back"
    assert "peak" in order
    assert row.total_seconds is not None
    assert row.total_seconds > 0.5


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_failed_row_is_of_the_algorithms_that_its_job_asked_for(deterministic: bool, tiny_tree: Path) -> None:
    """It is made outside of the job, where torch has the usual ones again."""
    job = replace(jobs_of(tiny_tree, methods=(("pixel_mean", ""),))[0], deterministic=deterministic)
    row = Row.failed(reason="so", **columns_of(job), **environment_columns(job))
    assert json.loads(str(row.environment))["deterministic"] is deterministic
    assert id_of_row({**asdict(row), "environment": row.environment}) == row.job_id == job.id


def test_git_is_asked_about_this_package_whatever_a_hook_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "package"
    for folder, message in ((root, "ours"), (tmp_path / "other", "theirs")):
        folder.mkdir()
        said_by_git(folder, "init", "-q")
        said_by_git(folder, "-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "--allow-empty", "-m", message)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert said_by_git(root, "log", "--format=%s") == "ours"


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel name\t: AMD EPYC\n", "AMD EPYC"),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "aarch64 0x41 0xd0c"),
        ("processor\t: 0\n", "aarch64"),
        (None, "aarch64"),
    ],
)
def test_processors_that_tell_no_name_are_told_apart(
    cpuinfo: str | None, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graviton, Grace and Jetson were one processor, so that one's speed was told of the others."""

    def read_text(self: Path) -> str:
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert cpu_model.__wrapped__() == model
