"""Pages, exports and the page of somebody else: each is whole at any moment, and pictures are opened with care."""

from __future__ import annotations

import errno
import io
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import plausible
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import kdad_bench
from kdad_bench import files
from kdad_bench.cli import cli
from kdad_bench.leaderboard import board, gallery, html, pages, store
from kdad_bench.leaderboard.board import DRAWN, boards
from kdad_bench.leaderboard.gallery import NoPicture, thumbnail

WRITER = """
import sys, pathlib
from kdad_bench.leaderboard import pages, store
results, out, readme = map(pathlib.Path, sys.argv[1:4])
print("ready", flush=True)
while True:
    pages.draw_pages(results, out)
    store.export(results, out / "all.csv", "csv")
    text, fresh = pages.with_tables(readme, results)
    pages.put_tables(readme, fresh)
"""
ENDS = {
    "leaderboard.md": "",
    "leaderboard.html": "</body></html>\n",
    "leaderboard.csv": "\n",
    "leaderboard.json": "]\n",
    "all.csv": "\n",
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def filled(folder: Path) -> Path:
    for one in plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2):
        store.write(one, folder)
    return folder


def readme(folder: Path) -> Path:
    path = folder / "README.md"
    path.write_text(
        "# Mine\n<!-- leaderboard begin: ranking -->\n<!-- leaderboard end -->\n" + "words\n" * 20_000 + "the end\n"
    )
    return path


def kill_page_writers(folder: Path, kills: int, seed: int) -> None:
    """Kill a process that draws pages without a pause; after each kill every file is whole, as before or as after."""
    results = filled(folder / "results")
    mine, out = readme(folder), folder / "out"
    pages.draw_pages(results, out)
    store.export(results, out / "all.csv", "csv")
    pages.put_tables(mine, pages.with_tables(mine, results)[1])
    whole = {path: path.read_bytes() for path in (*out.iterdir(), mine)}
    assert len(whole) == 7
    rng = random.Random(seed)
    for _ in range(kills):
        command = [sys.executable, "-c", WRITER, str(results), str(out), str(mine)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for path, content in whole.items():
            assert path.read_bytes() == content, path
        for place in (out, folder):
            files.sweep(place)
            assert not list(place.glob(".*.tmp")), "nothing is left that the next run does not clear away"


def test_a_kill_during_page_writes_leaves_every_file_whole(tmp_path: Path) -> None:
    kill_page_writers(tmp_path, 4, seed=0)


@pytest.mark.slow
def test_sixty_kills_during_page_writes_leave_every_file_whole(tmp_path: Path) -> None:
    kill_page_writers(tmp_path, 60, seed=1)


@pytest.mark.parametrize("name", ENDS)
def test_a_page_that_cannot_be_written_stays_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = filled(tmp_path / "results")
    pages.draw_pages(results, tmp_path / "out")
    store.export(results, tmp_path / "out" / "all.csv", "csv")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert before[name].decode().endswith(ENDS[name])
    store.write(plausible.row("stfpm", "bottle", 9), results)

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(store.StoreError, match=r"cannot write.*No space left on device"):
        pages.draw_pages(results, tmp_path / "out")
    with pytest.raises(store.StoreError, match=r"cannot write.*No space left on device"):
        store.export(results, tmp_path / "out" / "all.csv", "csv")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_page_of_into_survives_a_full_disk_and_keeps_its_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, mine = filled(tmp_path / "results"), readme(tmp_path)
    mine.write_bytes(mine.read_bytes().replace(b"\n", b"\r\n"))
    mine.chmod(0o640)
    assert run("leaderboard", results, "--into", mine).exit_code == 0
    content = mine.read_bytes()
    assert b"RD4AD" in content
    assert content.count(b"\n") == content.count(b"\r\n")
    assert mine.stat().st_mode & 0o777 == 0o640
    assert run("leaderboard", results, "--into", mine, "--check").exit_code == 0
    store.write(plausible.row("stfpm", "bottle", 9), results)

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    done = run("leaderboard", results, "--into", mine)
    assert (done.exit_code, mine.read_bytes()) == (2, content)
    assert "it is as it was" in done.stderr


@pytest.mark.parametrize("kind", ["pipe", "latin-1", "folder"])
def test_into_of_what_is_no_text_file_is_one_line(kind: str, tmp_path: Path) -> None:
    results, path = filled(tmp_path / "results"), tmp_path / "page.md"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"<!-- leaderboard begin: ranking -->\n\xfc<!-- leaderboard end -->\n")
    done = run("leaderboard", results, "--into", path)
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_leaderboard_of_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    results = filled(tmp_path / "results")
    (tmp_path / "file").touch()
    done = run("leaderboard", results, "--out", tmp_path / "file" / "below")
    assert done.exit_code == 2
    assert f"'{tmp_path / 'file'}', which is no folder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_makes_its_boards_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines on the spread made them again, and so did the line on characters that the font of figures lacks."""
    for one in plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2):
        store.write(one, tmp_path)
    made, real = [], board.boards_of

    def counting(rows: Sequence[Mapping[str, Any]]) -> list[board.Board]:
        made.append(len(rows))
        return real(rows)

    monkeypatch.setattr(board, "boards_of", counting)
    done = run("leaderboard", tmp_path, "--out", tmp_path / "out", "--figures")
    assert done.exit_code == 0, done.output
    assert "spread of image AUROC" in done.output
    assert "figures ->" in done.output
    assert made == [8]


def test_the_page_or_figure_in_whose_place_something_else_is_is_named(tmp_path: Path) -> None:
    results = filled(tmp_path / "results")
    drawn = pages.draw_pages(results, tmp_path / "out", figures=True).paths
    for path in (tmp_path / "out" / "leaderboard.json", drawn[-1]):
        path.unlink()
        path.mkdir()
        done = run("leaderboard", results, "--out", tmp_path / "out", "--figures")
        assert done.exit_code == 2
        assert f"'{path}': Is a directory; move it away, or choose another place with --out" in done.stderr
        path.rmdir()


def test_figures_of_long_names_are_written_whole(tmp_path: Path) -> None:
    preset = f"paper[{','.join(f'option{number}=0.123456789' for number in range(30))}]"
    for one in plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2, preset=preset):
        store.write(one, tmp_path / "results")
    found, _, paths = pages.draw_pages(tmp_path / "results", tmp_path / "out", figures=True)
    drawn = [path for path in paths if path.parent.name == "figures"]
    assert drawn
    assert all(path.stat().st_size > 1000 and len(path.name) < 160 for path in drawn)
    assert not list((tmp_path / "out" / "figures").glob(".*"))
    assert found.table.num_rows == 8


def test_pages_in_a_folder_that_is_called_figures_are_pages(tmp_path: Path) -> None:
    for one in plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2):
        store.write(one, tmp_path / "figures")
    place = tmp_path / "figures"
    for more in ((), ("--figures",)):
        said = run("leaderboard", place, *more).stdout
        assert all(f"{place / 'leaderboard'}.{kind}" in said.splitlines()[0] for kind in ("md", "html", "csv"))
        drawn = [*(place / "figures").glob("*.*")]
        assert bool(drawn) is bool(more)
        assert (f"\n{len(drawn)} figures -> {place / 'figures'}\n" in said) is bool(more)
        assert said.count("figures -> ") == bool(more)


# ---- pictures


def png(width: int, height: int) -> bytes:
    """A header that promises so many pixels, and nothing behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) show\nshowpage\n%%EOF\n"


def other_format(kind: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sink, kind)
    return sink.getvalue()


JUNK = {
    "an EPS file": EPS,
    "60,000 px": png(60_000, 60_000),
    "20,000 x 3,000 px": png(20_000, 3_000),
    "a torn file": png(100, 100),
    "an empty file": b"",
    "a GIF": other_format("GIF"),
    "a TIFF": other_format("TIFF"),
    "text": b"no picture",
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", JUNK)
def test_what_is_no_contact_sheet_is_said_and_not_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import EpsImagePlugin

    def started(*arguments: object, **named: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    path = tmp_path / "job\x1b.png"
    path.write_bytes(JUNK[name])
    with pytest.raises(NoPicture, match=r"^job\\x1b\.png: "):
        thumbnail(path)


def test_pipes_folders_and_links_among_pictures_neither_wait_nor_end_the_page(tmp_path: Path) -> None:
    made = plausible.full_table(("stfpm",), ("a", "b", "c", "d", "e"), 1)
    for one in made:
        store.write(one, tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    kinds = [f"{one.job_id}.png" for one in made]
    os.mkfifo(folder / kinds[0])
    (folder / kinds[1]).mkdir()
    (folder / kinds[2]).symlink_to("nowhere")
    (folder / kinds[3]).write_bytes(EPS)
    Image.new("RGB", (600, 1200), "red").save(folder / kinds[4])
    done = run("leaderboard", tmp_path)
    assert done.exit_code == 0
    page = (tmp_path / "leaderboard.html").read_text()
    assert page.count("data:image/jpeg") == 1
    assert "Not shown: " in page
    assert "and 1 more" in page


def test_pictures_are_opened_one_at_a_time_and_only_while_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = tmp_path / "noise.png"
    Image.effect_noise((700, 1400), 80).convert("RGB").save(noise)
    made = plausible.full_table(("stfpm",), tuple(f"c{number}" for number in range(200)), 1)
    for one in made:
        store.write(one, tmp_path / "results")
    opened = []
    monkeypatch.setattr(html, "thumbnail", lambda path: opened.append(path) or thumbnail(path))
    table = store.read(tmp_path / "results", DRAWN).table
    page = html.page(boards(table), table, (), {one.job_id: noise for one in made})
    shown = page.count("data:image/jpeg")
    assert len(opened) == shown + 1 < 60
    assert f"{200 - shown} more are in the folder" in page


def test_a_url_and_a_folder_without_pictures_have_none(tmp_path: Path) -> None:
    assert gallery.pictures("memory://bucket") == gallery.pictures(tmp_path) == {}


# ---- titles


def test_two_folders_of_one_name_have_titles_of_their_own(tmp_path: Path) -> None:
    names = ("folder:/a/line1/parts", "folder:/b/line1/parts", "folder:/b/line2/parts", "folder:/c/other/")
    for name in names:
        for one in plausible.full_table(("stfpm",), ("bolt",), 1, dataset=name):
            store.write(one, tmp_path)
    for one in plausible.full_table(("stfpm",), ("bolt",), 1, dataset=names[3], protocol_version="2"):
        store.write(one, tmp_path)
    found = boards(store.read(tmp_path, DRAWN).table)
    assert {board.dataset for board in found} == {
        "folder:a/line1/parts", "folder:b/line1/parts", "folder:line2/parts", "folder:other",
    }  # fmt: skip
    titles = [board.title for board in found]
    assert len(set(titles)) == len(titles) == 5
    pages.draw_pages(tmp_path, tmp_path)
    headings = re.findall(r"^## (folder.*)$", (tmp_path / "leaderboard.md").read_text(), re.M)
    assert len(set(headings)) == 5


def test_words_of_both_kinds_stand_apart_in_every_form(tmp_path: Path) -> None:
    words = {"readings": ("fusion: sum",), "deviations": ("epochs: 5 (official code: 200)",)}
    made = plausible.row("stfpm", "bottle", 0, **words)
    store.write(made, tmp_path)
    pages.draw_pages(tmp_path, tmp_path)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "| STFPM[^1][^2] |" in text
    assert "[^1]: **STFPM**: its source leaves open, and is read here as: fusion: sum." in text
    said = "[^2]: **STFPM**: a source settles it, and these runs do otherwise: epochs: 5 (official code: 200)."
    assert said in text
    page = (tmp_path / "leaderboard.html").read_text()
    readings, deviations = page.index("Readings: what the sources leave open"), page.index("Deviations: what a source")
    assert readings < page.index("fusion: sum") < deviations < page.index("epochs: 5 (official code: 200)")
    shown = run("show", made.job_id, "--results", tmp_path).output
    assert "readings: what no source settles, and what was chosen\n  fusion: sum\n" in shown
    assert "deviations: what a source settles and this run does otherwise\n  epochs: 5 (official code: 200)\n" in shown
    assert run("results", "export", tmp_path, "csv", "--out", tmp_path / "all.csv").exit_code == 0
    for name in ("leaderboard.csv", "all.csv", "leaderboard.json"):
        content = (tmp_path / name).read_text()
        assert "fusion: sum" in content
        assert "deviations" in content
        assert "epochs: 5" in content


def test_the_headline_of_failures_counts_those_that_are_listed(tmp_path: Path) -> None:
    good = plausible.row("stfpm", "bottle", 0, data_fingerprint="a" * 64)
    store.write(good, tmp_path)
    store.write(plausible.failed_row("stfpm", "bottle", 0, "torn file", data_fingerprint="b" * 64), tmp_path)
    pages.draw_pages(tmp_path, tmp_path)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "1 finished job: " in text
    assert "failed" not in text.split("##")[0]
    assert "## Failed jobs" not in text


def test_a_mean_over_fewer_categories_and_an_unsteady_time_are_marked_as_everywhere(tmp_path: Path) -> None:
    rows = plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2)
    for row in rows:
        if (row.method, row.category) != ("rd4ad", "cable"):
            store.write(replace(row, latency_ms=10.0 + 5 * row.seed) if row.method == "stfpm" else row, tmp_path)
    (lines,) = [table.lines for table in kdad_bench.Results(tmp_path).leaderboard().tables]
    cells = {line[0]: line for line in lines}
    assert all("(1 of 2)" in cell for cell in cells["RD4AD"][1:4])
    assert not any("of 2" in cell for cell in cells["STFPM"])
    assert "12.5 ~" in cells["STFPM"]
    assert not any("~" in cell for cell in cells["RD4AD"])


def test_pages_are_those_of_before_where_there_is_no_room_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of one table beside some of another, of which nothing tells."""
    store.write(plausible.row("stfpm", "gear", 0), tmp_path / "results")
    out = tmp_path / "out"
    pages.draw_pages(tmp_path / "results", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    store.write(plausible.row("stfpm", "gear", 1), tmp_path / "results")
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "leaderboard.csv" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(store.StoreError, match="No space left"):
        pages.draw_pages(tmp_path / "results", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.undo()
    pages.draw_pages(tmp_path / "results", out)
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.keys() == before.keys()
    assert not any(after[name] == before[name] for name in before)
