"""Figures: what they show, that the same rows give the same bytes, and that nothing is drawn from nothing."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import plausible
import pyarrow as pa
import pytest
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter
from test_markdown import board_of

from kdad_bench.leaderboard import chart, figure_parts, figures, store
from kdad_bench.leaderboard import row as rows
from kdad_bench.leaderboard.board import DRAWN, Board, boards
from kdad_bench.leaderboard.row import Row

GOLDEN = Path(__file__).parents[1] / "golden"


def drawn(made: Sequence[Row], folder: Path) -> dict[str, Path]:
    names = (*DRAWN, "throughput")
    schema = pa.schema([rows.SCHEMA.field(name) for name in names])
    lines = [{name: _plain(getattr(row, name)) for name in names} for row in made]
    table = pa.Table.from_pylist(lines, schema=schema)
    return {path.name: path for path in figures.draw(boards(table), table.to_pylist(), folder)}


def _boards(made: Sequence[Row]) -> list[Board]:
    schema = pa.schema([rows.SCHEMA.field(name) for name in DRAWN])
    lines = [{name: _plain(getattr(row, name)) for name in DRAWN} for row in made]
    return boards(pa.Table.from_pylist(lines, schema=schema))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def shown(figure: Any) -> dict[str, Any]:
    """What a figure says: its texts, and the places of its points and lines."""
    (axes,) = figure.axes
    fixed = [axis for axis in (axes.xaxis, axes.yaxis) if isinstance(axis.get_major_formatter(), FixedFormatter)]
    ticks = [label for axis in fixed for label in axis.get_ticklabels()]  # matplotlib chooses the others by its version
    texts = [text.get_text() for text in (*figure.texts, *axes.texts, *ticks)]
    legend = axes.get_legend()
    texts += [text.get_text() for text in legend.get_texts()] if legend else []
    lines = [[[round(float(v), 4) for v in axis] for axis in line.get_data()] for line in axes.lines]
    return {
        "title": figure.get_suptitle(),
        "axes": [axes.get_xlabel(), axes.get_ylabel()],
        "texts": [text for text in texts if text and text != figure.get_suptitle()],
        "lines": lines,
    }


def test_the_figures_of_the_recorded_results_show_what_the_golden_file_says() -> None:
    found = store.read(GOLDEN / "results")
    made = {name: shown(make()) for name, make in figures._plan(boards(found.table), found.table.to_pylist())}
    assert made == json.loads((GOLDEN / "figures.json").read_text(encoding="utf-8"))


def test_the_same_rows_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    made = plausible.full_table(("stfpm", "rd4ad", "mkd"), ("bottle", "cable"), 2)
    first = drawn(made, tmp_path / "a")
    random.Random(1).shuffle(made)
    second = drawn(made, tmp_path / "b")
    assert first.keys() == second.keys()
    assert {name.rsplit(".", 1)[1] for name in first} == {"svg", "png"}
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name


def test_a_persons_own_style_changes_no_figure(tmp_path: Path) -> None:
    made = [plausible.row("stfpm", "gear", 0), plausible.row("mkd", "gear", 0)]
    own = {"text.usetex": True, "text.color": "white", "axes.facecolor": "black", "lines.linewidth": 9, "font.size": 4}
    expected = drawn(made, tmp_path / "without")
    with mpl.rc_context(own):
        found = drawn(made, tmp_path / "with")
        assert mpl.rcParams["text.usetex"]
    assert expected
    assert {name: path.read_bytes() for name, path in found.items()} == {
        name: path.read_bytes() for name, path in expected.items()
    }


def test_an_entrant_looks_the_same_whatever_its_rank() -> None:
    def drawn_board(best: str, worst: str) -> Any:
        figures = {best: 0.95, worst: 0.6}
        return board_of([
            plausible.row(method, category, 0, image_auroc=value, aupro_30=value)
            for method, value in figures.items() for category in ("bottle", "cable")
        ])  # fmt: skip

    one, other = drawn_board("stfpm", "rd4ad"), drawn_board("rd4ad", "stfpm")
    assert one.order != other.order
    assert {key: one.look(key) for key in one.order} == {key: other.look(key) for key in other.order}
    assert len({one.look(key) for key in one.order}) == 2


def test_each_figure_is_drawn_only_where_there_is_something_to_show(tmp_path: Path) -> None:
    def names(**changes: Any) -> set[str]:
        made = plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 1, **changes)
        return {name.split("-")[0] for name in drawn(made, tmp_path) if name.endswith(".svg")}

    assert names() == {"pareto", "seeds", "ranks", "batch"}
    assert names(latency_ms=None) == {"seeds", "ranks", "batch"}
    assert names(throughput=()) == {"pareto", "seeds", "ranks"}
    assert drawn([plausible.failed_row("stfpm", "bottle", 0, "no weights")], tmp_path) == {}
    two_sizes = plausible.full_table(("stfpm",), ("bottle",), 1)
    two_sizes += plausible.full_table(("stfpm",), ("bottle",), 1, preset="paper[image_size=128]", image_size=128)
    assert "size.svg" in drawn(two_sizes, tmp_path)
    tiles = plausible.full_table(("stfpm",), ("bottle",), 1, preset="paper[tile=128]", image_size=128, tile=128)
    assert figures.sizes([board_of(two_sizes[:1]), board_of(tiles)]) == {}, "four tiles are no image of 128 px"


def test_another_data_set_or_preset_is_no_other_size() -> None:
    """128 px of `quick` on drawn images and 256 px of `standard` on photographs made one line of growth."""
    small = plausible.full_table(("stfpm",), ("bottle",), 1, preset="quick", image_size=128)
    large = {"preset": "standard[steps=9,image_size=256]", "image_size": 256}

    def made_as(changes: dict[str, Any]) -> list[Row]:
        return plausible.full_table(("stfpm",), ("bottle",), 1, **changes)

    visa = {"preset": "quick[image_size=256]", "image_size": 256, "dataset": "visa"}
    for other in (visa, {**large, "preset": "quick[steps=9]"}, large):
        assert figures.sizes([board_of(small), board_of(made_as(other))]) == {}
    twin = plausible.full_table(("stfpm",), ("bottle",), 1, preset="quick[image_size=256,taps=(4, 8)]", image_size=256)
    eight = plausible.full_table(("stfpm",), ("bottle",), 1, preset="quick[taps=(4, 8)]", image_size=128)
    ((where, _), points) = next(iter(figures.sizes([board_of(one) for one in (small, twin, eight)]).items()))
    assert where.startswith("mvtec_ad, quick[taps=(4, 8)] preset, ")
    assert [size for size, _ in points] == [128, 256]


@pytest.mark.parametrize(
    "apart",
    [{"modality": "depth"}, {"protocol_version": "2"}, {"resolution": 64}, {"dataset": "visa"}],
    ids=str,
)
def test_the_growth_with_the_size_is_of_times_that_jobs_had(apart: dict[str, Any]) -> None:
    """Lines of RGB and depth, of two protocols, of maps of two sizes were one line through the means of both."""
    made = []
    for slower, changes in ((1, {}), (5, apart)):
        for size, time in ((128, 10.0), (256, 40.0)):
            preset = "paper" if size == 256 else "paper[image_size=128]"
            about = {"image_size": size, "resolution": size, "preset": preset, "latency_ms": slower * time, **changes}
            made += plausible.full_table(("stfpm",), ("bottle",), 2, **about)
    found = figures.sizes(_boards(made))
    expected = [[(128, slower * 10.0), (256, slower * 40.0)] for slower in (1, 5)]
    assert sorted(found.values()) == expected, [*found]


def test_the_growth_with_the_size_says_what_holds_for_its_own_lines_alone() -> None:
    made = plausible.full_table(("stfpm",), ("bottle",), 1)
    made += plausible.full_table(("stfpm",), ("bottle",), 1, preset="paper[image_size=128]", image_size=128)
    quick = plausible.full_table(("stfpm",), ("bottle",), 1, preset="quick", synthetic=True, dataset="synthetic")
    figure = dict(figures._plan(_boards([*made, *quick]), []))["size"]()
    assert shown(figure)["title"] == "Cost against image size"


def test_a_figure_of_speed_says_the_threads_that_speed_was_measured_with() -> None:
    """Jobs with one thread stood in the line below a chart of times that were measured with two."""
    shared = {"threads": 1, "speed_key": "0123456789abcdef", "speed_threads": 2}
    made = []
    for size, preset in ((256, "paper"), (128, "paper[image_size=128]")):
        about = {**shared, "image_size": size, "resolution": size, "preset": preset}
        made += plausible.full_table(("stfpm", "mkd"), ("bottle", "cable"), 2, **about)
    lines = [{"job_id": row.job_id, "throughput": list(row.throughput)} for row in made]
    plan = {name.partition("-")[0]: make for name, make in figures._plan(_boards(made), lines)}
    below = {kind: shown(plan[kind]())["texts"] for kind in ("pareto", "batch", "size", "seeds")}
    for kind in ("pareto", "batch"):
        assert any(text.endswith("Example CPU, 1 thread; speed with 2 CPU threads") for text in below[kind]), kind
    assert any(text.endswith("Example CPU, 2 threads") for text in below["size"])
    assert any(text.endswith("Example CPU, 1 thread") for text in below["seeds"])


def test_figures_of_entrants_that_are_gone_are_named(tmp_path: Path) -> None:
    drawn(plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2), tmp_path)
    (tmp_path / "own.png").write_bytes(b"")
    one = drawn(plausible.full_table(("stfpm",), ("bottle", "cable"), 2), tmp_path)
    gone = ["ranks-mvtec-ad-paper-cpu.png", "ranks-mvtec-ad-paper-cpu.svg"]
    assert figures.left_over([*one.values()]) == gone
    assert all((tmp_path / name).is_file() for name in (*gone, "own.png"))


def test_names_are_drawn_as_they_stand() -> None:
    """Two dollar signs made a formula of a name, or no figure at all; an underscore kept one out of the legend."""
    made = plausible.full_table(("stfpm", "rd4ad"), ("bottle",), 2, dataset="folder:/data/$10_to_$20", throughput=())
    made = [replace(one, title="_own") if one.method == "stfpm" else one for one in made]
    with mpl.rc_context(figures.STYLE):
        figure = next(make() for name, make in figures._plan([board_of(made)], []) if name.startswith("pareto"))
        figure.canvas.draw()
    assert not any(text.get_parse_math() for text in figure.findobj(Text))
    said = shown(figure)["texts"]
    assert any("$10_to_$20" in text for text in said)
    assert "_own" in [text.strip("\N{ZERO WIDTH SPACE}") for text in said]


LONG = "PaDiM (wide_resnet50_2 torchvision:IMAGENET1K_V2) with a name of its own"


@pytest.mark.parametrize("names", [[f"method {n}" for n in range(40)], [f"{LONG} {n}" for n in range(12)]], ids=len)
def test_many_entrants_and_long_names_leave_room_for_what_is_drawn(names: list[str]) -> None:
    """The axes were a strip beside a legend of twenty names, and nothing beside names of 45 characters."""
    made = [
        replace(plausible.row("stfpm", category, 0, variant=f"v{n}"), title=name, method=f"m{n}")
        for n, name in enumerate(names)
        for category in ("bottle", "cable")
    ]
    lines = [{"job_id": row.job_id, "throughput": list(row.throughput)} for row in made]
    with mpl.rc_context(figure_parts.STYLE):
        plan = dict(figures._plan([board_of(made)], lines))
        assert {name.partition("-")[0] for name in plan} == {"pareto", "seeds", "ranks", "batch"}
        for kind, make in plan.items():
            figure = make()
            figure.canvas.draw()
            (axes,) = figure.axes
            inside = axes.get_window_extent()
            assert inside.width > 350, kind
            assert inside.height > 250, kind
            legend = axes.get_legend()
            written = legend.get_texts() if legend else [*axes.texts] or axes.get_yticklabels()
            boxes = [text.get_window_extent() for text in written if text.get_text().strip()]
            assert all(not _covers(one, other) for one, other in combinations(boxes, 2)), kind
            frame = figure.bbox.expanded(1.01, 1.01)
            assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes), kind


def _covers(one: Any, other: Any) -> bool:
    """Whether two texts share more than a line of pixels."""
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    return bool(across > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1)


@pytest.mark.parametrize("times", [(66.0, 190.0), (0.004, 2500.0), (0.4, 2500.0), (99.0, 101.0)], ids=str)
def test_the_numbers_of_a_logarithmic_axis_stand_apart_and_can_be_read(times: tuple[float, float]) -> None:
    """ "500 10002000" ran into one, and an axis from 66 to 190 had one number."""
    made = [plausible.row(name, "bottle", 0, latency_ms=ms) for name, ms in zip(("stfpm", "mkd"), times, strict=True)]
    with mpl.rc_context(figure_parts.STYLE):
        figure = figures.pareto(board_of(made), "aupro_30")
        figure.canvas.draw()
    labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert len(labels) >= 3
    ends = [(box.x0, box.x1) for box in (label.get_window_extent() for label in labels)]
    assert all(right + 2 < left for (_, right), (left, _) in pairwise(ends)), [label.get_text() for label in labels]


def test_of_the_numbers_of_an_axis_those_with_room_are_written() -> None:
    ticks = chart.log_ticks(0.3, 3000)
    assert ticks == [0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    assert chart.with_room(ticks, 1000, 8) == ticks
    assert chart.with_room(ticks, 400, 8) == [1, 10, 100, 1000]
    assert chart.with_room(ticks, 150, 8) == [1, 100]


def test_equal_methods_are_drawn_as_equal() -> None:
    """Half a thousandth between two methods was the whole height of a chart."""
    made = [plausible.row(name, "bottle", 0, aupro_30=value) for name, value in (("stfpm", 0.9001), ("mkd", 0.9006))]
    board = board_of(made)
    low, high = figures.pareto(board, "aupro_30").axes[0].get_ylim()
    left, right = figures.seeds(board, "aupro_30").axes[0].get_xlim()
    assert min(high - low, right - left) >= 0.05 - 1e-9


def test_letters_that_figures_have_not_are_told_in_one_line(tmp_path: Path) -> None:
    """matplotlib warned of each in each file, with the place and the text of the source that drew it."""
    made = [replace(one, title="日本 é") for one in plausible.full_table(("stfpm",), ("bottle", "cable"), 1)]
    assert drawn(made, tmp_path)
    assert figures.boxes(_boards(made)).endswith("DejaVu Sans, lacks: 日本")
    assert figures.boxes(_boards(plausible.full_table(("stfpm",), ("bottle",), 1))) == ""


def test_the_names_of_the_files_say_what_their_boards_differ_in() -> None:
    """Depth and RGB were `...-cpu` and `...-cpu-2`, whichever came first."""
    apart: tuple[dict[str, Any], ...] = ({}, {"modality": "depth"}, {"resolution": 64}, {"device_name": "other"})
    made = [row for changes in apart for row in plausible.full_table(("stfpm",), ("bottle",), 1, **changes)]
    names = {name for name, _ in figures._plan(_boards(made), []) if name.startswith("seeds")}
    plain, far = "seeds-mvtec-ad-paper-cpu-256-protocol-1", "seeds-mvtec-ad-paper-cpu-64-protocol-1"
    assert names == {plain, f"{plain}-2", far, "seeds-mvtec-ad-depth-paper-cpu"}


def test_without_masks_the_figures_show_image_auroc() -> None:
    none = dict.fromkeys(("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05"))
    board = board_of(plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2, **none))
    titles = [shown(make())["title"] for _, make in figures._plan([board], [])]
    assert titles == ["image AUROC against speed", "image AUROC over seeds", "Average rank in image AUROC"]


def test_quick_and_synthetic_are_said_in_every_figure() -> None:
    changes = {"preset": "quick", "dataset": "synthetic", "synthetic": True}
    made = plausible.full_table(("stfpm", "rd4ad"), ("blobs", "weave"), 2, **changes)
    made += plausible.full_table(
        ("stfpm",), ("blobs",), 1, **{**changes, "preset": "quick[image_size=64]", "image_size": 64}
    )
    names = (*DRAWN, "throughput")
    schema = pa.schema([rows.SCHEMA.field(name) for name in names])
    table = pa.Table.from_pylist([{n: _plain(getattr(row, n)) for n in names} for row in made], schema=schema)
    plan = dict(figures._plan(boards(table), table.to_pylist()))
    assert {name.split("-")[0] for name in plan} == {"pareto", "seeds", "ranks", "batch", "size"}
    for name, make in plan.items():
        assert "quick preset, synthetic data]" in shown(make())["title"], name


@pytest.mark.parametrize(
    ("average", "distance", "groups"),
    [
        ({"a": 1.0, "b": 1.5, "c": 3.0}, 0.5, [(1.0, 1.5)]),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, 1.0, [(1.0, 2.0), (2.0, 3.0)]),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, 2.0, [(1.0, 3.0)]),
        ({"a": 1.0, "b": 3.0}, 1.0, []),
        ({"a": 1.5, "b": 1.5, "c": 3.0}, 0.1, [(1.5, 1.5)]),
    ],
)
def test_methods_within_the_critical_difference_are_joined_and_no_bar_lies_inside_another(
    average: dict[str, float], distance: float, groups: list[tuple[float, float]]
) -> None:
    assert figures.joined(average, distance) == groups


def test_the_throughput_of_a_batch_is_the_median_over_jobs() -> None:
    made = []
    for seed, rate in enumerate((100.0, 300.0, 110.0)):
        curve = ({"batch": 1, "images_per_second": rate}, {"batch": 8, "images_per_second": 2 * rate})
        made.append(plausible.row("stfpm", "bottle", seed, throughput=curve))
    lines = [{"job_id": row.job_id, "throughput": list(row.throughput)} for row in made]
    assert figures.batches(board_of(made), lines) == {"stfpm": [(1, 110.0), (8, 220.0)]}


def test_matplotlib_is_loaded_for_figures_only() -> None:
    code = "import sys; from kdad_bench.leaderboard import figures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_two_of_many_entrants_look_alike() -> None:
    count = len(figure_parts.COLOURS) * len(figure_parts.MARKERS)
    looks = [tuple(figure_parts.look_of(place).values()) for place in range(count)]
    assert len(set(looks)) == len(looks)
