"""A process that draws the samples of some steps of a training and hands them over one after the other.

`ahead` starts it with an open file that holds course, drawing and the distance between two steps of one process.
Samples go to stdout, pickled; the next one is begun once the one before has been taken, so that one waits at most.
"""

from __future__ import annotations

import mmap
import os
import pickle
from dataclasses import dataclass
from typing import IO, Any

import torch

from kdad_bench.methods.training.course import Course, Drawing

ALIGNED = 64  # bytes: where an array begins


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What all processes of one training draw, each the steps that are `stride` apart."""

    course: Course
    drawing: Drawing
    stride: int


@dataclass(frozen=True, slots=True)
class Failed:
    """In place of samples: what went wrong, in one line."""

    reason: str


def write(task: Task, file: IO[bytes]) -> None:
    """`task` so that processes that map the file share its arrays: sizes, pickle, then each array aligned."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(task, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    file.write(pickle.dumps([part.nbytes for part in parts]))
    for part in parts:
        file.write(bytes(-file.tell() % ALIGNED))
        file.write(part)
    file.flush()


def read(fd: int) -> Task:
    """What `write` wrote; the arrays are the file's, read-only."""
    whole = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    sizes = pickle.load(whole)
    parts, place = [], whole.tell()
    for size in sizes:
        place += -place % ALIGNED
        parts.append(memoryview(whole)[place : place + size])
        place += size
    task: Task = pickle.loads(parts[0], buffers=parts[1:])
    return task


def made(task: Task, step: int) -> Any:
    """The samples of a step, or why there are none."""
    try:
        return task.drawing(task.course.chosen(step), task.course.generator(step), step)
    except Exception as error:  # a method raises what it likes; the training says it
        return Failed(" ".join(f"{type(error).__name__}: {error}".split()))


def draw(task: Task, first: int, out: IO[bytes]) -> None:
    """Write the samples of every step that is this process' to do; BrokenPipeError once nobody wants them."""
    for step in range(first, task.course.total + 1, task.stride):
        pickle.dump(made(task, step), out, protocol=5)
        out.flush()


def main(fd: int, first: int) -> None:
    """The process' life. What libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    try:
        draw(read(fd), first, out)
    except BrokenPipeError:
        os._exit(0)  # the training is over or gone; flushing at exit would fail once more
