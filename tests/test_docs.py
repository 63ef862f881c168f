"""The README and the docs tell the truth: every option and method is there, links resolve, tables are the rows'."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median
from typing import Any

import click
import pytest

from kdad_bench.cli import COMMANDS
from kdad_bench.methods import METHODS, entry

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def command(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name][0].partition(":")
    found: click.Command = getattr(import_module(module), attribute)
    return found


def test_every_option_of_run_is_in_the_readme() -> None:
    options = [option for parameter in command("run").params for option in parameter.opts if option.startswith("--")]
    assert len(options) > 20
    assert [option for option in options if option not in README] == []


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_can_be_imported_and_is_in_the_readme(name: str) -> None:
    assert command(name).name == name
    assert f"kdad-bench {name}" in README


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_is_in_the_readme_and_has_its_page(name: str) -> None:
    assert f"`{name}`" in README
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert len(page) > 500


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and "://" not in target and not target.startswith("mailto:")]
    assert [target for target in local if not (page.parent / target).exists()] == []


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading).lower()).replace(" ", "-")
        found.add(next(name for n in range(100) if (name := f"{slug}-{n}" if n else slug) not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_headings_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s#:]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert [(to, name) for to, name in links if name not in anchors(page.parent / to if to else page)] == []


def test_the_tables_of_the_pages_are_those_of_the_rows_beside_them() -> None:
    from kdad_bench.leaderboard import store
    from kdad_bench.leaderboard.excerpts import refreshed, sections

    for place in ("docs/results/quick", "docs/results/real"):
        tables = sections(store.read(ROOT / place))
        assert refreshed(README, tables, place) == README
        assert "STFPM" in tables["ranking"]
    page = (ROOT / "docs" / "real-data.md").read_text(encoding="utf-8")
    assert refreshed(page, tables, place) == page
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert refreshed(page, sections(store.read(ROOT / "docs/results/gpu")), "docs/results/gpu") == page
    assert "H200" in page.partition("leaderboard begin")[2]


def test_the_quick_presets_are_the_winners_of_the_rule_that_chose_them() -> None:
    """What docs/recipes.md prints in bold is what people run."""
    page = (ROOT / "docs" / "recipes.md").read_text().partition("## Quick\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| (\w+) \| quick\[(.+)\] \|.*\*\*[0-9.]+\*\* \|$", page, re.MULTILINE)
    won = {name: dict(one.split("=") for one in said.split(",")) for name, said in found}
    assert {"stfpm", "rd4ad", "stad", "destseg", "efficientad"} <= set(won)
    for name, winner in won.items():
        preset = entry(name).presets["quick"]
        assert {key: str(getattr(preset, key)) for key in winner} == winner, name


# what the quick presets had when the rule was applied to them, as docs/recipes.md says it
BEFORE: dict[str, dict[str, Any]] = {
    "stfpm": {"learning_rate": 0.4}, "eca_mskdad": {"learning_rate": 0.4}, "rd4ad": {"learning_rate": 0.005},
    "dskd": {"learning_rate": 0.005}, "bmkd": {"learning_rate": 0.005}, "mkd": {"learning_rate": 0.003},
    "fractalad": {"learning_rate": 0.003}, "stad": {"width": 32, "steps": 20}, "destseg": {"learning_rate": 0.003},
    "ast": {}, "dinomaly": {"learning_rate": 0.002}, "efficientad": {"hard": 0.0},
}  # fmt: skip


def recipes_script() -> Any:
    spec = spec_from_file_location("recipes", ROOT / "benchmarks" / "recipes.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_that_chose_the_quick_presets_runs_the_recipes_of_its_page() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text().partition("## Quick\n")[2].partition("\n## ")[0]
    shown: dict[str, set[Any]] = {}
    for name, said in re.findall(r"^\| (\w+) \| quick(?:\[(.+)\])? \|", page, re.MULTILINE):
        changes = dict(one.split("=") for one in said.split(",") if one)
        values = {key: ast.literal_eval(value) for key, value in changes.items()}
        shown.setdefault(name, set()).add(replace(entry(name).presets["quick"], **{**BEFORE[name], **values}))
    run = {
        name: [replace(entry(name).presets["quick"], **one) for one in each]
        for name, each in recipes_script().QUICK.items()
    }
    assert {name: set(each) for name, each in run.items()} == shown
    assert all(len(set(each)) == len(each) and each[0] == entry(name).presets["quick"] for name, each in run.items())


def test_the_budgets_of_the_trials_of_the_standard_presets_are_those_that_the_page_says() -> None:
    script, parts = recipes_script(), {}
    for name, candidates in script.STANDARD.items():
        labels = [script.label("standard", name, one) for one in candidates]
        assert len(set(labels)) == len(labels), name
        preset = entry(name).presets["standard"]
        assert set(candidates[0]) <= {"steps", "image_size"}  # the preset's own, but for the size of the trial
        parts[name] = {**script.SMALL, **candidates[0]}["steps"] / preset.steps
    assert {name for name, part in parts.items() if part == 1} == {"dskd", "bmkd"}
    fewer = {name: part for name, part in parts.items() if part != 1}
    assert (min(fewer.values()), max(fewer.values())) == (0.25, 0.6)
    assert [name for name, part in fewer.items() if part == 0.25] == ["mkd"]
    small = {name for name in script.STANDARD if entry(name).presets["standard"].image_size == 128}
    assert small == {"eca_mskdad", "mkd"}


def test_the_time_that_the_readme_says_of_the_quick_table_is_that_of_its_rows() -> None:
    from kdad_bench.leaderboard import store

    seconds: dict[str, list[float]] = {}
    rows = store.read(ROOT / "docs" / "results" / "quick", ("method", "total_seconds", "threads")).rows()
    for row in rows:
        assert row["threads"] == 1
        seconds.setdefault(row["method"], []).append(row["total_seconds"])
    jobs = len(seconds) * 4 * 2  # categories, and the preset's seeds
    minutes = sum(median(those) for those in seconds.values()) * 4 * 2 / 60
    assert f"the {jobs} jobs are {minutes:.0f} minutes of one core" in README


@pytest.mark.parametrize("rows", ["real", "gpu"])
def test_a_method_with_real_rows_shows_them_on_its_own_page_and_they_are_those_of_the_rows(rows: str) -> None:
    from kdad_bench.leaderboard import store
    from kdad_bench.leaderboard.excerpts import refreshed, sections

    place = f"results/{rows}"
    tables = sections(store.read(ROOT / "docs" / place))
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "methods").glob("*.md")}
    shown = {name for name, text in pages.items() if f"begin: measured_{name} of {place} -->" in text}
    assert shown == {name.removeprefix("measured_") for name in tables if name.startswith("measured_")}
    assert [name for name in shown if refreshed(pages[name], tables, f"docs/{place}") != pages[name]] == []


@pytest.mark.parametrize(
    "name",
    [name if name in ("pixel_mean", "padim") else pytest.param(name, marks=pytest.mark.slow) for name in METHODS],
)
def test_the_rows_of_the_main_table_are_of_this_code(name: str, tmp_path: Path) -> None:
    from kdad_bench.harness import reproduce

    rows = reproduce.chosen(str(ROOT / "docs" / "results" / "quick"), methods=[(name, "")])
    (found,) = reproduce.reproduced(rows, reproduce.Asked(out=str(tmp_path)), lambda _: None)
    assert found.within(0.01), found  # another processor rounds otherwise
