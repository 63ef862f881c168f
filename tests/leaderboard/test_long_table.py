"""The leaderboard as Parquet, CSV and JSON: the same lines in each, unrounded."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import plausible
import pyarrow.parquet as pq
import pytest

from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.pages import draw_pages

GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_csv_of_the_recorded_results_is_the_golden_file(tmp_path: Path) -> None:
    draw_pages(GOLDEN / "results", tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="") as new, (GOLDEN / "leaderboard.csv").open(newline="") as old:
        fresh, golden = list(csv.DictReader(new)), list(csv.DictReader(old))
    assert len(fresh) == len(golden)
    for line, wanted in zip(fresh, golden, strict=True):
        assert line.keys() == wanted.keys()
        for name, value in wanted.items():
            if name in ("mean", "median", "std", "low", "high", "rank") and value:
                assert float(line[name]) == pytest.approx(float(value), rel=1e-9)  # the last bit is the machine's
            else:
                assert line[name] == value


def test_parquet_csv_and_json_hold_the_same_lines(tmp_path: Path) -> None:
    for one in plausible.mixed_table():
        store.write(one, tmp_path)
    draw_pages(tmp_path, tmp_path)
    parquet = pq.read_table(tmp_path / "leaderboard.parquet").to_pylist()
    assert json.loads((tmp_path / "leaderboard.json").read_text()) == parquet
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [{name: said(value) for name, value in line.items()} for line in parquet] == lines


def said(value: object) -> str:
    """A value as it stands in CSV."""
    return "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)


def test_a_mean_over_categories_is_the_mean_of_its_category_lines(tmp_path: Path) -> None:
    for one in plausible.full_table(("stfpm",), ("bottle", "cable", "tile"), 2):
        store.write(one, tmp_path)
    draw_pages(tmp_path, tmp_path)
    lines = [line for line in json.loads((tmp_path / "leaderboard.json").read_text()) if line["metric"] == "aupro_30"]
    (mean,) = (line for line in lines if line["scope"] == "mean")
    categories = [line["mean"] for line in lines if line["scope"] == "category"]
    assert len(categories) == mean["categories"] == 3
    assert mean["mean"] == pytest.approx(sum(categories) / 3, rel=1e-12)
    assert (mean["category"], mean["seeds"], mean["complete"]) == (None, 2, True)
