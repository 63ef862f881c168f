"""Stand-ins for data sets that cannot be had: drawn images, in the published numbers, sizes, folders and layout.

They serve to measure the cost and the memory of a full run. The pictures are not those of the real categories, and
every name says so: `synthetic_mvtec_ad/synthetic_bottle`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from kdad_bench.datasets import cache
from kdad_bench.datasets.category import GOOD, DatasetError, not_a_category
from kdad_bench.datasets.entry import Counts, Entry
from kdad_bench.datasets.synthetic.drawing import Canvas
from kdad_bench.datasets.synthetic.embedded import DRAFT, MARKER, Split, remove_drafts, settle, write_category
from kdad_bench.datasets.synthetic.solids import Solid
from kdad_bench.datasets.synthetic.subjects import Subject
from kdad_bench.datasets.table import entries
from kdad_bench.files import write_text_whole

PREFIX = "synthetic_"
UNLABELLED = "unlabelled"  # the split of drawings that stand for images without labels


def marked(root: Path) -> dict[str, object]:
    """What the marker in `root` says; empty where nothing drawn lies."""
    try:
        found = json.loads((root / MARKER).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("synthetic") else {}


def splits(counts: Counts, subject: Subject | Solid) -> list[Split]:
    """The published splits; anomalous images are spread evenly over the published types of defects.

    Those without labels are drawn without defects, in a split of their own.
    """
    planned = [Split(split="train", kind=GOOD, defect=None, count=counts.train or 0)]
    if counts.validation:
        planned.append(Split(split="validation", kind=GOOD, defect=None, count=counts.validation))
    planned.append(Split(split="test", kind=GOOD, defect=None, count=counts.test_good or 0))
    share, more = divmod(counts.test_anomalous or 0, len(counts.types))
    for place, kind in enumerate(counts.types):
        defect = subject.defects[place % len(subject.defects)]
        planned.append(Split(split="test", kind=kind, defect=defect, count=share + (place < more)))
    if counts.unlabelled:
        planned.append(Split(split=UNLABELLED, kind=GOOD, defect=None, count=counts.unlabelled))
    return planned


def _counts(original: Entry, name: str) -> Counts:
    return original.drawn_counts.get(name) or original.published[name]


def image_count(like: str, names: Sequence[str] = ()) -> int:
    """The number of images of a stand-in (or of the categories `names`)."""
    original = _original(like)
    return sum(split.count for name in _chosen(like, names) for split in _planned(original, name))


def _original(like: str) -> Entry:
    have = entries(lambda one: one.subjects)
    if like not in have:
        raise DatasetError(f"no stand-in for '{like}'; have: {', '.join(have)}")
    return have[like]


def generate(
    like: str,
    out: Path,
    names: Sequence[str] = (),
    *,
    size: int | None = None,
    seed: int = 0,
    done: Callable[[], None] = lambda: None,
) -> Path:
    """Draw the stand-in of `like` (a data set with subjects) as `out/synthetic_<like>` and return that folder.

    `names` limits it to categories of the real data set; `size` is the longer side in pixels, by default the published
    one; `done` is called after each image. A category that is there is left alone and appears whole or not at all; what
    belongs to it beside its folder is written again where it lacks, by one process at a time. Raises
    DatasetError for an unknown name, a size outside 64 .. 4096, or a stand-in of another size or seed there.
    """
    original = _original(like)
    if size is not None and not 64 <= size <= 4096:
        raise DatasetError(f"size {size}: must lie between 64 and 4096 pixels")
    root = out / f"{PREFIX}{like}"
    root.mkdir(parents=True, exist_ok=True)
    facts = {"synthetic": True, "like": like, "size": size or "as published", "seed": seed}
    _mark(root, facts)
    for name in _chosen(like, names):
        final, drawn = root / f"{PREFIX}{name}", False
        if not final.is_dir():
            with cache.only_builder(final) as alone:
                if not final.is_dir():  # whoever waited finds what the other one drew
                    _draw(original, name, final, size=size, seed=seed, tidy=alone, done=done)
                    drawn = True
        _beside(original, root, final.name)
        for _ in range(0 if drawn else sum(one.count for one in _planned(original, name))):
            done()
    return root


def _planned(original: Entry, name: str) -> list[Split]:
    return splits(_counts(original, name), original.subjects[name])


def _draw(
    original: Entry, name: str, final: Path, *, size: int | None, seed: int, tidy: bool, done: Callable[[], None]
) -> None:
    """Draw one category and move it to `final`, whole; `tidy` where nobody else is drawing it."""
    counts, root = _counts(original, name), final.parent
    scale = 1.0 if size is None else size / max(counts.width, counts.height)
    if tidy:
        remove_drafts(root, name)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=DRAFT, dir=root))
    try:
        write_category(
            draft / name,
            original.subjects[name],
            name=f"{original.name}/{name}/{seed}",
            canvas=Canvas(max(1, round(counts.width * scale)), max(1, round(counts.height * scale))),
            splits=_planned(original, name),
            stand_in=True,
            files=partial(original.drawn_files, name) if original.drawn_files is not None else None,
            done=done,
        )
        if original.drawn_inside is not None:
            original.drawn_inside(draft / name)
        settle(draft / name, final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _beside(original: Entry, root: Path, name: str) -> None:
    """Write what belongs to a category beside its folder, where other processes may write what belongs to theirs."""
    if original.drawn_beside is not None:
        with cache.only_builder(root / MARKER):
            original.drawn_beside(root, name)


def _mark(root: Path, facts: dict[str, object]) -> None:
    marker = root / MARKER
    if not marker.exists():
        write_text_whole(marker, json.dumps(facts, indent=2) + "\n")
    elif (found := marked(root)) != facts:
        raise DatasetError(f"{marker}: another stand-in lies there ({found}); delete it or choose another folder")


def _chosen(like: str, names: Sequence[str]) -> list[str]:
    table = _original(like).published
    plain = [*dict.fromkeys(name.removeprefix(PREFIX) for name in names)]
    for name in plain:
        if name not in table:
            raise DatasetError(not_a_category(name, like, table))
    return plain or list(table)
