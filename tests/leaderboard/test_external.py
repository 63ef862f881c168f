"""Rows whose maps other code made: never on a board with runs, never beside published numbers, always labelled."""

from __future__ import annotations

from dataclasses import replace

import plausible
import pytest
from test_markdown import table

from kdad_bench.leaderboard import html, long_table, markdown, published
from kdad_bench.leaderboard.board import Board, boards
from kdad_bench.leaderboard.row import EXTERNAL


@pytest.fixture(scope="module")
def drawn() -> list[Board]:
    """One run and the same row once more as external: nothing but its origin tells it apart."""
    run = plausible.row("stfpm", "bottle", 0)
    return boards(table([run, replace(run, job_id="other", title="Other", method="external:other", origin=EXTERNAL)]))


def test_the_origin_alone_keeps_rows_apart_and_puts_external_ones_last(drawn: list[Board]) -> None:
    assert [board.external for board in drawn] == [False, True]
    assert [list(board.rows) for board in drawn] == [["stfpm"], ["external:other"]]
    assert drawn[1].title == f"mvtec_ad at 256 px, {EXTERNAL}"


def test_every_renderer_says_that_they_are_external(drawn: list[Board]) -> None:
    own = drawn[1:]
    assert own[0].caveats == (EXTERNAL,)
    page = markdown.page(own, table([]))
    assert "**External, protocol not verified**" in page
    assert "| Other" in page
    assert f'<span class="badge">{EXTERNAL}</span>' in html.body(own, table([]), (), {})
    assert {line["origin"] for line in long_table.lines(own)} == {EXTERNAL}
    assert {line["origin"] for line in long_table.lines(drawn[:1])} == {""}


def test_no_published_number_is_set_beside_them(drawn: list[Board]) -> None:
    assert published.refusal(drawn[0]) == ""
    assert "other code" in published.refusal(drawn[1])
    assert all(one.difference is None for one in published.verdicts(drawn[1]))


def test_a_title_says_with_what_the_maps_were_judged() -> None:
    run = plausible.row("stfpm", "bottle", 0)
    one = replace(run, job_id="one", method="external:one", origin=EXTERNAL, preset="external")
    pad = replace(one, job_id="other", preset="external[fit=pad]", fit="pad")
    assert [board.title for board in boards(table([one, pad]))] == [
        f"mvtec_ad at 256 px, {EXTERNAL}", f"mvtec_ad at 256 px, {EXTERNAL}, fit=pad"
    ]  # fmt: skip
    assert [board.title for board in boards(table([pad]))] == [f"mvtec_ad at 256 px, {EXTERNAL}, fit=pad"]
