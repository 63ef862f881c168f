"""The pieces that every table of leaderboard.html is made of."""

from __future__ import annotations

from collections.abc import Sequence

from kdad_bench.leaderboard.board import MOST_LOAD, UNSTEADY
from kdad_bench.leaderboard.marks import Mark
from kdad_bench.leaderboard.numbers import MISSING, ends
from kdad_bench.leaderboard.summary import Estimate
from kdad_bench.leaderboard.text import escape

FLAG = f' <abbr title="varies by more than {UNSTEADY * 100:g} % between jobs">~</abbr>'
BUSY = f"timed while other work held over {MOST_LOAD * 100:g} % of the processors"
FLAG_ALONE = f' <abbr title="{BUSY}, or varies">~</abbr>'


def small(text: str) -> str:
    """A second line of a cell."""
    return f'<span class="interval-text">{text}</span>'


def accuracy(found: Estimate | None, mark: Mark, categories: int, failed: int = 0) -> str:
    """The mean with its interval, over how many categories where some lack, and how many jobs failed."""
    if found is None:
        return cell(MISSING)
    around = "" if found.shown is None else f" {small(ends(found))}"
    few = "" if found.complete else f" {small(f'{found.categories} of {categories} categories')}"
    return cell(f"{found.mean:.3f}{around}{few}{_lost(failed)}", found.mean, mark)


def deviated(found: Estimate | None, mark: Mark, style: str = "", failed: int = 0) -> str:
    """The mean with its standard deviation over seeds, and how many jobs failed."""
    if found is None:
        return cell(MISSING)
    around = "" if found.std is None else f" {small(f'± {found.std:.3f}')}"
    return cell(f"{found.mean:.3f}{around}{_lost(failed)}", found.mean, mark, style)


def _lost(failed: int) -> str:
    return f" {small(f'{failed} failed')}" if failed else ""


def cell(text: str, order: float | None = None, mark: Mark = "", style: str = "") -> str:
    """A numeric cell; `order` is what it sorts by, nothing sorting last."""
    key = "" if order is None and text != MISSING else f' data-order="{"" if order is None else f"{order:.9g}"}"'
    return f'<td class="n {mark}"{key}{style}>{text}</td>' if mark else f'<td class="n"{key}{style}>{text}</td>'


def table_of(name: str, heads: Sequence[tuple[str, str]], lines: Sequence[str], caption: str, kind: str) -> str:
    """A table of `heads` (title, class) and `lines` of cells, which scrolls by itself where a screen is too narrow.

    `name` is how a screen reader lists it among the others of its section.
    """
    head = "".join(f'<th scope="col"{f" class={name}" if name else ""}>{escape(title)}</th>' for title, name in heads)
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    named = f'aria-label="{escape(name)}"'  # the caption, a legend of several sentences, is then its description
    return (
        f'<div class="scroll" tabindex="0" role="region" {named}><table class="{kind}" {named}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def choice(name: str, title: str, parts: Sequence[tuple[str, str, str]]) -> str:
    """Radio buttons that show one of `parts`, (value, label, content) each; all are shown without a script."""
    if not parts:
        return ""
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"{" checked" if index == 0 else ""}> '
        f"{escape(label)}</label>"
        for index, (value, label, _) in enumerate(parts)
    )
    shown = "\n".join(
        f'<div data-part="{value}"><p class="part">{escape(label)}</p>{content}</div>'
        for value, label, content in parts
    )
    return f'<div><fieldset class="choice"><legend>{escape(title)}</legend>{buttons}</fieldset>\n{shown}</div>'
