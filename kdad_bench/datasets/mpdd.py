"""MPDD, metal parts: Jezek, Jonak, Burget, Dvorak, Skotak, ICUMT 2021. 6 categories, 1,346 images."""

from __future__ import annotations

from kdad_bench.datasets.entry import Counts, Entry
from kdad_bench.datasets.plain_layout import PLAIN
from kdad_bench.datasets.synthetic.solids import Solid
from kdad_bench.datasets.synthetic.subjects import Capsule, Gear, Stone, Subject

PLAIN_CAPSULE = ("crack", "poke", "squeeze")  # defects of a capsule without print


def _counts(train: int, good: int, anomalous: int, types: str) -> Counts:
    return Counts(
        train=train, test_good=good, test_anomalous=anomalous, types=tuple(types.split()), width=1024, height=1024
    )


# The totals 888 + 176 + 282 are the paper's; those of single categories and their folders are recalled and copies with
# renamed or merged folders of defects go around, so that differences are shown as notes.
PUBLISHED = {
    "bracket_black": _counts(289, 32, 47, "hole scratches"),
    "bracket_brown": _counts(185, 26, 51, "bend_and_parts_mismatch parts_mismatch"),
    "bracket_white": _counts(110, 30, 30, "defective_painting scratches"),
    "connector": _counts(128, 30, 14, "parts_mismatch"),
    "metal_plate": _counts(54, 26, 71, "major_rust scratches total_rust"),
    "tubes": _counts(122, 32, 69, "flattening"),
}

SUBJECTS: dict[str, Subject | Solid] = {
    "bracket_black": Gear(teeth=0, bolts=3, radius=70.0, metal=(44.0, 44.0, 46.0), mat=(150.0, 150.0, 148.0)),
    "bracket_brown": Gear(teeth=0, bolts=2, radius=74.0, metal=(120.0, 84.0, 56.0), mat=(150.0, 150.0, 148.0)),
    "bracket_white": Gear(teeth=0, bolts=2, radius=70.0, metal=(224.0, 224.0, 220.0), mat=(110.0, 110.0, 112.0)),
    "connector": Capsule(half_length=74.0, radius=26.0, cap=(160.0, 162.0, 166.0), body=(130.0, 132.0, 136.0), text="",
                         defects=PLAIN_CAPSULE),
    "metal_plate": Stone(ground=(150.0, 150.0, 154.0), fleck=(132.0, 132.0, 136.0), vein=(168.0, 168.0, 172.0)),
    "tubes": Capsule(half_length=96.0, radius=18.0, cap=(176.0, 176.0, 180.0), body=(176.0, 176.0, 180.0), text="",
                     defects=PLAIN_CAPSULE),
}  # fmt: skip

MPDD = Entry(
    name="mpdd",
    title="MPDD (metal parts)",
    licence="CC BY-NC-SA 4.0",
    terms="CC BY-NC-SA 4.0, as other tools state it; the authors' page names no licence: ask them before any other use",
    layouts=(PLAIN,),
    folders=("mpdd", "MPDD"),
    page="https://github.com/stepanje/MPDD",
    published=PUBLISHED,
    closed=True,
    confirmed=False,
    totals={"train": 888, "test_good": 176, "test_anomalous": 282},
    subjects=SUBJECTS,
)
