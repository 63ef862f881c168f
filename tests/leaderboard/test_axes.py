"""Curves: which boards are their points, the area under them by hand, and what the pages make of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plausible
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdad_bench.leaderboard import axes, curve_tables, figures, html, markdown
from kdad_bench.leaderboard.axes import LEAST_HEIGHT, Curve, aside, curves, not_stretched, shown_whole
from kdad_bench.leaderboard.board import SEVERAL_VERSIONS, Board, boards_of
from kdad_bench.leaderboard.curve_chart import WIDTHS, drawing
from kdad_bench.leaderboard.excerpts import sections
from kdad_bench.leaderboard.row import COLUMNS, SCHEMA, Row
from kdad_bench.leaderboard.store import Results

PLACES = ("bottle", "cable")


def point(label: str, level: float, methods: tuple[str, ...] = ("stfpm", "rd4ad"), **columns: Any) -> Iterator[Row]:
    """Rows of one point: the image AUROC is `level`, less 0.1 for rd4ad, less 0.01 for each seed."""
    preset = f"paper[{label}]" if label else "paper"
    for one in plausible.full_table(methods, PLACES, 2, preset=preset, **columns):
        yield replace(one, image_auroc=level - 0.1 * (one.method == "rd4ad") - 0.01 * one.seed)


def few(counts: tuple[int, ...] = (1, 2, 8), levels: tuple[float, ...] = (0.5, 0.6, 0.8)) -> list[Row]:
    return [
        row
        for count, level in zip(counts, levels, strict=True)
        for row in point(f"train_images={count}", level, k_shot=count, train_images=count)
    ]


def blurred(levels: tuple[int, ...] = (1, 3), change: str = "") -> list[Row]:
    return [
        row
        for level in levels
        for row in point(f"corruption=blur:{level}{change}", 0.9 - 0.1 * level, corruption=f"blur:{level}")
    ]


def table_of(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist([{name: getattr(row, name) for name in COLUMNS} for row in rows], schema=SCHEMA)


def boards(rows: list[Row]) -> list[Board]:
    return boards_of([{name: getattr(row, name) for name in COLUMNS} for row in rows])


def only(rows: list[Row]) -> Curve:
    (found,) = curves(boards(rows))
    return found


def test_the_area_is_the_mean_height_over_the_logarithm_of_the_number_of_images() -> None:
    curve = only(few())
    assert [place.label for place in curve.places] == ["1", "2", "8"]
    assert [place.at for place in curve.places] == [0, 1, 3]
    found = curve.area("stfpm", "image_auroc")
    assert found is not None
    assert found.mean == pytest.approx(((0.5 + 0.6) / 2 * 1 + (0.6 + 0.8) / 2 * 2) / 3 - 0.005)
    assert found.low is not None
    assert found.low <= found.mean
    assert curve.order("image_auroc") == ("stfpm", "rd4ad")
    for place, one in zip(curve.places, curve.at("stfpm", "image_auroc"), strict=True):
        assert one == place.board.overall("stfpm", "image_auroc")
    means = [one.mean for one in curve.at("rd4ad", "image_auroc") if one]
    np.testing.assert_allclose(means, [0.395, 0.495, 0.695])


def test_the_plain_rows_are_an_end_of_every_curve_but_that_of_contamination() -> None:
    plain = list(point("", 0.9))
    assert [place.label for place in only(few() + plain).places] == ["1", "2", "8", "all (200)"]
    assert [(place.at, place.label) for place in only(blurred((3,)) + plain).places] == [(0, "none"), (3, "3")]
    dirty = [
        row
        for share in (0.1, 0.25)
        for row in point(f"contamination={share}", 0.9 - share, contamination=share, test_images=60)
    ]
    assert [(place.at, place.label) for place in only(dirty + plain).places] == [(0.1, "0.1"), (0.25, "0.25")]
    assert curves(boards(plain)) == curves(boards(blurred((3,)))) == ()


def test_only_rows_that_differ_in_one_axis_alone_are_points_of_one_curve() -> None:
    rows = blurred() + blurred(change=",steps=5") + [replace(row, resolution=128) for row in blurred()]
    noisy = [row for level in (1, 5) for row in point(f"corruption=noise:{level}", 0.7, corruption=f"noise:{level}")]
    found = curves(boards(rows + noisy))
    assert [(one.axis, one.group.preset, one.group.resolution) for one in found] == [
        ("blur", "paper", 128),
        ("blur", "paper", 256),
        ("noise", "paper", 256),
        ("blur", "paper[steps=5]", 256),
    ]
    assert all(len(one.places) == 2 for one in found)


def test_two_axes_at_once_give_curves_along_each() -> None:
    rows = [
        row
        for count in (1, 4)
        for level in (1, 2)
        for row in point(f"corruption=blur:{level},train_images={count}", 0.6, k_shot=count, corruption=f"blur:{level}")
    ]
    assert [(one.axis, one.group.preset) for one in curves(boards(rows))] == [
        ("train_images", "paper[corruption=blur:1]"),
        ("train_images", "paper[corruption=blur:2]"),
        ("blur", "paper[train_images=1]"),
        ("blur", "paper[train_images=4]"),
    ]


def test_every_point_and_the_area_are_over_the_categories_and_seeds_that_all_points_have() -> None:
    rows = [row for row in few() if (row.k_shot, row.category, row.seed) != (8, "cable", 1)]
    rows = [row for row in rows if (row.k_shot, row.category) != (2, "bottle")]
    curve = only(rows)
    means = [one.mean for one in curve.at("stfpm", "image_auroc") if one]
    np.testing.assert_allclose(means, [0.5, 0.6, 0.8])  # cable, seed 0
    area = curve.area("stfpm", "image_auroc")
    assert area is not None
    assert (area.seeds, area.categories) == (1, 1)


def test_a_method_that_lacks_a_point_is_drawn_and_not_ranked() -> None:
    curve = only([row for row in few() if (row.method, row.k_shot) != ("stfpm", 2)])
    assert curve.area("stfpm", "image_auroc") is None
    assert [one is not None for one in curve.at("stfpm", "image_auroc")] == [True, False, True]
    assert curve.order("image_auroc") == ("rd4ad", "stfpm")
    text = curve_tables.table(curve, "image_auroc")
    assert "| 1 | RD4AD | 0.395 | 0.495 | 0.695 |" in text
    assert "| – | STFPM | 0.495 | – | 0.795 | – |" in text


def test_curves_depend_on_the_rows_alone_and_not_on_their_order() -> None:
    rows = few() + blurred()
    said = [curve_tables.sections(curves(boards(order))) for order in (rows, rows[::-1])]
    assert said[0] == said[1]
    assert said[0]


def test_of_a_curve_the_plain_board_has_a_section_else_its_first_point() -> None:
    def shown(rows: list[Row]) -> list[str]:
        found = boards(rows)
        return [board.group.preset for board in shown_whole(found, curves(found))]

    plain = list(point("", 0.9))
    assert shown(few() + blurred() + plain) == ["paper"]
    assert shown(few()) == ["paper[train_images=1]"]
    assert shown(blurred((3,))) == ["paper[corruption=blur:3]"]  # one point is no curve
    assert shown(list(plain)) == ["paper"]


def test_the_pages_and_the_figures_have_the_curves() -> None:
    rows = [replace(row, synthetic=True) for row in few() + list(point("", 0.9))]
    table = table_of(rows)
    found = boards(rows)
    page = markdown.page(found, table)
    assert "### Training images\n\nmvtec_ad at 256 px, paper preset, Example CPU, 2 threads (synthetic data)" in page
    assert "| 1 | STFPM | 0.495 | 0.595 | 0.795 | 0.895 |" in page
    assert page.count("### Ranking") == 1
    body = html.body(found, table, (), {})
    assert '<a href="#curves">Curves</a>' in body
    wide, narrow = (body.count(f'<svg class="curve {name}" viewBox="0 0 {px} ') for name, px in WIDTHS.items())
    assert wide == narrow == 3, "labels of the wide one are 5 px on a phone"
    assert 'aria-label="STFPM at all (200): image AUROC 0.895' in body
    assert "(synthetic data)" in body
    names = [name for name, _ in figures._plan(found, table.to_pylist())]
    assert [name for name in names if name.startswith("curve-")] == [
        "curve-train-images-image-auroc-mvtec-ad-paper-cpu",
        "curve-train-images-aupro-0-3-mvtec-ad-paper-cpu",
    ]
    assert "Curves" not in markdown.page(boards(rows[-8:]), table_of(rows[-8:]))


def test_a_figure_shows_each_method_with_its_area_and_the_interval_of_each_point(tmp_path: Path) -> None:
    found = boards(few() + list(point("", 0.9)))
    (make, *_) = [make for name, make in figures._plan(found, []) if name.startswith("curve-")]
    drawn = make().axes[0]
    legend = drawn.get_legend()
    assert legend is not None
    area = axes.curves(found)[0].area("stfpm", "image_auroc")
    assert area is not None
    assert legend.get_texts()[0].get_text() == f"STFPM  {area.mean:.3f}"
    assert [text.get_text() for text in drawn.get_xticklabels()] == ["1", "2", "8", "all (200)"]
    assert len(drawn.collections) == 2 * 4  # an interval for each method and point
    figures.draw(found, [], tmp_path)
    assert len(list(tmp_path.glob("curve-*.svg"))) == len(list(tmp_path.glob("curve-*.png"))) == 2


def test_what_stands_in_names_cannot_end_what_it_stands_in() -> None:
    rows = [replace(row, title='<b>"x"|y') for row in few() if row.method == "stfpm"]
    found = boards(rows)
    body = html.body(found, table_of(rows), (), {})
    assert "<b>" not in body
    page = markdown.page(found, table_of(rows))
    assert "<b>" not in page
    assert "|y" not in page.replace("\\|y", "")


def test_many_methods_are_drawn_within_the_plot() -> None:
    rows = [
        plausible.invented(f"m{n:02}", "bottle", 0, title=f"m{n:02}", image_auroc=0.5 + n / 100, k_shot=count,
                           preset=f"paper[train_images={count}]")
        for n in range(30) for count in (1, 3)
    ]  # fmt: skip
    rows = [replace(row, job_id=f"{row.job_id}-{row.k_shot}") for row in rows]
    drawn = drawing(only(rows), "image_auroc")
    across = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    left, right = (float(re.findall(r'class="grid" x1="([\d.]+)" x2="([\d.]+)"', drawn)[0][end]) for end in (0, 1))
    assert left + 5 <= min(across) < max(across) <= right - 5, "circles have a radius of 5"


def test_intervals_of_one_point_lie_beside_each_other_and_nearer_than_the_next_point() -> None:
    curve = only(few())
    shifts = aside(curve)
    assert len({*shifts.values()}) == len(curve.labels) > 1
    gap = min(after.at - before.at for before, after in itertools.pairwise(curve.places))
    assert max(map(abs, shifts.values())) < gap / 3
    drawn = drawing(curve, "image_auroc")
    bars = re.findall(r'class="interval" x1="([\d.]+)"', drawn)
    assert len({*bars}) == len(bars) > len(curve.places)


# ---- like with like


@pytest.mark.parametrize("apart", ["categories", "seeds"])
def test_points_without_a_job_in_common_are_no_curve_and_have_their_sections(apart: str) -> None:
    def kept(row: Row) -> bool:
        first = row.k_shot == 1
        return first == (row.category == "bottle" if apart == "categories" else row.seed == 0)

    rows = [row for row in few((1, 2), (0.5, 0.6)) if kept(row)]
    found = boards(rows)
    assert curves(found) == ()
    assert shown_whole(found, curves(found)) == found
    assert "Curves" not in markdown.page(found, table_of(rows))
    assert "Curves" not in html.body(found, table_of(rows), (), {})


def test_a_method_with_other_teacher_weights_at_another_point_is_another_one() -> None:
    random = {"teacher_weights": "random", "teacher_sha256": "7" * 64}
    rows = [replace(row, **random) if row.k_shot == 8 and row.method == "stfpm" else row for row in few()]
    curve = only(rows)
    trained, untrained = (f"stfpm@resnet18 {name}" for name in ("torchvision IMAGENET1K_V1", "random"))
    assert [*curve.labels] == ["rd4ad", untrained, trained]
    assert [one is not None for one in curve.at(trained, "image_auroc")] == [True, True, False]
    assert [one is not None for one in curve.at(untrained, "image_auroc")] == [False, False, True]
    assert curve.order("image_auroc")[0] == "rd4ad"
    both = only(few() + [replace(row, job_id=f"7{row.job_id}", **random) for row in rows if row.k_shot == 8])
    assert all(both.at(trained, "image_auroc")), "the board of a point that has both names them as the curve does"


def test_values_of_other_files_than_the_newest_are_left_out_and_said() -> None:
    def changed(row: Row) -> Row:
        old = {"data_fingerprint": "0" * 64, "created_at": "2025-12-24T10:00:00+00:00"}
        return replace(row, **old) if (row.k_shot, row.category) == (2, "cable") else row

    rows = [changed(row) for row in few()]
    curve = only(rows)
    assert curve.left_out == " Left out, made from other files than the newest rows: cable at 2."
    area = curve.area("stfpm", "image_auroc")
    assert area is not None
    assert area.categories == 1
    means = [one.mean for one in only([row for row in rows if row.category == "bottle"]).at("stfpm", "image_auroc")
             if one]  # fmt: skip
    assert [one.mean for one in curve.at("stfpm", "image_auroc") if one] == means
    for page in (markdown.page(boards(rows), table_of(rows)), html.body(boards(rows), table_of(rows), (), {})):
        assert "Left out, made from other files than the newest rows: cable at 2." in page
    assert only(few()).left_out == ""


def test_a_newest_row_that_does_not_know_its_files_leaves_none_out() -> None:
    newest = "2026-12-24T10:00:00+00:00"
    rows = [replace(row, data_fingerprint=None, created_at=newest) if row.k_shot == 8 else row for row in few()]
    assert only(rows).left_out == ""


def together(rows: list[Row], images: int | None = None) -> list[Row]:
    """The same rows of one model for both categories, which learnt from `images` in all."""
    made = []
    for row in rows:
        inside = row.preset.removeprefix("paper").strip("[]")
        parts = sorted([*filter(None, inside.split(",")), "setting=multi-class:2:ab12"])
        made.append(replace(
            row, preset=f"paper[{','.join(parts)}]", setting="multi-class", learnt_together=("bottle=1", "cable=2"),
            train_images=images or 2 * (row.k_shot or 0),
        ))  # fmt: skip
    return made


def test_with_one_model_for_all_the_number_of_images_is_that_of_each_category() -> None:
    curve = only(together(few()) + together(list(point("", 0.9)), images=400))
    assert [(place.at, place.label) for place in curve.places][-1] == (np.log2(200), "all (200)")
    assert curve.words == "number of training images of each category"
    assert only(few()).words == "number of training images"
    assert curves(boards(few((1,), (0.5,)) + together(few((2,), (0.6,))))) == (), "two settings share no curve"


def test_pages_of_one_model_for_all_say_so_in_words_of_their_own() -> None:
    rows = [replace(row, preset=row.preset.replace("paper", "quick")) for row in together(list(point("", 0.9)), 400)]
    words = "One model has learnt from all of these categories"
    body = html.body(boards(rows), table_of(rows), (), {})
    assert f'<span class="badge">multi-class</span>{words}' in body
    assert body.count('<span class="badge">quick preset</span>Small images') == 1
    assert words.lower() in markdown.page(boards(rows), table_of(rows))


@pytest.mark.parametrize(
    ("centres", "widths", "rows"),
    [
        ((0, 100, 200), (50, 50, 50), [0, 0, 0]),
        ((0, 40, 80), (50, 50, 50), [0, 1, 0]),
        ((0, 10, 20), (50, 50, 50), [0, 1, 2]),
        ((0, 58), (50, 50), [0, 0]),
        ((0, 57), (50, 50), [0, 1]),
        ((0, 30, 90), (50, 10, 50), [0, 1, 0]),
    ],
)
def test_labels_that_would_touch_stand_in_another_row(
    centres: tuple[float, ...], widths: tuple[float, ...], rows: list[int]
) -> None:
    assert axes.rows_of_labels(centres, widths) == rows


def test_labels_of_points_that_are_close_together_are_drawn_below_each_other() -> None:
    rows = few((1, 64, 160), (0.5, 0.6, 0.7)) + list(point("", 0.9))
    drawn = drawing(only(rows), "image_auroc")
    places = {label: float(y) for y, label in re.findall(r'class="tick" x="[\d.]+" y="([\d.]+)"[^>]*>([^<]+)<', drawn)}
    assert places["1"] == places["160"] < places["all (200)"]
    (make, *_) = [make for name, make in figures._plan(boards(rows), []) if name.startswith("curve-")]
    assert [text.get_text() for text in make().axes[0].get_xticklabels()] == ["1", "64", "160", "\nall (200)"]


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_curve_is_not_stretched(one: float, other: float) -> None:
    low, high = sorted((one, other))
    below, above = not_stretched(low, high)
    assert 0 <= below <= low <= high <= above <= 1
    assert above - below >= LEAST_HEIGHT - 1e-12
    if high - low >= LEAST_HEIGHT:
        assert (below, above) == (low, high)


@pytest.mark.parametrize(
    "versions", [("0.1", "0.2", "0.2"), ("0.2", "0.1", "0.2"), ("0.1", "0.2", "0.3"), ("0.2", "0.2", "0.2")]
)
def test_a_curve_over_rows_of_several_versions_says_so(versions: tuple[str, ...]) -> None:
    """Also where the rows of each point are of one version, and where no section of a point is shown."""
    rows = [replace(row, kdad_bench=versions[(1, 2, 8).index(row.k_shot or 0)]) for row in few()]
    mixed = len({*versions}) > 1
    assert (SEVERAL_VERSIONS in only(rows).caveats) == mixed
    for page in (markdown.page(boards(rows), table_of(rows)), html.body(boards(rows), table_of(rows), (), {})):
        assert (SEVERAL_VERSIONS in page) == mixed


def test_names_of_presets_and_corruptions_cannot_end_what_they_stand_in() -> None:
    evil = "<img src=x onerror=alert(1)>"
    preset = [replace(row, preset=row.preset.replace("paper", evil)) for row in few()]
    corruption = [
        replace(row, preset=row.preset.replace("blur", evil), corruption=(row.corruption or "").replace("blur", evil))
        for row in blurred((1, 2, 3))
    ]
    for rows in (preset, corruption):
        found = boards(rows)
        excerpt = "".join(
            sections(Results(where="", table=table_of(rows), problems=(), superseded=0, files=1)).values()
        )
        for page in (markdown.page(found, table_of(rows)), html.body(found, table_of(rows), (), {}), excerpt):
            assert not re.search(r"(?<!\\)<img", page)


def test_a_curve_of_a_metric_that_some_categories_lack_says_so() -> None:
    rows = [replace(row, aupro_30=None) if row.category == PLACES[0] else row for row in few()]
    curve = only(rows)
    assert [curve.heading(metric) for metric in curve.metrics] == ["image AUROC", "pixel AUROC", "AUPRO@0.3 (1 of 2)"]
    found = table_of(rows)
    assert "AUPRO@0.3 (1 of 2) by number of training images" in markdown.page(boards(rows), found)
    assert "<summary>AUPRO@0.3 (1 of 2) by number of" in html.page(boards(rows), found)
    (axes,) = figures.curve_figures.figure(curve, "aupro_30").axes
    assert axes.get_ylabel() == "AUPRO@0.3 (1 of 2)"
