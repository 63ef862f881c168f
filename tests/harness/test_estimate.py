"""How long a plan should take, whatever became of the file that remembers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from kdad_bench.harness import calibration
from kdad_bench.harness.calibration import calibrations, seconds_of, unknown_kinds
from kdad_bench.harness.estimate import (
    JOB_SECONDS,
    LAST,
    estimate,
    history_path,
    kind_of,
    longest_first_at_the_end,
    makespan,
    read_history,
    remember,
    rule_of_thumb,
)
from kdad_bench.harness.job import Job, Part
from kdad_bench.harness.run import WeightsError
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.spade import SpadeSettings
from kdad_bench.methods.stfpm import Stfpm
from tests.harness.planned import jobs_of


def test_jobs_of_other_modalities_are_of_another_kind(tiny_tree: Path) -> None:
    job = jobs_of(tiny_tree)[0]
    deep = [replace(job, category=replace(job.category, modality=one)) for one in ("depth", "rgb+depth")]
    assert len({kind_of(one, 1) for one in (job, *deep)}) == 3
    assert kind_of(job, 1).endswith(job.category.dataset)  # what was timed before this rule stays known


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "[" * 100_000,
        '{"KIND": 3}',
        '{"KIND": ["a", null]}',
        '{"KIND": [NaN]}',
        '{"KIND": [1e999]}',
        '{"KIND": [-1]}',
        '{"KIND": [true]}',
        '{"KIND": {"a": 1}}',
        '{"KIND": [[1]]}',
        "\0\0\0",
    ],
)
def test_a_damaged_history_is_made_anew(
    content: str, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    job = jobs_of(tiny_tree)[0]
    history_path().write_text(content.replace("KIND", kind_of(job, 1)))
    assert estimate([job], threads=1).seconds is None
    remember(job, 2.0, 1)
    assert json.loads(history_path().read_text())[kind_of(job, 1)] == [2.0]
    assert estimate([job, job], threads=1).seconds == 4.0


def test_one_bad_kind_costs_no_other(tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    history_path().write_text('{"a": [1, 2, 3], "b": "x"}')
    assert read_history() == {"a": [1, 2, 3]}
    history_path().unlink()
    history_path().mkdir()
    assert read_history() == {}
    remember(jobs_of(tiny_tree)[0], 1.0, 1)  # cannot be written: no error


@pytest.mark.parametrize(
    ("seconds", "workers", "ends"),
    [([4, 1, 1, 1], 1, 7), ([4, 1, 1, 1], 2, 4), ([1, 1, 1, 4], 2, 5), ([2, 2, 2], 8, 2), ([], 2, 0)],
    ids=str,
)
def test_jobs_side_by_side_end_with_the_last_of_them(seconds: list[float], workers: int, ends: float) -> None:
    assert makespan(seconds, workers) == ends


def test_an_estimate_says_what_it_rests_on_and_counts_the_workers(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    jobs = jobs_of(tiny_tree)
    stfpm, floor = (next(job for job in jobs if job.method == name) for name in ("stfpm", "pixel_mean"))
    remember(floor, 2.0, 1)
    found = estimate([floor, stfpm, floor], threads=1, calibrated={kind_of(stfpm, 1): 6.0}, workers=2)
    assert found.seconds == 6.0
    assert found.basis == "3 jobs: 2 of a kind timed here before, 1 by a calibration run of a few steps"
    assert "about 6 s 2 side by side" in found.text
    assert "one after another, less by what Ray does side by side" in estimate([floor], threads=1, workers=0).text
    alone = estimate([floor, stfpm], threads=1, start_seconds=3.0)
    assert alone.seconds == 2.0 + rule_of_thumb(stfpm) + 3.0  # a job without steps tells nothing of one with them
    assert "1 of unknown kinds, by a rule of thumb on the scale of the others" in alone.text
    assert estimate([floor], threads=2).seconds is None  # other threads, other times


def test_jobs_of_unknown_kinds_are_as_much_slower_than_the_rule_of_thumb_as_those_known(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    floor, short, long = floor_short_and_long(tiny_tree)
    remember(floor, 0.1, 1)
    calibrated = {kind_of(short, 1): 3 * rule_of_thumb(short)}
    found = estimate([floor, short, long, long], threads=1, calibrated=calibrated)
    assert found.seconds == pytest.approx(0.1 + 3 * (rule_of_thumb(short) + 2 * rule_of_thumb(long)))
    judged = replace(long, together=(Part(long.category, long.fingerprint),))  # whose model is there
    known = estimate([short, judged], threads=1, calibrated=calibrated, learnt={judged.training})
    assert known.seconds == pytest.approx(3 * (rule_of_thumb(short) + JOB_SECONDS))


def test_the_kinds_that_take_longest_in_all_are_tried_first(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    floor, short, long = floor_short_and_long(tiny_tree)
    many = 2 + int(rule_of_thumb(long) / rule_of_thumb(short))
    assert [*unknown_kinds([floor, short, long], 1)] == [kind_of(one, 1) for one in (long, short, floor)]
    assert [*unknown_kinds([floor, long, *[short] * many], 1)] == [kind_of(one, 1) for one in (short, long, floor)]


def floor_short_and_long(tree: Path) -> tuple[Job, Job, Job]:
    """One that learns nothing, and two of other kinds that learn, of few and of many steps."""
    jobs = jobs_of(tree)
    floor, stfpm = (next(job for job in jobs if job.method == name) for name in ("pixel_mean", "stfpm"))
    short, long = (
        replace(stfpm, settings=replace(stfpm.settings, steps=steps), preset=f"quick[steps={steps}]")
        for steps in (10, 100)
    )
    return floor, short, long


def test_what_was_timed_is_not_tried_again_and_what_was_not_is(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    jobs = jobs_of(tiny_tree, overrides={"image_size": 64}, resolution=64)
    assert {job.method for job, _ in unknown_kinds(jobs, 1).values()} == {"stfpm", "pixel_mean"}
    remember(next(job for job in jobs if job.method == "pixel_mean"), 1.0, 1)
    found = calibrations(jobs, 1)
    assert [kind.partition("|")[0] for kind in found] == ["stfpm"]
    assert 0 < min(found.values()) < 3600
    assert not list(tmp_path.glob("*.parquet"))


def test_a_calibration_ends_where_its_time_does_and_after_a_few_steps(
    tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    loss = Stfpm.loss

    def counted(self: Stfpm, batch: object) -> object:
        steps.append(1)
        return loss(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Stfpm, "loss", counted)
    jobs = jobs_of(tiny_tree, overrides={"image_size": 64, "steps": 10**6}, resolution=64)
    stfpm = [job for job in jobs if job.method == "stfpm"]
    assert calibrations(stfpm, 1, seconds=-1.0) == {}
    assert not steps
    ((seconds),) = calibrations(stfpm, 1).values()
    assert 1 <= len(steps) <= 10
    assert seconds > 1000  # a million steps


def test_a_job_that_cannot_run_is_left_without_a_calibration(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(job: Job, device: object, held_out: object) -> None:
        raise WeightsError("no weights here")

    monkeypatch.setattr(calibration, "build", missing)
    assert calibrations(jobs_of(tiny_tree)[:1], 1) == {}


def test_the_last_jobs_of_side_by_side_begin_with_the_longest(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    jobs = jobs_of(tiny_tree, seeds=tuple(range(12)))  # of each method in turn, 48
    begins = len(jobs) - 2 * LAST
    ordered = longest_first_at_the_end(jobs, 2, 1)
    assert ordered[:begins] == jobs[:begins]
    assert [job.method for job in ordered[begins:]] == ["stfpm"] * LAST + ["pixel_mean"] * LAST  # by the rule of thumb
    assert sorted(job.id for job in ordered) == sorted(job.id for job in jobs)
    assert [job.seed for job in ordered[begins:][:LAST]] == sorted(job.seed for job in jobs[begins:][::2])
    assert longest_first_at_the_end(jobs, 1, 1) == jobs
    floor = next(job for job in jobs if job.method == "pixel_mean")
    remember(floor, 10_000.0, 1)
    assert longest_first_at_the_end(jobs, 2, 1)[begins].method == "pixel_mean"  # by what was timed here
    assert longest_first_at_the_end(jobs[:3], 8, 1)[0].method == "pixel_mean"


class Costs(NamedTuple):
    """Seconds that a method without numbers takes, by images learnt from and by the size of a batch."""

    first: Callable[[int], float]  # before the first step
    step: Callable[[int], float] | None = None  # none: it learns in no steps
    second: float = 0.0  # before the step that half of them have gone before
    last: float = 0.0  # after all steps
    score: Callable[[int], float] = lambda images: 0.01  # of one image


class Costly:
    """Moves a clock on by its costs and does nothing else."""

    module = torch.nn.Identity()
    now = 0.0

    def __init__(self, costs: Costs, settings: Any) -> None:
        self.costs, self.settings, self.learnt = costs, settings, 0

    def fit(self, images: torch.Tensor, fitting: Fitting) -> None:
        self.learnt = len(images)
        self.takes(self.costs.first(len(images)))
        if self.costs.step is not None:
            batch, steps = min(self.settings.batch_size, len(images)), self.settings.steps
            for step in range(1, steps + 1):
                self.takes(self.costs.step(batch) + self.costs.second * (step == 1 + steps // 2))
                fitting.log(step, {})
        self.takes(self.costs.last)

    def score(self, images: torch.Tensor) -> None:
        self.takes(len(images) * self.costs.score(self.learnt))

    @classmethod
    def takes(cls, seconds: float) -> None:
        cls.now += seconds


COSTS = {
    "the first step costs the same for any number": Costs(lambda n: 5.0, lambda b: 0.1),
    "so it does, and little": Costs(lambda n: 0.5, lambda b: 0.1),
    "it goes through all images first": Costs(lambda n: 0.05 * n, lambda b: 0.02),
    "through large ones": Costs(lambda n: 0.8 * n, lambda b: 0.5, score=lambda n: 0.6),
    "a step costs much beside its batch": Costs(lambda n: 0.1, lambda b: 0.2 + 0.002 * b),
    "a second stage begins with work of its own": Costs(lambda n: 0.1, lambda b: 0.1, second=4.0),
    "the end is work": Costs(lambda n: 0.1, lambda b: 0.1, last=5.0),
    "no steps, one pass": Costs(lambda n: 0.02 * n),
    "no steps, and most does not grow": Costs(lambda n: 4.0 + 0.01 * n),
    "no steps, images are compared with each other": Costs(lambda n: 0.01 * n + 0.0005 * n * n),
    "a score compares with all images": Costs(lambda n: 0.01 * n, score=lambda n: 0.01 * n),
}


@pytest.fixture
def costly(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of 200 images in 60 steps of 8, on a clock that only its method moves."""
    overrides = {"image_size": 32, "batch_size": 8, "steps": 60}
    job = jobs_of(tiny_tree, methods=(("stfpm", ""),), overrides=overrides, resolution=32)[0]
    monkeypatch.setattr(calibration, "count_of", lambda job: 200)
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(calibration.time, name, lambda: Costly.now)
    return job


def truth(costs: Costs, job: Job) -> float:
    """What the whole job takes on the clock."""
    method, began = Costly(costs, job.settings), Costly.now
    method.fit(torch.empty(200, 3, 1, 1), Fitting())
    method.score(torch.empty(len(job.category.test), 3, 1, 1))
    return Costly.now - began + JOB_SECONDS


@pytest.mark.parametrize("case", COSTS)
def test_a_calibration_is_right_within_a_factor_of_two(case: str, costly: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = COSTS[case]
    monkeypatch.setattr(calibration, "build", lambda job, *given: Costly(costs, job.settings))
    began = Costly.now
    found = seconds_of(costly)
    tried = Costly.now - began
    assert 0.5 < found / truth(costs, costly) < 2
    assert tried < calibration.ALL_SECONDS


@pytest.mark.parametrize("each", [0.02, 0.3])
def test_what_a_score_compares_with_has_an_end(each: float, costly: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = Costs(lambda n: 0.001 * n, score=lambda n: each * min(n, 50))
    job = replace(costly, settings=SpadeSettings(teacher="efficientnet_lite0", strides=(4, 8, 16), image_size=32))
    monkeypatch.setattr(calibration, "build", lambda job, *given: Costly(nearest, job.settings))
    assert 0.8 < seconds_of(job) / truth(nearest, job) < 1.25
    monkeypatch.setattr(SpadeSettings, "compared", lambda self, images: 0)
    assert not 0.5 < seconds_of(job) / truth(nearest, job) < 2


def test_other_work_is_in_an_estimate_once(costly: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "build", lambda job, *given: Costly(COSTS["the end is work"], job.settings))
    alone = seconds_of(costly)
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: 3 * Costly.now)
    assert seconds_of(costly) == pytest.approx(3 * alone)
