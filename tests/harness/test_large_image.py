"""The memory of scoring one large image, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

MOST_MB = 1200


@pytest.mark.slow
def test_an_image_of_4096_px_in_tiles_is_scored_within_1200_mb() -> None:
    """The libraries, the decoded image, its map and the overlay's picture included."""
    script = Path(__file__).parents[2] / "benchmarks" / "large_image.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, "--preset", "quick"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"peak (\d+) MB", done.stdout)
    assert found is not None
    assert int(found[1]) < MOST_MB, done.stdout
