"""Speed that was measured once: rows share it when they are read, and nothing counts it twice."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import plausible
import pytest

from kdad_bench.leaderboard import compare, figures, long_table, markdown, measurement, pages, store
from kdad_bench.leaderboard.board import DRAWN, MOST_LOAD, Board, boards
from kdad_bench.leaderboard.measurement import SHARED, Measurement
from kdad_bench.leaderboard.row import COLUMNS, Row

GOLDEN = Path(__file__).parents[1] / "golden"
KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
UNTIMED: dict[str, Any] = {
    "latency_ms": None, "latency_p95_ms": None, "network_latency_ms": None, "images_per_second": None,
    "best_batch": None, "latency_samples_ms": (), "throughput": (),
}  # fmt: skip
FIGURES: dict[str, Any] = {
    "latency_ms": 7.0, "latency_p95_ms": 7.5, "latency_p99_ms": 8.0, "first_latency_ms": 70.0,
    "network_latency_ms": 5.0, "images_per_second": 210.0, "best_batch": 8, "one_thread_latency_ms": 11.0,
    "one_thread_latency_p95_ms": 12.0, "one_thread_latency_p99_ms": 13.0, "one_thread_images_per_second": 99.0,
    "speed_load": 0.01, "speed_threads": 2, "latency_samples_ms": (7.0, 7.5, 6.5) * 40,
    "throughput": ({"batch": 1, "images_per_second": 140.0}, {"batch": 8, "images_per_second": 210.0}),
}  # fmt: skip


def made(key: str = KEY, method: str = "stfpm", covers: tuple[str, ...] = (), **figures: Any) -> Measurement:
    return Measurement(
        key=key, created_at="2026-01-02T00:00:00+00:00", method=method, title=method, configuration={"resolution": 256},
        how="1 step on 4 normal images", figures={**FIGURES, **figures}, covers=covers,
    )  # fmt: skip


def sharing(method: str = "stfpm", categories: tuple[str, ...] = ("bottle", "cable"), key: str = KEY) -> list[Row]:
    return plausible.full_table((method,), categories, 2, speed_key=key, **UNTIMED)


def put(folder: Path, *things: Row | Measurement) -> Path:
    for thing in things:
        if isinstance(thing, Row):
            store.write(thing, folder)
        else:
            measurement.write(thing, folder)
    return folder


def board(folder: Path) -> Board:
    (found,) = boards(store.read(folder, DRAWN).table)
    return found


def test_every_figure_of_a_measurement_is_a_column_and_the_invented_one_has_all() -> None:
    assert set(FIGURES) == set(SHARED) <= set(COLUMNS)


def test_rows_that_name_a_measurement_have_its_figures_and_others_keep_their_own(tmp_path: Path) -> None:
    own = plausible.row("rd4ad", "bottle", 0)
    put(tmp_path, *sharing(), own, made())
    for line in store.read(tmp_path).rows():
        if line["method"] == "stfpm":
            found = {name: line[name] for name in SHARED}
            assert found == {
                **FIGURES,
                "latency_samples_ms": [7.0, 7.5, 6.5] * 40,
                "throughput": list(FIGURES["throughput"]),
            }
        else:
            assert line["latency_ms"] == own.latency_ms
            assert (line["speed_key"], line["one_thread_latency_ms"]) == (None, None)


def test_rows_whose_measurement_is_not_there_have_no_figures(tmp_path: Path) -> None:
    put(tmp_path, *sharing(), made(key=OTHER))
    assert {line["latency_ms"] for line in store.read(tmp_path).rows()} == {None}


def test_a_measurement_replaces_the_figures_of_the_rows_that_it_covers_and_of_no_others(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "schema_3.parquet", tmp_path)
    (old,) = store.read(tmp_path).rows()
    assert (old["schema_version"], old["speed_key"]) == (3, None)
    assert old["latency_ms"] > 0, "a row of schema 3 keeps the timing it brought"
    beside = plausible.row("stfpm", "cable", 0)
    put(tmp_path, beside, made(covers=(old["job_id"],)))
    found = {line["job_id"]: line for line in store.read(tmp_path).rows()}
    assert found[old["job_id"]]["latency_ms"] == 7.0
    assert found[old["job_id"]]["speed_key"] == KEY
    assert found[beside.job_id]["latency_ms"] == beside.latency_ms


def test_one_row_is_read_with_the_figures_it_shares_too(tmp_path: Path) -> None:
    rows = sharing()
    put(tmp_path, *rows, made())
    (line,) = store.matching(tmp_path, rows[0].job_id)
    assert line["latency_p99_ms"] == 8.0


def test_a_compaction_leaves_the_measurement_where_it_is(tmp_path: Path) -> None:
    put(tmp_path, *sharing(), made())
    before = store.read(tmp_path).table
    store.compact(tmp_path)
    assert store.read(tmp_path).table.equals(before)
    (tmp_path / made().file_name).unlink()
    assert {line["latency_ms"] for line in store.read(tmp_path).rows()} == {None}, "the rows hold no copy of it"
    measurement.write(made(latency_ms=9.0), tmp_path)
    assert {line["latency_ms"] for line in store.read(tmp_path).rows()} == {9.0}


def test_a_plan_reads_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *sharing(), made())
    monkeypatch.setattr(measurement, "found", None)
    assert {one.speed_key for one in store.finished(tmp_path).values()} == {KEY}


def damaged(change: Callable[[dict[str, Any]], Any]) -> bytes:
    said = json.loads(made().content)
    return json.dumps(change(said) or said).encode()


DAMAGED: dict[str, bytes] = {
    "torn": made().content[:200],
    "empty": b"",
    "no UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "nested": b"[" * 100_000,
    "another object": b'{"key": "0123456789abcdef"}',
    "one field too many": damaged(lambda said: {**said, "more": 1}),
    "a key that is none": damaged(lambda said: {**said, "key": "../../etc"}),
    "a date that is none": damaged(lambda said: {**said, "created_at": "yesterday"}),
    "a negative time": damaged(lambda said: said["figures"].update(latency_ms=-1)),
    "an infinite time": damaged(lambda said: said["figures"].update(latency_ms=1e999)),
    "a text for a time": damaged(lambda said: said["figures"].update(latency_ms="7")),
    "an accuracy": damaged(lambda said: said["figures"].update(image_auroc=1.0)),
    "figures that are none": damaged(lambda said: {**said, "figures": [1]}),
    "a broken curve": damaged(lambda said: said["figures"].update(throughput=[{"batch": 0}])),
    "covers a number": damaged(lambda said: {**said, "covers": [1]}),
    "covers a text": damaged(lambda said: {**said, "covers": "0123"}),
    "a time beyond any float": damaged(lambda said: said["figures"].update(latency_ms=10**400)),
    "samples beyond any float": damaged(lambda said: said["figures"].update(latency_samples_ms=[10**400])),
    "samples beyond float32": damaged(lambda said: said["figures"].update(latency_samples_ms=[1e39])),
    "a truth for a batch": damaged(
        lambda said: said["figures"].update(throughput=[{"batch": True, "images_per_second": 1}])
    ),
    "a version in words": damaged(lambda said: {**said, "version": "99"}),
    "newer": damaged(lambda said: {**said, "version": 99}),
    "no method": damaged(lambda said: {**said, "method": None}),
    "an escape": damaged(lambda said: {**said, "how": "\x1b[2J"}),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_no_measurement_is_named_and_costs_no_row(kind: str, tmp_path: Path) -> None:
    put(tmp_path, *sharing())
    (tmp_path / f"speed-stfpm-{KEY}.json").write_bytes(DAMAGED[kind])
    found = store.read(tmp_path)
    assert found.table.num_rows == 4
    assert [problem.file for problem in found.problems] == [f"speed-stfpm-{KEY}.json"]
    assert found.problems[0].what.isprintable()
    assert not store.verify(tmp_path).sound


def test_whole_numbers_of_json_are_figures_of_any_column(tmp_path: Path) -> None:
    put(tmp_path, *sharing())
    figures = {"latency_ms": 7, "latency_samples_ms": [16_777_217, 8]}  # more digits than float32 has
    content = damaged(lambda said: said["figures"].update(figures))
    (tmp_path / f"speed-stfpm-{KEY}.json").write_bytes(content)
    found = store.read(tmp_path)
    assert found.problems == ()
    assert found.rows()[0]["latency_samples_ms"] == [16_777_216.0, 8.0]


def test_a_measurement_that_cannot_be_is_not_made() -> None:
    with pytest.raises(ValueError, match="latency_ms is -1"):
        made(latency_ms=-1.0)


def test_of_two_measurements_with_one_key_the_newest_counts(tmp_path: Path) -> None:
    newer = replace(made(latency_ms=9.0), created_at="2026-03-01T00:00:00+00:00")
    put(tmp_path, *sharing(), made())
    (tmp_path / "speed-a-copy.json").write_bytes(newer.content)
    assert {line["latency_ms"] for line in store.read(tmp_path).rows()} == {9.0}


@pytest.mark.parametrize(("older", "newer"), [(KEY, OTHER), (OTHER, KEY)])
def test_of_two_measurements_that_cover_a_row_the_newest_counts(older: str, newer: str, tmp_path: Path) -> None:
    """Keys differ by versions and cores, jobs do not; nor do the names of the files say which is newer."""
    row = plausible.row("stfpm", "bottle", 0)
    first = replace(made(older, covers=(row.job_id,), latency_ms=50.0), created_at="2026-01-02T01:00:00+00:00")
    anew = replace(made(newer, covers=(row.job_id,), latency_ms=5.0), created_at="2026-01-01T23:30:00-05:00")
    put(tmp_path, row, first, anew)
    (line,) = store.read(tmp_path).rows()
    assert (line["latency_ms"], line["speed_key"]) == (5.0, newer)


def test_what_was_measured_once_counts_once_in_tables_and_exports(tmp_path: Path) -> None:
    put(tmp_path, *sharing(), made())
    (cost,) = (line for line in long_table.lines([board(tmp_path)]) if line["metric"] == "latency_ms")
    assert (cost["mean"], cost["std"]) == (7.0, None)
    assert long_table.lines([board(tmp_path)])
    pages.draw_pages(tmp_path, tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        told = {line["metric"]: line["mean"] for line in csv.DictReader(file) if line["scope"] == "jobs"}
    shown = [name for name in SHARED if name not in ("best_batch", "speed_load", "speed_threads")]
    assert all(float(told[name]) == FIGURES[name] for name in shown if not isinstance(FIGURES[name], tuple))


@pytest.mark.parametrize(("calls", "p95", "p99"), [(5, None, None), (20, 7.5, None), (100, 7.5, 8.0)])
def test_a_percentile_of_few_calls_is_none_whoever_wrote_it(
    calls: int, p95: float | None, p99: float | None, tmp_path: Path
) -> None:
    """The slowest of five stood in a table as a 99th percentile; nor does what a job timed take its place."""
    own = plausible.full_table(("stfpm",), ("carpet", "grid"), 2, latency_ms=20.0, latency_p95_ms=21.0)
    put(tmp_path, *sharing(), made(latency_samples_ms=(7.0,) * calls), *own)
    found = board(tmp_path)
    names = ("latency_ms", "latency_p95_ms", "latency_p99_ms")
    assert [found.typical("stfpm", name) for name in names] == [7.0, p95, p99]
    costs = {line["metric"]: (line["mean"], line["median"]) for line in long_table.lines([found])}
    assert [costs.get(name, (None, None)) for name in names] == [(7.0, 7.0), (p95, p95), (p99, p99)]


def test_what_jobs_timed_as_they_ran_does_not_count_beside_what_was_measured_alone(tmp_path: Path) -> None:
    """Else a median of both would be of neither number of threads, and above percentiles that one of them has."""
    own = plausible.full_table(("stfpm",), ("carpet", "grid"), 2, latency_ms=20.0, latency_p95_ms=21.0)
    put(tmp_path, *sharing(categories=("bottle",)), made(), *own)
    found = board(tmp_path)
    (cost,) = (line for line in long_table.lines([found]) if line["metric"] == "latency_ms")
    assert (cost["mean"], cost["std"]) == (7.0, None)
    assert figures.batches(found, store.read(tmp_path).rows()) == {"stfpm": [(1, 140.0), (8, 210.0)]}
    assert [found.typical("stfpm", name) for name in ("latency_ms", "latency_p95_ms")] == [7.0, 7.5]
    assert not found.unsteady("stfpm", "latency_ms")
    seconds = [row["train_seconds"] for row in found.rows["stfpm"]]
    assert found.typical("stfpm", "train_seconds") == statistics.median(seconds)  # of all jobs


@pytest.mark.parametrize("load", [0.0, MOST_LOAD, MOST_LOAD + 0.01, None])
def test_a_measurement_beside_other_work_is_marked(load: float | None, tmp_path: Path) -> None:
    put(tmp_path, *sharing(), made(speed_load=load))
    found = board(tmp_path)
    assert found.unsteady("stfpm", "latency_ms") is (load == MOST_LOAD + 0.01)
    assert not found.unsteady("stfpm", "parameters")
    assert ("7.00 ~" in markdown.speed(found, {})) is (load == MOST_LOAD + 0.01)


def test_the_page_says_how_speed_was_measured_only_where_it_was_measured_alone(tmp_path: Path) -> None:
    put(tmp_path / "alone", *sharing(), made())
    put(tmp_path / "own", *plausible.full_table(("stfpm",), ("bottle", "cable"), 2))
    alone, own = (markdown.speed(board(tmp_path / name), {}) for name in ("alone", "own"))
    assert "measured once per method and settings, with no job beside it, with 2 CPU threads" in alone
    assert "one thread" in alone.splitlines()[0]
    assert "2 CPU threads, and with one; p95" in alone
    assert "measured once" not in own
    assert "one thread" not in own.splitlines()[0]
    single = {name: None for name in FIGURES if name.startswith("one_thread")}
    assert single
    put(tmp_path / "gpu", *sharing(), made(**single))  # where nothing is measured with one
    assert "2 CPU threads; p95" in markdown.speed(board(tmp_path / "gpu"), {})


def test_a_comparison_of_shared_figures_has_one_pair_and_no_interval(tmp_path: Path) -> None:
    put(tmp_path, *sharing(), *sharing("rd4ad", key=OTHER), made(), made(OTHER, "rd4ad", latency_ms=21.0))
    table = store.read(tmp_path, DRAWN).table
    (one,) = compare.of_methods(table, "stfpm", "rd4ad", ("latency_ms",), 0.005)
    assert (one.first, one.second, one.pairs, one.low, one.verdict) == (7.0, 21.0, 1, None, "worse")
    assert one.category == compare.ALONE
    assert len(compare.of_methods(table, "stfpm", "rd4ad", ("image_auroc",), 0.005)) == 3
