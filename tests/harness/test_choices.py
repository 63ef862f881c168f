"""Names that a person gives: seeds, methods, settings."""

from __future__ import annotations

import pytest

from kdad_bench.harness.choices import SelectionError, parse_assignment, seeds_from
from kdad_bench.harness.selection import device_from


@pytest.mark.parametrize(("text", "seeds"), [("1", (0,)), ("3", (0, 1, 2)), ("3,7", (3, 7)), ("5,", (5,))])
def test_seeds_are_a_count_or_a_list(text: str, seeds: tuple[int, ...]) -> None:
    assert seeds_from(text) == seeds


@pytest.mark.parametrize("text", ["", "x", "0", "1,1", "-1", "1.5", "1,b"])
def test_seeds_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(SelectionError, match="seeds"):
        seeds_from(text)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("1" * 5000, "a number of too many digits"),
        ("0x" + "f" * 5000, "a number of too many digits"),  # read, but not printed
        ("[1, 0x" + "f" * 5000 + "]", "a number of too many digits"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_a_setting_that_python_cannot_hold_is_one_line(value: str, why: str) -> None:
    with pytest.raises(SelectionError, match=rf"^--set stfpm\.steps=\.\.\.: {why}$"):
        parse_assignment(f"stfpm.steps={value}")
    assert parse_assignment("stfpm.steps=123456789012345678901") == ("stfpm", "steps", 123456789012345678901)
    assert parse_assignment("stfpm.schedule=[half") == ("stfpm", "schedule", "[half")


@pytest.mark.parametrize("text", ["1" * 5000, "1" * 5000 + ",", "0," + "1" * 5000])
def test_a_seed_of_thousands_of_digits_is_a_short_line_of_the_option(text: str) -> None:
    with pytest.raises(SelectionError, match=r"^seeds '1{20}\.\.\.': a seed is at most 9223372036854775807$"):
        seeds_from(text)


def test_a_device_of_thousands_of_digits_is_a_short_line() -> None:
    with pytest.raises(SelectionError, match=r"^device 'cuda:1{35}' is not one of auto, cpu, cuda, cuda:N$"):
        device_from("cuda:" + "1" * 5000)
