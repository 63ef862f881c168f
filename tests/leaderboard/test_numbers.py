"""How numbers are written."""

from __future__ import annotations

import pytest

from kdad_bench.leaderboard.numbers import MISSING, large, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, MISSING), (0.0, "0.00"), (1e-6, "0.000001"), (0.0042, "0.004"), (0.0099, "0.010"),
        (0.01, "0.01"), (0.52, "0.52"), (9.994, "9.99"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346"),
        (9.996, "10.0"), (99.94, "99.9"), (99.96, "100"), (999.7, "1,000"),
    ],
)  # fmt: skip
def test_a_number_has_three_digits_and_a_small_one_at_least_one(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, MISSING), (0, "0"), (78, "78"), (999.4, "999"), (999.7, "1 k"), (1000, "1 k"), (456_000, "456 k"),
        (999_499, "999 k"), (999_500, "1.00 M"), (999_999, "1.00 M"), (1_234_567, "1.23 M"), (25_600_000, "25.60 M"),
    ],
)  # fmt: skip
def test_a_count_is_written_in_the_unit_of_what_is_written(value: float | None, text: str) -> None:
    assert large(value) == text
