"""Mutated archives: the short form of `fuzz_archives`, and the long one on demand."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.datasets.fuzz_archives import KINDS, NUMBERS, WRAPS, Edit, attack, mutated, seeds

SEEDS = seeds()
edits = st.builds(
    Edit,
    kind=st.sampled_from(KINDS),
    at=st.floats(0, 1, exclude_max=True),
    length=st.sampled_from((1, 2, 8, 100, 512, 1024)),
    value=st.integers(0, 255),
)

# what tarfile did before it had filters, and does on patch levels without them
TRUSTED: Any = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    seed=st.sampled_from(sorted(SEEDS)),
    other=st.sampled_from(sorted(SEEDS)),
    changes=st.lists(edits, min_size=1, max_size=8),
    repaired=st.booleans(),
    wrap=st.sampled_from(list(WRAPS)),
)
def test_a_mutated_archive_is_unpacked_or_refused_in_one_line(
    seed: str, other: str, changes: list[Edit], repaired: bool, wrap: str
) -> None:
    data = WRAPS[wrap](mutated(SEEDS[seed], changes, SEEDS[other], repaired=repaired))
    with tempfile.TemporaryDirectory(prefix="kdad-fuzz-") as place:
        assert attack(data, Path(place))


def test_the_fuzzer_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacking by the standard library without any filter, it must find writes outside and links."""

    def careless(path: Path, target: Path) -> int:
        import tarfile

        with tarfile.open(path) as archive:
            archive.extractall(target, **TRUSTED)
        return 1

    monkeypatch.setattr("tests.datasets.fuzz_archives.extract", careless)
    for kind in ("parent", "link out", "setuid"):
        with pytest.raises(AssertionError):
            attack(SEEDS[kind], tmp_path / kind)
    with pytest.raises(Exception, match=r"read|header|data"):
        attack(SEEDS["zip"], tmp_path / "zip")


def test_every_number_fits_into_a_header() -> None:
    assert max(map(len, NUMBERS)) <= 12


def _campaign(runs: int) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.datasets.fuzz_archives", "--runs", str(runs), "--seed", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_hundred_in_a_process_of_limited_memory() -> None:
    found = _campaign(100)
    assert found["runs"] == 100
    assert isinstance(found["peak_mb"], int)
    assert found["peak_mb"] < 256


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_thousand_in_a_process_of_limited_memory() -> None:
    assert _campaign(5000)["runs"] == 5000
