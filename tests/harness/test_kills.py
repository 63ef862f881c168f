"""Two hundred kills at random moments: minutes, so not part of the default run."""

from __future__ import annotations

import pytest

from tests.harness.kills import campaign, said


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_kills_cost_nothing() -> None:
    tally = campaign(200, seed=1)
    assert tally.clean, said(tally) + "\n".join(tally.bad_ends)
    assert all(tally.kills[kind] for kind in ("runner", "working", "idle", "starting", "compaction", "pages"))
