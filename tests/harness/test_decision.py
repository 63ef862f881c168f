"""The threshold from held-out normals."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdad_bench.datasets import copies
from kdad_bench.harness.decision import (
    Decision,
    DecisionError,
    least_rate,
    needed_for,
    rank_of,
    read,
    shortfall,
    supported,
)


def test_the_threshold_is_the_conformal_quantile() -> None:
    scores = tuple(float(i) for i in range(1, 20))  # n = 19: rate 0.05 needs the 19th of 19
    assert Decision(category="x", resolution=64, normal_scores=scores).threshold(0.05) == 19.0
    assert Decision(category="x", resolution=64, normal_scores=scores).threshold(0.5) == 10.0
    with pytest.raises(
        DecisionError, match="19 unseen normal images cannot support a 4 % false-alarm rate, 5 % at best; 24 would"
    ):
        Decision(category="x", resolution=64, normal_scores=scores).threshold(0.04)
    with pytest.raises(DecisionError, match="no held-out scores"):
        Decision(category="x", resolution=64).threshold(0.1)


@given(count=st.integers(1, 300), percent=st.integers(1, 999))
def test_a_new_normal_image_lies_above_the_threshold_with_no_more_than_the_rate(count: int, percent: int) -> None:
    # of count + 1 alike images each is the new one as often as another: exactly count + 1 - rank of them lie above
    rate = percent / 1000
    exact = Fraction(percent, 1000)
    assert supported(count, rate) == (Fraction(1, count + 1) <= exact)
    assert supported(needed_for(rate), rate)
    assert not supported(needed_for(rate) - 1, rate)
    assert supported(count, least_rate(count))
    if not supported(count, rate):
        return
    rank = rank_of(count, rate)
    assert Fraction(count + 1 - rank, count + 1) <= exact
    assert rank == 1 or Fraction(count + 2 - rank, count + 1) > exact, "a lower threshold would keep the rate, too"
    every = list(range(count + 1))
    alarms = 0
    for new in every:
        others = tuple(float(one) for one in every if one != new)
        alarms += new > Decision(category="", resolution=1, normal_scores=others).threshold(rate)
    assert Fraction(alarms, count + 1) == Fraction(count + 1 - rank, count + 1)


def test_over_many_draws_the_false_alarms_are_those_of_the_order_statistic() -> None:
    draws, count, rate = 20_000, 19, 0.1
    scores = np.random.default_rng(0).standard_normal((draws, count + 1))
    ties = np.round(scores)  # with equal scores there are only fewer
    for values, least in ((scores, 0.1), (ties, 0.0)):
        ranked = np.sort(values[:, :-1], axis=1)[:, rank_of(count, rate) - 1]
        seen = float((values[:, -1] > ranked).mean())
        assert least - 0.007 < seen < 0.1 + 0.007, "three standard errors of 20,000 draws"


def test_a_rate_is_taken_as_it_is_written() -> None:
    for count, rate in ((9, 0.1), (99, 0.01), (999, 0.001), (19, 0.05), (9999, 0.0001), (49, 0.02), (33, 0.03)):
        assert supported(count, rate), (count, rate)
    assert (rank_of(99, 0.07), rank_of(99, 0.29), rank_of(99, 0.57)) == (93, 71, 43)


def test_the_words_name_the_floor_and_what_would_do() -> None:
    assert shortfall(19, 0.01) == (
        "19 unseen normal images cannot support a 1 % false-alarm rate, 5 % at best; 99 would"
    )
    assert shortfall(1, 0.1).startswith("1 unseen normal image cannot support a 10 % false-alarm rate, 50 % at best; 9")


RIGHT = Decision(category="bolt", resolution=64, normal_scores=(0.5, 1.0), normal_map_peak=2.0)


def test_copies_are_counted_once_for_each_held_out_image_that_equals_one_before_it() -> None:
    assert copies("abc", "def") == 0
    assert copies("aab", "cd") == 0, "equal images that are all learnt from harm no threshold"
    assert copies("abc", "ade") == 1
    assert copies("abc", "aabd") == 3
    assert copies("abc", "dde") == 1


def test_a_rate_just_below_the_floor_is_told_apart_from_it() -> None:
    said = shortfall(11, 0.0833333333)
    asked, least = re.findall(r"([0-9.]+) %", said)
    assert float(asked) < float(least)
    assert shortfall(11, 0.05).startswith("11 unseen normal images cannot support a 5 % false-alarm rate, 8.33 % at")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    seen = Decision(category="x", resolution=1, normal_scores=(1.0,), test_normal_scores=(0.5, 2.0))
    for one in (RIGHT, seen, Decision(category="ü", resolution=1)):
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
    unsealed(path, {field: value})
    refused(tmp_path, field)


def unsealed(path: Path, changes: dict[str, object]) -> None:
    """The file with other fields and, as an older one, nothing to tell that they are others."""
    content = {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"}
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"tile": 64, "overlap": 64}, "overlap by 64 px"), ({"overlap": 3}, "an overlap without tiles")],
)
def test_fields_that_do_not_fit_together_are_told(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    RIGHT.write(tmp_path)
    unsealed(tmp_path / "decision.json", changes)
    refused(tmp_path, words)


def test_a_decision_that_was_changed_or_is_another_models_is_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_text(json.dumps({"weights_sha256": name}))
        RIGHT.write(tmp_path / name)
        assert read(tmp_path / name) == RIGHT
    path = tmp_path / "one" / "decision.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"resolution": 32}))
    refused(path.parent, "damaged, changed or of another model")
    path.write_bytes((tmp_path / "other" / "decision.json").read_bytes())
    refused(path.parent, "damaged, changed or of another model")
    unsealed(path, {})
    refused(path.parent, "sha256 is missing")
    (path.parent / "model.json").write_text("{}")
    assert read(path.parent) == RIGHT, "as an earlier version wrote both"


@pytest.mark.parametrize("field", ["category", "resolution", "normal_scores"])
def test_a_field_that_is_missing_is_named(tmp_path: Path, field: str) -> None:
    RIGHT.write(tmp_path)
    path = tmp_path / "decision.json"
    content = json.loads(path.read_text())
    del content[field], content["sha256"]
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
