"""How many jobs run side by side, where and with how many threads: what follows from cores, memory and jobs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from kdad_bench import allowance
from kdad_bench.cli import cli
from kdad_bench.harness import executors, gpu_share, run
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.estimate import rule_of_thumb
from kdad_bench.harness.job import Job
from kdad_bench.harness.options import options_from
from kdad_bench.harness.output import Work
from kdad_bench.harness.selection import refuse_contradictions
from kdad_bench.harness.view import View
from kdad_bench.harness.workforce import START_SECONDS, Workforce, bytes_of, hint, workforce
from kdad_bench.leaderboard import store
from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.backbones.weights import load_teacher
from kdad_bench.methods.protocol import Fitting
from tests.harness.planned import jobs_of

# columns that differ between two runs of one job: when, where and how fast
TIMES = (
    "created_at",
    "environment",
    "git_commit",
    "git_dirty",
    "throughput",
    "images_per_second",
    "one_thread_images_per_second",
    "best_batch",
    "peak_memory_mb",
)
TIMED = re.compile(r"_seconds$|_ms$|^speed|^latency|^throughput|^cold|^warm")


def machine(monkeypatch: pytest.MonkeyPatch, cores: int, gigabytes: float = 1000) -> None:
    monkeypatch.setattr(allowance, "cores", lambda: cores)
    monkeypatch.setattr(allowance, "memory_bytes", lambda: int(gigabytes * 1e9))


def long_jobs(tree: Path, count: int) -> list[Job]:
    """Jobs of some ten seconds each."""
    found = [job for job in jobs_of(tree, seeds=tuple(range(count))) if job.method == "stfpm"][:count]
    found = [replace(job, settings=replace(job.settings, steps=1000, image_size=128)) for job in found]
    assert all(rule_of_thumb(job) > START_SECONDS for job in found)
    return found


@pytest.mark.parametrize(
    ("cores", "gigabytes", "jobs", "said", "expected"),
    [
        (2, 100, 8, {}, ("local", 2, 1)),
        (16, 100, 8, {}, ("local", 8, 1)),
        (16, 100, 40, {}, ("local", 16, 1)),
        (1, 100, 8, {}, ("in-process", 1, 1)),
        (16, 100, 1, {}, ("in-process", 1, 1)),
        (16, 3.9, 8, {}, ("local", 3, 1)),
        (16, 0.2, 8, {}, ("in-process", 1, 1)),
        (16, 100, 8, {"workers": 1}, ("in-process", 1, 1)),
        (16, 100, 8, {"workers": 3}, ("local", 3, 1)),
        (2, 0.2, 8, {"workers": 3}, ("local", 3, 1)),
        (16, 100, 8, {"threads": 4}, ("local", 4, 4)),
        (16, 100, 8, {"threads": 16}, ("in-process", 1, 16)),
        (16, 100, 8, {"executor": "in-process"}, ("in-process", 1, 1)),
        (16, 100, 8, {"executor": "in-process", "workers": 1}, ("in-process", 1, 1)),
        (16, 100, 1, {"executor": "local"}, ("local", 1, 1)),
        (16, 100, 8, {"executor": "local", "workers": 1}, ("local", 1, 1)),
        (16, 100, 1, {"job_timeout": 5.0}, ("local", 1, 1)),
        (16, 100, 8, {"job_timeout": 5.0}, ("local", 8, 1)),
        (16, 100, 8, {"executor": "ray"}, ("ray", 0, 1)),
    ],
    ids=str,
)
def test_workers_follow_from_cores_memory_jobs_and_what_was_said(
    cores: int, gigabytes: float, jobs: int, said: dict[str, Any], expected: tuple[str, int, int], tiny_tree: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    machine(monkeypatch, cores, gigabytes)
    assert workforce(long_jobs(tiny_tree, jobs), options_from(said)) == Workforce(*expected)


def test_for_a_few_short_jobs_no_process_is_worth_its_start(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 16)
    floors = [job for job in jobs_of(tiny_tree, seeds=tuple(range(40))) if job.method == "pixel_mean"]
    few, many = floors[:6], floors
    assert workforce(few, options_from({})) == Workforce("in-process", 1, 1)
    assert workforce(many, options_from({})).workers == 16
    assert workforce(few, options_from({"workers": 2})).executor == "local"
    assert workforce([], options_from({})) == Workforce("in-process", 1, 1)


def test_on_a_gpu_one_job_runs_at_a_time_unless_more_are_asked_for(
    tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 16)
    jobs = [replace(job, device="cuda:0") for job in long_jobs(tiny_tree, 8)]
    assert workforce(jobs, options_from({})) == Workforce("in-process", 1, None, 12)
    assert workforce(jobs, options_from({"workers": 2})) == Workforce("local", 2, None, 7, 0.5)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"gpu_fraction": 0.25}, ("local", 4, None, 3, 0.25)),
        ({"gpu_fraction": 0.1}, ("local", 8, None, 1, 0.1)),  # eight jobs
        ({"gpu_fraction": 0.3}, ("local", 3, None, 4, 0.3)),
        ({"gpu_fraction": 1 / 3}, ("local", 3, None, 4, 1 / 3)),
        ({"gpu_fraction": 0.7}, ("local", 1, None, 12, 0.7)),  # only a process keeps a share
        ({"gpu_fraction": 1.0}, ("in-process", 1, None, 12, None)),
        ({"gpu_fraction": 0.1, "workers": 2}, ("local", 2, None, 7, 0.1)),
        ({"gpu_fraction": 0.5, "workers": 1}, ("local", 1, None, 12, 0.5)),
        ({"workers": 3, "drawers": 0}, ("local", 3, None, 0, 1 / 3)),
        ({"workers": 1}, ("in-process", 1, None, 12, None)),
        ({"executor": "local", "drawers": 40}, ("local", 1, None, 40, None)),
        ({"executor": "in-process"}, ("in-process", 1, None, 12, None)),
        ({"job_timeout": 9.0}, ("local", 1, None, 12, None)),
        ({"workers": 16}, ("local", 16, None, 0, 1 / 16)),
        ({"executor": "ray"}, ("ray", 0, None, 12, None)),
        ({"executor": "ray", "gpu_fraction": 0.5}, ("ray", 0, None, 7, 0.5)),
        ({"threads": 2}, ("in-process", 1, 2, 12, None)),
    ],
    ids=str,
)
def test_jobs_on_a_gpu_share_its_memory_and_the_cores_that_draw(
    said: dict[str, Any], expected: tuple[Any, ...], tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 16)
    jobs = [replace(job, device="cuda:0") for job in long_jobs(tiny_tree, 8)]
    options = options_from({"methods": ["stfpm"], **said})
    refuse_contradictions(options)
    found = workforce(jobs, options)
    assert found == Workforce(*expected)
    assert found.workers * (found.gpu_share or 0) <= 1 + 1e-9
    assert ("of the GPU's memory each" in found.text) == (found.workers > 1)


def test_a_cpu_draws_as_it_goes_unless_it_is_said(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 16)
    jobs = long_jobs(tiny_tree, 2)
    for said in ({}, {"executor": "ray"}, {"executor": "in-process"}, {"workers": 2}):
        assert workforce(jobs, options_from(said)).drawers == 0
        assert workforce(jobs, options_from({**said, "drawers": 3})).drawers == 3
        assert workforce(jobs, options_from(said)).gpu_share is None


@pytest.mark.parametrize("executor", ["in_process", "local", "on_ray"])
def test_every_executor_hands_drawers_and_share_to_its_jobs(
    executor: str, tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(executors, "refuse_no_ray", lambda address: None)
    monkeypatch.setattr(executors, executor, lambda jobs, work, *rest, **more: given.append(work) or iter(()))
    force = Workforce(executor.removeprefix("on_").replace("_", "-"), 1, None, 5, 0.25)
    list(executors.outcomes(long_jobs(tiny_tree, 1), Work(out="there"), lambda job: None, options_from({}), force))
    assert given == [Work(out="there", drawers=5, gpu_share=0.25)]


def test_a_training_gets_the_drawers_of_its_work(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taught(job: Job, work: Work, normal: Any, held_out: Any, fitting: Fitting, *more: Any) -> None:
        raise RuntimeError(f"{fitting.drawers} drawers")

    monkeypatch.setattr(run, "taught", taught)
    for drawers in (0, 3):
        with pytest.raises(RuntimeError, match=f"^{drawers} drawers$"):
            run.run(jobs_of(tiny_tree)[0], Work(out=str(tmp_path), drawers=drawers), lambda step, terms: None)


@pytest.mark.parametrize(("share", "gigabytes", "kept"), [(0.5, 80, 0.4875), (0.25, 4, 0.125), (1 / 16, 80, 0.05)])
def test_torch_takes_no_more_of_a_gpu_than_the_share_leaves_beside_cudas_own(
    share: float, gigabytes: int, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    card = type("Card", (), {"total_memory": gigabytes << 30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *said: found.append(said))
    gpu_share.keep_to_share("cuda:1", None)
    gpu_share.keep_to_share("cpu", share)
    assert not found
    gpu_share.keep_to_share("cuda:1", share)
    assert found == [(pytest.approx(kept), torch.device("cuda:1"))]


@pytest.mark.parametrize("cores", [1, 2, 3, 7, 64])
@pytest.mark.parametrize(
    "said", [{}, {"workers": 1}, {"workers": 2}, {"executor": "local"}, {"executor": "ray"}], ids=str
)
def test_a_job_on_a_cpu_has_one_thread_whatever_the_machine(
    cores: int, said: dict[str, Any], tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, cores)
    assert workforce(long_jobs(tiny_tree, 3), options_from(said)).threads == 1


def test_more_images_and_larger_batches_leave_room_for_fewer_workers(tiny_tree: Path) -> None:
    (job,) = long_jobs(tiny_tree, 1)
    larger = replace(job, resolution=1024)
    wider = replace(job, settings=replace(job.settings, image_size=256))
    assert bytes_of(job) < min(bytes_of(larger), bytes_of(wider))
    assert bytes_of(job) < 1.3e9


@pytest.mark.parametrize("name", [name for name in METHODS if entry(name).family == "yardstick"])
@pytest.mark.parametrize("preset", ["quick", "standard", "paper"])
def test_what_a_yardstick_keeps_is_in_its_memory(name: str, preset: str, tiny_tree: Path) -> None:
    settings = replace(entry(name).presets[preset], image_size=64)
    if name == "patchcore":
        settings = replace(settings, coreset=1.0)  # all that it holds as it learns
    teacher = load_teacher(settings.teacher, strides=settings.strides, source="random")[0]
    method = entry(name).build(settings, teacher, torch.device("cpu"))
    method.fit(torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    kept = sum(buffer.nbytes for buffer in method.kept.buffers() if buffer.is_floating_point())
    assert kept <= settings.kept_bytes(3)
    assert settings.kept_bytes(3) < 4 * kept + 1e8
    job = jobs_of(tiny_tree, methods=((name, ""),), preset=preset)[0]
    without = replace(job, settings=entry("pixel_mean").presets[preset])
    many = replace(job, view=View(tile=job.resolution // 2))
    assert bytes_of(job) >= job.settings.kept_bytes(6)
    assert bytes_of(many) - bytes_of(job) >= job.settings.kept_bytes(24) - job.settings.kept_bytes(6)
    assert without.settings.kept_bytes(10**6) == 0


def test_a_long_run_that_leaves_cores_idle_says_what_to_do(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8)
    (job,) = long_jobs(tiny_tree, 1)
    endless = [replace(job, settings=replace(job.settings, steps=10**6))]
    assert "--threads 8 is faster here" in hint(endless, workforce(endless, options_from({})))
    assert hint([job], workforce([job], options_from({}))) == ""
    assert hint(endless, workforce(endless, options_from({"threads": 2}))) == ""
    assert hint(endless * 8, Workforce("local", 8, 1)) == ""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"executor": "in-process", "workers": 2}, "--workers are processes"),
        ({"executor": "in-process", "job_timeout": 3.0}, "--job-timeout stops a process"),
        ({"executor": "ray", "workers": 2}, "--executor local"),
        ({"executor": "in-process", "gpu_fraction": 0.5}, "--gpu-fraction 0.5 is kept by processes"),
        ({"workers": 4, "gpu_fraction": 0.5}, "more than one GPU; take --gpu-fraction 0.25 or --workers 2"),
    ],
)
def test_options_that_exclude_each_other_are_refused(said: dict[str, Any], words: str) -> None:
    with pytest.raises(SelectionError, match=words):
        refuse_contradictions(options_from({"methods": ["stfpm"], **said}))


def test_rows_do_not_depend_on_how_many_jobs_run_side_by_side(tmp_path: Path) -> None:
    chosen = ["--dataset", "synthetic", "-c", "gear", "-c", "plank", "-m", "stfpm", "--seeds", "1"]
    chosen += ["--steps", "2", "--image-size", "64", "--resolution", "64", "--no-pictures"]
    found = {}
    for name, more in (("one", ["--workers", "1"]), ("two", ["--workers", "2"])):
        ended = CliRunner().invoke(cli, ["run", *chosen, "--out", str(tmp_path / name), *more])
        assert ended.exit_code == 0, ended.output
        found[name] = {row["job_id"]: row for row in store.read(tmp_path / name).rows()}
    one, two = found["one"], found["two"]
    assert set(one) == set(two)
    assert len(one) == 2
    for job, row in one.items():
        differ = {column for column in row if row[column] != two[job][column] and not TIMED.search(column)}
        assert differ <= set(TIMES), {column: (row[column], two[job][column]) for column in differ - set(TIMES)}
        assert row["losses"] == two[job]["losses"]
        assert row["threads"] == two[job]["threads"] == 1


@pytest.mark.parametrize(
    ("said", "executor"),
    [({}, "local"), ({"workers": 1}, "in-process"), ({"executor": "in-process"}, "in-process")],
)
def test_code_from_outside_has_a_process_of_its_own_unless_it_is_said_where_jobs_run(
    tiny_tree: Path, said: dict[str, Any], executor: str
) -> None:
    (job, *_) = jobs_of(tiny_tree)
    for device in ("cpu", "cuda:0"):
        theirs = replace(job, code="5" * 64, device=device)
        assert workforce([theirs], options_from(said)).executor == executor
        assert workforce([replace(theirs, code="")], options_from(said)).executor == "in-process"
