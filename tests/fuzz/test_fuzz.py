"""The short form of the fuzz run, and that it sees what it looks for."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import campaign, kinds
from tests.fuzz.__main__ import SHARES

SHORT = {"images": 40, "scans": 15, "models": 15, "rows": 8, "logs": 25, "caches": 12, "configs": 6, "published": 15,
         "archives": 25}  # fmt: skip


def test_every_kind_has_a_share() -> None:
    assert list(SHARES) == list(kinds.PREPARE) == list(SHORT)


@pytest.mark.parametrize("kind", SHORT)
def test_spoilt_inputs_are_refused_in_a_line_or_used(kind: str) -> None:
    found = campaign.watched(kind, SHORT[kind], seed=1)
    assert found["faults"] == []
    assert found["tried"] == SHORT[kind]
    assert isinstance(found["peak_mb"], int)
    assert 0 < found["peak_mb"] < 1024


def write_outside(draw: object, place: Path) -> str:
    (place.parent / os.urandom(8).hex()).write_text("x")
    return "accepted"


def wait(draw: object, place: Path) -> str:
    time.sleep(3)
    return "accepted"


def take_memory(draw: object, place: Path) -> str:
    return str(len(bytes(2 << 30)))


def raise_something(draw: object, place: Path) -> str:
    raise KeyError("x")


FAULTS = {
    "outside": (write_outside, "outside"),
    "hang": (wait, "hang"),
    "memory": (take_memory, "fault"),
    "traceback": (raise_something, "fault"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_campaign_sees_what_it_looks_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attack, answer = FAULTS[name]
    monkeypatch.setitem(kinds.PREPARE, "logs", lambda base: attack)
    monkeypatch.setattr(campaign, "SECONDS", 1)
    monkeypatch.setattr(campaign, "MEMORY", 1 << 30)
    pid = os.fork()  # the limits stay in the child
    if pid == 0:
        try:
            seen = [record["answer"] for record in campaign.attacks("logs", 2, seed=0)]
            os._exit(0 if seen == [answer] * 2 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_process_that_is_killed_is_seen_and_the_campaign_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import json, os, sys; n = int(sys.argv[sys.argv.index('--first') + 1])"
    code += "; print(json.dumps({'number': n, 'answer': 'accepted'}), flush=True); os.abort()"
    popen = campaign.subprocess.Popen
    monkeypatch.setattr(
        campaign.subprocess, "Popen", lambda command, **rest: popen([sys.executable, "-c", code, *command[3:]], **rest)
    )
    found = campaign.watched("logs", 4, seed=0)
    assert (found["tried"], found["accepted"], found["killed"]) == (4, 2, 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", SHARES)
def test_the_long_form(kind: str) -> None:
    assert campaign.watched(kind, 5000 * SHARES[kind] // sum(SHARES.values()), seed=2)["faults"] == []
