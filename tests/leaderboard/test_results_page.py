"""docs/results.md says what the code does."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from kdad_bench.cli import cli
from kdad_bench.leaderboard import excerpts, long_table, metric, pages, row, store
from kdad_bench.leaderboard.grouping import GROUP_COLUMNS
from kdad_bench.leaderboard.metric import HEADLINE
from tests.leaderboard.words import plain, said_in, words_of

RESULTS = Path(__file__).parents[2] / "docs" / "results"
GOLDEN = Path(__file__).parents[1] / "golden"
PAGE = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")


def test_every_column_stands_there_with_its_type_and_meaning_in_order() -> None:
    lines = [f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in row.describe()]
    assert "\n".join(lines) in PAGE
    assert f"Schema version {row.SCHEMA_VERSION}." in PAGE
    for version, change in row.SCHEMA_HISTORY.items():
        assert f"| {version} | {change} |" in PAGE
    for name in row.KEY_COLUMNS:
        assert f"`{name}`" in PAGE


def test_every_column_of_the_leaderboard_as_data_stands_there_in_the_order_of_its_files(tmp_path: Path) -> None:
    lines = [f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in long_table.describe()]
    section = PAGE.partition("## What leaderboard.csv, .json and .parquet hold\n")[2].partition("\n## ")[0]
    assert "\n".join(lines) in section
    pages.draw_pages(GOLDEN / "results", tmp_path)
    names = [name for name, _, _ in long_table.describe()]
    table = pq.read_table(tmp_path / "leaderboard.parquet")
    assert [(field.name, str(field.type).replace("element: ", "")) for field in table.schema] == [
        (name, kind) for name, kind, _ in long_table.describe()
    ]
    assert (tmp_path / "leaderboard.csv").read_text().splitlines()[0].split(",") == names
    assert all([*line] == names for line in json.loads((tmp_path / "leaderboard.json").read_text()))


def test_every_metric_stands_there_with_its_unit_and_direction() -> None:
    for name, about in metric.METRICS.items():
        better = "higher" if about.higher_is_better else "lower"
        assert f"| `{name}` | {about.label} | {about.unit or 'none'} | {better} |" in PAGE


def test_every_column_that_separates_groups_is_named() -> None:
    sentence = PAGE[PAGE.index("Rows are averaged only if") : PAGE.index("each such group")]
    for name in GROUP_COLUMNS:
        assert f"`{name}`" in sentence


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (("leaderboard",), ("--out", "--figures", "--into", "--check")),
        (("results", "verify"), ("--expect",)),
        (("results", "export"), ("csv|json|sqlite",)),
        (("compare",), ()),
        (("show",), ()),
    ],
)
def test_every_command_and_option_that_it_names_exists(command: tuple[str, ...], options: tuple[str, ...]) -> None:
    said = CliRunner().invoke(cli, [*command, "--help"]).output
    assert f"`kdad-bench {' '.join(command)} " in PAGE
    for option in options:
        assert option in said
        assert option.replace("|", r"\|") in PAGE


def test_the_names_of_the_tables_that_another_page_may_hold_are_listed() -> None:
    for name in ("ranking", "speed", *HEADLINE):
        assert f"`{name}`" in PAGE
    assert excerpts.END in PAGE


@pytest.mark.parametrize("folder", sorted(path.name for path in RESULTS.iterdir() if path.is_dir()))
def test_the_words_of_published_rows_follow_from_their_settings(folder: str) -> None:
    """`python -m tests.leaderboard.words docs/results/FOLDER` says in them what was mended since."""
    found = [row for row in store.read(RESULTS / folder).rows() if row["status"] == "ok" and plain(row)]
    assert found
    assert [row["job_id"] for row in found if said_in(row) != words_of(row)] == []
