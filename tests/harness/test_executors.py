"""Which executor runs the jobs, and what it is told at once that it lacks."""

from __future__ import annotations

import pytest

from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.on_ray import refuse_silence


def test_nobody_at_the_address_of_a_ray_cluster_is_told_at_once() -> None:
    for address, words in (("127.0.0.1:1", "nobody answers there"), ("nohost", "not HOST:PORT")):
        with pytest.raises(SelectionError, match=words):
            refuse_silence(address)
