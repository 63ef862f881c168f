"""Samples drawn by other processes: the same training, no process left behind, an error in one line."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from kdad_bench.methods.drawn_images import drawn_images
from kdad_bench.methods.fractalad.anomaly import Pasting
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.training import ahead
from kdad_bench.methods.training.ahead import DrawingError, drawn_ahead
from kdad_bench.methods.training.course import Course
from kdad_bench.methods.training.drawer import Task, draw, read, write
from tests.harness.test_faults import wait_for
from tests.methods.toys import normals, small_method

COURSE = Course(images=5, size=2, per_epoch=3, total=7, seed=3)
LEVELS = np.random.default_rng(0).integers(0, 256, (5, 3, 96, 96), np.uint8)  # two samples fill a pipe
PASTING = Pasting(levels=LEVELS, points=300, find_object=False)


@dataclass(frozen=True)
class Telling:
    """Tells what it was asked for; fails at a step, if it is told to."""

    array: Any
    fails: int = 0

    def __call__(self, chosen: Tensor, generator: torch.Generator, step: int) -> Any:
        if step == self.fails:
            raise ValueError(f"no texture\nfor step {step}")
        return chosen.tolist(), float(torch.rand((), generator=generator)), step, self.array[chosen.numpy()]


class Here:
    """A drawer without a process: what it is to draw goes through the same file and comes through the same pickles."""

    taken = 0

    def __init__(self, file: IO[bytes], first: int) -> None:
        self.out = io.BytesIO()
        draw(read(file.fileno()), first, self.out)
        self.out.seek(0)

    def take(self, step: int) -> Any:
        Here.taken += 1
        return ahead.answered(pickle.load(self.out), step)

    def end(self) -> None:
        self.out.close()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawers in this process, of any code."""
    monkeypatch.setattr(ahead, "Drawer", Here)
    monkeypatch.setattr(ahead, "OURS", ("kdad_bench.", "tests."))
    monkeypatch.setattr(Here, "taken", 0)


EARLIER: set[psutil.Process] = set()  # what other tests of this process have left running


@pytest.fixture(autouse=True)
def counted_from_here() -> None:
    """Only processes that a test here starts are its own."""
    EARLIER.clear()
    EARLIER.update(psutil.Process().children(recursive=True))


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if one not in EARLIER]


@pytest.mark.parametrize(("done", "drawers"), [(0, 1), (0, 3), (4, 2), (6, 9)])
def test_each_step_gets_what_its_course_says_from_the_drawers_in_turn(here: None, done: int, drawers: int) -> None:
    array = np.arange(20.0).reshape(5, 4)
    with drawn_ahead(lambda: Telling(array), COURSE, done, drawers) as drawn:
        for step in range(done + 1, 8):
            chosen, chance, told, rows = drawn(step)
            assert chosen == COURSE.chosen(step).tolist()
            assert chance == float(torch.rand((), generator=COURSE.generator(step)))
            assert told == step
            assert np.array_equal(rows, array[chosen])


def test_a_process_draws_the_same_pixels_in_a_session_of_its_own_and_ends_once_nobody_reads() -> None:
    with tempfile.TemporaryFile() as file:
        write(Task(course=COURSE, drawing=PASTING, stride=1), file)
        drawer = ahead.Drawer(file, 5)
    try:
        for step in (5, 6):
            expected = PASTING(COURSE.chosen(step), COURSE.generator(step), step)
            for one, other in zip(drawer.take(step), expected, strict=True):
                assert one.dtype == other.dtype
                assert np.array_equal(one, other)
        assert os.getsid(drawer.process.pid) == drawer.process.pid  # the terminal's Ctrl-C is not for it
        assert drawer.process.stdout is not None
        drawer.process.stdout.close()  # as the system does it when the training is killed
        assert drawer.process.wait(60) == 0
    finally:
        drawer.end()
    assert not children()


def test_what_lies_in_the_working_folder_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of this package, say: a row would be of the one, and what it learnt from of the other."""
    (tmp_path / "kdad_bench").mkdir()
    for name in ("kdad_bench/__init__.py", "calendar.py"):
        (tmp_path / name).write_text("raise RuntimeError('of the working folder')\n")
    monkeypatch.chdir(tmp_path)
    with tempfile.TemporaryFile() as file:
        write(Task(course=COURSE, drawing=PASTING, stride=1), file)
        drawer = ahead.Drawer(file, 5)
    try:
        expected = PASTING(COURSE.chosen(5), COURSE.generator(5), 5)
        assert all(np.array_equal(one, other) for one, other in zip(drawer.take(5), expected, strict=True))
    finally:
        drawer.end()


STUB = "import os, sys; {what}"  # in place of the program, which imports torch
DEATHS = {
    "killed": ("os.write(2, b'out of memory\\n'); os.kill(os.getpid(), 9)", "signal 9: out of memory"),
    "error": ("import no_such_module", "exit code 1: ModuleNotFoundError: No module named 'no_such_module'"),
    "in the middle": ("os.write(1, b'\\x80\\x05\\x95'); sys.exit(3)", "exit code 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", DEATHS)
def test_a_death_is_told_in_one_line_and_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    what, words = DEATHS[name]
    monkeypatch.setattr(ahead, "PROGRAM", STUB.format(what=what))
    with pytest.raises(DrawingError) as caught, drawn_ahead(lambda: PASTING, COURSE, 0, 2) as drawn:
        drawn(1)
    assert str(caught.value) == f"a process that draws samples died at step 1 ({words})"
    assert not children()


@pytest.mark.parametrize("ending", [KeyboardInterrupt, FloatingPointError])
def test_however_a_training_ends_its_drawers_do(ending: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "PROGRAM", STUB.format(what="os.write(1, bytes(1 << 20))"))  # nobody takes it
    with pytest.raises(ending), drawn_ahead(lambda: PASTING, COURSE, 0, 2):
        raise ending if len(children()) == 2 else AssertionError(children())
    assert not children()


def test_an_error_is_told_in_one_line_at_its_step(here: None) -> None:
    with drawn_ahead(lambda: Telling(np.zeros(5), fails=3), COURSE, 0, 2) as drawn:
        assert [drawn(step)[2] for step in (1, 2)] == [1, 2]
        with pytest.raises(
            DrawingError, match=r"^drawing the samples of step 3 failed: ValueError: no texture for step 3$"
        ):
            drawn(3)


def test_nothing_is_drawn_ahead_where_it_cannot_or_need_not_be() -> None:
    for drawing, done, drawers in ((None, 0, 2), (Telling(np.zeros(5)), 0, 2), (PASTING, 7, 2), (PASTING, 0, 0)):
        with drawn_ahead(lambda drawing=drawing: drawing, COURSE, done, drawers) as drawn:  # type: ignore[misc]
            assert drawn(1) is None
            assert not children()


def test_what_is_handed_over_is_shared_and_cannot_be_changed(tmp_path: Path) -> None:
    arrays = {"odd": np.arange(7, dtype=np.uint8), "wide": np.random.default_rng(0).random((3, 5))}
    with (tmp_path / "task").open("w+b") as file:
        write(Task(course=COURSE, drawing=Telling(arrays), stride=2), file)
        found = read(file.fileno())
    assert (found.course, found.stride) == (COURSE, 2)
    for name, array in arrays.items():
        there = found.drawing.array[name]  # type: ignore[attr-defined]
        assert np.array_equal(there, array)
        assert there.flags.aligned
        assert not there.flags.writeable
        assert not there.flags.owndata


def losses(name: str, drawers: int, changes: Mapping[str, Any]) -> list[dict[str, float]]:
    """Of a short fit whose last epoch has an incomplete batch."""
    found: list[dict[str, float]] = []
    fitting = Fitting(log=lambda step, terms: found.append(dict(terms)), log_every=1, drawers=drawers)
    small_method(name, source="random", **changes).fit(normals(5, seed=1, side=64), fitting)
    return found


METHODS: dict[str, dict[str, Any]] = {
    "fractalad": {"drop_last": False, "fractal_points": 500},
    "destseg": {"turned": "full"},
    "destseg image": {"textures": "image", "batch_size": 1},
    "efficientad": {"penalty": "drawn", "solved": False},
    "stad": {"descriptors": 0.7, "crops": 6, "solved": 0, "held_out": 0.3, "width": 8},
}


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_the_same_bit_for_bit_with_samples_drawn_ahead(here: None, name: str) -> None:
    changes = {"batch_size": 2, "steps": 3} | METHODS[name]
    alone, helped = (losses(name.split()[0], drawers, changes) for drawers in (0, 2))
    assert Here.taken == 3
    assert len(alone) == 3
    assert alone == helped


@pytest.mark.parametrize("threads", [1, 3])
def test_pictures_do_not_depend_on_the_threads_of_who_draws_them(threads: int) -> None:
    before = torch.get_num_threads()
    expected = drawn_images(3, 64, torch.Generator().manual_seed(1))
    torch.set_num_threads(threads)
    try:
        found = drawn_images(3, 64, torch.Generator().manual_seed(1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_training_that_is_stopped_leaves_no_process_that_draws(number: signal.Signals) -> None:
    code = """
        import time
        from kdad_bench.methods.training import ahead
        from tests.methods.test_drawn_ahead import COURSE, PASTING
        with ahead.drawn_ahead(lambda: PASTING, COURSE, 0, 2) as drawn:
            drawn(1), drawn(2)
            print("going", flush=True)
            time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "going\n"
        drawers = psutil.Process(process.pid).children(recursive=True)
        assert len(drawers) == 2
        process.send_signal(number)
        process.wait(60)
        wait_for(lambda: not any(map(running, drawers)), 60)
    finally:
        process.kill()
        process.communicate()


def running(process: psutil.Process) -> bool:
    """Whether a process is there, and not as one that ended and was not seen off."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
