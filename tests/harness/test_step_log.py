"""The log of a training and the loss curve that is read from it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdad_bench.harness.job import Job
from kdad_bench.harness.output import Work
from kdad_bench.harness.step_log import earlier_losses, log_path, step_log
from tests.harness.planned import jobs_of

LINES = [
    {"event": "start", "job": "a"},
    {"event": "step", "step": 1, "loss": 0.5, "layer1": 0.25},
    {"event": "step", "step": 10, "loss": 0.25},
]


@pytest.fixture
def stopped(tiny_tree: Path, tmp_path: Path) -> tuple[Job, Work]:
    """A job whose training was stopped: it has a log and a checkpoint."""
    job, work = jobs_of(tiny_tree)[0], Work(out=str(tmp_path))
    for name in ("logs", "checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoints" / f"{job.id}.pt").write_bytes(b"a checkpoint")
    log_path(job, tmp_path).write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return job, work


def logged(job: Job, work: Work, *steps: int) -> dict[int, dict[str, float]]:
    """What a training that logs `steps` goes on with."""
    with step_log(job, work) as log:
        found = earlier_losses(job, work)
        for step in steps:
            log(step, {"loss": 1 / step})
    return found


def test_an_interrupted_training_goes_on_with_its_curve_and_its_log(stopped: tuple[Job, Work], tmp_path: Path) -> None:
    job, work = stopped
    curve = {1: {"step": 1, "loss": 0.5, "layer1": 0.25}, 10: {"step": 10, "loss": 0.25}}
    assert earlier_losses(job, work) == curve
    with step_log(job, work) as log:
        assert earlier_losses(job, work) == curve
        log(20, {"loss": 0.125})
    events = [json.loads(line)["event"] for line in log_path(job, tmp_path).read_text().splitlines()]
    assert events == ["start", "step", "step", "start", "step", "end"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-5],  # torn at its end
        lambda text: text.replace('"step": 1,', '"step": 1'),  # in its middle
        lambda text: text.replace("0.5", "NaN"),
        lambda text: text.replace("0.5", '"much"'),
        lambda text: text.replace('"step": 1,', '"step": "one",'),
        lambda text: text.replace('"event": "step", ', "", 1),
        lambda text: text + "[1, 2]\n",
        lambda text: text + "[" * 100_000 + "\n",
        lambda text: text + "\0\0\0\n",
        lambda text: None,
    ],
)
def test_a_log_that_is_damaged_or_gone_starts_the_training_anew(
    damage: object, stopped: tuple[Job, Work], tmp_path: Path
) -> None:
    job, work = stopped
    path = log_path(job, tmp_path)
    text = damage(path.read_text())  # type: ignore[operator]
    path.unlink() if text is None else path.write_text(text)
    with pytest.warns(UserWarning, match="damaged log") as said:
        assert logged(job, work, 1) == {}
    assert len(said) == 1
    assert not list((tmp_path / "checkpoints").iterdir())
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert events == ["start", "step", "end"]


def test_a_log_that_cannot_be_written_is_one_warning(tiny_tree: Path, tmp_path: Path) -> None:
    job, work = jobs_of(tiny_tree)[0], Work(out=str(tmp_path))
    (tmp_path / "logs").write_text("a file in the way")
    with pytest.warns(UserWarning, match="no more is logged there") as said:
        logged(job, work, 1, 2)
    assert len(said) == 1


def test_a_disk_that_fills_up_while_a_log_is_written_is_one_warning(tiny_tree: Path, tmp_path: Path) -> None:
    job, work = jobs_of(tiny_tree)[0], Work(out=str(tmp_path))
    (tmp_path / "logs").mkdir()
    log_path(job, tmp_path).symlink_to("/dev/full")
    with pytest.warns(UserWarning, match="no more is logged there .No space left") as said:
        logged(job, work, 1, 2)
    assert len(said) == 1
