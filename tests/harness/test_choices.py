"""Names that a person gives: seeds, methods, settings."""

from __future__ import annotations

import pytest

from kdad_bench.harness.choices import SelectionError, seeds_from


@pytest.mark.parametrize(("text", "seeds"), [("1", (0,)), ("3", (0, 1, 2)), ("3,7", (3, 7)), ("5,", (5,))])
def test_seeds_are_a_count_or_a_list(text: str, seeds: tuple[int, ...]) -> None:
    assert seeds_from(text) == seeds


@pytest.mark.parametrize("text", ["", "x", "0", "1,1", "-1", "1.5", "1,b"])
def test_seeds_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(SelectionError, match="seeds"):
        seeds_from(text)
