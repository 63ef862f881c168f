"""BTAD: Mishra, Verk, Fornasier, Piciarelli, Foresti, ISIE 2021 (VT-ADL). 3 categories, 2,540 images."""

from __future__ import annotations

from kdad_bench.datasets.entry import Archive, Counts, Entry
from kdad_bench.datasets.plain_layout import PlainLayout
from kdad_bench.datasets.synthetic.embedded import Files, Split
from kdad_bench.datasets.synthetic.solids import Solid
from kdad_bench.datasets.synthetic.subjects import Gear, Stone, Subject, Wood

OK_KO = PlainLayout(good="ok", text="train/ok/*, test/ok/*, test/ko/*, ground_truth/ko/<name>.png or .bmp")
SUFFIXES = {"01": ("bmp", "png"), "02": ("png", "png"), "03": ("bmp", "bmp")}  # of images and masks


def _counts(train: int, ok: int, ko: int, width: int, height: int) -> Counts:
    return Counts(train=train, test_good=ok, test_anomalous=ko, types=("ko",), width=width, height=height)


# The totals 1799 + 451 + 290 = 2540 are confirmed. Those of single categories are recalled (they add up; the authors'
# page has 399 and 1000 the other way round), so that differences are shown as notes. Masks are no images: 2830 files.
PUBLISHED = {
    "01": _counts(400, 21, 49, 1600, 1600),
    "02": _counts(399, 30, 200, 600, 600),
    "03": _counts(1000, 400, 41, 800, 600),
}

SUBJECTS: dict[str, Subject | Solid] = {
    "01": Gear(teeth=0, bolts=0, radius=100.0, bore=40.0, metal=(96.0, 98.0, 104.0), mat=(24.0, 24.0, 26.0),
               defects=("broken_rim", "dent", "rust", "scratch")),
    "02": Wood(),
    "03": Stone(ground=(140.0, 140.0, 142.0), fleck=(116.0, 116.0, 118.0), vein=(170.0, 170.0, 172.0)),
}  # fmt: skip


def _files(category: str, split: Split, index: int) -> Files:
    """Where a drawing of a stand-in goes."""
    kind = "ok" if split.defect is None else "ko"
    image, mask = SUFFIXES[category]
    marks = f"ground_truth/ko/{index:04d}.{mask}" if split.defect is not None else None
    return Files(f"{split.split}/{kind}/{index:04d}.{image}", marks)


BTAD = Entry(
    name="btad",
    title="BTAD (beanTech)",
    licence="CC BY-SA 4.0",
    terms="CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/): name the authors (beanTech srl, Mishra et "
    "al. 2021), share adaptations under the same licence; commercial use is not excluded",
    layouts=(OK_KO,),
    folders=("btad", "BTAD", "BTech_Dataset_transformed", "btech"),
    archive=Archive(
        url="https://avires.dimi.uniud.it/papers/btad/btad.zip",
        algorithm="sha256",
        digest="461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
        page="https://github.com/pankajmishra000/VT-ADL",
        download_bytes=3_000_000_000,
        unpacked_bytes=6_000_000_000,
    ),
    published=PUBLISHED,
    closed=True,
    confirmed=False,
    totals={"train": 1799, "test_good": 451, "test_anomalous": 290},
    subjects=SUBJECTS,
    drawn_files=_files,
)
