"""The clock: what it counts and keeps. No test depends on how long anything takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdad_bench.harness import clock
from kdad_bench.harness.clock import Budget, Timing

ENDLESS = 1e9  # seconds


class Ticks:
    """A clock that advances by what each call costs, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.log: list[str] = []
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)

    def call(self, name: str, *costs: float) -> clock.Call:
        """A call that costs the given seconds in turn, the last of them ever after."""
        left = list(costs)

        def run() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    return Ticks(monkeypatch)


def test_the_first_call_and_the_warm_up_are_not_among_the_samples(ticks: Ticks) -> None:
    call = ticks.call("a", 5.0, 1.0, 1.0, 0.002)
    timing = clock.latency(call, warmup=Budget(2, ENDLESS), budget=Budget(10, ENDLESS))
    assert timing.first_ms == pytest.approx(5000)
    assert timing.samples_ms == pytest.approx((2.0,) * 10)
    assert len(ticks.log) == 1 + 2 + 10


@pytest.mark.parametrize(
    ("budget", "expected"), [(Budget(7, ENDLESS), 7), (Budget(10**6, 0.05), 5), (Budget(10**6, 0), 1)]
)
def test_a_budget_ends_at_calls_or_seconds_whichever_comes_first(ticks: Ticks, budget: Budget, expected: int) -> None:
    timing = clock.latency(ticks.call("a", 0.01), warmup=Budget(1, ENDLESS), budget=budget)
    assert timing.n == expected


def test_a_slow_call_is_made_a_few_times_however_long_they_take(ticks: Ticks) -> None:
    timing = clock.latency(ticks.call("a", 9.0), warmup=clock.QUICK_WARMUP, budget=clock.QUICK_TIMED)
    assert timing.n == clock.LEAST_CALLS
    assert len(ticks.log) == 1 + clock.LEAST_CALLS, "so long a first call is warm-up enough"
    clock.latency(ticks.call("b", 0.15), warmup=clock.QUICK_WARMUP, budget=clock.QUICK_TIMED)
    assert ticks.log.count("b") == 1 + 2 + 4  # 0.2 s of warm-up, 0.5 s of timing


def test_a_gpu_is_warmed_up_after_a_long_first_call_too(monkeypatch: pytest.MonkeyPatch, ticks: Ticks) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    clock.latency(ticks.call("a", 9.0, 0.1), "cuda", warmup=Budget(2, 1.0), budget=Budget(3, ENDLESS))
    assert len(ticks.log) == 1 + 2 + 3


@pytest.mark.parametrize(("costs", "expected"), [((1.0, 1.02, 1.0), 2), ((1.0, 1.1, 1.0), 4)])
def test_calls_that_agree_are_enough(ticks: Ticks, costs: tuple[float, ...], expected: int) -> None:
    budget = Budget(4, ENDLESS, least=2, close=0.03)
    timing = clock.latency(ticks.call("a", *costs), warmup=Budget(0, 0), budget=budget)
    assert (timing.n, len(ticks.log)) == (expected, expected), "without a warm-up the first call is a sample"
    assert clock.latency(ticks.call("b", 9.0, *costs), warmup=Budget(1, 99), budget=budget).samples_ms[0] < 9000


def test_calls_are_taken_in_turn_until_each_has_its_budget(ticks: Ticks) -> None:
    calls = {"a": ticks.call("a", 0.001), "b": ticks.call("b", 0.01)}
    found = clock.interleaved(calls, warmup=Budget(1, ENDLESS), budget=Budget(4, 0.025))
    assert "".join(ticks.log) == "ab" + "ab" + "abababa"  # first, warm-up, samples: b spends its seconds in three
    assert (found["a"].n, found["b"].n) == (4, 3)


def test_no_calls_are_an_error() -> None:
    with pytest.raises(ValueError, match="no calls to time"):
        clock.interleaved({})
    with pytest.raises(ValueError, match="at least one call"):
        Timing((), 1.0)


def test_percentiles_and_interval_are_those_of_the_samples() -> None:
    samples = np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
    timing = Timing(tuple(samples), 0.0)
    assert (timing.p5_ms, timing.median_ms, timing.p95_ms, timing.p99_ms, timing.n) == (6.0, 51.0, 96.0, 100.0, 101)
    low, high = timing.interval_ms
    assert 35 < low < 51 < high < 67  # binomial 95 % interval of the median: about the 41st to the 61st
    assert Timing(tuple(samples), 0.0) == timing  # the bootstrap draws the same every time


def test_a_drift_is_flagged_and_a_lone_outlier_is_not() -> None:
    steady = [1.0] * 50
    assert Timing(tuple(steady), 0.0).steady
    outlier = [*steady[:-1], 100.0]
    assert Timing(tuple(outlier), 0.0).steady
    drift = Timing((*[1.0] * 40, *[1.06] * 10), 0.0)
    assert drift.spread == pytest.approx(0.06)
    assert not drift.steady


def test_throughput_is_images_by_second_at_the_median(ticks: Ticks) -> None:
    curve = clock.throughput(lambda batch: ticks.call("x", 0.01 + 0.001 * batch), batches=(4, 1, 16))
    assert [batch for batch, _ in curve] == [1, 4, 16]
    assert [speed for _, speed in curve] == pytest.approx([1 / 0.011, 4 / 0.014, 16 / 0.026])
    assert clock.best_batch(curve) == curve[-1]


def test_the_curve_ends_at_the_batch_that_does_not_fit(ticks: Ticks) -> None:
    def call_for(batch: int) -> clock.Call:
        if batch > 4:
            raise torch.OutOfMemoryError("no room")
        return ticks.call("x", 0.01)

    assert [batch for batch, _ in clock.throughput(call_for, batches=(1, 2, 4, 8, 16))] == [1, 2, 4]


def test_the_curve_goes_on_from_what_is_known_and_ends_where_a_batch_would_take_long(ticks: Ticks) -> None:
    made: list[int] = []

    def call_for(batch: int) -> clock.Call:
        made.append(batch)
        return ticks.call("x", 0.1 * batch)

    curve = clock.throughput(call_for, batches=(64, 8, 16, 32), known=(1, 11.0))
    assert curve == [(1, 11.0), (8, pytest.approx(10)), (16, pytest.approx(10))]
    assert made == [8, 16]


def test_of_equal_speeds_the_smaller_batch_is_best() -> None:
    assert clock.best_batch([(1, 5.0), (2, 9.0), (4, 9.0), (8, 7.0)]) == (2, 9.0)
    assert clock.best_batch([]) is None


def test_cuda_is_synchronised_before_and_after_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("sync"))
    clock.latency(lambda: log.append("call"), "cuda:0", warmup=Budget(1, ENDLESS), budget=Budget(2, ENDLESS))
    assert log == ["sync", "call", "sync"] * 4


def test_the_peak_of_a_block_is_seen_after_its_memory_is_gone() -> None:
    with clock.peak_memory() as found:
        block = np.ones(32_000_000)  # 256 MB: a system short of memory may take mapped files away meanwhile
        del block
    assert found.growth_mb > 50
    assert found.peak_mb > found.growth_mb
    with clock.peak_memory() as later:
        pass
    assert later.growth_mb < 50


def test_without_a_high_water_mark_memory_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_reset_high_water", lambda: False)
    now = iter([100_000_000, 100_000_000, 300_000_000])
    monkeypatch.setattr(clock, "_resident", lambda: next(now, 200_000_000))
    with clock.peak_memory() as found:
        while next(now, None) is not None:
            pass
        monkeypatch.setattr(clock, "_resident", lambda: 300_000_000)
    assert found.how == "resident memory sampled every 2 ms"
    assert (found.peak_mb, found.growth_mb) == (300.0, 200.0)


def test_a_system_without_proc_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert not clock._reset_high_water()


def test_the_peak_is_known_although_the_block_raised() -> None:
    with pytest.raises(ZeroDivisionError), clock.peak_memory() as found:
        raise ZeroDivisionError
    assert found.peak_mb > 0


def test_flops_are_two_per_multiply_add() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert clock.flops(lambda: a @ b) == 2 * 3 * 5 * 7
    convolution = torch.nn.Conv2d(4, 8, 3, padding=1, bias=False)
    assert clock.flops(lambda: convolution(torch.ones(2, 4, 6, 6))) == 2 * 2 * 6 * 6 * 8 * 4 * 9
    assert clock.flops(lambda: None) == 0


def test_the_quick_budgets_are_smaller() -> None:
    for quick, full in ((clock.QUICK_WARMUP, clock.WARMUP), (clock.QUICK_TIMED, clock.TIMED)):
        assert quick.calls < full.calls
        assert quick.seconds < full.seconds
