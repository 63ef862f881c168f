"""What errors say, in one line: also those that say nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from PIL import Image

from kdad_bench.cli.kernels import inspect
from kdad_bench.datasets import DatasetError, decoding
from kdad_bench.kernels import compile_check, dispatch
from kdad_bench.text import reason_of


@pytest.mark.parametrize(
    ("error", "first", "last"),
    [
        (ValueError("one\ntwo\n"), "one", "two"),
        (ValueError("\n  one \n\n"), "one", "one"),
        (AssertionError(), "AssertionError", "AssertionError"),
        (ValueError(" \n"), "ValueError", "ValueError"),
        (OSError("/a/b"), "OSError", "OSError"),
    ],
)
def test_an_error_says_a_line_or_its_name(error: Exception, first: str, last: str) -> None:
    assert reason_of(error, but="/a/b") == first
    assert reason_of(error, but="/a/b", last=True) == last


def test_a_compiler_that_fails_without_a_word_is_a_line_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(launch: object, arch: int) -> None:
        raise AssertionError

    launch = SimpleNamespace(kernel=SimpleNamespace(__name__="k"), case="c")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    monkeypatch.setattr(compile_check, "shipped", lambda quick: [launch])
    monkeypatch.setattr(compile_check, "compiled", fails)
    done = CliRunner().invoke(inspect, ["--arch", "90"])
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert done.output.splitlines()[1].split() == ["k", "c", "sm_90", "AssertionError"]
    assert done.output.endswith("1 failed\n")


def test_a_picture_whose_error_names_its_path_alone_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)

    def fails(*_: object, **__: object) -> None:
        raise ValueError(str(path))

    monkeypatch.setattr(decoding.Image, "open", fails)
    with pytest.raises(DatasetError, match=r"a\.png: not a readable image \(ValueError\); restore the file$"):
        decoding.open_image(path)
