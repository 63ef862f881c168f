"""The border where rows come in: whatever a file holds, the sound rows are drawn and the others are named."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import random
import re
from pathlib import Path
from typing import Any

import plausible
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdad_bench import parquet
from kdad_bench.cli import cli
from kdad_bench.leaderboard import border, store
from kdad_bench.leaderboard import row as rows
from kdad_bench.leaderboard.metric import ACCURACY, MEASURED
from kdad_bench.leaderboard.text import printable

ESCAPE = "\x1b]0;owned\x07\x1b[31mred"


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert not isinstance(done.exception, Exception), done.exception  # SystemExit is none
    return done


def sound() -> list[rows.Row]:
    return plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2)


def change(folder: Path, column: str, value: Any, kind: pa.DataType | None = None) -> Path:
    """One more row in a file of its own, whose `column` holds `value` as somebody else's program would write it."""
    path = store.write(plausible.row("stfpm", "tile", 7), folder)
    table = pq.read_table(path)
    place = table.column_names.index(column)
    field = table.schema.field(column)
    made = pa.array([value], kind or field.type)
    pq.write_table(table.set_column(place, pa.field(column, made.type), made), path)
    return path


HOSTILE: dict[str, tuple[str, Any, pa.DataType | None]] = {
    "a method named as a variant": ("method", "stfpm:held_out", None),
    "an escape in the title": ("title", ESCAPE, None),
    "an escape in the method": ("method", ESCAPE, None),
    "an escape in the category": ("category", ESCAPE, None),
    "an escape in a reason": ("reason", ESCAPE, None),
    "an escape in a reading": ("readings", [ESCAPE], None),
    "an escape in a deviation": ("deviations", [ESCAPE], None),
    "a line break in the title": ("title", "a\n\n# b\n\n| c | d |", None),
    "a carriage return": ("category", "good\rbad", None),
    "text that runs from right to left": ("title", "abc\u202edef", None),
    "a C1 control character": ("device_name", "\x9b31m", None),
    "an infinite accuracy": ("image_auroc", math.inf, None),
    "a NaN accuracy": ("aupro_30", math.nan, None),
    "an infinite cost": ("latency_ms", math.inf, None),
    "a NaN cost": ("train_seconds", math.nan, None),
    "an accuracy above 1": ("pixel_auroc", 7.5, None),
    "a negative time": ("latency_ms", -3.0, None),
    "a time of ages": ("latency_ms", 1e300, None),
    "a negative seed": ("seed", -(2**63), None),
    "a negative size": ("resolution", -1, None),
    "a text for a number": ("image_auroc", "0.5", pa.string()),
    "a number for a text": ("title", 5, pa.int64()),
    "a list for a text": ("category", ["a"], pa.list_(pa.string())),
    "a truth value for a seed": ("seed", True, pa.bool_()),
    "a seed beyond 64 bits": ("seed", 2**64 - 1, pa.uint64()),
    "a half seed": ("seed", 0.5, pa.float64()),
    "bytes for a text": ("method", b"\xff\xfe", pa.binary()),
    "no method": ("method", None, None),
    "no date": ("created_at", "yesterday", None),
    "a date in another age": ("created_at", "9999-12-31T23:59:59+00:00", None),
    "a job that is a path": ("job_id", "../../etc/passwd", None),
    "a job that is a formula": ("job_id", "=cmd()", None),
    "an enormous text": ("title", "a" * 3_000_000, None),
    "an enormous reading": ("readings", ["a" * 3_000_000], None),
    "an unknown status": ("status", "done", None),
    "a failure without a reason": ("status", "failed", None),
    "null among the readings": ("readings", [None], None),
}
RAW: dict[str, tuple[str, Any, pa.DataType | None]] = {  # columns that only show, export, verify and compact read
    "settings that are no JSON": ("settings", "{", None),
    "settings that are a list": ("settings", "[]", None),
    "an environment nested deeply": ("environment", '{"a":' * 60 + "1" + "}" * 60, None),
    "JSON nested beyond the stack": ("losses", "[" * 100_000, None),
    "a NaN score": ("image_scores", [math.nan], None),
    "no score": ("image_scores", [None], None),
    "an infinite sample": ("latency_samples_ms", [math.inf], None),
    "an escape in an image's name": ("image_names", [ESCAPE], None),
    "an infinite throughput": ("throughput", [{"batch": 1, "images_per_second": math.inf}], None),
    "half a throughput": ("throughput", [{"batch": None, "images_per_second": 1.0}], None),
    "a NaN difference of batches": ("batch_invariance", math.nan, None),
}


def assert_quiet(text: str) -> None:
    """No character that a terminal obeys."""
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text), text


def assert_valid(folder: Path, made: list[rows.Row]) -> None:
    """Every form is whole, holds the sound rows, and is what its kind demands."""
    strict: Any = {"parse_constant": lambda name: pytest.fail(name)}
    page = (folder / "leaderboard.html").read_text()
    jobs = re.search(r'id="jobs-data">(.*?)</script>', page, re.S)
    assert jobs
    lines = json.loads(jobs[1], **strict)["rows"]
    assert {line[-1] for line in lines} >= {one.job_id for one in made}
    assert json.loads((folder / "leaderboard.json").read_text(), **strict)
    text = (folder / "leaderboard.md").read_text()
    for content in (page, text, (folder / "leaderboard.csv").read_text()):
        assert "\x1b" not in content
    assert "## Left out" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_row_is_set_aside_by_every_command_and_the_rest_is_drawn(name: str, tmp_path: Path) -> None:
    made = sound()
    for one in made:
        store.write(one, tmp_path)
    column = HOSTILE[name][0]
    path = change(tmp_path, *HOSTILE[name])
    said = f"{path.name}: column {'reason' if column == 'status' and HOSTILE[name][1] == 'failed' else column}"
    drawn = run("leaderboard", tmp_path)
    assert drawn.exit_code == 0
    assert f"left out: {said}" in drawn.stderr
    assert f"{len(made)} jobs of {len(made) + 1} files" in drawn.stdout
    assert_valid(tmp_path, made)
    checked = run("results", "verify", tmp_path)
    assert (checked.exit_code, said.replace(": ", ": left out: ", 1) in checked.stderr) == (1, True)
    shown = run("show", made[0].job_id, "--results", tmp_path)
    compared = run("compare", "rd4ad", "stfpm", "--results", tmp_path)
    assert (shown.exit_code, compared.exit_code) == (0, 1)
    for done in (drawn, checked, shown, compared):
        assert_quiet(done.output)
    for kind in ("csv", "json", "sqlite"):
        assert run("results", "export", tmp_path, kind, "--out", tmp_path / f"all.{kind}").exit_code == 0
    assert len(json.loads((tmp_path / "all.json").read_text())) == len(made)


@pytest.mark.parametrize("name", RAW)
def test_raw_columns_are_checked_where_they_are_read(name: str, tmp_path: Path) -> None:
    made = sound()[:2]
    for one in made:
        store.write(one, tmp_path)
    path = change(tmp_path, *RAW[name])
    checked = run("results", "verify", tmp_path)
    assert checked.exit_code == 1
    assert f"{path.name}: left out: column {RAW[name][0]} " in checked.stderr
    assert_quiet(checked.output)
    assert run("results", "export", tmp_path, "json", "--out", tmp_path / "all.json").exit_code == 0
    assert len(json.loads((tmp_path / "all.json").read_text())) == len(made)
    run("show", plausible.row("stfpm", "tile", 7).job_id, "--results", tmp_path)
    run("results", "compact", tmp_path)
    assert path.exists(), "what was left out is never deleted"
    assert run("leaderboard", tmp_path).exit_code == 0


def test_lists_are_looked_at_a_few_at_once_and_one_too_long_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python's own numbers they would take eight times the memory of the column."""
    looked_at: list[int] = []
    whole = border._values

    def values(column: pa.ChunkedArray) -> list[Any]:
        found = whole(column)
        looked_at.append(sum(len(value) for value in found if isinstance(value, list)))
        return found

    lists = [[1.0] * 10, [math.inf], [0.0] * 11, None, *[[0.5] * 9] * 40, [0.0] * 12, [], [1.0, None]]
    monkeypatch.setitem(rows.LONGEST, "list", 10)
    monkeypatch.setattr(border, "_values", values)
    found = border.faults(pa.table({
        "schema_version": pa.array([7] * len(lists), pa.int32()),
        "image_scores": pa.chunked_array([pa.array(some, pa.list_(pa.float32())) for some in (lists[:3], lists[3:])]),
    }))  # fmt: skip
    assert found == {
        1: "column image_scores holds inf",
        2: "column image_scores has 11 entries; 10 are the most",
        44: "column image_scores has 12 entries; 10 are the most",
        46: "column image_scores holds None",
    }
    assert max(looked_at) <= 20
    assert sum(looked_at) == 10 + 1 + 40 * 9 + 2


def rename(path: Path, *names: str) -> None:
    """Write the file anew with these names for its last columns."""
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([*table.column_names[: -len(names)], *names]), path)


def test_a_doubled_column_and_a_name_that_is_not_utf8_are_set_aside(tmp_path: Path) -> None:
    made = sound()
    for one in made:
        store.write(one, tmp_path)
    rename(store.write(plausible.row("stfpm", "tile", 1), tmp_path), "seed")
    undecodable = store.write(plausible.row("stfpm", "tile", 2), tmp_path)
    content = undecodable.read_bytes().replace(b"git_dirty", b"\xff\xfe\xfd_dirty"[:9])
    undecodable.write_bytes(content)
    named = tmp_path / os.fsdecode(b"Pr\xfcfling.parquet")
    named.write_bytes(b"PAR1")
    done = run("leaderboard", tmp_path)
    assert done.exit_code == 0
    assert "not a kdad-bench result (column seed stands there twice)" in done.stderr
    assert "Pr\\udcfcfling.parquet: unreadable" in done.stderr
    assert undecodable.name in done.stderr
    assert_valid(tmp_path, made)
    assert run("results", "verify", tmp_path, "--json").exit_code == 1


def test_pipes_folders_and_links_named_like_results_are_named_and_nothing_waits(tmp_path: Path) -> None:
    made = sound()
    for one in made:
        store.write(one, tmp_path)
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "nowhere.parquet").symlink_to("gone")
    (tmp_path / "itself.parquet").symlink_to("itself.parquet")
    found = store.read(tmp_path)
    assert found.table.num_rows == len(made)
    assert {problem.file: problem.what for problem in found.problems} == dict.fromkeys(
        ("pipe.parquet", "folder.parquet", "nowhere.parquet", "itself.parquet"), "is no regular file"
    )
    for where in ("pipe.parquet", "folder.parquet"):
        done = run("leaderboard", tmp_path / where)
        assert "Traceback" not in done.output
    assert store.finished(tmp_path).keys() == {one.job_id for one in made}


def test_one_bad_row_among_many_of_one_file_is_named_by_its_number_and_the_file_survives_compaction(
    tmp_path: Path,
) -> None:
    made = sound()
    table = pa.concat_tables([pq.read_table(store.write(one, tmp_path / "single")) for one in made])
    values = table["image_auroc"].to_pylist()
    values[3] = math.nan
    (tmp_path / "many").mkdir()
    path = tmp_path / "many" / "compacted-0.parquet"
    place = table.column_names.index("image_auroc")
    pq.write_table(table.set_column(place, "image_auroc", pa.array(values)), path)
    store.write(plausible.row("mkd", "tile", 0), tmp_path / "many")
    found = store.read(tmp_path / "many")
    assert found.table.num_rows == len(made)
    assert found.problems == (store.Problem(path.name, "row 4: column image_auroc is nan"),)
    store.compact(tmp_path / "many")
    assert path.exists()
    again = store.read(tmp_path / "many")
    assert again.table.equals(found.table)


def test_many_bad_rows_take_few_lines(tmp_path: Path) -> None:
    table = pa.concat_tables([pq.read_table(store.write(one, tmp_path / "single")) for one in sound()])
    (tmp_path / "many").mkdir()
    bad = pa.array([-1.0] * table.num_rows)
    place = table.column_names.index("latency_ms")
    pq.write_table(table.set_column(place, "latency_ms", bad), tmp_path / "many" / "x.parquet")
    problems = store.read(tmp_path / "many").problems
    assert [problem.what for problem in problems][-1] == "5 more rows of this file that cannot be"
    assert len(problems) == 4


def test_text_for_a_spreadsheet_or_a_page_cannot_do_anything(tmp_path: Path) -> None:
    evil = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", '  =HYPERLINK("http://x")', "<b>|`x`|</b> &lt;")
    for place, text in enumerate(evil):
        changes = {"title": text, "teacher": text, "readings": (text,), "deviations": (text,), "device_name": text}
        store.write(plausible.row("stfpm", text, place, **changes), tmp_path)
        store.write(plausible.failed_row("stfpm", text, place + 90, text), tmp_path)
    assert run("leaderboard", tmp_path).exit_code == 0
    assert run("results", "export", tmp_path, "csv", "--out", tmp_path / "all.csv").exit_code == 0
    for name in ("leaderboard.csv", "all.csv"):
        for line in csv.reader(io.StringIO((tmp_path / name).read_text())):
            for text in line:
                bare = text.lstrip(" \"'")
                assert not bare.startswith(("=", "+", "@")) or text.startswith("'"), text
                assert not bare.startswith("-") or text.startswith("'") or float(text) <= 0
    page = (tmp_path / "leaderboard.md").read_text()
    bare = re.sub(r"\\.", "", page)
    for sign in ("<b>", "`x`", "&lt;"):
        assert sign not in bare
    for table in re.findall(r"(?:^\|.*\n)+", page, re.M):
        assert len({line.count("|") - line.count("\\|") for line in table.splitlines()}) == 1, table
    html = (tmp_path / "leaderboard.html").read_text()
    assert "<b>|" not in html


def test_what_does_not_show_is_written_as_an_escape_when_a_row_is_made(tmp_path: Path) -> None:
    strange = "a\x1b[31m\n\udcfcb\u202e"
    base = plausible.row("stfpm", "tile", 0)
    made = dataclasses.replace(base, category=strange, image_names=(strange,), readings=(strange,))
    assert made.category == made.image_names[0] == made.readings[0] == "a\\x1b[31m\\x0a\\udcfcb\\u202e"
    store.write(made, tmp_path)
    assert store.read(tmp_path).problems == ()
    failed = plausible.failed_row("stfpm", "tile", 0, "x" * 100_000 + ESCAPE)
    assert len(str(failed.reason)) < 2100
    store.write(failed, tmp_path)
    assert store.read(tmp_path).problems == ()


REFUSED = [
    name
    for name, (column, value, _) in HOSTILE.items()
    if not isinstance(value, (bytes, list)) and value is not None and "escape" not in name and column != "status"
]


@pytest.mark.parametrize("name", [name for name in REFUSED if "\n" not in str(HOSTILE[name][1])])
def test_a_row_cannot_be_made_with_what_the_border_refuses(name: str) -> None:
    column, value, _ = HOSTILE[name]
    if isinstance(value, str) and rows.fault(column, printable(value)) == "":
        assert getattr(dataclasses.replace(plausible.row("stfpm", "tile", 0), **{column: value}), column) != value
    else:
        with pytest.raises(ValueError, match=f"{column} "):
            dataclasses.replace(plausible.row("stfpm", "tile", 0), **{column: value})


# ---- anything at all

texts = st.text(st.characters(codec="utf-8"), max_size=12)
anything = st.one_of(
    st.none(),
    texts,
    st.sampled_from([ESCAPE, "=1", "<b>", "|", "`", "\n", "../x", "NaN", "ok", "failed", "{}", "[]"]),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.binary(max_size=6),
    st.lists(texts, max_size=3),
    st.lists(st.floats(width=32), max_size=3),
)


def hostile_table(draw: dict[str, Any]) -> pa.Table:
    table = pa.Table.from_pylist([dict.fromkeys(rows.COLUMNS)], rows.SCHEMA)
    base = {**base_columns(), **draw}
    arrays = {}
    for name in rows.COLUMNS:
        try:
            arrays[name] = pa.array([base[name]], rows.SCHEMA.field(name).type)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            arrays[name] = pa.array([base[name]])  # in the type that the value has
    assert len(arrays) == table.num_columns
    return pa.table(arrays)


def base_columns() -> dict[str, Any]:
    made = plausible.row("stfpm", "tile", 3)
    return {name: rows.plain(getattr(made, name)) for name in rows.COLUMNS}


def fuzz(folder: Path, draws: list[dict[str, Any]]) -> None:
    """Every command ends in an orderly way and the sound row is drawn, whatever lies beside it."""
    good = plausible.row("rd4ad", "bottle", 0)
    store.write(good, folder)
    for number, draw in enumerate(draws):
        pq.write_table(hostile_table(draw), folder / f"hostile-{number}.parquet")
    done = run("leaderboard", folder)
    assert done.exit_code == 0
    assert_quiet(done.output)
    for form in ("json", "html"):
        text = (folder / f"leaderboard.{form}").read_text()
        data = text if form == "json" else re.search(r'id="jobs-data">(.*?)</script>', text, re.S)[1]  # type: ignore[index]
        json.loads(data, parse_constant=lambda name: pytest.fail(name))
    assert good.job_id in (folder / "leaderboard.html").read_text()
    for command in (("results", "verify", folder), ("show", good.job_id, "--results", folder)):
        assert_quiet(run(*command).output)
    shown = json.loads(run("show", good.job_id, "--results", folder, "--json").stdout)
    assert shown["image_auroc"] == good.image_auroc
    found = store.read(folder)
    assert found.table.num_rows + len(found.problems) + found.superseded == 1 + len(draws)
    for line in found.rows():
        for name in MEASURED:
            value = line[name]
            assert value is None or (math.isfinite(value) and value >= 0 and (name not in ACCURACY or value <= 1.001))


draws = st.lists(st.dictionaries(st.sampled_from(rows.COLUMNS), anything, max_size=4), min_size=1, max_size=4)
FUZZ: Any = {
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}


@settings(max_examples=12, derandomize=True, **FUZZ)
@given(draws)
def test_rows_of_anything_stop_nothing(tmp_path_factory: pytest.TempPathFactory, drawn: list[dict[str, Any]]) -> None:
    fuzz(tmp_path_factory.mktemp("fuzz"), drawn)


@pytest.mark.slow
@settings(max_examples=400, **FUZZ)
@given(draws)
def test_rows_of_anything_stop_nothing_at_length(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[dict[str, Any]]
) -> None:
    fuzz(tmp_path_factory.mktemp("fuzz"), drawn)


@pytest.mark.parametrize("status", [{"status": "failed"}, {"reason": "oops"}], ids=["no reason", "a reason"])
def test_a_status_that_its_reason_belies_is_a_fault_beside_other_faults_too(
    status: dict[str, str], tmp_path: Path
) -> None:
    table = pa.concat_tables([pq.read_table(store.write(one, tmp_path)) for one in sound()])
    lines = table.to_pylist()
    lines[1] |= {"image_auroc": 7.5}
    lines[3] |= status
    found = border.faults(pa.Table.from_pylist(lines, table.schema))
    assert {*found} == {1, 3}
    assert found[3].startswith("column reason is")


def test_the_row_of_a_file_is_walked_through_only_until_its_layout_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images its category has, and whatever was not measured or failed."""
    monkeypatch.setattr(parquet, "_layouts", [])
    made = [plausible.row("stfpm", "gear", seed, image_scores=(0.5,) * seed) for seed in range(2 * parquet.LEARNING)]
    made[-1] = dataclasses.replace(
        made[-1], status="failed", reason="out of memory", pixel_auroc=None, learnt_together=("a=b",)
    )
    contents = [store._encode([one]) for one in made]
    for content in contents[: parquet.LEARNING]:
        border.table_of(pa.BufferReader(content), rows.SCHEMA)
    assert len(parquet._layouts) == 1
    monkeypatch.setattr(parquet, "_columns", lambda parsed: pytest.fail("walked through"))
    for content in contents:
        assert border.table_of(pa.BufferReader(content), rows.SCHEMA).num_rows == 1


def test_rows_and_refusals_are_those_of_footers_that_are_walked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of real runs, hostile ones, torn files, and footers of which a byte is another: by a learnt layout each is
    read, or refused in the words, as without one."""
    rng = random.Random(0)
    real = store.read(Path(__file__).parents[1] / "golden" / "results").rows()[:20]
    made = [rows.Row(**{name: store._given(name, value) for name, value in line.items()}) for line in real]
    for number, hostile in enumerate([*(HOSTILE | RAW).values()][::4]):
        change(tmp_path, *hostile).rename(tmp_path / f"hostile-{number}.parquet")
    for number in range(60):
        content = bytearray(store._encode([made[number % len(made)]]))
        if number >= len(made):
            content[-rng.randrange(9, 20_000)] ^= rng.randrange(1, 256)
        (tmp_path / f"{number}.parquet").write_bytes(content if number % 9 else content[:-number])
    found = {}
    for most in (0, 4):
        monkeypatch.setattr(parquet, "_layouts", [])
        monkeypatch.setattr(parquet, "MOST_LAYOUTS", most)
        for one in made if most else ():
            border.table_of(pa.BufferReader(store._encode([one])), rows.SCHEMA)
        found[most] = [store.read(tmp_path, columns) for columns in (rows.COLUMNS, ("job_id", "losses"))]
    assert parquet._layouts
    for walked, learnt in zip(found[0], found[4], strict=True):
        assert learnt.table.equals(walked.table)
        assert learnt.problems == walked.problems
        assert len(learnt.problems) > 10 < learnt.table.num_rows
