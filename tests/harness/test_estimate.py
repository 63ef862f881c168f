"""How long a plan should take, whatever became of the file that remembers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdad_bench.harness.estimate import estimate, history_path, kind_of, read_history, remember
from tests.harness.planned import jobs_of


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "[" * 100_000,
        '{"KIND": 3}',
        '{"KIND": ["a", null]}',
        '{"KIND": [NaN]}',
        '{"KIND": [1e999]}',
        '{"KIND": [-1]}',
        '{"KIND": [true]}',
        '{"KIND": {"a": 1}}',
        '{"KIND": [[1]]}',
        "\0\0\0",
    ],
)
def test_a_damaged_history_is_made_anew(
    content: str, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    job = jobs_of(tiny_tree)[0]
    history_path().write_text(content.replace("KIND", kind_of(job)))
    assert estimate([job]).seconds is None
    remember(job, 2.0)
    assert json.loads(history_path().read_text())[kind_of(job)] == [2.0]
    assert estimate([job, job]).seconds == 4.0


def test_one_bad_kind_costs_no_other(tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    history_path().write_text('{"a": [1, 2, 3], "b": "x"}')
    assert read_history() == {"a": [1, 2, 3]}
    history_path().unlink()
    history_path().mkdir()
    assert read_history() == {}
    remember(jobs_of(tiny_tree)[0], 1.0)  # cannot be written: no error
