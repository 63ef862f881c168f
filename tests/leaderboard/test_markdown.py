"""leaderboard.md: what may be averaged, what must be said, and the page byte for byte."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import plausible
import pyarrow as pa
import pytest

from kdad_bench.api.results import table_of
from kdad_bench.cli.summary_table import Fitting, title
from kdad_bench.leaderboard import excerpts, figures, html, html_board, markdown, store, thresholds
from kdad_bench.leaderboard import row as rows
from kdad_bench.leaderboard import text as escaped
from kdad_bench.leaderboard.board import DRAWN, Board, boards
from kdad_bench.leaderboard.floor import below_floor
from kdad_bench.leaderboard.marks import cell_marks, overall_marks, surely_better
from kdad_bench.leaderboard.row import Row
from kdad_bench.leaderboard.store import Problem

GOLDEN = Path(__file__).parents[1] / "golden"


def table(made: Sequence[Row]) -> pa.Table:
    schema = pa.schema([rows.SCHEMA.field(name) for name in DRAWN])
    return pa.Table.from_pylist([{name: _plain(getattr(one, name)) for name in DRAWN} for one in made], schema=schema)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def page(made: Sequence[Row], problems: Sequence[Problem] = ()) -> str:
    found = table(made)
    return markdown.page(boards(found), found, problems)


def section(text: str, title: str) -> str:
    """The text below a heading, up to the next one."""
    match = re.search(rf"^#+ {re.escape(title)}$(.*?)(?=^#|\Z)", text, re.M | re.S)
    assert match, f"no section {title!r}"
    return match[1].strip()


def cells(text: str, by: int = 0) -> dict[str, dict[str, str]]:
    """A Markdown table: the cell of column `by` -> heading -> cell."""
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")
    ]
    return {line[by]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_the_page_of_the_recorded_results_is_the_golden_file_byte_for_byte() -> None:
    found = store.read(GOLDEN / "results")
    assert found.problems == ()
    assert markdown.leaderboard(found).encode() == (GOLDEN / "leaderboard.md").read_bytes()


def test_the_page_does_not_depend_on_row_order() -> None:
    made = plausible.mixed_table()
    first = page(made)
    for seed in range(3):
        random.Random(seed).shuffle(made)
        assert page(made) == first


def test_the_page_is_the_same_before_and_after_compaction_and_names_no_path(tmp_path: Path) -> None:
    for one in plausible.mixed_table():
        store.write(one, tmp_path)
    before = markdown.leaderboard(store.read(tmp_path))
    store.compact(tmp_path)
    assert markdown.leaderboard(store.read(tmp_path)) == before
    assert str(tmp_path) not in before


@pytest.mark.parametrize(
    "difference",
    [
        {"dataset": "mvtec_3d_ad"},
        {"preset": "quick"},
        {"preset": "paper[steps=500]"},
        {"protocol_version": "2"},
        {"device": "cuda", "device_name": "Example GPU"},
        {"device_name": "Another CPU"},
        {"modality": "depth"},
        {"resolution": 128},
    ],
)
def test_rows_that_differ_in_what_a_number_means_never_share_a_table(difference: dict[str, object]) -> None:
    own = plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2)
    other = [replace(one, job_id=f"other{one.job_id}", **difference) for one in own]
    found = boards(table([*own, *other]))
    assert len(found) == 2
    for board in found:
        assert all(len(board.rows[key]) == 4 for key in board.rows)
    assert page([*own, *other]).count("### Ranking") == 2


def test_a_number_in_the_table_is_the_mean_over_seeds_with_their_deviation() -> None:
    made = [plausible.row("stfpm", "bottle", seed, image_auroc=value) for seed, value in enumerate((0.90, 0.92, 0.97))]
    made += [plausible.row("stfpm", "cable", seed, image_auroc=0.5) for seed in range(3)]
    found = cells(section(page(made), "image AUROC by category"))
    assert found["bottle"]["STFPM"] == "0.930 ± 0.036"  # std of 0.90, 0.92, 0.97 with n - 1
    assert found["cable"]["STFPM"] == "0.500 ± 0.000"
    assert found["mean"]["STFPM"] == "0.715 ± 0.018"


def test_one_seed_has_no_deviation_and_nothing_is_marked() -> None:
    text = page(plausible.full_table(seeds=1))
    table_text = section(text, "image AUROC by category")
    assert "±" not in table_text
    assert "**" not in table_text
    assert "<ins>" not in table_text


def test_the_best_is_bold_only_where_it_differs_from_the_next_beyond_the_noise() -> None:
    def of(method: str, values: Sequence[float]) -> list[Row]:
        return [plausible.row(method, "bottle", seed, image_auroc=value) for seed, value in enumerate(values)]

    clear = of("rd4ad", (0.97, 0.971, 0.969)) + of("stfpm", (0.90, 0.901, 0.902)) + of("mkd", (0.80, 0.81, 0.79))
    found = cells(section(page(clear), "image AUROC by category"))["bottle"]
    assert (found["RD4AD"], found["STFPM"]) == ("**0.970 ± 0.001**", "<ins>0.901 ± 0.001</ins>")
    assert found["MKD"] == "0.800 ± 0.010"
    noisy = of("rd4ad", (0.99, 0.80, 0.97)) + of("stfpm", (0.90, 0.92, 0.91))
    assert "**" not in section(page(noisy), "image AUROC by category")


def test_the_best_mean_is_bold_where_seeds_or_enough_categories_tell_it_from_the_next() -> None:
    for categories, seeds, bold in (("abcdefgh", 2, True), ("abc", 2, True), ("abcdefgh", 1, True), ("abc", 1, False)):
        text = page(plausible.full_table(("rd4ad", "stfpm"), tuple(categories), seeds))
        best = cells(section(text, "image AUROC by category"))["mean"]["RD4AD"]
        assert best.startswith("**") == bold, (categories, seeds)


def test_the_best_mean_is_not_bold_where_the_seeds_in_common_say_the_opposite() -> None:
    """Further seeds of one method lift its mean; on the one that both have the test finds it worse."""
    made = [
        plausible.row("stfpm", category, seed, image_auroc=(0.96 if seed else 0.80) + place / 1000)
        for place, category in enumerate(plausible.CATEGORIES) for seed in range(4)
    ]  # fmt: skip
    made += [plausible.row("rd4ad", c, 0, image_auroc=0.85 + p / 2000) for p, c in enumerate(plausible.CATEGORIES)]
    board = board_of(made)
    found = board.summary.comparison("stfpm", "rd4ad", "image_auroc")
    assert found.significant
    assert (found.difference or 0) < 0
    assert [surely_better(board, *pair, "image_auroc") for pair in (("stfpm", "rd4ad"), ("rd4ad", "stfpm"))] == [0, 1]
    assert overall_marks(board, "image_auroc") == {}


def test_of_two_equal_best_values_none_is_the_second() -> None:
    of = {"rd4ad": 1.0, "stfpm": 1.0, "mkd": 0.5}
    made = [
        plausible.row(method, category, seed, image_auroc=value - seed / 1e4)
        for method, value in of.items() for category in "abcdefgh" for seed in range(2)
    ]  # fmt: skip
    board = board_of(made)
    assert board.summary.comparison("stfpm", "mkd", "image_auroc").significant
    assert overall_marks(board, "image_auroc") == {}
    assert cell_marks(board, "image_auroc", "a") == {}
    apart = board_of([replace(one, image_auroc=0.9) if one.method == "stfpm" else one for one in made])
    assert overall_marks(apart, "image_auroc") == {"rd4ad": "best", "stfpm": "second"}


def test_a_method_that_lacks_a_category_is_not_ranked_and_its_mean_says_so() -> None:
    whole = plausible.full_table(("stfpm", "rd4ad"), ("bottle", "screw"), 2)
    made = [one for one in whole if (one.method, one.category) != ("rd4ad", "screw")]
    text = page(made)
    lines = section(text, "Ranking").splitlines()
    assert lines[2].startswith("|   1 | STFPM ")
    assert lines[3].startswith("|   – | RD4AD ")
    assert "(1 of 2)" in lines[3]
    assert lines[3].rstrip("| ").endswith("1 of 2")
    assert "(1 of 2)" in cells(section(text, "image AUROC by category"))["mean"]["RD4AD"]


def test_failed_jobs_are_listed_with_their_reason_and_count_in_no_number() -> None:
    good = plausible.full_table(("stfpm",), ("bottle",), 2)
    with_failure = [*good, plausible.failed_row("stfpm", "cable", 0, "loss | is `nan`\nat step 3", variant="held_out")]
    text = page(with_failure)
    assert "**1 job failed**" in text
    assert r"loss \| is \`nan\` at step 3" in section(text, "Failed jobs")
    assert section(text, "Ranking") == section(page(good), "Ranking")


def test_only_failures_still_make_a_page() -> None:
    text = page([plausible.failed_row("stfpm", "cable", 0, "no weights")])
    assert "no weights" in section(text, "Failed jobs")
    assert "Ranking" not in text
    assert "0 finished jobs" in text


def test_no_rows_make_a_page_that_says_how_to_get_some() -> None:
    assert "`kdad-bench run --all`" in page([])


def test_quick_and_synthetic_results_are_labelled_in_every_section_and_every_excerpt() -> None:
    made = plausible.full_table(("stfpm",), ("blobs",), 1, dataset="synthetic", preset="quick", synthetic=True)
    text = page(made)
    assert text.count("**Quick preset**") == text.count("**Synthetic data**") == text.count("### Ranking") == 1
    changed = page(plausible.full_table(("stfpm",), ("blobs",), 1, preset="quick[steps=5]"))
    assert "**Quick preset**" in changed
    assert "**Synthetic data**" not in changed
    assert "**Quick preset**" not in page(plausible.full_table(("stfpm",), ("bottle",), 1))
    found = table(made)
    tables = excerpts.sections(store.Results(where="", table=found, problems=(), superseded=0, files=0))
    assert all("(quick preset, synthetic data)" in excerpt for excerpt in tables.values())


def drawn(made: Sequence[Row]) -> str:
    found = table(made)
    return html.body(boards(found), found, (), {})


def mixed_versions() -> list[Row]:
    """STFPM of two versions, RD4AD of one of them, PaDiM's like of the other."""
    made = [plausible.row("stfpm", "bottle", seed, kdad_bench="0.1.0" if seed else "0.2.0") for seed in (0, 1, 2)]
    made += [plausible.row("rd4ad", "bottle", seed, kdad_bench="0.1.0") for seed in (0, 1)]
    return [*made, plausible.row("mkd", "bottle", 0, kdad_bench="0.2.0")]


def test_a_table_over_rows_of_several_versions_says_which_means_are_over_both() -> None:
    words = (
        "numbers of kdad-bench 0.1.0 and 0.2.0 stand in one table and may differ by the version alone; "
        "means over jobs of several: STFPM (0.1.0: 2, 0.2.0: 1); of 0.1.0 alone: RD4AD; of 0.2.0 alone: MKD"
    )
    text, body = page(mixed_versions()), drawn(mixed_versions())
    assert text.count(f"> **Rows of several versions**: {words}.") == 1
    assert body.count(f'<span class="badge">rows of several versions</span>N{words[1:]}.') == 1
    parts = excerpts.sections(
        store.Results(where="", table=table(mixed_versions()), problems=(), superseded=0, files=1)
    )
    assert all("(rows of several versions)" in parts[name] for name in ("ranking", "image_auroc"))
    assert "rows of several versions" in title(board_of(mixed_versions()), name_of_all=False)
    each = [replace(one, kdad_bench="0.2.0") for one in mixed_versions()]
    assert "several versions" not in page(each) + drawn(each) + title(board_of(each), name_of_all=False)


def test_versions_are_input_and_many_names_are_some_and_a_count() -> None:
    one = mixed_versions()[0]
    made = [replace(one, job_id=str(n), method=f"m{n}", title=f"M{n}", kdad_bench="<b>|*1*") for n in range(10)]
    made += mixed_versions()
    assert "<b>" not in drawn(made)
    assert r"\<b\>\|\*1\*" in page(made)
    assert " and 2 more" in board_of(made).mixture


def test_readings_are_footnotes_that_are_called_and_written_once() -> None:
    text = page(plausible.full_table(("stfpm", "dskd"), ("bottle",), 1))
    assert "| DSKD (reading)[^1]" in section(text, "Ranking")
    assert text.count("[^1]: ") == 1
    assert "fusion: sum over scales; optimiser: Adam, 0.005" in text
    assert set(re.findall(r"\[\^(\d+)\](?!:)", text)) == set(re.findall(r"^\[\^(\d+)\]:", text, re.M))


def test_a_timing_that_varies_by_more_than_five_percent_is_flagged() -> None:
    def speed(values: Sequence[float]) -> str:
        made = [plausible.row("stfpm", "bottle", seed, latency_ms=value) for seed, value in enumerate(values)]
        return cells(section(page(made), "Speed beside accuracy"))["STFPM"]["ms/image"]

    assert speed((10.0, 10.2, 9.9)) == "10.0"
    assert speed((10.0, 12.0, 9.0)) == "10.0 ~"


def test_without_masks_there_are_no_pixel_columns() -> None:
    none = dict.fromkeys(("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05"))
    text = page(plausible.full_table(("stfpm", "rd4ad"), ("bottle",), 2, **none))
    assert "pixel AUROC by category" not in text
    assert "| pixel AUROC" not in text
    assert "| pixel_auroc" not in text
    assert "AUPRO" not in text
    assert "image AUROC" in text


def test_two_entrants_of_one_title_get_different_names() -> None:
    def names(**changes: object) -> set[str]:
        made = plausible.full_table(("stfpm",), ("bottle",), 1)
        made += plausible.full_table(("stfpm",), ("bottle",), 1, **changes)
        (board,) = boards(table(made))
        return set(board.labels.values())

    assert names(variant="held_out") == {"STFPM", "STFPM (held_out)"}
    assert len(names(teacher="vgg16", teacher_sha256="6" * 64)) == 2


def test_files_that_were_left_out_are_listed() -> None:
    text = page(plausible.full_table(("stfpm",), ("bottle",), 1), [Problem("torn.parquet", "unreadable (no footer)")])
    assert "- file `torn.parquet`: unreadable (no footer)" in section(text, "Left out")


def test_hostile_names_break_no_table() -> None:
    made = plausible.full_table(("stfpm",), ("a|b <script>", "[x](y) *z*"), 1)
    text = section(page(made), "image AUROC by category")
    lines = text.splitlines()
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert "<script>" not in re.sub(r"\\<", "", text)


def test_paper_presets_and_real_data_come_first() -> None:
    made = plausible.mixed_table()
    order = [(board.short, board.group.synthetic) for board in boards(table(made))]
    assert order == sorted(order)
    assert len(order) == 2


def test_the_data_set_of_most_categories_comes_first_and_stays_together() -> None:
    places = [("a_few", "cpu", ("one",)), ("many", "cpu", ("one", "two", "three")), ("many", "cuda", ("one",))]
    places += [("b_few", "cpu", ("one", "two"))]
    made = [
        plausible.row("stfpm", category, 0, dataset=dataset, device=device)
        for dataset, device, categories in places
        for category in categories
    ]
    order = [(board.group.dataset, board.group.device) for board in boards(table(made))]
    assert order == [("many", "cpu"), ("many", "cuda"), ("b_few", "cpu"), ("a_few", "cpu")]


def board_of(made: Sequence[Row]) -> Board:
    (board,) = boards(table(made))
    return board


def test_what_is_below_the_floor_is_said_beneath_the_categories() -> None:
    values = {  # method -> image AUROC of bottle, cable, pill
        "stfpm": (0.9, 0.69, 0.9), "rd4ad": (0.71, 0.7, 0.7), "mkd": (0.6, 0.8, 0.5), "pixel_mean": (0.7, 0.7, 0.7),
        "dskd": (0.1, None, None),
    }  # fmt: skip
    made = [
        plausible.row(method, category, seed, image_auroc=value + (0.2 - 0.1 * seed) * (method == "stfpm"))
        for method, found in values.items()
        for category, value in zip(("bottle", "cable", "pill"), found, strict=True)
        for seed in (1, 2, 3)
        if value is not None
    ]
    words = "Below the floor: bottle: MKD, DSKD (reading); cable: STFPM; pill: MKD; mean: MKD."
    board = board_of(made)
    assert board.labels["pixel_mean"].startswith("Pixel mean")
    said = below_floor(board, "image_auroc")
    assert sorted(re.split(r"[;:,] ", said.rstrip("."))) == sorted(re.split(r"[;:,] ", words.rstrip(".")))
    assert said.startswith("Below the floor: bottle: ")
    assert f"\n\n{said}" in markdown.by_category(board, "image_auroc", {})
    assert said in "".join(html_board.sections(board, "b"))
    facts = {"method": "other", "title": "Other", "family": "floor", "image_auroc": 0.95}
    floors = [row for row in made if row.method == "pixel_mean"]
    two = [*made, *(replace(row, job_id=f"o{row.job_id[1:]}", **facts) for row in floors)]
    assert "STFPM" in below_floor(board_of(two), "image_auroc").split("cable")[0]
    assert below_floor(board_of([row for row in made if row.method != "pixel_mean"]), "image_auroc") == ""
    alone = [row for row in made if row.category == "cable" and row.method in ("rd4ad", "pixel_mean")]
    assert below_floor(board_of(alone), "image_auroc") == ""
    assert "mean" not in below_floor(board_of([row for row in made if row.category == "pill"]), "image_auroc")


def test_families_are_ranked_together_and_apart() -> None:
    levels = {"stfpm": ("student-teacher", 0.8), "rd4ad": ("student-teacher", 0.9), "mkd": ("student-teacher", 0.7)}
    levels |= {"padim": ("yardstick", 0.95), "spade": ("yardstick", 0.85), "pixel_mean": ("floor", 0.6)}
    made = [
        plausible.invented(method, category, 0, title=method, family=family, image_auroc=level,
                      aupro_30=level)
        for method, (family, level) in levels.items() for category in "ab"
    ]  # fmt: skip
    text = section(page(made), "Ranking")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert lines[0][:4] == ["#", "in family", "method", "family"]
    assert [(line[0], line[1], line[2], line[3]) for line in lines[2:]] == [
        ("1", "1", "padim", "yardstick"),
        ("2", "1", "rd4ad", "student-teacher"),
        ("3", "2", "spade", "yardstick"),
        ("4", "2", "stfpm", "student-teacher"),
        ("5", "3", "mkd", "student-teacher"),
        ("6", "1", "pixel_mean", "floor"),
    ]
    board = board_of(made)
    assert board.families == ("student-teacher", "yardstick", "floor")
    assert board.ranks_in_family["stfpm"] == 2.0
    assert board.average_ranks["stfpm"] == 4.0
    alone = page([one for one in made if one.family == "yardstick"])
    assert "in family" not in alone


def test_a_place_within_a_family_is_that_of_the_family_alone() -> None:
    """Rank among all and rank among few can turn the order round; the latter decides within the family."""
    cells = {"a": (0.9, 0.5, 0.5), "b": (0.8, 0.6, 0.4), "x": (0.85, 0.55, 0.45), "y": (0.84, 0.54, 0.44)}
    made = [
        plausible.invented(method, category, 0, title=method, image_auroc=value, aupro_30=value,
                      family="floor" if method in "xy" else "yardstick")
        for method, values in cells.items() for category, value in zip("klm", values, strict=True)
    ]  # fmt: skip
    board = board_of(made)
    alone = board_of([one for one in made if one.family == "yardstick"])
    assert {key: board.ranks_in_family[key] for key in "ab"} == alone.average_ranks
    assert board.average_ranks["a"] != board.ranks_in_family["a"]


def test_rows_that_do_not_say_their_family_get_that_of_their_method() -> None:
    from kdad_bench.leaderboard.families import FAMILIES, family_of
    from kdad_bench.methods import METHODS, entry, protocol

    assert {*FAMILIES} == {*protocol.FAMILIES}
    old = (
        "pixel_mean",
        "padim",
        "spade",
        "patchcore",
        "stfpm",
        "rd4ad",
        "mkd",
        "eca_mskdad",
        "dskd",
        "bmkd",
        "fractalad",
    )
    for method in old:
        assert family_of({"method": method}) == entry(method).family
    assert set(old) <= set(METHODS)
    assert family_of({"method": "stfpm", "family": "floor"}) == "floor", "what a row says counts"
    assert family_of({"method": "stfpm", "code_sha256": "5" * 64}) == "unknown", "code of somebody else"
    assert family_of({"method": "mine", "origin": "external, protocol not verified"}) == "external"
    assert family_of({"method": "of a newer version"}) == "unknown"


def test_equal_average_ranks_share_a_place_however_they_come_about() -> None:
    """(13 / 6 + 16 / 6) / 2 and (17 / 6 + 12 / 6) / 2 differ in the last bit of a float."""
    assert fmean((13 / 6, 16 / 6)) != fmean((17 / 6, 12 / 6))
    orders = {
        "image_auroc": ("acbd", "cadb", "dbca", "badc", "dacb", "cabd"),
        "aupro_30": ("cdba", "badc", "cbad", "bacd", "bdac", "dacb"),
    }
    made = [
        plausible.invented(method, f"c{place}", 0, title=method, **{
            metric: 0.9 - orders[metric][place].index(method) / 100 for metric in orders
        })
        for place in range(6) for method in "abcd"
    ]  # fmt: skip
    board = board_of(made)
    assert [board.summary.ranks(metric).average["a"] for metric in orders] == [13 / 6, 16 / 6]
    assert board.average_ranks["a"] == board.average_ranks["b"]
    assert board.places["a"] == board.places["b"]


def test_seeds_in_another_order_make_no_other_rank() -> None:
    values = (0.80, 0.81, 0.82)
    made = [
        plausible.row(method, category, seed, image_auroc=value, aupro_30=value)
        for category in "ab"
        for method, turned in (("stfpm", values), ("rd4ad", values[::-1]))
        for seed, value in enumerate(turned)
    ]
    board = board_of(made)
    assert sum(values) != sum(values[::-1]), "in the last bit"
    assert board.average_ranks == {"stfpm": 1.5, "rd4ad": 1.5}


def test_the_number_of_seeds_is_that_of_a_category() -> None:
    whole = plausible.full_table(("stfpm", "rd4ad"), ("bottle", "screw", "tile"), 2)
    made = [one for one in whole if (one.method, one.category, one.seed) != ("rd4ad", "screw", 1)]
    found = section(page(made), "Ranking")
    assert {line.split("|")[2].strip(): line.split("|")[-3].strip() for line in found.splitlines()[2:4]} == {
        "STFPM": "2", "RD4AD": "1 to 2",
    }  # fmt: skip


def test_an_interval_of_one_seed_is_not_said_to_be_for_other_seeds() -> None:
    one, two = (plausible.full_table((m,), ("a", "b"), n) for m, n in (("stfpm", 1), ("rd4ad", 2)))
    alone = "(of a method with one seed for other test images alone)"
    assert alone in section(page([*one, *two]), "Ranking")
    assert alone not in section(page(two), "Ranking")
    third = [replace(line, seed=2, method="mkd", title="MKD") for line in one]
    assert board_of([*one, *third]).interval_words.startswith(" for these 2 categories, with other test images, for")


def test_why_a_mean_has_no_interval_is_said_where_others_have_one() -> None:
    """All its seeds have one value, and nothing is known of other images."""
    alike = plausible.full_table(("stfpm",), ("bottle", "screw"), 2, image_auroc=1.0)
    found = section(page([*alike, *plausible.full_table(("rd4ad",), ("bottle", "screw"), 2)]), "Ranking")
    assert cells(found.partition("\n\n")[0], by=1)["STFPM"]["image AUROC"] == "**1.000**"
    assert "; none where neither seeds nor images tell." in found
    every = section(page(plausible.full_table(("stfpm", "rd4ad"), ("bottle", "screw"), 2)), "Ranking")
    assert "neither seeds" not in every


def test_a_mean_over_fewer_categories_says_so_in_every_table() -> None:
    whole = plausible.full_table(("stfpm", "rd4ad"), ("bottle", "screw", "tile"), 2)
    text = page([one for one in whole if (one.method, one.category) != ("rd4ad", "screw")])
    table_of_all = text.partition("All accuracy metrics")[2].partition("</details>")[0]
    of = cells(table_of_all)["RD4AD"]
    assert len(of) > 5
    assert all(value.endswith(" (2 of 3)") for name, value in of.items() if name != "method")


def test_equal_means_share_a_rank() -> None:
    made = [
        plausible.row(method, category, 0, image_auroc=0.9, aupro_30=0.8)
        for method in ("stfpm", "rd4ad")
        for category in "ab"
    ]
    board = board_of(made)
    assert board.average_ranks == {"stfpm": 1.5, "rd4ad": 1.5}
    assert section(page(made), "Ranking").count("|   1 | ") == 2


# ---- tables inside other pages


README = """# Title
<!-- leaderboard begin: ranking -->
old
<!-- leaderboard end -->
text
<!-- leaderboard begin: speed -->
<!-- leaderboard end -->
"""


def test_marked_tables_are_drawn_anew_and_drawing_twice_changes_nothing() -> None:
    tables = {"ranking": "| new |", "speed": "| fast |"}
    once = excerpts.refreshed(README, tables)
    assert once == excerpts.refreshed(once, tables)
    assert "old" not in once
    assert once.startswith(
        "# Title\n<!-- leaderboard begin: ranking -->\n\n| new |\n\n<!-- leaderboard end -->\ntext\n"
    )
    assert once.endswith("\n\n| fast |\n\n<!-- leaderboard end -->\n")


def test_a_wrong_marker_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="no table 'speed' in these results; have: ranking"):
        excerpts.refreshed(README, {"ranking": "x"})
    with pytest.raises(ValueError, match="no marker"):
        excerpts.refreshed("# Title\n", {})
    with pytest.raises(ValueError, match="'ranking' is not closed"):
        excerpts.refreshed("<!-- leaderboard begin: ranking -->\n", {"ranking": "x"})
    with pytest.raises(ValueError, match="'ranking' is not closed"):
        excerpts.refreshed("<!-- leaderboard begin: ranking -->\n" + README[8:], {"ranking": "x", "speed": "y"})


TWO_PLACES = """<!-- leaderboard begin: ranking of results/real -->
<!-- leaderboard end -->
<!-- leaderboard begin: ranking of results/quick -->
<!-- leaderboard end -->
<!-- leaderboard begin: ranking -->
<!-- leaderboard end -->
"""


@pytest.mark.parametrize(
    ("place", "drawn"),
    [
        ("/home/a/docs/results/real", [True, False, True]),
        ("s3://bucket/results/quick", [False, True, True]),
        ("/home/a/unreal", [False, False, True]),
        ("real", [False, False, True]),
        ("", [False, False, True]),
    ],
)
def test_a_marker_that_names_a_folder_is_drawn_from_that_folder_alone(place: str, drawn: list[bool]) -> None:
    parts = excerpts.refreshed(TWO_PLACES, {"ranking": "| new |"}, place).split("<!-- leaderboard end -->")
    assert ["new" in part for part in parts[:3]] == drawn
    named = TWO_PLACES.rpartition("<!-- leaderboard begin: ranking -->")[0]
    if not any(drawn[:2]):
        with pytest.raises(ValueError, match="these results; the markers name results/real, results/quick"):
            excerpts.refreshed(named, {"ranking": "x"}, place)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((1, 1), "95 % interval of the mean for other seeds and, where rows hold the scores of images, other test"),
        ((4, 4), "95 % interval of the mean for these 4 categories, with other seeds"),
        ((8, 8), "95 % interval of the mean for other categories of the same kind."),
        ((8, 3), "for other categories of the same kind, of a method that has fewer than six for those alone."),
        ((8, 1), "for other categories of the same kind, of a method that has fewer than six for those alone."),
    ],
)
def test_the_ranking_says_what_its_interval_is_for(counts: tuple[int, int], words: str) -> None:
    made = [
        row
        for method, count in zip(("stfpm", "rd4ad"), counts, strict=True)
        for row in plausible.full_table((method,), plausible.CATEGORIES[:count], 2)
    ]
    assert words in section(page(made), "Ranking")


def test_marks_are_explained_where_there_are_some_and_ranks_that_tell_nothing_apart_are_said_to() -> None:
    told = section(page(plausible.full_table(("stfpm", "rd4ad", "pixel_mean"), plausible.CATEGORIES, 3)), "Ranking")
    assert "**Bold**: the best, <ins>underlined</ins>: the second" in told
    assert re.search(r"critical difference \([\d.]+\) are not told apart\.", told)
    alike = section(page(plausible.full_table(("stfpm", "rd4ad", "pixel_mean"), ("bottle", "cable"), 1)), "Ranking")
    assert "Bold" not in alike
    assert re.search(r"critical difference \([\d.]+\) are not told apart: here none is\.", alike)


@pytest.mark.parametrize(
    ("name", "written"), [("1. screws", r"1\. screws"), ("12) x", r"12\) x"), ("1.5 mm", "1.5 mm")]
)
def test_a_name_that_begins_like_a_list_keeps_its_number_alone(name: str, written: str) -> None:
    """A backslash before a digit is one that readers see."""
    assert escaped.markdown(name) == written


def test_a_metric_that_lacks_categories_says_so_in_its_heading() -> None:
    """Where one category has no masks, AUPRO of the other stood beside image AUROC of both without a word."""
    none = dict.fromkeys(("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05"))
    made = plausible.full_table(("stfpm", "rd4ad"), ("bottle",), 2)
    made += plausible.full_table(("stfpm", "rd4ad"), ("cable",), 2, **none)
    for part in ("Ranking", "Speed beside accuracy"):
        said = section(page(made), part)
        assert "image AUROC  " in said or "image AUROC |" in said
        assert "AUPRO@0.3 (1 of 2)" in said
    found = table(made)
    (board,) = boards(found)
    of_a_chart = html.page([board], found)
    assert "AUPRO@0.3 (1\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}2)</th>" in of_a_chart
    assert ">AUPRO@0.3 (1 of 2)</text>" in of_a_chart
    assert "<figcaption>AUPRO@0.3 (1 of 2). " in of_a_chart
    for drawing in (figures.pareto(board, "aupro_30"), figures.seeds(board, "aupro_30")):
        (axes,) = drawing.axes
        assert "AUPRO@0.3 (1 of 2)" in axes.get_ylabel() + axes.get_xlabel()
    of_a_run = Fitting(board, False)
    assert "AUPRO@0.3 (1 of 2)" in [column.header for column in of_a_run.table(" ").columns]
    assert "AUPRO@0.3\n(1 of 2)" in [column.header for column in of_a_run.table("\n").columns]
    assert "AUPRO@0.3 (1 of 2)" in table_of(board).heading
    assert thresholds.headings(board)[1:3] == ("SegF1", "AUPRO@0.05 (1 of 2)"), "nobody has SegF1"
    every = plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2)
    assert "(1 of 2)" not in page(every)
    whole = [replace(one, pixel_auroc=None, aupro_30=None) for one in every]
    assert "pixel AUROC" in [column.header for column in Fitting(board_of(whole), False).table(" ").columns]


def test_the_interval_of_a_metric_that_lacks_categories_is_said_to_be_for_those_it_has() -> None:
    """Of one category it was said to be for both, and far wider in the CSV file, where it is the same."""
    none = dict.fromkeys(("pixel_auroc", "aupro_30"))
    names = ("stfpm", "rd4ad")
    two = plausible.full_table(names, ("bottle",), 2) + plausible.full_table(names, ("cable",), 2, **none)
    said = section(page(two), "Ranking")
    assert "interval of the mean: of image AUROC for these 2 categories, with other seeds" in said
    assert "; of pixel AUROC and AUPRO@0.3 for one category, with other seeds" in said
    seven = plausible.full_table(names, plausible.CATEGORIES[:6], 2) + plausible.full_table(names, "x", 2, **none)
    assert "interval of the mean for other categories of the same kind." in section(page(seven), "Ranking")
    three = plausible.full_table(names, plausible.CATEGORIES[:3], 2)
    assert "these 3 categories, with" in section(page(three), "Ranking")
    assert "these 3 categories (of a method that has fewer for those), with" in section(page(three[:-2]), "Ranking")


def test_failed_jobs_stand_beside_what_they_are_not_in_and_beside_nothing_else() -> None:
    """A board of one category has no mean in its tables by category, and a category without masks no part in AUPRO."""
    bad = plausible.failed_row("rd4ad", "bottle", 1, "RuntimeError: no memory")
    one = [row for row in plausible.full_table(("stfpm", "rd4ad"), ("bottle",), 2) if row.job_id != bad.job_id] + [bad]
    (line,) = cells(section(page(one), "AUPRO@0.3 by category").partition("<details>")[0]).values()
    assert line["RD4AD"].endswith(" (1 failed)")
    assert "failed" not in line["STFPM"]
    found = table(one)
    heat = html.page(boards(found), found).partition("<h3>By category</h3>")[2].partition("<h3>")[0]
    assert "1 failed" in heat
    none = dict.fromkeys(("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05"))
    whole = plausible.full_table(("stfpm", "rd4ad"), ("cable",), 2)
    whole += [replace(row, **none) for row in one if row.status == "ok"] + [bad]
    board = board_of(whole)
    assert [board.fewer("rd4ad", name) for name in board.headline] == [" (1 failed)", "", ""]
    assert [board.failed("rd4ad", name) for name in board.headline] == [1, 0, 0]
