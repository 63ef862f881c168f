"""A training and the file that keeps it: damage, full disks, read-only folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.training import resume
from tests.methods.checks import assert_same_state, state
from tests.methods.test_distillation import Interrupted, stop_at
from tests.methods.toys import normals, small_method


def without(*names: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        kept = torch.load(path, weights_only=True)
        torch.save({key: value for key, value in kept.items() if key not in names}, path)

    return damage


def changed(name: str, value: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        torch.save({**torch.load(path, weights_only=True), name: value}, path)

    return damage


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save([1, 2], path),
        flipped,
        without("student"),
        without("optimiser"),
        without("rng"),
        changed("step", "three"),
        changed("student", {"a": torch.zeros(1)}),
        changed("optimiser", {"state": {}, "param_groups": []}),
        changed("rng", torch.zeros(3)),
    ],
)
def test_a_damaged_checkpoint_gives_the_result_of_a_straight_training(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    images, path = normals(10, seed=1), tmp_path / "fit.pt"
    whole, broken, resumed = (small_method("stfpm", steps=4, batch_size=4) for _ in range(3))
    whole.fit(images)
    with pytest.raises(Interrupted):
        broken.fit(images, Fitting(log=stop_at(3), log_every=1, checkpoint=path, checkpoint_every_seconds=0))
    damage(path)
    with pytest.warns(RuntimeWarning, match=r"fit\.pt: damaged checkpoint"):
        resumed.fit(images, Fitting(checkpoint=path))
    assert_same_state(state(whole), state(resumed), "a damaged checkpoint changed the result")


def test_what_is_no_regular_file_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fit.pt")
    small_method("stfpm", steps=1, batch_size=4).fit(normals(8, seed=1), Fitting(checkpoint=tmp_path / "fit.pt"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_checkpoint_that_cannot_be_written_costs_only_a_warning(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, write: object) -> None:
        raise error

    monkeypatch.setattr(resume, "write_whole", full)
    method = small_method("stfpm", steps=2, batch_size=4)
    with pytest.warns(RuntimeWarning, match="no checkpoint can be written"):
        method.fit(normals(8, seed=1), Fitting(checkpoint=tmp_path / "fit.pt", checkpoint_every_seconds=0))
