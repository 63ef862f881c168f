"""Runs in these tests measure speed in a moment."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def measured_in_a_moment(short_measurements: None) -> None:
    """Every test of this folder."""
