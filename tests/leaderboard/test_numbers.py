"""How numbers are written."""

from __future__ import annotations

import pytest

from kdad_bench.leaderboard.numbers import MISSING, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, MISSING), (0.0, "0.00"), (1e-6, "0.000001"), (0.0042, "0.004"), (0.0099, "0.010"),
        (0.01, "0.01"), (0.52, "0.52"), (9.994, "9.99"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346"),
    ],
)  # fmt: skip
def test_a_number_has_three_digits_and_a_small_one_at_least_one(value: float | None, text: str) -> None:
    assert number(value) == text
