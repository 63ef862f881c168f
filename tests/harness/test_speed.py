"""Speed is measured once per configuration, alone: what it depends on, on what model, and with which threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdad_bench import allowance
from kdad_bench.harness import clock, cost, material, run, speed, speed_key
from kdad_bench.harness.axes import PLAIN, Axes
from kdad_bench.harness.giving_way import computing_with
from kdad_bench.harness.job import Job
from kdad_bench.harness.output import Work
from kdad_bench.harness.perform import perform
from kdad_bench.harness.speed_key import configuration, key_of
from kdad_bench.harness.view import View
from kdad_bench.leaderboard.board import MOST_LOAD
from kdad_bench.leaderboard.measurement import SHARED
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods import METHODS, entry
from tests.conftest import write_tree
from tests.harness.planned import jobs_of

SMALL = {"image_size": 32, "batch_size": 4, "steps": 2}


def job_of(tree: Path, method: str, **changes: Any) -> Job:
    """A small job on the first category."""
    asked = {"methods": ((method, ""),), "seeds": (0,), "resolution": 32, "overrides": SMALL, **changes}
    if method == "efficientad":
        asked["overrides"] = {**asked["overrides"], "image_size": 64}  # the least that it takes
    return jobs_of(tree, **asked)[0]


def test_rows_of_all_categories_seeds_and_budgets_share_a_key(tiny_tree: Path) -> None:
    asked: dict[str, Any] = {"methods": (("stfpm", ""),), "resolution": 32}
    jobs = jobs_of(tiny_tree, **asked, overrides=SMALL) + jobs_of(tiny_tree, **asked, overrides={**SMALL, "steps": 9})
    assert len(jobs) == 8
    assert len({key_of(job) for job in jobs}) == 1


OTHERWISE: dict[str, dict[str, Any]] = {
    "another resolution": {"resolution": 64},
    "another size": {"overrides": {**SMALL, "image_size": 64}},
    "another precision": {"overrides": {**SMALL, "precision": "bf16"}},
    "another teacher": {"overrides": {**SMALL, "teacher": "resnet18"}},
    "another variant": {"methods": (("stfpm", "held_out"),)},
    "deterministic": {"deterministic": True},
    "longer budgets of time": {"preset": "paper"},
}


@pytest.mark.parametrize("kind", OTHERWISE)
def test_what_changes_the_speed_changes_the_key(kind: str, tiny_tree: Path) -> None:
    assert key_of(job_of(tiny_tree, "stfpm")) != key_of(job_of(tiny_tree, "stfpm", **OTHERWISE[kind]))


# what the label of a yardstick's job says -> the label that its measurement is known by
LABELS = {
    "quick": "quick",
    "quick[hold_out=0.2,steps=7]": "quick[hold_out=0.2,steps=7]",
    "quick[corruption=blur:3]": "quick",
    "quick[corruption=blur:3,train_images=4]": "quick[train_images=4]",
    "quick[contamination=0.4,corruption=jpeg:1,resolution=32]": "quick[contamination=0.0,resolution=32]",
    "quick[setting=multi-class:2:ab12]": "quick[setting=multi-class:2:ab12]",
}


@pytest.mark.parametrize("label", LABELS)
def test_a_measurement_is_made_anew_only_for_another_number_of_images(label: str, tiny_tree: Path) -> None:
    job = replace(job_of(tiny_tree, "padim"), preset=label)
    assert configuration(job)["label"] == LABELS[label]
    assert "label" not in configuration(replace(job_of(tiny_tree, "stfpm"), preset=label))


def test_every_level_of_a_corruption_and_every_share_has_one_measurement(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, ("bolt",), test=6)
    axes = (PLAIN, *(Axes(corruption=one) for one in ("blur:1", "blur:5", "noise:2")))
    dirty = tuple(Axes(contamination=share) for share in (0.0, 0.2, 0.4))
    counts = tuple(Axes(train_images=count) for count in (1, 3))
    keys = [{key_of(job_of(tree, "padim", axes=(one,), seeds=(0,))) for one in some} for some in (axes, dirty, counts)]
    assert [len(some) for some in keys] == [1, 1, 2]
    assert len(set.union(*keys)) == 4


def test_pictures_of_other_proportions_are_measured_apart_where_these_are_kept(tiny_tree: Path) -> None:
    squashed, kept = (job_of(tiny_tree, "pixel_mean", view=view) for view in (View(), View(fit="short-side")))
    others = ({"name": "another"}, {"dataset": "another"})
    assert [key_of(moved(squashed, one)) != key_of(squashed) for one in others] == [False, False]
    assert [key_of(moved(kept, one)) != key_of(kept) for one in others] == [True, True]


def moved(job: Job, facts: dict[str, str]) -> Job:
    return replace(job, category=replace(job.category, **facts))  # type: ignore[arg-type]


def test_the_cores_of_a_measurement_are_those_of_affinity_and_quota(
    tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "cpu_quota", lambda: 1.0)
    monkeypatch.setattr(speed, "allowance", allowance)
    job = job_of(tiny_tree, "pixel_mean")
    assert configuration(job)["cores"] == 1
    assert speed.measure(job).figures["speed_threads"] == 1


@pytest.mark.parametrize("name", ["cpu_model", "kernels_path"])
def test_another_machine_or_code_path_is_another_key(
    name: str, tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tiny_tree, "stfpm")
    before = key_of(job)
    monkeypatch.setattr(speed_key, name, lambda *given: 7)
    assert key_of(job) != before


@pytest.mark.parametrize("method", METHODS)
def test_the_data_set_matters_where_normal_images_are_kept(method: str, tiny_tree: Path) -> None:
    job = job_of(tiny_tree, method)
    moved = replace(job, category=replace(job.category, dataset="another"))
    assert (key_of(moved) != key_of(job)) is (entry(method).family == "yardstick")


def test_a_job_of_other_code_is_measured_for_each_data_set(tiny_tree: Path) -> None:
    job = replace(job_of(tiny_tree, "pixel_mean"), code="5" * 64)
    assert key_of(replace(job, category=replace(job.category, dataset="another"))) != key_of(job)


def test_a_job_names_its_measurement_and_takes_no_time(tiny_tree: Path, tmp_path: Path) -> None:
    job = job_of(tiny_tree, "pixel_mean")
    alone, own = (perform(job, Work(out=str(tmp_path / str(each)), time_every_job=each)) for each in (False, True))
    assert isinstance(alone, Row)
    assert isinstance(own, Row)
    assert alone.speed_key == key_of(job)
    assert [getattr(alone, name) for name in SHARED if getattr(alone, name) not in (None, ())] == []
    assert alone.gflops is not None
    assert alone.peak_memory_mb
    assert own.speed_key is None
    assert own.latency_ms
    assert own.images_per_second
    assert own.latency_samples_ms


@pytest.mark.parametrize("method", METHODS)
def test_the_timed_model_is_as_large_as_the_one_of_a_job(
    method: str, tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tiny_tree, method, overrides={**SMALL, "batch_size": 2})
    fits: list[int] = []
    implementation = type(run.build_one(job, torch.device("cpu")))
    fit = implementation.fit

    def counted(self: Any, normal: Any, *given: Any) -> None:
        fits.append(len(normal))
        fit(self, normal, *given)

    monkeypatch.setattr(implementation, "fit", counted)
    timed, pixels, how = speed.fitted(job)
    normal, held_out = material.normals(job)
    real, _ = speed.learnt(job, normal, held_out)
    assert speed.kept_values(timed) == speed.kept_values(real)
    kept = entry(method).family == "yardstick"
    assert fits[:-1] == ([4, 6] if kept else [4])
    assert how.startswith("all 6 normal images" if kept else "1 step on 4 normal images")
    assert pixels.dtype == np.uint8


def test_percentiles_and_the_first_image_are_those_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [float(number) for number in range(1, 201)]
    timing = clock.Timing(tuple(taken), first_ms=500.0)
    monkeypatch.setattr(clock, "interleaved", lambda calls, *given, **named: dict.fromkeys(calls, timing))
    found = cost.latencies(Still(), torch.zeros(1, 3, 32, 32), "cpu", brief=True)  # type: ignore[arg-type]
    assert found["latency_ms"] == pytest.approx(100.5)
    assert found["latency_p95_ms"] == pytest.approx(np.percentile(taken, 95)) == pytest.approx(190.05)
    assert found["latency_p99_ms"] == pytest.approx(np.percentile(taken, 99)) == pytest.approx(198.01)
    assert found["first_latency_ms"] == 500.0
    assert found["latency_samples_ms"] == tuple(taken)


@pytest.mark.parametrize(
    ("calls", "told"),
    [(3, "too few for percentiles"), (19, "too few for percentiles"), (20, "too few for the 99th"), (100, "")],
)
def test_percentiles_of_few_calls_are_said_to_be_so_or_left_out(
    calls: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = clock.Timing(tuple(float(number) for number in range(1, calls + 1)), first_ms=500.0)
    monkeypatch.setattr(clock, "interleaved", lambda calls, *given, **named: dict.fromkeys(calls, timing))
    found = cost.latencies(Still(), torch.zeros(1, 3, 32, 32), "cpu", brief=True)  # type: ignore[arg-type]
    alone = cost.one_thread(Still(), torch.zeros(1, 3, 32, 32), brief=True)  # type: ignore[arg-type]
    assert len(found["latency_samples_ms"]) == calls
    tails = [found[f"latency_p{percent}_ms"] for percent in (95, 99)]
    tails += [alone[f"one_thread_latency_p{percent}_ms"] for percent in (95, 99)]
    assert [tail is None for tail in tails] == [calls < 20, calls < 100] * 2
    assert told in speed.by_few(calls)
    assert bool(told) is (f"latency by {calls} calls" in speed.by_few(calls))


# what no fixture has made short yet
OWN = {name: getattr(cost, name) for name in ("budgets", "QUICK_CURVE", "CURVE_WARMUP", "QUICK_BATCHES")}


@pytest.fixture
def own_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budgets that a measurement has outside tests."""
    for name, value in OWN.items():
        monkeypatch.setattr(cost, name, value)


class Slow:
    """A method whose images take seconds each, on a clock that only it moves."""

    settings = SimpleNamespace(image_size=32, precision="fp32")
    module = torch.nn.Identity()

    def __init__(self, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.seconds, self.calls = 0.0, seconds, 0
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)

    def score(self, images: torch.Tensor) -> Any:
        self.now += self.seconds * len(images)

    def networks(self, images: torch.Tensor) -> Any:
        self.calls += 1
        self.now += 0.02


@pytest.mark.usefixtures("own_budgets")
@pytest.mark.parametrize("preset", ["quick", "standard", "paper"])
@pytest.mark.parametrize(("seconds", "most"), [(2.4, 40.0), (0.3, 40.0), (0.01, 30.0)])
def test_a_measurement_ends_in_under_a_minute(
    seconds: float, most: float, preset: str, tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(job_of(tiny_tree, "stfpm"), preset=preset)
    slow = Slow(seconds, monkeypatch)
    images = torch.zeros(2, 3, 32, 32)
    found: dict[str, Any] = cost.speeds(slow, images, job, "cpu")  # type: ignore[arg-type]
    found |= cost.one_thread(slow, images, brief=cost.is_brief(job))  # type: ignore[arg-type]
    assert slow.now < most
    assert len(found["latency_samples_ms"]) >= clock.LEAST_CALLS
    assert found["latency_ms"] == pytest.approx(1000 * seconds)
    assert found["images_per_second"] == pytest.approx(1 / seconds)
    assert found["one_thread_images_per_second"] == pytest.approx(1 / seconds)


def test_a_single_image_is_timed_once_for_latency_and_curve(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(0.01, monkeypatch)
    found = cost.speeds(slow, torch.zeros(1, 3, 32, 32), job_of(tiny_tree, "stfpm"), "cpu")  # type: ignore[arg-type]
    assert found["throughput"][0] == {"batch": 1, "images_per_second": 1000 / found["latency_ms"]}


@pytest.mark.usefixtures("own_budgets")
@pytest.mark.parametrize(("preset", "expected"), [("quick[steps=3]", 20), ("standard", 200), ("paper", 200)])
def test_networks_have_as_many_calls_as_the_whole_and_what_tables_show_as_many_as_the_papers(
    preset: str, expected: int, tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few calls after one of warm-up the networks alone took longer than with map and score: 56 beside 45 ms."""
    job = replace(job_of(tiny_tree, "stfpm"), preset=preset)
    timed: list[clock.Budget] = []
    real = clock.interleaved

    def recorded(calls: Any, device: str, *, warmup: clock.Budget, budget: clock.Budget) -> Any:
        timed.append(budget)
        return real(calls, device, warmup=warmup, budget=budget)

    monkeypatch.setattr(clock, "interleaved", recorded)
    slow = Slow(0.01, monkeypatch)
    found = cost.latencies(slow, torch.zeros(1, 3, 32, 32), "cpu", brief=cost.is_brief(job))  # type: ignore[arg-type]
    assert len(found["latency_samples_ms"]) == expected
    assert slow.calls >= expected
    assert [budget.calls for budget in timed] == [expected]


def test_what_took_long_is_not_measured_again(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def figures(*given: Any) -> dict[str, Any]:
        made.append(1)
        return {"speed_load": 0.9 / len(made), "first_latency_ms": 1.0, "latency_samples_ms": (1.0,) * 20}

    monkeypatch.setattr(speed, "MOST_BUSY", MOST_LOAD)
    monkeypatch.setattr(speed, "figures_of", figures)
    monkeypatch.setattr(speed, "fitted", lambda job: (Still(), np.zeros((2, 3, 32, 32), np.uint8), "nothing"))
    job = job_of(tiny_tree, "pixel_mean")
    assert speed.measure(job).figures["speed_load"] == 0.45
    monkeypatch.setattr(speed, "AGAIN_SECONDS", 0.0)
    made.clear()
    assert speed.measure(job).figures["speed_load"] == 0.9


def test_the_name_of_a_data_set_that_does_not_show_is_written_as_an_escape(
    tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose name is not UTF-8: its speed was not measured."""
    monkeypatch.setattr(speed, "figures_of", lambda *_: {"speed_load": 0.1, "latency_samples_ms": [1.0] * 1000})
    job = replace(job_of(tiny_tree, "pixel_mean"), code="5" * 64)  # known by its data set
    job = replace(job, category=replace(job.category, dataset="folder:/d\udcff"))
    made = speed.measure(job)
    assert r"folder:/d\udcff/" in made.how
    assert made.configuration["dataset"] == r"folder:/d\udcff"
    assert made.content.isascii()


def test_the_model_that_is_timed_learns_as_little_as_it_may(tiny_tree: Path) -> None:
    stad = job_of(tiny_tree, "stad", overrides={**SMALL, "batch_size": 8, "solved": 2048}, method_overrides={})
    assert (stad.settings.shortest.solved, stad.settings.shortest.steps, stad.settings.shortest.batch_size) == (
        64,
        1,
        2,
    )
    assert job_of(tiny_tree, "stfpm", overrides={**SMALL, "batch_size": 1}).settings.shortest.batch_size == 1


class Still:
    """A method whose networks are never called."""

    class settings:
        image_size = 32
        precision = "fp32"

    module = torch.nn.Identity()

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def score(self, images: torch.Tensor) -> Any:
        self.seen.append((torch.get_num_threads(), len(images)))

    networks = score


def test_all_cores_first_then_one_thread_and_the_threads_are_as_before(
    tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = Still()
    monkeypatch.setattr(speed, "allowance", SimpleNamespace(cores=lambda: 3))
    monkeypatch.setattr(speed, "fitted", lambda job: (still, np.zeros((2, 3, 32, 32), np.uint8), "nothing"))
    before = torch.get_num_threads()
    made = speed.measure(job_of(tiny_tree, "pixel_mean"))
    threads = [count for count, _ in still.seen]
    assert (threads[0], threads[-1], set(threads)) == (3, 1, {1, 3})
    assert threads == sorted(threads, reverse=True)
    assert still.seen[0] == (3, 1), "the cold first image is the first call of all"
    assert torch.get_num_threads() == before
    assert set(made.figures) == set(SHARED)
    assert made.figures["speed_threads"] == 3


@pytest.mark.parametrize(("loads", "chosen"), [((0.1,), 0.1), ((0.9, 0.3), 0.3), ((0.5, 0.7), 0.5), ((None,), None)])
def test_a_busy_machine_is_noted_and_the_measurement_repeated_once(
    loads: tuple[float | None, ...], chosen: float | None, tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(loads)
    monkeypatch.setattr(speed, "MOST_BUSY", MOST_LOAD)
    monkeypatch.setattr(speed.OtherLoad, "share", lambda self: left.pop(0))
    made = speed.measure(job_of(tiny_tree, "pixel_mean"))
    assert made.figures["speed_load"] == chosen
    assert left == []


def test_whoever_gives_way_knows_how_many_threads_are_timed(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    @contextmanager
    def giving_way() -> Iterator[None]:
        seen.append(torch.get_num_threads())
        yield

    monkeypatch.setattr(speed, "giving_way", giving_way)
    monkeypatch.setattr(speed, "allowance", SimpleNamespace(cores=lambda: 3))
    with computing_with(1):
        made = speed.measure(job_of(tiny_tree, "pixel_mean"))
        assert torch.get_num_threads() == 1
    assert (seen, made.figures["speed_threads"]) == ([3], 3)


def test_the_load_is_what_others_take_of_all_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = iter([(100.0, 40.0), (110.0, 49.0)])  # ten seconds of processors passed, in nine of them they worked
    own = iter([5.0, 9.0])  # four of those were this process's
    monkeypatch.setattr(speed, "processor_seconds", lambda: next(machine))
    monkeypatch.setattr(speed.time, "process_time", lambda: next(own))
    assert speed.OtherLoad().share() == pytest.approx(0.5)


def test_tables_and_measurements_have_one_limit_for_a_busy_machine() -> None:
    from kdad_bench.harness.environment import MOST_BUSY

    assert MOST_BUSY == MOST_LOAD


def test_a_batch_of_the_curve_copies_no_more_images_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    images = torch.zeros(50, 3, 8, 8)
    repeat = torch.Tensor.repeat

    def counted(self: torch.Tensor, *sizes: int) -> torch.Tensor:
        seen.append(len(self) * sizes[0])
        return repeat(self, *sizes)

    monkeypatch.setattr(torch.Tensor, "repeat", counted)
    cost.throughput_at(Still(), images, "cpu", (1, 8, 64), quick=True)  # type: ignore[arg-type]
    assert seen == [1, 8, 100]
