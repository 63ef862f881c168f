"""The threshold from held-out normals."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kdad_bench.harness.decision import Decision, DecisionError, read


def test_the_threshold_is_the_conformal_quantile() -> None:
    scores = tuple(float(i) for i in range(1, 20))  # n = 19: rate 0.05 needs the 19th of 19
    assert Decision(category="x", resolution=64, normal_scores=scores).threshold(0.05) == 19.0
    assert Decision(category="x", resolution=64, normal_scores=scores).threshold(0.5) == 10.0
    with pytest.raises(DecisionError, match="cannot promise"):
        Decision(category="x", resolution=64, normal_scores=scores).threshold(0.04)
    with pytest.raises(DecisionError, match="no held-out scores"):
        Decision(category="x", resolution=64).threshold(0.1)


RIGHT = Decision(category="bolt", resolution=64, normal_scores=(0.5, 1.0), normal_map_peak=2.0)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    for one in (RIGHT, Decision(category="ü", resolution=1)):
        one.write(tmp_path)
        assert read(tmp_path) == one
    (tmp_path / "decision.json").write_text('{"category": "x", "resolution": 64, "normal_scores": []}')
    assert read(tmp_path) == Decision(category="x", resolution=64), "as an earlier version wrote it"


WRONG: dict[str, tuple[str, object]] = {
    "text for a number": ("resolution", "64"),
    "true for a number": ("resolution", True),
    "half a pixel": ("resolution", 64.5),
    "none": ("resolution", 0),
    "negative": ("resolution", -64),
    "terabytes": ("resolution", 10**6),
    "a list for a number": ("resolution", [64]),
    "a number for a name": ("category", 5),
    "no name": ("category", None),
    "an endless name": ("category", "x" * 100_000),
    "a number for a list": ("normal_scores", 0.5),
    "text in the list": ("normal_scores", [0.5, "1"]),
    "a list in the list": ("normal_scores", [[0.5]]),
    "no scores": ("normal_scores", None),
    "beyond float32": ("normal_scores", [1e300]),
    "text for the peak": ("normal_map_peak", "2"),
    "a list for the peak": ("normal_map_peak", [2.0]),
    "an unknown field": ("treshold", 1.0),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_field_that_cannot_be_is_named_with_its_file(tmp_path: Path, kind: str) -> None:
    RIGHT.write(tmp_path)
    field, value = WRONG[kind]
    path = tmp_path / "decision.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    refused(tmp_path, field)


@pytest.mark.parametrize("field", ["category", "resolution", "normal_scores"])
def test_a_field_that_is_missing_is_named(tmp_path: Path, field: str) -> None:
    RIGHT.write(tmp_path)
    path = tmp_path / "decision.json"
    content = json.loads(path.read_text())
    del content[field]
    path.write_text(json.dumps(content))
    refused(tmp_path, rf"{field} is missing")


BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(b'{"category": "x", "resol'),
    "not UTF-8": lambda path: path.write_bytes(b'{"category": "\xff"}'),
    "NaN": lambda path: path.write_bytes(b'{"category": "x", "resolution": 64, "normal_scores": [NaN]}'),
    "twice": lambda path: path.write_bytes(b'{"resolution": 64, "resolution": 32}'),
    "list": lambda path: path.write_bytes(b"[]"),
    "deep": lambda path: path.write_bytes(b'{"category": ' * 50_000),
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_file_is_named(tmp_path: Path, kind: str) -> None:
    BROKEN[kind](tmp_path / "decision.json")
    refused(tmp_path, "decision")


def refused(folder: Path, words: str) -> None:
    with pytest.raises(DecisionError, match=rf"decision\.json: .*{words}|{words}\.json: ") as error:
        read(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
