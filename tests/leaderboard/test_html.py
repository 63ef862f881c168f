"""leaderboard.html: self-contained, readable by people and screen readers, and alive in a real browser."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import plausible
import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from test_markdown import board_of, cells, table

from kdad_bench.leaderboard import chart, deciding, html, html_pairs, markdown_pairs, store
from kdad_bench.leaderboard.board import Board, boards
from kdad_bench.leaderboard.gallery import THUMBNAIL
from kdad_bench.leaderboard.html import JOB_COLUMNS
from kdad_bench.leaderboard.row import Row
from kdad_bench.leaderboard.store import Problem

GOLDEN = Path(__file__).parents[1] / "golden"


def page(made: Sequence[Row], problems: Sequence[Problem] = (), pictures: dict[str, Path] | None = None) -> str:
    found = table(made)
    return html.page(boards(found), found, problems, pictures)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def picture() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (700, 900), (200, 30, 30)).save(sink, "PNG")
    return sink.getvalue()


def test_the_page_says_the_threads_that_speed_was_measured_with() -> None:
    """The heading names those of the jobs, and what is 65 ms with two threads is 85 ms with one."""
    shared = {"threads": 1, "speed_key": "0123456789abcdef", "speed_threads": 2}
    text = page(plausible.full_table(("stfpm", "mkd"), ("bottle", "cable"), 2, **shared))
    ranking, _, rest = text.partition("<h3>Speed against accuracy</h3>")
    chart, _, rest = rest.partition("<h3>By category</h3>")
    said = "Speed is measured once per method and settings, with no job beside it, with 2 CPU threads."
    assert said in ranking
    assert said in chart
    assert said not in rest


def rich_rows() -> list[Row]:
    return plausible.mixed_table() + plausible.full_table(("stfpm",), variant="held_out")


class Outline(HTMLParser):
    """What a screen reader needs: the elements with their attributes, in order, and which are left open."""

    VOID = ("meta", "br", "img", "input", "line", "circle", "path", "link", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# ---- the file


def test_the_body_of_the_recorded_results_is_the_golden_file() -> None:
    found = store.read(GOLDEN / "results")
    body = html.body(boards(found.table), found.table, found.problems, {})
    assert body + "\n" == (GOLDEN / "leaderboard_body.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page(rich_rows())
    outline = Outline(text)
    assert "default-src 'none'" in text
    for attributes in (attributes for _, attributes in outline.elements):
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), value
    assert "@import" not in text
    for style in re.findall(r"<style>(.*?)</style>", text, re.S):
        assert not re.search(r"url\((?![\"']?data:)", style)


def test_the_elements_of_the_page_are_closed_in_order_and_its_ids_are_unique() -> None:
    outline = Outline(page(rich_rows(), [Problem("a.parquet", "torn")]))
    assert outline.open == []
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes.get("href") or "" for attributes in outline.named("a")]
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_tables_have_captions_headings_have_scopes_and_pictures_have_texts(tmp_path: Path) -> None:
    rows = rich_rows()
    outline = Outline(page(rows, pictures={rows[0].job_id: put(tmp_path / "a.png", picture())}))
    assert len(outline.named("table")) == len(outline.named("caption")) > 5
    assert all(attributes.get("scope") in ("col", "row") for attributes in outline.named("th"))
    assert len(outline.named("h1")) == 1
    assert outline.named("html")[0]["lang"] == "en"
    assert all(attributes["alt"] for attributes in outline.named("img"))
    for _, attributes in outline.elements:
        if attributes.get("class") == "point":
            assert attributes["tabindex"] == "0"
            assert attributes["role"] == "img"
            assert "ms/image" in str(attributes["aria-label"])


def test_a_screen_reader_lists_each_section_and_each_table_by_a_short_name() -> None:
    """They had the first sentence of their legends: seven different tables were all "Average rank: over ..."."""
    text = page(rich_rows())
    named = re.findall(r'role="region" aria-label="([^"]*)"', text)
    assert {"Ranking", "image AUROC by category", "Who beats whom: AUPRO@0.3", "Published and measured"} <= {*named}
    assert "Ranking: floor" in named
    assert max(map(len, named)) < 60
    for part in re.findall(r"<section id=.*?</section>", text, re.S):
        inside = re.findall(r'role="region" aria-label="([^"]*)"', part)
        assert len(inside) == len({*inside}), "no two of a section are named alike"
    for name in re.findall(r'aria-labelledby="([^"]*)"', text):
        assert f'<h2 id="{name}">' in text
    tables = re.findall(r'<table class="[^"]*" aria-label="([^"]*)"', text)
    assert tables == [name for name in named if name != "All jobs"]
    assert text.count("<section id=") == text.count("aria-labelledby=") > 2


def test_a_matrix_without_room_for_all_methods_counts_whom_its_rows_beat_among_all() -> None:
    """The best of 27 beat 24 of the 25 that were shown, and by the page no more."""
    made = []
    for place in range(27):
        for category in plausible.CATEGORIES[:2]:
            for seed in range(3):
                level = 0.99 - 0.02 * place + random.Random(f"{place} {seed}").gauss(0, 0.0002)
                one = plausible.invented(f"m{place:02d}", category, seed, image_auroc=level)
                made.append(replace(one, title=f"M{place:02d}", aupro_30=None, pixel_auroc=None))
    (board,) = boards(table(made))
    assert deciding.standing(board, board.order[0], "image_auroc") == (26, 0)
    for matrix in (html_pairs.matrix(board, "image_auroc"), markdown_pairs.matrix(board, "image_auroc")):
        assert "The first 25 of 27 methods. All count in “beats” and “loses to”." in matrix
    assert cells(markdown_pairs.matrix(board, "image_auroc").partition("\n\n")[0], by=1)["M00"]["beats"] == "26"


def test_failed_jobs_are_reached_from_the_top_and_nothing_is_said_of_seeds_that_are_not_there() -> None:
    bad = plausible.failed_row("rd4ad", "cable", 0, "RuntimeError: no memory")
    made = [plausible.row("stfpm", "bottle", 0), plausible.row("stfpm", "cable", 0), bad]
    text = page(made)
    assert '<li><a href="#failed">Failed jobs</a></li>' in text
    assert "image AUROC, one seed each. " in text
    whole = page(plausible.full_table(("stfpm",), ("bottle", "cable"), 2))
    assert "#failed" not in whole
    assert "image AUROC, mean ± standard deviation over seeds. " in whole


def test_a_thousand_rows_stay_under_three_megabytes_with_pictures(tmp_path: Path) -> None:
    methods = tuple(plausible.METHODS)
    categories = tuple(f"category{number}" for number in range(15))
    rows = plausible.full_table(methods, categories, 14)
    assert len(rows) > 1000
    noise = tmp_path / "noise.png"
    Image.effect_noise((700, 1400), 80).convert("RGB").save(noise)
    text = page(rows, pictures={row.job_id: noise for row in rows[:210:14]})
    assert len(text.encode()) < 3_000_000
    assert "are in the folder" in text, "those that do not fit are named"


def test_pictures_are_embedded_one_per_method_and_category_and_junk_is_left_out(tmp_path: Path) -> None:
    rows = plausible.full_table(("stfpm",), ("bottle", "cable"), 3)
    good, junk = put(tmp_path / "good.png", picture()), put(tmp_path / "junk.png", b"no picture")
    text = page(rows, pictures={**{row.job_id: good for row in rows}, rows[3].job_id: junk})
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(sources) == 1
    with Image.open(io.BytesIO(base64.b64decode(sources[0]))) as small:
        assert max(small.size) <= 4 * THUMBNAIL
    assert "Not shown: junk.png: no PNG picture" in text


def test_hostile_text_stays_text() -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    rows = plausible.full_table(("stfpm",), (evil, "bottle"), 1, title=evil, teacher=evil)
    rows.append(plausible.failed_row("stfpm", "bottle", 9, evil))
    text = page(rows, [Problem(evil, evil)])
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    jobs = re.search(r'id="jobs-data">(.*?)</script>', text, re.S)
    assert jobs
    assert any(evil in map(str, line) for line in json.loads(jobs[1])["rows"])


def test_quick_and_synthetic_boards_are_labelled_and_failures_listed() -> None:
    text = page(plausible.mixed_table(), [Problem("torn.parquet", "unreadable")])
    assert text.count('<span class="badge">quick preset</span>') == 1
    assert text.count('<span class="badge">synthetic data</span>') == 1
    assert "CUDA out of memory | tried batch 16" in text
    assert "torn.parquet: unreadable" in text


def test_a_page_without_results_is_a_page() -> None:
    outline = Outline(page([]))
    assert outline.open == []
    outline = Outline(page([plausible.failed_row("stfpm", "bottle", 0, "no weights")]))
    assert outline.open == []


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_the_contrast_of_wcag_aa_in_both_themes() -> None:
    style = (Path(html.HERE) / "page" / "style.css").read_text()
    for theme in (r":root \{", r":root\.dark \{"):
        block = re.search(theme + r"(.*?)\}", style, re.S)
        assert block
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block[1]))
        pairs = [(ink, back) for ink in ("ink", "soft", "link") for back in ("paper", "panel")]
        pairs += [("ink", "warn"), ("ink", "heat-low"), ("ink", "heat-high"), ("up", "paper"), ("down", "paper")]
        for ink, back in pairs:
            light, dark = sorted((luminance(colours[ink]), luminance(colours[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (theme, ink, back)
        for number in range(chart.COLOURS):  # marks need 3:1
            light, dark = sorted((luminance(colours[f"c{number}"]), luminance(colours["paper"])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3, (theme, number)


# ---- the Pareto chart


def test_the_front_holds_the_points_that_none_beats_in_both() -> None:
    def point(key: str, latency: float, value: float) -> chart.Point:
        return chart.Point(key, key, latency, value, None, None)

    found = [point("a", 1, 0.5), point("b", 2, 0.7), point("c", 3, 0.6), point("d", 3, 0.9), point("e", 2, 0.4)]
    assert [p.key for p in chart.front(found)] == ["a", "b", "d"]
    assert chart.front(found[:1]) == found[:1]


def test_the_numbers_below_a_narrow_chart_stand_apart_and_one_point_is_no_magnified_axis() -> None:
    """`5001000 2000 5000`, and an axis from 0.7685 to 0.7690."""
    made = [plausible.row(name, "bottle", 0, latency_ms=ms) for name, ms in (("stfpm", 0.5), ("mkd", 3000.0))]
    narrow = chart.pareto(board_of(made), "aupro_30").partition('class="pareto narrow"')[2]
    ticks = re.findall(r'class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="middle">([\d.]+)<', narrow)
    ends = [(float(x) - 3.5 * len(text), float(x) + 3.5 * len(text)) for x, text in ticks]
    assert len(ticks) >= 3
    assert all(right + 4 < left for (_, right), (left, _) in pairwise(ends)), ticks
    one = chart.pareto(board_of([plausible.row("stfpm", "bottle", 0, aupro_30=0.9)]), "aupro_30")
    up = [float(text) for text in re.findall(r'text-anchor="end">(0\.\d+)<', one.partition("</svg>")[0])]
    assert max(up) - min(up) >= 0.05 - 1e-9


def test_without_a_script_nothing_seems_alive_and_the_parts_have_their_names() -> None:
    text = page(plausible.mixed_table())
    assert '<div data-part="student-teacher"><p class="part">student-teacher</p>' in text
    assert "<noscript><p>This table needs JavaScript" in text
    assert "Click a heading" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    assert "html:not(.js) :is(#theme, .filters, #jobs) { display: none; }" in text


def test_a_method_without_a_timing_or_a_category_has_no_point() -> None:
    rows = plausible.full_table(("stfpm", "rd4ad", "mkd"), ("bottle", "cable"), 1)
    rows = [row for row in rows if (row.method, row.category) != ("mkd", "cable")]
    board = board_of(rows)
    assert [point.key for point in chart.points(board, "aupro_30")] == ["stfpm", "rd4ad"]
    untimed = board_of(plausible.full_table(("stfpm",), ("bottle",), 1, latency_ms=None))
    assert chart.pareto(untimed, "aupro_30") == ""


@pytest.mark.parametrize("latencies", [(5.0, 5.0), (0.001, 900.0), (3.0, 3.0000001)])
@pytest.mark.parametrize("values", [(0.9, 0.9), (0.0, 1.0), (0.99999, 1.0)])
def test_any_spread_of_points_lies_inside_the_drawing(latencies: Sequence[float], values: Sequence[float]) -> None:
    rows = [
        plausible.row(method, "bottle", 0, latency_ms=latency, aupro_30=value)
        for method, latency, value in zip(("stfpm", "rd4ad"), latencies, values, strict=True)
    ]
    board = board_of(rows)
    for layout in chart.LAYOUTS:
        drawing = chart._drawing(board, "aupro_30", chart.points(board, "aupro_30"), layout)
        places = re.findall(r'<circle cx="([\d.-]+)" cy="([\d.-]+)"', drawing)
        assert len(places) == 2
        for x, y in places:
            assert layout.x(0) <= float(x) <= layout.x(1)
            assert layout.y(1) <= float(y) <= layout.y(0)
        assert drawing.count("<text text-anchor=") == 2


Box = tuple[float, float, float, float]
LONG = "Reverse distillation with a revisited projection"


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def names_of(drawing: str) -> dict[str, tuple[tuple[float, float], Box, Box | None]]:
    """name -> (its point, the box of its text, the line between the two) of the points that have a name."""
    found = {}
    for group in re.findall(r'<g class="point".*?</g>', drawing, re.S):
        text = re.search(r'<text text-anchor="(\w+)" x="([\d.-]+)" y="([\d.-]+)">([^<]+)<', group)
        point = re.search(r'<circle cx="([\d.-]+)" cy="([\d.-]+)"', group)
        line = re.search(r'class="leader" x1="([\d.-]+)" x2="([\d.-]+)" y1="([\d.-]+)" y2="([\d.-]+)"', group)
        if text is None:
            continue
        assert point is not None
        width = 7.2 * len(text[4])
        left = float(text[2]) - {"start": 0, "middle": width / 2, "end": width}[text[1]]
        ends = (float(line[1]), float(line[3]), float(line[2]), float(line[4])) if line else None
        box = (left, float(text[3]) - 11, left + width, float(text[3]) + 3)
        found[text[4]] = ((float(point[1]), float(point[2])), box, ends)
    return found


def crowd(count: int, spread: float, seed: int) -> Board:
    """A board of `count` methods, some of them with long names, whose points lie as near as `spread` says."""
    rng = random.Random(seed)
    return board_of([
        plausible.invented(
            f"m{index}", "bottle", 0, title=f"{LONG if index % 5 == 0 else 'Method'} {index}",
            latency_ms=20 * (1 + spread * rng.random()), aupro_30=0.9 + 0.1 * spread * rng.random(),
        )
        for index in range(count)
    ])  # fmt: skip


@pytest.mark.parametrize("layout", chart.LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize(("count", "spread"), [(2, 0.0), (5, 0.001), (11, 0.02), (11, 1.0), (25, 0.3), (45, 1.0)])
def test_names_in_the_chart_cover_nothing_and_stand_by_their_own_points(
    layout: chart.Layout, count: int, spread: float
) -> None:
    for seed in range(3):
        board = crowd(count, spread, seed)
        drawing = chart._drawing(board, "aupro_30", chart.points(board, "aupro_30"), layout)
        points = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawing)]
        assert len(points) == count, "every point is there, named or not"
        names = names_of(drawing)
        assert names, "some are named"
        for name, (own, box, line) in names.items():
            assert 0 <= box[0] < box[2] <= layout.width
            assert 0 <= box[1] < box[3] <= layout.height - layout.bottom
            assert not any(overlap(box, other) for rival, (_, other, _) in names.items() if rival != name), name
            assert not any(overlap(box, (x - 7, y - 7, x + 7, y + 7)) for x, y in points if (x, y) != own), name
            ends = [(box[0], (box[1] + box[3]) / 2), (box[2], (box[1] + box[3]) / 2)]
            ends += [((box[0] + box[2]) / 2, box[1]), ((box[0] + box[2]) / 2, box[3])]
            if line is None:
                assert min(math.dist(own, end) for end in ends) < 25, "a name without a line stands at its point"
            else:
                assert math.dist(own, line[:2]) < 10
                assert min(math.dist(end, line[2:]) for end in ends) < 12


def test_a_cell_of_the_table_of_all_jobs_is_rounded_once() -> None:
    """0.912347 was 0.91235 in the data, of which a browser makes 0.9124."""
    text = page([plausible.row("stfpm", "bottle", 0, image_auroc=0.912347)])
    data = json.loads(re.search(r'id="jobs-data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    place = next(index for index, (column, *_) in enumerate(JOB_COLUMNS) if column == "image_auroc")
    digits = Decimal(10) ** -data["columns"][place][1]
    shown = Decimal(str(data["rows"][0][place])).quantize(digits, ROUND_HALF_UP)  # as browsers do
    assert shown == Decimal(str(0.912347)).quantize(digits)


def test_what_has_no_rank_sorts_by_none() -> None:
    """The script puts what has no number last in both directions."""
    rows = [row for row in plausible.full_table(seeds=1) if (row.method, row.category) != ("mkd", "grid")]
    line = next(line for line in page(rows).splitlines() if '<th scope="row" data-order="MKD">' in line)
    assert line.startswith('<tr><td class="n" data-order="">–</td>')
    assert "9999" not in line


@pytest.mark.parametrize("latency", [5e-324, 1e12])
def test_a_latency_that_no_machine_has_is_drawn_within_the_chart(latency: float) -> None:
    board = board_of([plausible.row("stfpm", "bottle", 0), plausible.row("rd4ad", "bottle", 0, latency_ms=latency)])
    for layout in chart.LAYOUTS:
        drawing = chart._drawing(board, "image_auroc", chart.points(board, "image_auroc"), layout)
        places = [float(x) for x in re.findall(r' (?:x|x1|x2|cx)="([^"]*)"', drawing)]
        assert min(places) >= 0
        assert max(places) <= layout.width


@pytest.mark.parametrize("layout", chart.LAYOUTS, ids=lambda layout: layout.name)
def test_the_lines_of_the_front_run_through_no_name(layout: chart.Layout) -> None:
    """A staircase from the slowest and best to the fastest, at the left border."""
    made = {f"m{step}": (0.1 * 4**step, 0.55 + 0.1 * step) for step in range(5)}
    board = board_of([
        plausible.invented(name, "bottle", 0, title=f"Pixel mean {name}", latency_ms=latency, aupro_30=value)
        for name, (latency, value) in made.items()
    ])  # fmt: skip
    drawing = chart._drawing(board, "aupro_30", chart.points(board, "aupro_30"), layout)
    (path,) = re.findall(r'<path class="front" d="M([\d.]+) ([\d.]+) (.*?)"/>', drawing)
    x, y = float(path[0]), float(path[1])
    lines: list[Box] = []
    for way, number in re.findall(r"([HV])([\d.]+)", path[2]):
        new = (float(number), y) if way == "H" else (x, float(number))
        lines.append((min(x, new[0]), min(y, new[1]), max(x, new[0]), max(y, new[1])))
        x, y = new
    names = names_of(drawing)
    assert (len(names), len(lines)) == (5, 9)
    for name, (_, box, _) in names.items():
        assert not any(overlap(box, line) for line in lines), name


def test_a_few_points_all_have_their_names_and_a_heap_names_the_best() -> None:
    few = crowd(11, 1.0, 0)
    for layout in chart.LAYOUTS[:1]:
        assert len(names_of(chart._drawing(few, "aupro_30", chart.points(few, "aupro_30"), layout))) == 11
    many = crowd(60, 1.0, 0)
    drawn = names_of(chart._drawing(many, "aupro_30", chart.points(many, "aupro_30"), chart.LAYOUTS[0]))
    assert {*drawn} <= {many.labels[key] for key in many.order[:30]}


# ---- families


def test_each_family_has_a_ranking_of_its_own_beside_that_of_all() -> None:
    rows = plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2, family="student-teacher")
    rows += plausible.full_table(("mkd",), ("bottle", "cable"), 2, family="yardstick")
    text = page(rows)
    parts = re.findall(r'<div data-part="(all|student-teacher|yardstick)">(.*?)</table>', text, re.S)
    assert [(name, len(re.findall('<th scope="row"', content))) for name, content in parts] == [
        ("all", 3),
        ("student-teacher", 2),
        ("yardstick", 1),
    ]
    assert 'data-order="1">1</td><th scope="row" data-order="MKD">' in dict(parts)["yardstick"]
    one = page(plausible.full_table(("stfpm", "rd4ad"), ("bottle",), 1))
    assert 'data-part="all"' not in one


# ---- in a browser, with a real mouse and keyboard


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser that has opened the page of rich_rows."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    folder = tmp_path_factory.mktemp("page")
    (folder / "page.html").write_text(page(rich_rows()), encoding="utf-8")
    with Browser(folder / "profile") as opened:
        opened.open(folder / "page.html")
        yield opened
        assert opened.console == [], "the page said something after the tests"


METHODS_SHOWN = (
    "[...document.querySelectorAll('#b0 table.sortable')[0].tBodies[0].rows]"
    ".map((r) => r.cells[1].firstChild.textContent.trim())"
)
LATENCY = "#b0 table.sortable thead th:nth-child(8)"


def info(browser: Browser) -> str:
    return str(browser.evaluate("document.querySelector('#all-jobs .dt-info').textContent"))


def test_no_error_and_no_warning_reaches_the_console_and_nothing_is_fetched(browser: Browser) -> None:
    assert browser.console == []
    assert [url for url in browser.requests if not url.startswith(("data:", "about:"))] == [
        browser.evaluate("location.href")
    ]


def test_a_click_on_a_heading_sorts_by_number_and_says_so(browser: Browser) -> None:
    assert "ms/image" in browser.evaluate(f"document.querySelector({LATENCY!r}).textContent")
    assert browser.evaluate(METHODS_SHOWN)[0] == "RD4AD"
    browser.mouse(LATENCY, click=True)
    browser.wait(f"document.querySelector({LATENCY!r}).ariaSort === 'ascending'")
    ascending = browser.evaluate(METHODS_SHOWN)
    assert [name for name in ascending if "STFPM" not in name] == ["Pixel mean", "DSKD (reading)", "RD4AD", "MKD"]
    assert {*ascending[1:3]} == {"STFPM", "STFPM (held_out)"}
    browser.mouse(LATENCY, click=True)
    browser.wait(f"document.querySelector({LATENCY!r}).ariaSort === 'descending'")
    assert browser.evaluate(METHODS_SHOWN) == ascending[::-1]


def test_a_heading_is_reached_with_tab_and_used_with_enter(browser: Browser) -> None:
    search = "#b0 .dt-search input"
    browser.mouse(search, click=True)
    browser.key("Tab")
    place = "document.activeElement.closest('th')"
    assert browser.evaluate(f"{place} && {place}.textContent.trim()") == "#"
    browser.key("Tab")
    assert browser.evaluate(f"{place}.textContent.trim()") == "method, teacher"
    browser.key("Enter")
    browser.wait(f"{place}.ariaSort === 'ascending'")
    names = browser.evaluate(METHODS_SHOWN)
    assert names == sorted(names)


def test_typing_into_the_search_filters(browser: Browser) -> None:
    browser.mouse("#b0 .dt-search input", click=True)
    browser.type("stfpm")
    browser.wait(f"{METHODS_SHOWN}.length === 2")
    assert sorted(browser.evaluate(METHODS_SHOWN)) == ["STFPM", "STFPM (held_out)"]


def test_the_selects_filter_all_jobs_exactly(browser: Browser) -> None:
    def choose(column: str, value: str) -> str:
        place = next(index for index, (name, _, _) in enumerate(html.JOB_COLUMNS) if name == column)
        browser.evaluate(
            f"(() => {{ const s = document.querySelector('.filters select[data-column=\"{place}\"]');"
            f" s.value = {value!r}; s.dispatchEvent(new Event('change')); }})()"
        )
        return info(browser)

    assert info(browser) == "1 to 25 of 154 jobs"
    assert choose("status", "failed") == "1 to 2 of 2 jobs (of 154 in all)"
    choose("status", "")
    assert choose("method", "STFPM").endswith("of 28 jobs (of 154 in all)"), "STFPM alone, not its variant"
    choose("method", "")


def test_names_that_differ_in_case_accents_or_look_like_tags_are_filtered_apart(tmp_path: Path) -> None:
    """A choice of "a" found "A" and "Ä" as well, and one of "x < y" nothing."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    made = [plausible.row("stfpm", category, 0) for category in ("a", "A", "Ä", "x < y & z > w", "<b>")]
    (tmp_path / "page.html").write_text(page(made), encoding="utf-8")
    with Browser(tmp_path / "profile", (390, 900)) as opened:
        opened.open(tmp_path / "page.html")
        for category in ("a", "A", "Ä", "x < y & z > w", "<b>"):
            opened.evaluate(
                "(() => { const s = document.querySelector('.filters select[data-column=\"2\"]');"
                f" s.value = {category!r}; s.dispatchEvent(new Event('change')); }})()"
            )
            assert info(opened) == "1 to 1 of 1 jobs (of 5 in all)", category
            assert opened.evaluate("document.querySelector('#jobs tbody').rows[0].cells[2].textContent") == category
        # on a narrow screen, too, every table sorts and scrolls by key
        buttons = (
            "[...document.querySelectorAll('#b0 th [tabindex=\"0\"]')].filter((e) => e.closest('th').checkVisibility())"
        )
        reached = f"{buttons}.filter((e) => {{ e.focus(); return document.activeElement === e; }}).length"
        assert opened.evaluate(reached) == opened.evaluate(f"{buttons}.length") > 10
        wide = (
            "[...document.querySelectorAll('.scroll')].filter((e) => e.offsetParent && e.scrollWidth > e.clientWidth)"
        )
        assert opened.evaluate(f"{wide}.length") > 0
        assert opened.evaluate(f"{wide}.every((e) => e.tabIndex === 0 && e.ariaLabel)")


def test_a_failed_job_has_the_name_of_its_entrant() -> None:
    """It was called by the method alone: the filters for a variant and for failures found nothing together."""
    made = plausible.full_table(("stfpm",), ("bottle",), 2) + plausible.full_table(
        ("stfpm",), ("bottle",), 2, variant="held_out"
    )
    made += [plausible.failed_row("stfpm", "bottle", 2, "no room", variant="held_out")]
    made += [plausible.failed_row("mkd", "bottle", 0, "no room")]
    data = re.search(r'<script type="application/json" id="jobs-data">(.*?)</script>', page(made))
    assert data is not None
    names = [name for name, _, _ in JOB_COLUMNS]
    lines = [dict(zip(names, line, strict=True)) for line in json.loads(data[1])["rows"]]
    assert sorted((line["method"], line["seed"]) for line in lines if line["status"] == "failed") == [
        ("MKD", 0), ("STFPM (held_out)", 2)
    ]  # fmt: skip
    failed = page(made).partition(">Failed jobs</h2>")[2].partition("</section>")[0]
    assert re.findall(r'<th scope="row">(.*?)</th>', failed) == ["MKD", "STFPM (held_out)"]


def test_the_mouse_over_a_point_shows_what_it_is_and_leaving_hides_it(browser: Browser) -> None:
    tip = "document.querySelector('#tip')"
    assert browser.evaluate(f"{tip}.hidden")
    browser.mouse("#b0 .point circle")
    browser.wait(f"!{tip}.hidden")
    said = browser.evaluate(f"{tip}.textContent")
    assert said.startswith("Pixel mean: AUPRO@0.3 0.")
    assert "ms/image" in said
    box = browser.evaluate(
        f"(() => {{ const r = {tip}.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; }})()"
    )
    assert box[0] >= 0
    assert box[1] >= 0
    assert box[2] <= 1280
    browser.mouse("h1")
    browser.wait(f"{tip}.hidden")


def test_a_point_is_reached_with_tab_tells_the_same_and_escape_hides_it(browser: Browser) -> None:
    tip = "document.querySelector('#tip')"
    browser.mouse("#b0 input[name=b0-pareto]", click=True)
    browser.key("Tab")
    browser.wait(f"!{tip}.hidden")
    said = browser.evaluate(f"{tip}.textContent")
    assert said == browser.evaluate("document.activeElement.getAttribute('aria-label')")
    browser.key("Escape")
    browser.wait(f"{tip}.hidden")


def test_one_metric_is_shown_at_a_time(browser: Browser) -> None:
    shown = (
        "[...document.querySelectorAll('#b0 [data-part]:has(> figure)')]"
        ".filter((f) => f.getBoundingClientRect().height > 0).map((f) => f.dataset.part)"
    )
    assert browser.evaluate(shown) == ["aupro_30"]
    browser.mouse("#b0 input[name=b0-pareto][value=image_auroc]", click=True)
    browser.wait(f"{shown}[0] === 'image_auroc'")
    assert browser.evaluate(shown) == ["image_auroc"]


def test_the_page_follows_the_theme_of_the_system_and_the_button(browser: Browser) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(21, 25, 30)"
    for theme, colour in (("dark", dark), ("light", light)):
        browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        browser.wait(f"{background} === {colour!r}")
    browser.mouse("#theme", click=True)
    browser.wait(f"{background} === {dark!r}")
    browser.mouse("#theme", click=True)
    browser.wait(f"{background} === {light!r}")


def test_paper_gets_light_colours_and_every_metric(browser: Browser) -> None:
    browser.ask(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    heights = browser.evaluate(
        "[...document.querySelectorAll('#b0 figure')].map((f) => f.getBoundingClientRect().height)"
    )
    assert all(height > 100 for height in heights)
    browser.ask("Emulation.setEmulatedMedia", media="", features=[])


def test_a_darkened_page_is_printed_in_light_colours_and_folded_again_afterwards(browser: Browser) -> None:
    """Points of the dark palette had a contrast of 1.65 on paper, and all that was folded stayed open."""
    value = "getComputedStyle(document.documentElement).getPropertyValue(name)"
    marks = f"['--c0', '--link', '--warn-line', '--up'].map((name) => {value})"
    light = ["#0072b2", "#0a58ca", "#b08800", "#00664a"]
    browser.ask("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.wait("document.documentElement.classList.contains('dark')")
    assert browser.evaluate(marks) != light
    browser.ask("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate(marks) == light
    browser.ask("Emulation.setEmulatedMedia", media="", features=[])
    opened = "document.querySelectorAll('details[open]').length"
    before = browser.evaluate(opened)
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate(opened) > before
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate(opened) == before


def test_the_names_of_a_wide_table_stay_in_sight_on_a_wide_screen(browser: Browser) -> None:
    wide_as(browser, 1400)
    position = "getComputedStyle(document.querySelector('#b0 table.heat tbody th')).position"
    assert browser.evaluate(position) == "sticky"


def wide_as(browser: Browser, width: int) -> None:
    browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)


def test_the_page_never_scrolls_sideways_on_a_desk_or_a_phone(browser: Browser) -> None:
    for width in (1400, 1280, 1000, 600, 390):
        wide_as(browser, width)
        assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
    browser.ask("Emulation.clearDeviceMetricsOverride")


def test_long_presets_and_pictures_do_not_make_the_page_wider(browser: Browser, tmp_path: Path) -> None:
    preset = "quick[image_size=64,resolution=64,setting=multi-class:2:1fac,steps=2,train_images={}]"
    rows = [
        plausible.row("stfpm", category, 0, preset=preset.format(count), setting="multi-class", k_shot=count,
                      learnt_together=("bottle=1", "cable=2"))
        for category in ("bottle", "cable") for count in (1, 3)
    ]  # fmt: skip
    where = browser.evaluate("location.pathname")
    text = page(rows, pictures={rows[0].job_id: put(tmp_path / "a.png", picture())})
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    browser.open(tmp_path / "page.html")
    for width in (1400, 700, 390):
        wide_as(browser, width)
        assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
    browser.ask("Emulation.clearDeviceMetricsOverride")
    browser.open(Path(where))


def test_long_names_and_many_methods_cut_neither_ranking_nor_chart(browser: Browser, tmp_path: Path) -> None:
    rows = [
        plausible.invented(f"m{index}", category, 0, title=f"{LONG} {index}", teacher="wide_resnet50_2",
                      family=("yardstick", "student-teacher")[index % 2], latency_ms=5.0 + index)
        for index in range(20) for category in ("bottle", "metal_nut")
    ]  # fmt: skip
    where = browser.evaluate("location.pathname")
    (tmp_path / "page.html").write_text(page(rows), encoding="utf-8")
    browser.open(tmp_path / "page.html")
    # the matrix of 20 by 20 methods may scroll, as it says how wide it is by its methods alone
    cut = "[...document.querySelectorAll('#b0 .scroll')].filter((s) => s.scrollWidth > s.clientWidth"
    cut += " && !s.textContent.includes('Each cell is the mean difference')).length"
    chart_share = "(() => { const c = [...document.querySelectorAll('#b0 svg.pareto')]"
    chart_share += ".filter((s) => s.getBoundingClientRect().width > 0)[0].getBoundingClientRect();"
    chart_share += " return c.width / document.documentElement.clientWidth; })()"
    for width, whole in ((1600, True), (1400, True), (1000, True), (600, False)):
        wide_as(browser, width)
        browser.wait(f"innerWidth === {width}")
        if whole:
            assert browser.evaluate(cut) == 0, f"a table is cut at {width} px"
        assert browser.evaluate(chart_share) > 0.9, f"the chart leaves room unused at {width} px"
        shown = browser.evaluate(
            "[...document.querySelectorAll('#b0 [data-part]:not([hidden]) svg.pareto')]"
            ".filter((s) => s.getBoundingClientRect().width > 0).length"
        )
        assert shown == 1, "one layout at a time"
    browser.ask("Emulation.clearDeviceMetricsOverride")
    browser.open(Path(where))


def test_what_was_never_timed_stands_last_in_both_directions(tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    rows = [replace(row, latency_ms=None) if row.method == "mkd" else row for row in rich_rows()]
    (tmp_path / "page.html").write_text(page(rows), encoding="utf-8")
    with Browser(tmp_path / "profile") as opened:
        opened.open(tmp_path / "page.html")
        for way in ("ascending", "descending"):
            opened.mouse(LATENCY, click=True)
            opened.wait(f"document.querySelector({LATENCY!r}).ariaSort === '{way}'")
            names = opened.evaluate(METHODS_SHOWN)
            assert names[-1] == "MKD"
            assert names[0 if way == "ascending" else -2] == "Pixel mean"


def test_a_column_without_a_number_and_a_large_seed_are_shown_as_others_are(tmp_path: Path) -> None:
    """Dashes alone stood at the left of their column, and seed 123456 was `123,456`."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    made = plausible.full_table(("stfpm", "mkd"), ("bottle",), 1, latency_ms=None)
    made.append(plausible.row("stfpm", "bottle", 123456, latency_ms=None))
    (tmp_path / "page.html").write_text(page(made), encoding="utf-8")
    with Browser(tmp_path / "profile") as opened:
        opened.open(tmp_path / "page.html")
        heads = "[...document.querySelectorAll('#b0 table.ranking thead th')]"
        place = opened.evaluate(f"{heads}.findIndex((head) => head.textContent.includes('ms/image'))")
        cell = f"document.querySelector('#b0 table.ranking tbody tr').children[{place}]"
        assert opened.evaluate(f"{cell}.textContent") == "–"
        assert opened.evaluate(f"getComputedStyle({cell}).textAlign") == "right"
        assert "123456" in opened.evaluate("document.querySelector('#jobs tbody').textContent")
