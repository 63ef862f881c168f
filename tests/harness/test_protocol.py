"""The protocol object says what the code does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kdad_bench.harness import clock, cost
from kdad_bench.harness.choices import PRESETS
from kdad_bench.harness.protocol import PROTOCOL, PROTOCOL_VERSION, Protocol
from kdad_bench.leaderboard import inference
from kdad_bench.leaderboard.row import Row
from kdad_bench.metrics import exact as metrics
from kdad_bench.metrics.regions import region_index

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"

# The rules that make up each version. A rule may only change together with the version.
RULES = {"1": "d5dbc6b13a7a9971"}


def test_rules_change_only_with_the_version() -> None:
    rules = json.dumps(PROTOCOL.as_dict(), sort_keys=True)
    assert hashlib.sha256(rules.encode()).hexdigest()[:16] == RULES[PROTOCOL_VERSION]


def test_the_protocol_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROTOCOL.resolution = 224  # type: ignore[misc]


def test_the_version_fits_the_column() -> None:
    row = Row(
        job_id="1", method="m", dataset="d", category="c", seed=0, preset="quick", protocol_version=PROTOCOL_VERSION
    )
    assert row.protocol_version == PROTOCOL.version == PROTOCOL_VERSION


def test_the_code_uses_the_limits_of_the_protocol() -> None:
    assert tuple(metrics.AUPRO_LIMITS.values()) == PROTOCOL.fpr_limits
    assert (clock.WARMUP.calls, clock.WARMUP.seconds) == (PROTOCOL.warmup_calls, PROTOCOL.warmup_seconds)
    assert (clock.TIMED.calls, clock.TIMED.seconds) == (PROTOCOL.timed_calls, PROTOCOL.timed_seconds)
    assert (PROTOCOL.interval, PROTOCOL.significance) == (inference.CONFIDENCE, inference.SIGNIFICANCE)


def test_the_connectivity_is_that_of_the_region_index() -> None:
    mask = np.eye(4, dtype=bool)[None]
    assert region_index(mask).count == {4: 4, 8: 1}[PROTOCOL.connectivity]


def test_the_budgets_of_each_preset_are_those_of_the_page() -> None:
    (line,) = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `timed_seconds`"))
    warmup, timed = clock.QUICK_WARMUP, clock.QUICK_TIMED
    assert (
        f"The quick preset, which rows name, times {timed.calls} calls or {timed.seconds} seconds after a warm-up of "
        f"{warmup.calls} calls or {warmup.seconds} seconds."
    ) in line
    assert [name for name in PRESETS if cost.is_brief(SimpleNamespace(preset=name))] == ["quick"]  # type: ignore[arg-type]


def test_every_rule_stands_on_its_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    missing = [field.name for field in dataclasses.fields(Protocol) if f"`{field.name}`" not in text]
    assert not missing, f"docs/protocol.md does not explain {missing}"
    for name, value in PROTOCOL.as_dict().items():
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert f"| `{name}` | {shown} |" in text
