"""End the processes `PID:BIRTH ...` once stdin ends, that is, once the process that holds its other end is gone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import psutil

GRACE_SECONDS = 5.0  # for those that end by themselves


def main(arguments: Sequence[str]) -> None:
    """Wait for the end of stdin, then for the processes, and kill those that are left. A pid used anew is let be."""
    chosen = []
    for pid, _, birth in (argument.partition(":") for argument in arguments):
        try:
            process = psutil.Process(int(pid))
            chosen += [process] if process.create_time() == float(birth) else []
        except psutil.NoSuchProcess:
            continue
    sys.stdin.buffer.read()
    for process in psutil.wait_procs(chosen, timeout=GRACE_SECONDS)[1]:
        try:
            process.kill()  # psutil compares the birth again
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    main(sys.argv[1:])
