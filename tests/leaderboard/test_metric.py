"""A metric is one entry: rows, tables, show, compare and the docs are drawn from it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from kdad_bench.cli.show import SECTIONS
from kdad_bench.leaderboard import board, html, metric, row
from kdad_bench.leaderboard.metric import MEASURED

DOCS = Path(__file__).parents[2] / "docs"
BETTER = {True: "higher", False: "lower", None: "not compared"}

# one more entry, put into the table before anything is drawn from it, and nothing else
NEW = """
import sys, types, importlib, pathlib
import kdad_bench.leaderboard.metric as metric
entry = metric.Metric(metric.ACCURACIES, "image novelty", "how new it is", "metrics.exact.image_metrics",
                      tables=("headline", "jobs", "end"))
source = dict(metric.MEASURED)
source["image_novelty"] = entry
metric.MEASURED = types.MappingProxyType(source)
metric.METRICS = types.MappingProxyType({k: v for k, v in source.items() if v.higher_is_better is not None})
metric.ACCURACY = tuple(k for k, v in metric.METRICS.items() if v.section == metric.ACCURACIES)
metric.HEADLINE = metric.shown_in("headline")
sys.path.insert(0, sys.argv[1])
import plausible
from click.testing import CliRunner
from kdad_bench.cli import cli
from kdad_bench.leaderboard import pages, store
folder = pathlib.Path(sys.argv[2])
for made in plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2, image_novelty=0.625):
    store.write(made, folder)
pages.draw_pages(folder, folder)
for name in ("md", "html", "csv"):
    text = (folder / f"leaderboard.{name}").read_text()
    assert "0.625" in text, name
    assert ("image_novelty" if name == "csv" else "image novelty") in text, name
said = CliRunner().invoke(cli, ["show", made.job_id, "--results", str(folder)]).output
assert "image_novelty        0.625" in said, said
said = CliRunner().invoke(cli, ["compare", "stfpm", "rd4ad", "--results", str(folder), "--all"]).output
assert "image_novelty" in said, said
from rich.console import Console
from kdad_bench.cli.summary_table import summary_table
console = Console(width=200, record=True, file=open("/dev/null", "w"))
console.print(summary_table(store.read(folder).rows()))
assert "image novelty" in console.export_text()
"""


def test_a_new_entry_is_a_column_and_stands_in_every_table(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NEW, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_columns_of_a_row_are_those_of_the_table_in_its_order() -> None:
    described = {name: (kind, meaning) for name, kind, meaning in row.describe()}
    assert [name for name in described if name in MEASURED] == list(MEASURED)
    assert all(described[name] == (one.type, one.what) for name, one in MEASURED.items())


def test_show_has_every_column_once_but_those_it_says_in_another_way() -> None:
    listed = [name for columns in SECTIONS.values() for name in columns]
    assert len(listed) == len(set(listed))
    otherwise = {
        "status",
        "reason",
        "readings",
        "deviations",
        "settings",
        "environment",
        "throughput",
        "learnt_together",
    }
    raw = {"image_scores", "image_labels", "image_names", "normal_scores", "latency_samples_ms", "losses"}
    assert set(row.COLUMNS) == {*listed, *otherwise, *raw}


def test_the_renderers_read_what_they_show() -> None:
    shown = {name for name, one in MEASURED.items() if one.tables}
    assert shown | set(metric.ACCURACY) <= set(board.DRAWN)
    assert {name for name, *_ in html.JOB_COLUMNS} <= set(board.DRAWN)


def test_every_entry_stands_in_the_docs_and_names_what_exists() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    for name, one in MEASURED.items():
        line = f"| `{name}` | {one.label} | {one.unit or 'none'} | {BETTER[one.higher_is_better]} | {one.what} |"
        assert f"{line} `{one.computed}` |" in page
        module, _, function = one.computed.rpartition(".")
        assert callable(getattr(import_module(f"kdad_bench.{module}"), function))


def test_the_protocol_and_the_tables_have_one_limit_for_a_noisy_timing() -> None:
    from kdad_bench.harness.protocol import PROTOCOL

    assert PROTOCOL.spread_limit == board.UNSTEADY
    page = (DOCS / "protocol.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith("| `spread_limit` |"))
    assert "standard deviation over the jobs" in line
    assert "`~`" in line


@pytest.mark.parametrize("unit", board.TIMED)
def test_each_unit_of_a_timing_is_one_of_a_metric(unit: str) -> None:
    assert any(one.unit == unit for one in MEASURED.values())
