"""Threads that wait give way to other work; how many compute, and with that every number, stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping

import psutil
import pytest
import torch

from kdad_bench.harness.giving_way import (
    LITTLE,
    MUCH,
    Guests,
    Use,
    Watch,
    computing_with,
    cores_of_others,
    gives_way,
    giving_way,
    gnu_parallel,
    use,
)
from kdad_bench.methods.protocol import Fitting
from tests.methods.checks import assert_same_state, state
from tests.methods.toys import normals, small_method

GNU = pytest.mark.skipif(gnu_parallel() is None, reason="torch does not compute with GNU's OpenMP here")


@pytest.mark.parametrize(
    ("others", "threads", "cores", "already", "way"),
    [
        (0.0, 2, 2, False, False),
        (MUCH - 0.01, 2, 2, False, False),
        (MUCH + 0.01, 2, 2, False, True),
        (1.0, 2, 2, False, True),
        (1.0, 2, 4, False, False),  # there is room beside
        (3.0, 2, 4, False, True),
        (LITTLE + 0.01, 2, 2, True, True),
        (LITTLE - 0.01, 2, 2, True, False),
        (0.0, 4, 2, False, True),  # more threads than cores are in each other's way
    ],
)
def test_threads_give_way_where_they_and_others_claim_more_than_the_cores(
    others: float, threads: int, cores: int, already: bool, way: bool
) -> None:
    assert gives_way(others, threads, cores, already) is way


def test_the_work_of_others_is_everything_that_is_not_ours() -> None:
    assert cores_of_others(Use(10.0, 100.0, 50.0), Use(12.0, 104.0, 52.0)) == pytest.approx(1.0)
    assert cores_of_others(Use(10.0, 100.0, 50.0), Use(12.0, 101.0, 53.0)) == 0.0  # clocks that do not agree
    assert cores_of_others(Use(10.0, 100.0, 50.0), Use(10.0, 100.0, 50.0)) == 0.0


def test_use_counts_this_process_among_everybody() -> None:
    before, ends = use(), time.process_time() + 0.3
    while time.process_time() < ends:
        continue
    after = use()
    assert after.ours - before.ours >= 0.25
    assert after.everybody > before.everybody


class Counted(Guests):
    """Guests that come and go in name only."""

    moves: list[str]

    def __init__(self) -> None:
        super().__init__(1)
        self.moves, self.inside = [], False

    @property
    def here(self) -> bool:
        return self.inside

    def come(self) -> None:
        self.moves, self.inside = [*self.moves, "come"], True

    def go(self) -> None:
        self.moves, self.inside = [*self.moves, "go"], False


def test_the_watch_follows_the_load_up_and_down() -> None:
    loads = [0.0, 0.3, 1.0, 0.3, 0.05, 0.3, 2.0]
    totals = [sum(loads[: k + 1]) for k in range(len(loads))]
    looks: Iterator[Use] = iter([Use(0.0, 0.0, 0.0), *(Use(k + 1.0, total, 0.0) for k, total in enumerate(totals))])
    guests = Counted()
    watch = Watch(threads=2, cores=2, guests=guests, look=lambda: next(looks))
    for _ in range(len(loads) + 1):
        watch.step()
    assert guests.moves == ["go", "go", "come", "come", "go", "go", "come"]


@GNU
def test_guests_are_threads_that_come_and_go() -> None:
    process, guests = psutil.Process(), Guests(3)
    before = process.num_threads()
    for _ in range(2):
        guests.come()
        guests.come()  # they are here already
        assert guests.here
        assert process.num_threads() >= before + 4
        guests.go()
        ends = time.monotonic() + 20
        while process.num_threads() > before and time.monotonic() < ends:
            time.sleep(0.01)
        assert not guests.here
        assert process.num_threads() <= before


def test_giving_way_in_the_middle_of_a_training_changes_no_number() -> None:
    kept, moved = (small_method("stfpm", steps=3, image_size=32, batch_size=4) for _ in range(2))
    images = normals(4, seed=1, side=32)
    losses: dict[str, list[dict[str, float]]] = {"kept": [], "moved": []}
    guests = Guests(2)

    def move(step: int, terms: Mapping[str, float]) -> None:
        losses["moved"].append(dict(terms))
        guests.go() if step == 1 else guests.come()
        assert torch.get_num_threads() == 2

    with computing_with(2):
        guests.come()
        try:
            kept.fit(images, Fitting(log=lambda step, terms: losses["kept"].append(dict(terms)), log_every=1))
            moved.fit(images, Fitting(log=move, log_every=1))
        finally:
            guests.go()
    assert losses["kept"] == losses["moved"]
    assert len(losses["kept"]) == 3
    assert_same_state(state(kept), state(moved), "giving way changed the training")


def test_the_number_of_threads_is_put_back_and_nobody_watches_any_more() -> None:
    def watching() -> bool:
        return "kdad-watch" in {thread.name for thread in threading.enumerate()}

    before = torch.get_num_threads()
    with computing_with(2), giving_way():
        assert torch.get_num_threads() == 2
        assert watching()
    assert torch.get_num_threads() == before
    assert not watching()
    with computing_with(1), giving_way():
        assert not watching()  # one thread waits for nobody
