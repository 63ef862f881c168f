"""leaderboard.html: self-contained, readable by people and screen readers, and alive in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plausible
import pytest
from PIL import Image
from test_markdown import board_of, table

from kdad_bench.leaderboard import chart, html, store
from kdad_bench.leaderboard.board import boards
from kdad_bench.leaderboard.row import Row
from kdad_bench.leaderboard.store import Problem

GOLDEN = Path(__file__).parents[1] / "golden"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def page(made: Sequence[Row], problems: Sequence[Problem] = (), pictures: dict[str, bytes] | None = None) -> str:
    found = table(made)
    return html.page(boards(found), found, problems, pictures)


def picture() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (700, 900), (200, 30, 30)).save(sink, "PNG")
    return sink.getvalue()


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


def test_tables_have_captions_headings_have_scopes_and_pictures_have_texts() -> None:
    rows = rich_rows()
    outline = Outline(page(rows, pictures={rows[0].job_id: picture()}))
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


def test_a_thousand_rows_stay_under_three_megabytes_with_pictures() -> None:
    methods = tuple(plausible.METHODS)
    categories = tuple(f"category{number}" for number in range(15))
    rows = plausible.full_table(methods, categories, 14)
    assert len(rows) > 1000
    noise = Image.effect_noise((700, 1400), 80).convert("RGB")
    sink = io.BytesIO()
    noise.save(sink, "PNG")
    text = page(rows, pictures={row.job_id: sink.getvalue() for row in rows[:210:14]})
    assert len(text.encode()) < 3_000_000
    assert "are in the folder" in text, "those that do not fit are named"


def test_pictures_are_embedded_one_per_method_and_category_and_junk_is_left_out() -> None:
    rows = plausible.full_table(("stfpm",), ("bottle", "cable"), 3)
    text = page(rows, pictures={**{row.job_id: picture() for row in rows}, rows[3].job_id: b"no picture"})
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(sources) == 1
    with Image.open(io.BytesIO(base64.b64decode(sources[0]))) as small:
        assert max(small.size) <= 4 * html.THUMBNAIL
    assert "1 more" in text


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
        pairs += [("ink", "warn"), ("ink", "heat-low"), ("ink", "heat-high")]
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
    drawing = chart.pareto(board_of(rows), "aupro_30")
    places = re.findall(r'<circle cx="([\d.-]+)" cy="([\d.-]+)"', drawing)
    assert len(places) == 2
    for x, y in places:
        assert chart.LEFT <= float(x) <= chart.WIDTH - chart.RIGHT
        assert chart.TOP <= float(y) <= chart.HEIGHT - chart.BOTTOM
    assert drawing.count("<text text-anchor=") == 2


def test_names_in_the_chart_cover_no_other_name_and_no_other_point() -> None:
    methods = tuple(plausible.METHODS)
    made = [
        plausible.row(method, "bottle", 0, latency_ms=20 + index, aupro_30=0.9 + index / 1000)
        for index, method in enumerate(methods)
    ]
    drawing = chart.pareto(board_of(made), "aupro_30")
    points = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawing)]
    names = re.findall(r'<text text-anchor="(\w+)" x="([\d.]+)" y="([\d.]+)">([^<]+)<', drawing)
    boxes = []
    for anchor, x, y, name in names:
        left = float(x) - (7.2 * len(name) if anchor == "end" else 0)
        boxes.append((left, float(y) - 11, left + 7.2 * len(name), float(y) + 3))
    for place, box in enumerate(boxes):
        assert not any(chart._overlap(box, other) for other in boxes[:place])
        for index, (x, y) in enumerate(points):
            assert index == place or not chart._overlap(box, (x - 7, y - 7, x + 7, y + 7))


# ---- in a browser

SCRIPT = """
const said = {};
const $ = (selector) => document.querySelector(selector);
const visible = (table) => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent.trim());
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
const drawn = () => new Promise((resolve) => setTimeout(resolve, 60));
addEventListener("load", async () => {
  await drawn();
  const ranking = $("#b0 table.sortable");
  const heading = [...ranking.tHead.rows[0].cells].find((cell) => cell.textContent.includes("ms/image"));
  said.before = visible(ranking);
  heading.click();
  await drawn();
  said.sorted = visible(ranking); said.ariaSort = heading.getAttribute("aria-sort");
  heading.click();
  await drawn();
  said.reversed = visible(ranking); said.ariaReversed = heading.getAttribute("aria-sort");
  const handle = heading.querySelector("[role=button]") || heading;
  handle.dispatchEvent(new KeyboardEvent("keypress", { key: "Enter", bubbles: true, keyCode: 13 }));
  await drawn();
  said.afterKey = heading.getAttribute("aria-sort");
  said.reachable = handle.tabIndex === 0;

  const search = $("#b0 .dt-search input");
  search.value = "stfpm"; search.dispatchEvent(new Event("input", { bubbles: true }));
  await drawn();
  said.found = visible(ranking);

  const info = () => $("#all-jobs .dt-info").textContent;
  said.all = info();
  const status = $('.filters select[data-column="5"]');
  status.value = "failed"; status.dispatchEvent(new Event("change"));
  said.failed = info();
  status.value = ""; status.dispatchEvent(new Event("change"));
  const method = $('.filters select[data-column="0"]');
  method.value = "STFPM"; method.dispatchEvent(new Event("change"));
  said.exact = info();

  const point = $("#b0 .point"), tip = $("#tip");
  said.tipHidden = tip.hidden;
  point.dispatchEvent(new MouseEvent("mouseenter"));
  said.tip = tip.hidden ? "" : tip.textContent; said.label = point.getAttribute("aria-label");
  point.dispatchEvent(new MouseEvent("mouseleave")); said.tipLeft = tip.hidden;
  point.focus(); said.tipFocus = tip.hidden ? "" : tip.textContent;
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" })); said.tipEscape = tip.hidden;

  const figures = () => [...document.querySelectorAll("#b0 figure[data-metric]")]
    .filter((figure) => !figure.hidden).map((figure) => figure.dataset.metric);
  said.figure = figures();
  $('#b0 input[value="image_auroc"]').click();
  said.otherFigure = figures();

  const dark = () => document.documentElement.classList.contains("dark");
  const background = () => getComputedStyle(document.body).backgroundColor;
  said.theme = [dark(), background()];
  $("#theme").click();
  said.otherTheme = [dark(), background()];

  said.wide = document.documentElement.scrollWidth <= document.documentElement.clientWidth;
  said.requests = performance.getEntriesByType("resource").length;
  said.errors = errors;
  const out = document.createElement("pre");
  out.id = "said"; out.textContent = JSON.stringify(said);
  document.body.append(out);
});
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page did in a headless browser, and what its console said."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    folder = tmp_path_factory.mktemp("page")
    text = page(rich_rows()).replace("</body>", f"<script>{SCRIPT}</script></body>")
    (folder / "page.html").write_text(text, encoding="utf-8")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"),
        *(
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=4000",
            "--dump-dom",
        ),
        f"file://{folder / 'page.html'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.S)
    assert said, done.stderr[-2000:]
    from html import unescape

    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {**json.loads(unescape(said[1])), "console": console}


def test_no_error_and_no_warning_reaches_the_console(seen: dict[str, Any]) -> None:
    assert seen["errors"] == []
    assert seen["console"] == []
    assert seen["requests"] == 0


def test_a_click_on_a_heading_sorts_by_number_and_says_so(seen: dict[str, Any]) -> None:
    by_latency = ["Pixel mean", "STFPM", "STFPM (held_out)", "DSKD (reading)", "RD4AD", "MKD"]
    assert seen["before"][0] == "RD4AD"
    assert sorted(seen["sorted"][1:3]) == by_latency[1:3]
    assert [name for name in seen["sorted"] if "STFPM" not in name] == [n for n in by_latency if "STFPM" not in n]
    assert seen["reversed"] == seen["sorted"][::-1]
    assert (seen["ariaSort"], seen["ariaReversed"]) == ("ascending", "descending")


def test_headings_are_reached_and_used_with_the_keyboard(seen: dict[str, Any]) -> None:
    assert seen["reachable"]
    assert seen["afterKey"] != "descending", "a third activation changes the order again"


def test_a_search_and_the_selects_filter(seen: dict[str, Any]) -> None:
    assert sorted(seen["found"]) == ["STFPM", "STFPM (held_out)"]
    assert seen["all"] == "1 to 25 of 154 jobs"
    assert seen["failed"] == "1 to 2 of 2 jobs (of 154 in all)"
    assert seen["exact"].endswith("of 28 jobs (of 154 in all)"), "STFPM alone, not its variant"


def test_a_point_tells_about_itself_on_hover_and_on_focus(seen: dict[str, Any]) -> None:
    assert seen["tipHidden"]
    assert seen["tip"] == seen["label"] == seen["tipFocus"]
    assert "AUPRO@0.3 0." in seen["tip"]
    assert seen["tipLeft"]
    assert seen["tipEscape"]


def test_one_metric_is_shown_at_a_time(seen: dict[str, Any]) -> None:
    assert seen["figure"] == ["aupro_30"]
    assert seen["otherFigure"] == ["image_auroc"]


def test_the_button_changes_the_theme(seen: dict[str, Any]) -> None:
    (dark, background), (other, other_background) = seen["theme"], seen["otherTheme"]
    assert dark != other
    assert {background, other_background} == {"rgb(255, 255, 255)", "rgb(21, 25, 30)"}


def test_the_page_itself_never_scrolls_sideways(seen: dict[str, Any]) -> None:
    assert seen["wide"]
