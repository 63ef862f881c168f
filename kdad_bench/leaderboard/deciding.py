"""What the comparisons of a board say, in words that both pages share."""

from __future__ import annotations

from collections import Counter

from kdad_bench.leaderboard import images
from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.marks import RAN_AWAY
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.pairs import Comparison, visible
from kdad_bench.leaderboard.spread import CATEGORIES, IMAGES, IMAGES_AND_SEEDS, NOTHING, ONE_TRAINING, SEEDS
from kdad_bench.leaderboard.text import counted as number_of

MOST_SHOWN = 25  # entrants of a matrix; it has a column for each
# what a comparison rests on -> what it says, and what it leaves out
SAYS = {
    IMAGES_AND_SEEDS: "on these categories, with other images and other seeds",
    IMAGES: "on these categories, with other images, for these trained models: one seed says nothing of others",
    SEEDS: (
        "on these very test images, with other seeds (rows hold nothing of it for single images, so other images may "
        "turn it round)"
    ),
    CATEGORIES: "with other categories, by Wilcoxon's test, which a few categories can never make sure",
    NOTHING: "by nothing: neither images nor seeds tell, and there is one category",
    ONE_TRAINING: (
        "with other categories, by Wilcoxon's test, for these trained models: one training of each serves all "
        "categories, and says nothing of others"
    ),
}
SEEDS_AND_THEIR_IMAGES = (
    "with other seeds, of which each sets other images aside: scores of single images are not used, and what another "
    "sample of them would do lies in part in the seeds"
)
SEEDS_OF_MANY_JOBS = (
    "on these very test images, with other seeds (rows hold nothing of it for single images, or are not among the "
    "first {most:,} jobs of a category, whose images are compared; other images may turn it round)"
)
READ = (
    "Each cell is the mean difference, row minus column, and p after Holm's correction for all pairs of the metric: in "
    "at most one table of twenty is anything called sure that is not so. Bold: p below 0.05. Columns are numbered as "
    "the rows."
)


def room(board: Board, keys: tuple[str, ...]) -> str:
    """What a matrix of `keys` leaves out; "" if nothing."""
    if not 1 < len(keys) < len(board.order):
        return ""
    return f"The first {len(keys)} of {len(board.order)} methods. All count in “beats” and “loses to”."


def p_of(one: Comparison) -> str:
    """The corrected p as pages write it."""
    if one.p_holm is None:
        return "–"
    return "<0.001" if one.p_holm < 0.001 else f"{one.p_holm:.3f}"


def shown(board: Board, metric: str) -> tuple[str, ...]:
    """The entrants of a matrix, in the order of the ranking."""
    return tuple(key for key in board.order if board.overall(key, metric) is not None)[:MOST_SHOWN]


def says(board: Board, kind: str) -> str:
    """What a comparison on this board says that rests on `kind`."""
    rows = [row for rows in board.rows.values() for row in rows]
    if kind == SEEDS and any(row.get("contamination") is not None for row in rows):
        return SEEDS_AND_THEIR_IMAGES
    if kind == SEEDS and max(Counter(row["category"] for row in rows).values()) > images.MOST_JOBS:
        return SEEDS_OF_MANY_JOBS.format(most=images.MOST_JOBS)
    return SAYS[kind]


def counted(board: Board, metric: str) -> str:
    """How many pairs are told apart, and on what evidence; and which are not judged."""
    known = [one for one in board.summary.comparisons(metric) if one.difference is not None]
    found = [one for one in known if not board.diverged & {one.a, one.b}]
    sure = sum(one.significant for one in found)
    kinds = [one.evidence for one in found]
    judged = "; ".join(
        f"{kinds.count(kind)} judged {says(board, kind)}"
        if kinds.count(kind) < len(found)
        else f"judged {says(board, kind)}"
        for kind in SAYS
        if kind in kinds
    )
    if not known:
        return "no two methods have a category with a seed in common"
    away = ", ".join(board.labels[key] for key in board.order if key in board.diverged)
    unjudged = f"not judged: the pairs with {away}, {RAN_AWAY}"
    told = [f"{sure} of {len(found)} pairs told apart; {judged}"] if found else []
    return "; ".join(told + ([unjudged] if len(known) > len(found) else []))


def power(board: Board, metric: str) -> str:
    """The power line: which difference the table could see; "" where nothing tells."""
    found = visible(metric, board.summary.comparisons(metric))
    if found is None:
        return ""
    what = "these images" + (" and seeds" if found.evidence == IMAGES_AND_SEEDS else "")
    what = "these seeds" if found.evidence == SEEDS else what
    if found.one >= 1:
        return f"With {what} no difference that there can be would be seen four times in five."
    if found.pairs < 2:
        return f"With {what} a difference of {found.one:.3f} would be seen four times in five."
    all_pairs = f"{found.all:.3f}" if found.all < 1 else "more than there can be"
    return (
        f"With {what} a difference of {found.one:.3f} would be seen four times in five, had one pair alone been asked "
        f"about, and one of {all_pairs} among all {found.pairs} pairs (medians over the pairs)."
    )


def told(board: Board, one: Comparison) -> str:
    """All about one comparison, in one line."""
    if one.difference is None:
        return f"{board.labels[one.a]} and {board.labels[one.b]}: no category with a seed in common"
    around = "" if one.low is None or one.high is None else f" [{one.low:+.3f}, {one.high:+.3f}]"
    parts = [f"{board.labels[one.a]} minus {board.labels[one.b]}: {one.difference:+.3f}{around}"]
    parts.append("p –" if one.p is None else f"p {one.p:.2g}, corrected {p_of(one)}")
    parts.append(f"better in {one.a_better} of {number_of(one.categories, 'category')}")
    if one.won is not None:
        parts.append(f"in {100 * one.won:.0f} % of {number_of(one.pairs, 'job')}")
    if one.effect is not None:
        parts.append(f"effect size {one.effect:+.2f}")
    if one.evidence:
        parts.append(f"judged by {one.evidence}")
    return ", ".join(parts)


def standing(board: Board, key: str, metric: str) -> tuple[int, int]:
    """How many others of the board, also those that a matrix has no room for, an entrant surely beats, and how many
    surely beat it."""
    sign = 1 if METRICS[metric].higher_is_better else -1
    every = [board.summary.comparison(key, other, metric) for other in board.order if other != key]
    sure = [one for one in every if one.significant]
    wins = sum(sign * (one.difference or 0.0) > 0 for one in sure)
    return wins, len(sure) - wins
