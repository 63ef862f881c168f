"""The examples of docs/api.md run, in one session from its top to its end, in a folder of their own."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


def examples(page: Path) -> doctest.DocTest:
    """All Python blocks of a page as one test; its lines keep their numbers."""
    text = page.read_text(encoding="utf-8")
    inside = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    kept = [""] * text.count("\n")
    for block in inside.finditer(text):
        start = text[: block.start(1)].count("\n")
        kept[start : start + block[1].count("\n")] = block[1].splitlines()
    return doctest.DocTestParser().get_doctest("\n".join(kept), {}, page.name, str(page), 0)


def test_the_examples_run_and_give_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDAD_DATA", raising=False)
    test = examples(PAGE)
    assert len(test.examples) > 12
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_an_example_that_gives_something_else_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\n>>> 1 + 1\n3\n\n```\n")
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(examples(page), out=lambda _: None)
    assert runner.summarize(verbose=False).failed == 1
