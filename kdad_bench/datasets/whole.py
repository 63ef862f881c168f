"""Does a copy of a published data set hold as many images as were published? Half an archive looks like a small one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kdad_bench.datasets.category import Category, printable
from kdad_bench.datasets.entry import Counts, Entry
from kdad_bench.datasets.folder import FOLDER
from kdad_bench.datasets.listing import SHOWN, folded
from kdad_bench.datasets.stand_in import PREFIX

NUMBERS = {
    "train": "train images", "validation": "validation images", "test_good": "good test images",
    "test_anomalous": "anomalous test images", "unlabelled": "images without labels",
}  # fmt: skip
USED = [key for key in NUMBERS if key != "unlabelled"]  # by a run
MASKS = "masks"  # of all anomalous images, in `totals` alone
Numbers = dict[str, int]


def plain(name: str) -> str:
    """The name of the real category that a stand-in's is made of."""
    return name.removeprefix(PREFIX)


def published_name(one: Entry, name: str) -> str | None:
    """The category of a data set that `name`, or that of a stand-in, means in any case and Unicode form; or None."""
    own = plain(name)
    return own if own in one.published else {folded(other): other for other in one.published}.get(folded(own))


def expected(one: Entry, name: str) -> tuple[Counts | None, bool]:
    """(the numbers of a category, or of its stand-in; whether they are beyond doubt); none where it is not published.

    What this package draws has the numbers that it draws.
    """
    drawn = name != plain(name)
    known = published_name(one, name)
    if known is None:
        return None, drawn or one.confirmed
    counts = one.published[known]
    return (one.drawn_counts.get(known, counts) if drawn else counts), drawn or one.confirmed


def numbers_of(category: Category) -> Numbers:
    """How many images a category holds, by the names of `Counts`, and how many masks of anomalous ones."""
    good = sum(not sample.label for sample in category.test)
    return {"train": len(category.train), "validation": len(category.validation), "test_good": good,
            "test_anomalous": len(category.test) - good, "unlabelled": len(category.unlabelled),
            MASKS: sum(len(sample.masks) for sample in category.test)}  # fmt: skip


def differing(have: Mapping[str, int], counts: Counts) -> dict[str, tuple[int, int]]:
    """Name of a number -> (how many are there, how many were published), where both are known and differ."""
    wanted = {key: getattr(counts, key) for key in NUMBERS}
    return {key: (have[key], number) for key, number in wanted.items() if number is not None and have[key] != number}


def kinds_of(category: Category) -> set[str]:
    """The kinds of defects in a category, by the names of their folders."""
    return {sample.defect for sample in category.test if sample.label}


def foreign_kinds(kinds: set[str], counts: Counts | None) -> set[str]:
    """Those of `kinds` that were not published, in any case: what holds them is somebody's own, or renames them."""
    if counts is None or not counts.types:
        return set()
    known = {folded(kind) for kind in (*counts.types, *counts.renamed)}
    return {kind for kind in kinds if folded(kind) not in known}


def said(odd: Mapping[str, tuple[int, int]]) -> list[str]:
    """`6 train images and not 209` of each number."""
    return [f"{there} {NUMBERS[key]} and not {wanted}" for key, (there, wanted) in odd.items()]


def short(odd: Mapping[str, tuple[int, int]]) -> bool:
    """Whether images that a run uses, or masks, are among what lacks."""
    return any(there < wanted for key, (there, wanted) in odd.items() if key in (*USED, MASKS))


def without(folder: Path, name: str, kinds: set[str], has_masks: bool, one: Entry) -> list[str]:
    """The files that belong to a published category and are not in this one; none where it has no masks to read."""
    due = has_masks and expected(one, name)[0] is not None and not is_own(kinds, one, name)
    return [file for file in one.needs if due and not (folder / file).is_file()]


def is_own(kinds: set[str], one: Entry, name: str) -> bool:
    """Whether a category holds defects that were not published, where it is beyond doubt what was: somebody's own."""
    counts, sure = expected(one, name)
    return sure and bool(foreign_kinds(kinds, counts))


def all_there(one: Entry, names: Iterable[str]) -> bool:
    """Whether every published category is among `names`, which are none of stand-ins."""
    return {folded(name) for name in names} >= {folded(name) for name in one.published}


def refusals(root: Path, one: Entry, found: Sequence[Category]) -> list[str]:
    """A line for each kind of images or masks of which fewer are there than published, where that is beyond doubt, and
    for each file that says how masks are read and is not there.

    The sums over all categories are, even where the numbers of each are not. A category with kinds of defects that were
    not published (`is_own`) is not half of the archive: it is told (`remarks`), not refused.
    """
    have = {category.name: numbers_of(category) for category in found}
    kinds = {category.name: kinds_of(category) for category in found}
    lacking: dict[str, dict[str, tuple[int, int]]] = {key: {} for key in USED}
    for name, numbers in have.items():
        counts, sure = expected(one, name)
        sure = sure and not is_own(kinds[name], one, name)
        for key, (there, wanted) in (differing(numbers, counts) if counts is not None and sure else {}).items():
            if there < wanted and key in USED:
                lacking[key][name] = (there, wanted)
    lines = [_line(root, one, key, those) for key, those in lacking.items() if those]
    if all_there(one, have) and not any(is_own(kinds[name], one, name) for name in have):
        sums = {key: sum(numbers[key] for numbers in have.values()) for key in one.totals}
        lines += [
            _line(root, one, key, {"all categories": (sums[key], wanted)})
            for key, wanted in totals_of(one, have, any(category.has_masks for category in found)).items()
            if short({key: (sums[key], wanted)}) and not lacking.get(key)
        ]
    less = {each.name: without(each.root, each.name, kinds[each.name], each.has_masks, one) for each in found}
    for name in one.needs:
        if those := [category for category, files in less.items() if name in files]:
            names = ", ".join(those[:SHOWN]) + (", ..." if len(those) > SHOWN else "")
            lines.append(
                f"{root}: {len(those)} of {len(found)} categories are without {name} ({names}); "
                f"restore it, or {_part(root, one, f'take {name} out of `needs`')}"
            )
    return lines


def totals_of(one: Entry, names: Iterable[str], has_masks: bool) -> Mapping[str, int]:
    """The published sums over all categories, called `names` where they lie: of masks only of those of the real data
    set, and where there are any, since image metrics need none."""
    real = has_masks and all(name == plain(name) for name in names)
    return {key: number for key, number in one.totals.items() if key != MASKS or real}


def _line(root: Path, one: Entry, key: str, those: Mapping[str, tuple[int, int]]) -> str:
    there, wanted = (sum(numbers) for numbers in zip(*those.values(), strict=True))
    each = [f"{name} {have} of {number}" for name, (have, number) in those.items()]
    names = ", ".join(each[:SHOWN]) + (f", {len(each) - SHOWN} more" if len(each) > SHOWN else "")
    return (
        f"{root}: {there} of {wanted} {NUMBERS.get(key, key)} of {one.title} are there ({names}); "
        f"restore them, or {_part(root, one, 'lower `published` and `totals`')}"
    )


def is_a_folder(root: Path) -> bool:
    """Whether `folder:` finds a category in `root`."""
    return any(layout.categories(root) for layout in FOLDER.layouts)


def _part(root: Path, one: Entry, otherwise: str) -> str:
    """How to run on what is there: `folder:` reads this package's layouts alone; else the entry has to promise less."""
    if is_a_folder(root):
        return f"name it folder:{root} to run on what is there"
    return f"{otherwise} in the entry of {one.name} to run on what is there"


def departure(category: Category, one: Entry) -> str:
    """What a category holds otherwise than was published, as far as that is beyond doubt; "" if nothing a run uses.

    Kinds of defects beside numbers that are all known and right are renamed ones, which is nothing.
    """
    counts, sure = expected(one, category.name)
    if counts is None:
        return f"data: no category of {one.title}" if one.published else ""
    odd = {key: pair for key, pair in differing(numbers_of(category), counts).items() if key in USED} if sure else {}
    told = said(odd)
    foreign = _foreign(category, counts) if sure else []
    told += [f"defects that are not in it ({', '.join(foreign[:SHOWN])})"] if foreign else []
    return f"data: not those of {one.title}: {', '.join(told)}" if told else ""


def _foreign(category: Category, counts: Counts) -> list[str]:
    """The kinds of defects that were not published; none beside numbers that are all known and right."""
    have = numbers_of(category)
    complete = all(have[key] == getattr(counts, key) for key in USED)
    return [] if complete else sorted(foreign_kinds(kinds_of(category), counts))


def remarks(category: Category, one: Entry) -> tuple[str, ...]:
    """A line on a category that was not published, or whose numbers differ from those that were and that is not
    refused for it."""
    counts, sure = expected(one, category.name)
    if counts is None:
        rest = f"; if it is your own, name it folder:{category.root}" if is_a_folder(category.root) else ""
        what = f"{category.root}: no category of {one.title}{rest}"
        return (printable(what),) if one.published else ()
    odd = differing(numbers_of(category), counts)
    foreign = _foreign(category, counts)
    told = said(
        {
            key: (there, wanted)
            for key, (there, wanted) in odd.items()
            if there > wanted or not sure or foreign or key not in USED
        }
    )
    if not told and not (foreign and sure):
        return ()
    doubt = "" if sure else ", as far as they are known"
    kinds = f"defects that it has not ({', '.join(foreign[:SHOWN])})" if foreign else ""
    numbers = f"{', '.join(told)}, as {one.title} has{doubt}" if told else f"named as {one.title}"
    what = f"{numbers}, and {kinds}" if kinds else numbers
    return (f"{category.root}: {what}: is it that? `kdad-bench data verify` tells",)
