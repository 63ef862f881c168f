"""Samples drawn ahead of a training by processes of its own, where drawing takes longer than what a device learns from.

What a step draws depends on seed and step alone, so it is the same whoever draws it. Each process takes every n-th step
and waits until its samples are taken, so that no more than one batch each is kept. The processes end with the training
and with the process that started them, however that ends.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from kdad_bench import children
from kdad_bench.methods.training.course import Course, Drawing
from kdad_bench.methods.training.drawer import Failed, Task, write

PROGRAM = "from kdad_bench.methods.training.drawer import main; main({file}, {first})"
# one thread each: what the machine has is for many of them; and none has anything to do with a GPU
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
OURS = "kdad_bench."  # modules that a new process can import by their names


class DrawingError(RuntimeError):
    """A process that drew samples failed or died."""


class Drawer:
    """One process, and what it says on stderr."""

    def __init__(self, file: IO[bytes], first: int) -> None:
        self.said = tempfile.TemporaryFile()  # a pipe that nobody reads would stop it  # noqa: SIM115
        self.process = subprocess.Popen(
            children.command("-c", PROGRAM.format(file=file.fileno(), first=first)),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.said, pass_fds=(file.fileno(),),
            env={**os.environ, **SURROUNDINGS, "PYTHONPATH": children.search_path()},
            start_new_session=True,  # Ctrl-C is the training's to handle
        )  # fmt: skip

    def take(self, step: int) -> Any:
        """The samples that are next; raises DrawingError in place of those of `step`."""
        assert self.process.stdout is not None
        try:
            made = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise DrawingError(f"a process that draws samples died at step {step} ({self.death()})") from error
        return answered(made, step)

    def death(self) -> str:
        """How the process ended, with the last line it said."""
        code = self.process.wait()
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return (f"signal {-code}" if code < 0 else f"exit code {code}") + (f": {last}" if last else "")

    def end(self) -> None:
        """Kill the process and see it off."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.said.close()


def answered(made: Any, step: int) -> Any:
    """What was drawn; raises DrawingError where that failed."""
    if isinstance(made, Failed):
        raise DrawingError(f"drawing the samples of step {step} failed: {made.reason}")
    return made


def nothing(step: int) -> None:
    """Where nothing is drawn ahead."""


@contextmanager
def drawn_ahead(
    drawing_of: Callable[[], Drawing | None], course: Course, done: int, drawers: int
) -> Iterator[Callable[[int], Any]]:
    """What gives the samples of each step after the first `done`, in order; None where the loss is to draw them itself.

    That is with no `drawers`, for a method that has no drawing, and for a drawing of code that is not this package's: a
    new process could not import it. Raises DrawingError at the step whose samples could not be had, and OSError.
    """
    drawing = drawing_of() if drawers and done < course.total else None
    if drawing is None or not type(drawing).__module__.startswith(OURS):
        yield nothing
        return
    count = min(drawers, course.total - done)
    started: list[Drawer] = []
    try:
        with tempfile.TemporaryFile() as file:
            write(Task(course=course, drawing=drawing, stride=count), file)
            for number in range(count):
                started.append(Drawer(file, done + 1 + number))
        yield taking(started, done)
    finally:
        for drawer in started:
            drawer.end()


def taking(drawers: Sequence[Drawer], done: int) -> Callable[[int], Any]:
    """The samples of a step, from the process whose turn it is."""
    return lambda step: drawers[(step - done - 1) % len(drawers)].take(step)
