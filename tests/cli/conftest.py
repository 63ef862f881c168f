"""Runs in these tests measure speed and start workers in a moment."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def in_a_moment(short_measurements: None, workers_soon_ready: None) -> None:
    """Every test of this folder."""
