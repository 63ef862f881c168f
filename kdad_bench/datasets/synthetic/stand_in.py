"""Stand-ins for data sets that cannot be had: drawn images, in the published numbers, sizes, folders and layout.

They serve to measure the cost and the memory of a full run. The pictures are not those of the real categories, and
every name says so: `synthetic_mvtec_ad/synthetic_bottle`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from kdad_bench.datasets.category import GOOD, DatasetError
from kdad_bench.datasets.published import TABLES, Counts
from kdad_bench.datasets.synthetic.drawing import Canvas
from kdad_bench.datasets.synthetic.embedded import Split, settle, write_category
from kdad_bench.datasets.synthetic.solids import Solid
from kdad_bench.datasets.synthetic.subjects import Capsule, Fabric, Gear, Stone, Subject, Wood

MARKER = "kdad-bench.json"  # lies in the root of a stand-in and says what it is
PREFIX = "synthetic_"

PLAIN = ("crack", "poke", "squeeze")  # of a capsule without print
STAND_INS: dict[str, dict[str, Subject | Solid]] = {
    "mvtec_ad": {
        "bottle": Gear(teeth=0, bolts=0, radius=96.0, bore=44.0, metal=(92.0, 70.0, 52.0), mat=(226.0, 226.0, 224.0),
                       turns=0.5, defects=("broken_rim", "rust", "scratch")),
        "cable": Gear(teeth=0, bolts=3, radius=92.0, bore=16.0, metal=(150.0, 120.0, 84.0)),
        "capsule": Capsule(),
        "carpet": Fabric(period=7.0, warp=(92.0, 88.0, 92.0), weft=(120.0, 116.0, 118.0)),
        "grid": Fabric(period=19.0, warp=(128.0, 128.0, 128.0), weft=(150.0, 150.0, 150.0)),
        "hazelnut": Gear(teeth=0, bolts=0, radius=78.0, bore=10.0, metal=(142.0, 98.0, 62.0), mat=(28.0, 28.0, 30.0),
                         turns=0.5, defects=("broken_rim", "dent", "rust", "scratch")),
        "leather": Stone(ground=(116.0, 72.0, 46.0), fleck=(84.0, 50.0, 32.0), vein=(134.0, 86.0, 56.0), grain=4.0),
        "metal_nut": Gear(teeth=6, bolts=3, turns=0.04),
        "pill": Capsule(half_length=72.0, radius=46.0, cap=(226.0, 222.0, 216.0), body=(226.0, 222.0, 216.0),
                        table=(34.0, 36.0, 40.0), text="80"),
        "screw": Capsule(half_length=104.0, radius=14.0, cap=(128.0, 128.0, 128.0), body=(168.0, 168.0, 168.0),
            text="", defects=PLAIN),
        "tile": Stone(),
        "toothbrush": Capsule(half_length=98.0, radius=30.0, cap=(70.0, 110.0, 180.0), body=(220.0, 220.0, 222.0),
            text="", defects=PLAIN),
        "transistor": Capsule(half_length=60.0, radius=40.0, cap=(52.0, 52.0, 54.0), body=(60.0, 60.0, 62.0),
            text="K7"),
        "wood": Wood(),
        "zipper": Fabric(period=13.0, warp=(60.0, 60.0, 62.0), weft=(104.0, 104.0, 106.0)),
    },
    "mvtec_3d_ad": {
        "bagel": Solid(),
        "cable_gland": Solid(half_width=60.0, thickness=0.03, crust=(150.0, 150.0, 150.0), pale=(190.0, 190.0, 190.0)),
        "carrot": Solid(half_width=104.0, half_height=26.0, crust=(206.0, 110.0, 40.0), pale=(226.0, 140.0, 66.0)),
        "cookie": Solid(thickness=0.010),
        "dowel": Solid(half_width=98.0, half_height=20.0, crust=(190.0, 150.0, 100.0), pale=(214.0, 180.0, 132.0)),
        "foam": Solid(half_width=92.0, half_height=58.0, thickness=0.026, crust=(96.0, 118.0, 150.0),
                      pale=(128.0, 150.0, 178.0)),
        "peach": Solid(half_width=78.0, thickness=0.04, crust=(216.0, 120.0, 70.0), pale=(236.0, 170.0, 100.0)),
        "potato": Solid(half_width=90.0, half_height=60.0, thickness=0.035),
        "rope": Solid(half_width=108.0, half_height=16.0, thickness=0.012),
        "tire": Solid(half_width=92.0, thickness=0.022, crust=(40.0, 40.0, 42.0), pale=(64.0, 64.0, 66.0)),
    },
}  # fmt: skip


def splits(counts: Counts, subject: Subject | Solid) -> list[Split]:
    """The published splits; anomalous images are spread evenly over the published types of defects."""
    planned = [Split(split="train", kind=GOOD, defect=None, count=counts.train)]
    if counts.validation:
        planned.append(Split(split="validation", kind=GOOD, defect=None, count=counts.validation))
    planned.append(Split(split="test", kind=GOOD, defect=None, count=counts.test_good))
    share, more = divmod(counts.test_anomalous, len(counts.types))
    for place, kind in enumerate(counts.types):
        defect = subject.defects[place % len(subject.defects)]
        planned.append(Split(split="test", kind=kind, defect=defect, count=share + (place < more)))
    return planned


def image_count(like: str, names: Sequence[str] = ()) -> int:
    """The number of images of a stand-in (or of the categories `names`)."""
    chosen = [TABLES[like][name] for name in _chosen(like, names)]
    return sum(one.train + one.validation + one.test_good + one.test_anomalous for one in chosen)


def generate(
    like: str,
    out: Path,
    names: Sequence[str] = (),
    *,
    size: int | None = None,
    seed: int = 0,
    done: Callable[[], None] = lambda: None,
) -> Path:
    """Draw the stand-in of `like` (mvtec_ad or mvtec_3d_ad) as `out/synthetic_<like>` and return that folder.

    `names` limits it to categories of the real data set; `size` is the longer side in pixels, by default the published
    one; `done` is called after each image. A category that is there is left alone and appears whole or not at all.
    Raises DatasetError for an unknown name, a size outside 64 .. 4096, or a stand-in of another size or seed there.
    """
    if like not in TABLES:
        raise DatasetError(f"no stand-in for '{like}'; have: {', '.join(TABLES)}")
    if size is not None and not 64 <= size <= 4096:
        raise DatasetError(f"size {size}: must lie between 64 and 4096 pixels")
    root = out / f"{PREFIX}{like}"
    root.mkdir(parents=True, exist_ok=True)
    facts = {"synthetic": True, "like": like, "size": size or "as published", "seed": seed}
    _mark(root, facts)
    for name in _chosen(like, names):
        counts, final = TABLES[like][name], root / f"{PREFIX}{name}"
        subject = STAND_INS[like][name]
        planned = splits(counts, subject)
        if final.is_dir():
            for _ in range(sum(one.count for one in planned)):
                done()
            continue
        scale = 1.0 if size is None else size / max(counts.width, counts.height)
        canvas = Canvas(max(1, round(counts.width * scale)), max(1, round(counts.height * scale)))
        draft = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=root))
        try:
            write_category(
                draft / name,
                subject,
                name=f"{like}/{name}/{seed}",
                canvas=canvas,
                splits=planned,
                stand_in=True,
                done=done,
            )
            settle(draft / name, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return root


def _mark(root: Path, facts: dict[str, object]) -> None:
    marker = root / MARKER
    if marker.is_file():
        try:
            found = json.loads(marker.read_text())
        except ValueError:
            found = None
        if found != facts:
            raise DatasetError(f"{marker}: another stand-in lies there ({found}); delete it or choose another folder")
        return
    draft = root / f".{MARKER}.{os.getpid()}"
    draft.write_text(json.dumps(facts, indent=2) + "\n")
    os.replace(draft, marker)


def _chosen(like: str, names: Sequence[str]) -> list[str]:
    plain = [name.removeprefix(PREFIX) for name in names]
    for name in plain:
        if name not in TABLES[like]:
            raise DatasetError(f"category '{name}' not in {like}; have: {', '.join(TABLES[like])}")
    return plain or list(TABLES[like])
