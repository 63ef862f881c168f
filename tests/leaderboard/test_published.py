"""Published beside measured: the numbers as their sources print them, and what may not be compared."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import plausible
import pytest
from scipy import stats
from test_markdown import board_of, cells, page, section

from kdad_bench.leaderboard import html_board, published
from kdad_bench.leaderboard.markdown_method import measured
from kdad_bench.leaderboard.markdown_published import _reasons, published_and_measured
from kdad_bench.leaderboard.numbers import signed
from kdad_bench.leaderboard.published import MEAN, Verdict
from kdad_bench.methods.backbones.names import facts_of

MVTEC = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile"),
    *("toothbrush", "transistor", "wood", "zipper"),
)


STFPM_PAPER = ("paper", "STFPM", "resnet18", MEAN, "image_auroc")
STFPM_MEANS = [STFPM_PAPER, ("authors' code", *STFPM_PAPER[1:])]


def verdicts(method: str, categories: tuple[str, ...] = MVTEC, **changes: object) -> dict[tuple[str, ...], Verdict]:
    board = board_of(plausible.full_table((method,), categories, 2, **changes))
    return {
        (
            one.reported.origin,
            one.reported.reported,
            one.reported.backbone,
            one.reported.category,
            one.reported.metric,
        ): one
        for one in published.verdicts(board)
    }


def test_every_reported_number_has_exactly_one_rule_and_lies_between_0_and_1() -> None:
    found = published.reported()
    assert len(found) == 746
    assert all(0 < one.value <= 1 for one in found)
    assert all(one.source for one in found)
    assert all(one.refusal for one in found if one.method is None)
    assert {one.origin for one in found} == set(published.ORIGINS)


def test_a_printed_mean_that_is_not_that_of_its_rows_is_named_and_not_compared() -> None:
    wrong = {(one.reported, one.metric): one for one in published.reported() if "printed mean" in one.refusal}
    assert {key: one.refusal.rpartition("its printed mean, ")[2] for key, one in wrong.items()} == {
        ("RD4AD (anomalib)", "pixel_auroc"): "0.969, is not that of its rows, 0.974",
        ("STAD", "pro"): "0.857, is not that of its rows, 0.858",
    }
    assert all(one.category == MEAN for one in wrong.values())
    bare = [replace(one, refusal="") for one in published.reported() if one.reported == "RD4AD (anomalib)"]
    checked = published._with_means_checked(bare)
    assert [one.metric for one in checked if one.refusal] == ["pixel_auroc"], "also where nothing else is against it"


def test_a_mean_of_a_table_of_which_rows_are_missing_is_taken_as_it_is() -> None:
    some = [one for one in published.reported() if one.reported == "STAD" and one.category != "wood"]
    again = published._with_means_checked([replace(one, refusal="") for one in some])
    assert not any(one.refusal for one in again)


def test_a_number_of_the_same_protocol_gets_a_difference_and_a_verdict() -> None:
    found = verdicts("stfpm", variant="held_out", image_auroc=0.955)
    one = found[STFPM_PAPER]
    assert (one.refusal, one.verdict) == ("", "agrees")
    assert one.difference == pytest.approx(0.0)
    for value, verdict in ((0.90, "lower"), (0.99, "higher"), (0.9639, "agrees")):
        one = verdicts("stfpm", variant="held_out", image_auroc=value)[
            "paper", "STFPM", "resnet18", MEAN, "image_auroc"
        ]
        assert one.verdict == verdict
        assert one.difference == pytest.approx(value - 0.955)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ((0.955, 0.955, 0.958), "agrees"),  # ±0.004
        ((0.90, 0.955, 1.0), "not told apart"),  # the mean is right by chance: ±0.12
        ((0.93, 0.935, 0.95), "not told apart"),  # beyond the tolerance, inside ±0.026
        ((0.935, 0.936, 0.937), "lower"),
    ],
)
def test_seeds_that_scatter_widely_agree_with_nothing(values: tuple[float, ...], word: str) -> None:
    made = [
        plausible.row("stfpm", category, seed, variant="held_out", image_auroc=value)
        for category in MVTEC for seed, value in enumerate(values)
    ]  # fmt: skip
    one = next(one for one in published.verdicts(board_of(made)) if one.reported.category == MEAN and not one.refusal)
    assert one.verdict == word
    half = f" (±{one.half:.2f})" if word == "not told apart" else ""
    lines = section(page(made), "Published and measured").splitlines()
    assert next(line for line in lines if line.startswith("| STFPM")).rstrip(" |").endswith(word + half)


@pytest.mark.parametrize(
    ("values", "lost"),
    [((0.955,), ()), ((0.80,), ()), ((0.95, 0.92, 0.98), (("bottle", 1), ("cable", 2)))],
    ids=["one seed that is near", "one seed that is far", "three of which one has every category"],
)
def test_with_fewer_than_two_whole_seeds_nothing_is_judged(
    values: tuple[float, ...], lost: tuple[tuple[str, int], ...]
) -> None:
    """Else fewer seeds, and lost jobs, would make a verdict surer."""
    made = [
        plausible.row("stfpm", category, seed, variant="held_out", image_auroc=value)
        for category in MVTEC for seed, value in enumerate(values) if (category, seed) not in lost
    ]  # fmt: skip
    board = board_of(made)
    one = next(one for one in published.verdicts(board) if one.reported.category == MEAN and not one.refusal)
    assert (one.reported.measured, one.verdict, one.half) == ("image_auroc", published.NOT_JUDGED, None)
    assert one.difference is not None, "it is shown all the same"
    words = section(page(made), "Published and measured")
    assert next(line for line in words.splitlines() if line.startswith("| STFPM")).rstrip(" |").endswith("not judged")
    assert "“not judged”: fewer than two of our seeds have a value" in words


def test_the_interval_over_seeds_is_of_the_seeds_behind_its_deviation() -> None:
    """A mean's deviation is over the seeds that have every category: fewer than any category may have."""
    made = [
        plausible.row("stfpm", category, seed, variant="held_out", image_auroc=value)
        for place, category in enumerate(MVTEC)
        for seed, value in zip((0, 1, 2 + place % 2), (0.92, 0.96, 0.94), strict=True)
    ]
    board = board_of(made)
    found = board.overall("stfpm:held_out", "image_auroc")
    assert found is not None
    assert (found.seeds, found.std) == (3, pytest.approx(0.04 / math.sqrt(2)))
    one = next(one for one in published.verdicts(board) if one.reported.category == MEAN and not one.refusal)
    _, half = published._measured(board, "stfpm:held_out", one.reported)
    assert half == pytest.approx(stats.t.ppf(0.975, 1) * 0.04 / 2)


def test_the_difference_is_to_the_first_comparable_number_from_the_left() -> None:
    """A paper's stands left of other code's, wherever the two are in the file."""
    made = plausible.full_table(("rd4ad",), MVTEC, 2, pixel_auroc=0.98)
    means = section(page(made), "Published and measured").partition("<details>")[0]
    found = cells(means, by=2)["pixel_auroc"]
    assert found["difference"] == signed(0.98 - float(found["paper"].split()[0]))
    assert found["other code"].split()[0] != found["paper"].split()[0], "they can be told apart"


@pytest.mark.parametrize(
    ("method", "key", "why"),
    [
        ("stfpm", ("authors' code", "STFPM", "resnet18", MEAN, "pro_min-max-rescaled"), "divided by its own maximum"),
        ("stfpm", ("authors' code", "STFPM", "resnet18", "bottle", "pixel_auroc"), "any touched pixel"),
        ("stfpm", ("other code", "STFPM (anomalib)", "resnet18", MEAN, "image_auroc"), "stopped early by"),
        ("rd4ad", ("paper", "RD4AD", "wide_resnet50_2", MEAN, "pro"), "in each anomalous image apart"),
        ("mkd", ("paper", "MKD", "vgg16 -> small cloner", MEAN, "image_auroc"), "test images in view"),
    ],
)
def test_a_number_of_another_protocol_is_listed_with_the_reason_and_no_difference(
    method: str, key: tuple[str, ...], why: str
) -> None:
    one = verdicts(method)[key]
    assert why in one.refusal
    assert (one.difference, one.verdict) == (None, "")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"preset": "quick"}, "preset quick"),
        ({"preset": "paper[steps=500]"}, r"preset paper\[steps=500\]"),
        ({"dataset": "synthetic", "synthetic": True}, "synthetic data"),
        ({"dataset": "folder:/data/parts"}, "nothing published for data set folder:parts"),
        ({"modality": "depth"}, "not depth"),
    ],
)
def test_a_board_of_another_preset_or_data_set_is_refused_as_a_whole(changes: dict[str, object], why: str) -> None:
    made = plausible.full_table(("stfpm",), MVTEC, 1, **changes)
    assert not [one for one in published.verdicts(board_of(made)) if one.difference is not None]
    text = section(page(made), "Published and measured")
    assert text.startswith("Not compared: ")
    assert why.replace("\\", "") in text.replace("\\", "")


def test_another_teacher_is_not_compared() -> None:
    one = verdicts("stfpm", variant="held_out", teacher="efficientnet_lite0")[
        "paper", "STFPM", "resnet18", MEAN, "image_auroc"
    ]
    assert one.refusal == "reported with teacher resnet18, measured with efficientnet_lite0"


def test_a_mean_over_fewer_categories_is_not_compared_but_its_categories_are() -> None:
    found = verdicts("stfpm", ("bottle", "cable"), variant="held_out")
    assert "over 15 categories, ours over 2" in found[STFPM_PAPER].refusal
    assert found["authors' code", "STFPM", "resnet18", "bottle", "image_auroc"].difference is not None
    assert found["authors' code", "STFPM", "resnet18", "zipper", "image_auroc"].refusal == "not measured here"


def test_a_mean_is_of_the_categories_that_have_a_value_not_of_those_with_a_job() -> None:
    """Pixel figures of a category without masks are null: 15 finished jobs, and a mean of 14."""
    rows = plausible.full_table(("rd4ad",), MVTEC, 1)
    rows = [replace(one, pixel_auroc=None) if one.category == "screw" else one for one in rows]
    board = board_of(rows)
    means = {one.reported.measured: one for one in published.verdicts(board) if one.reported.category == MEAN}
    assert "is over 15 categories, ours over 14" in means["pixel_auroc"].refusal
    assert means["image_auroc"].difference is not None
    line = next(line for line in measured(board)["rd4ad"].splitlines() if line.startswith("| mean"))
    assert [f"{board.overall('rd4ad', metric).mean:.3f} (14 of 15)" in line  # type: ignore[union-attr]
            for metric in board.headline] == [metric == "pixel_auroc" for metric in board.headline]  # fmt: skip


def test_a_variant_that_follows_no_source_is_not_compared() -> None:
    assert verdicts("stfpm", variant="paper_scale") == {}


@pytest.mark.parametrize("key", STFPM_MEANS)
def test_the_default_of_stfpm_is_another_protocol_and_the_variant_that_follows_the_code_is_compared(
    key: tuple[str, ...],
) -> None:
    default = verdicts("stfpm", image_auroc=0.955)[key]
    assert (default.verdict, default.difference) == ("", None)
    assert "another protocol: the default trains on all normals" in default.refusal
    assert "stfpm:held_out" in default.refusal
    assert verdicts("stfpm", variant="held_out", image_auroc=0.955)[key].verdict == "agrees"


def test_default_and_variant_stand_in_lines_of_their_own() -> None:
    made = plausible.full_table(("stfpm",), MVTEC, 2)
    made += plausible.full_table(("stfpm",), MVTEC, 2, variant="held_out", image_auroc=0.955)
    text = section(page(made), "Published and measured")
    (line,) = (line for line in text.splitlines() if line.startswith("| STFPM (held_out) | mean     | image_auroc"))
    assert line.rstrip(" |").endswith("agrees")
    (line,) = (line for line in text.splitlines() if re.match(r"\| STFPM +\| mean +\| image_auroc ", line))
    assert line.rstrip(" |").endswith("not compared")


def entry_of(method: str, title: str) -> dict[str, object]:
    return {**plausible.METHODS["dskd"], "title": title, "readings": ()}


@pytest.mark.parametrize(
    ("method", "value", "why"), [("bmkd", 0.988, "the abstract is known"), ("eca_mskdad", 0.975, "ours is a reading")]
)
def test_a_method_whose_architecture_is_a_reading_never_agrees(
    method: str, value: float, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plausible.METHODS, method, entry_of(method, method))
    found = verdicts(method, image_auroc=value, pixel_auroc=0.977)
    assert found
    assert all((one.verdict, one.difference) == ("", None) for one in found.values())
    assert any(why in one.refusal for one in found.values())


def test_no_rule_lets_a_deviation_be_judged() -> None:
    """Every reported number, beside a run of its own method, variant and teacher that equals it to the last digit."""
    reported = {(one.method, one.variant, one.teacher): one for one in published.reported() if one.method}
    for method, variant, teacher in reported:
        plausible.METHODS.setdefault(str(method), entry_of(str(method), str(method)))
        words = {"readings": (), "deviations": ("epochs: 5 (official code: 200)",)}
        found = verdicts(str(method), variant=variant, teacher=teacher or None, **words)
        assert all(one.verdict == "" and one.difference is None for one in found.values()), method
        assert all(one.refusal for one in found.values())


def test_the_deviation_is_the_reason() -> None:
    key = ("paper", "RD4AD", "wide_resnet50_2", MEAN, "image_auroc")
    assert verdicts("rd4ad")[key].refusal == ""
    departs = verdicts("rd4ad", deviations=("epochs: 100 (official code: 200)",))[key].refusal
    assert departs == "our run departs from its source: epochs: 100 (official code: 200)"
    many = verdicts("rd4ad", deviations=("a: b", "c: d", "e: f", "g: h"))[key].refusal
    assert many == "our run departs from its source: a: b; c: d; e: f; and 1 more"
    assert verdicts("rd4ad", readings=("loss: of flattened maps, as the official code",))[key].refusal == ""
    assert verdicts("rd4ad", teacher_weights="random")[key].refusal == "our teacher has random weights"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"code_sha256": "c" * 64}, "our method is code from a file (its hash begins cccccccc), not this benchmark's"),
        (
            {"teacher_weights": "mine.pth", "teacher_sha256": "7" * 64},
            "our teacher has the weights mine.pth, not known to be the published ones, whose hash begins 95faca4d",
        ),
        (
            {"teacher_weights": "mine.pth", "teacher_sha256": None},
            "our teacher has the weights mine.pth, not known to be the published ones, whose hash begins 95faca4d",
        ),
        ({"teacher_weights": "another name of them.pth"}, ""),
    ],
)
def test_other_code_and_other_weights_are_not_compared(changes: dict[str, object], why: str) -> None:
    assert verdicts("rd4ad", **changes)["paper", "RD4AD", "wide_resnet50_2", MEAN, "image_auroc"].refusal == why


def test_the_published_weights_are_those_that_a_run_takes() -> None:
    assert {name: facts_of(name).sha256_prefix for name in published.WEIGHTS} == published.WEIGHTS


def test_the_page_explains_every_mark_and_names_every_source() -> None:
    text = section(page(plausible.full_table(("stfpm", "rd4ad", "mkd"), MVTEC, 2)), "Published and measured")
    for letter in "abcdef":
        assert text.count(f"({letter})") >= 2, letter
        assert f"\n- ({letter}) " in text
    assert "gdwang08/STFPM README @2598a5e" in text


def test_a_job_that_is_the_papers_as_well_is_compared_under_the_name_of_another_preset() -> None:
    held_out = {"variant": "held_out", "preset": "standard"}
    rows = plausible.full_table(("stfpm",), ("bottle",), 2, **held_out, also_presets=("paper",))
    others = plausible.full_table(("stfpm",), ("bottle",), 2, preset="standard")
    rows += [replace(row, method="padim", title="PaDiM", job_id=f"padim{row.job_id}") for row in others]
    whole, found = published.beside(board_of(rows))
    assert not whole
    assert {one.reported.method for one in found if one.difference is not None} == {"stfpm"}
    reason = "preset standard: the published numbers are for each paper's own sizes and budget"
    assert {one.reported.method for one in found if one.refusal == reason} == {"padim"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"corruption": "noise:5"}, "test images with noise:5: the published numbers are for images as they are"),
        (
            {"contamination": 0.0},
            "a contamination of 0: the published numbers are for clean normals and the whole test set",
        ),
        ({"k_shot": 4}, "--train-images 4: the published numbers are for all normal images"),
        (
            {"setting": "multi-class", "learnt_together": ("bottle=a", "cable=b")},
            "one model for several categories: the published numbers are for one of each",
        ),
        ({"fit": "pad"}, "--fit pad: the published numbers are for squares"),
        ({"tile": 64, "tile_overlap": 16}, "tiles of 64 px: the published numbers are for whole images"),
    ],
    ids=str,
)
@pytest.mark.parametrize("preset", ["standard", "paper"])
def test_nothing_published_stands_beside_jobs_on_other_images_and_they_are_the_reason(
    preset: str, changes: dict[str, object], why: str
) -> None:
    plain = board_of(plausible.full_table(("rd4ad",), ("bottle", "cable"), 2, preset=preset))
    assert published.beside(plain)[1]
    board = board_of(
        plausible.full_table(
            ("rd4ad",), ("bottle", "cable"), 2, preset=f"{preset}[so]", also_presets=("paper[so]",), **changes
        )
    )
    assert published.beside(board) == (why, [])
    assert {one.refusal for one in published.verdicts(board)} == {why}
    assert published_and_measured(board) == f"Not compared: {why}."


def test_a_changed_budget_of_the_standard_preset_stands_beside_published_numbers_with_that_reason() -> None:
    board = board_of(plausible.full_table(("rd4ad",), ("bottle",), 2, preset="standard[steps=70]"))
    whole, found = published.beside(board)
    assert not whole
    reason = "preset standard[steps=70]: the published numbers are for each paper's own sizes and budget"
    assert {one.refusal for one in found} == {reason}


@pytest.mark.parametrize("change", ["hold_out=0.3", "resolution=64", "steps=70,resolution=64"])
def test_nothing_published_stands_beside_a_standard_preset_of_other_sizes(change: str) -> None:
    board = board_of(plausible.full_table(("rd4ad",), ("bottle",), 2, preset=f"standard[{change}]"))
    why, found = published.beside(board)
    assert f"preset standard[{change}]: the published numbers are for each paper's own sizes" in why
    assert not found


def test_one_of_several_jobs_that_is_another_presets_does_not_make_the_others_the_papers() -> None:
    rows = plausible.full_table(("stfpm",), ("bottle",), 2, variant="held_out", preset="standard")
    rows[0] = replace(rows[0], also_presets=("paper",))
    assert not [one for one in published.verdicts(board_of(rows)) if one.difference is not None]


def test_marks_of_many_reasons_are_letters_and_no_two_are_alike() -> None:
    """With a sign of the table's own among them a line would have a cell too many."""
    (one,) = [found for found in verdicts("stfpm").values() if found.refusal][:1]
    marks = [*_reasons([replace(one, refusal=f"reason {place}") for place in range(800)]).values()]
    assert marks[:2] + marks[25:28] + marks[701:703] == ["(a)", "(b)", "(z)", "(aa)", "(ab)", "(zz)", "(aaa)"]
    assert len({*marks}) == 800
    assert all(re.fullmatch(r"\([a-z]+\)", mark) for mark in marks)


def test_of_the_published_categories_those_with_a_job_are_listed() -> None:
    """One job of one category brought sixty lines of numbers beside nothing."""
    board = board_of([plausible.row("rd4ad", "bottle", 0)])
    _, found = published.beside(board)
    assert {one.reported.category for one in found if not one.reported.category.startswith(MEAN)} == {"bottle"}
    assert any(one.reported.category == MEAN for one in found)


@pytest.mark.parametrize("preset", ["paper", "standard", "quick"])
def test_where_nothing_is_known_of_a_data_set_it_is_named_and_not_the_methods(preset: str) -> None:
    """Of these methods much is published, and nothing on a folder of one's own."""
    made = plausible.full_table(("stfpm", "rd4ad"), ("washer",), 1, dataset="folder:washers", preset=preset)
    board = board_of(made)
    for said in (published_and_measured(board), html_board._published(board)):
        assert "data set folder:washers" in said
        assert "methods" not in said
