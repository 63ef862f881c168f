"""The machine: other work on it."""

from __future__ import annotations

import os

import pytest

from kdad_bench.harness.environment import make_room_for_other_work


@pytest.mark.parametrize(
    ("busy", "given", "spins"),
    [
        (0.5, {}, "10000"),
        (0.1, {}, None),
        (0.5, {"GOMP_SPINCOUNT": "7"}, "7"),
        (0.5, {"OMP_WAIT_POLICY": "PASSIVE"}, None),
    ],
)
def test_threads_spin_less_beside_other_work_unless_the_environment_says_how(
    busy: float, given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdad_bench.harness.environment.busy_elsewhere", lambda: busy)
    monkeypatch.setattr(os, "environ", dict(given))
    assert make_room_for_other_work() == busy
    assert os.environ.get("GOMP_SPINCOUNT") == spins
