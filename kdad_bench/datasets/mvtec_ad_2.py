"""MVTec AD 2: Heckler-Kram, Neudeck, Scheler, König, Steger, 2025 (arXiv 2503.21622). 8 categories, 8,004 images.

Images are called NNN_<light>.png, the light one of LIGHTS. The labels of `test_private` and `test_private_mixed` are
not published: those images are told, counted and not evaluated.
"""

from __future__ import annotations

from kdad_bench.datasets.entry import Archive, Counts, Entry, Upload
from kdad_bench.datasets.plain_layout import PlainLayout
from kdad_bench.datasets.synthetic.embedded import Files, Split
from kdad_bench.datasets.synthetic.solids import Solid
from kdad_bench.datasets.synthetic.subjects import Capsule, Fabric, Gear, Stone, Subject

LIGHTS = ("regular", "overexposed", "underexposed", "shift_1", "shift_2", "shift_3")
PUBLIC = PlainLayout(
    test="test_public",
    masks_in_test=True,
    unlabelled=("test_private", "test_private_mixed"),
    text="train/good/*.png, validation/good/*.png, test_public/<good|bad>/*.png, "
    "test_public/ground_truth/bad/<name>_mask.png",
)

# numbers of each private split: the checker of submissions that MVTec ships; sizes: a public loader of the data set
PRIVATE = {"can": 321, "fabric": 314, "fruit_jelly": 255, "rice": 277, "sheet_metal": 142, "vial": 276,
           "wallplugs": 232, "walnuts": 228}  # fmt: skip
SIZES = {"can": (2232, 1024), "fabric": (2448, 2048), "fruit_jelly": (2100, 1520), "rice": (2448, 2048),
         "sheet_metal": (4224, 1056), "vial": (1400, 1900), "wallplugs": (2448, 2048),
         "walnuts": (2448, 2048)}  # fmt: skip
# of one archive whose SHA-256 is the published one, as counted in public; its other splits were not found by category
TOTALS = {"train": 2528, "validation": 302, "test_good": 379, "test_anomalous": 705, "unlabelled": 4090}
VALIDATION = {"sheet_metal": 19, "fruit_jelly": 37, "walnuts": 48}


def _counts(name: str, train: int | None, validation: int | None, good: int | None, bad: int | None) -> Counts:
    width, height = SIZES[name]
    return Counts(
        train=train,
        validation=validation,
        test_good=good,
        test_anomalous=bad,
        types=("bad",),
        unlabelled=2 * PRIVATE[name],
        width=width,
        height=height,
    )


def _parts(total: int, fixed: dict[str, int]) -> dict[str, int]:
    """A total in parts by category: those that are known, and the rest like the private splits."""
    rest = {name: count for name, count in PRIVATE.items() if name not in fixed}
    left, of, found = total - sum(fixed.values()), sum(rest.values()), dict(fixed)
    for name, count in rest.items():
        found[name] = round(left * count / of)
        left, of = left - found[name], of - count
    return found


PUBLISHED = {name: _counts(name, None, VALIDATION.get(name), None, None) for name in PRIVATE}
_DRAWN = [
    _parts(TOTALS[key], VALIDATION if key == "validation" else {})
    for key in ("train", "validation", "test_good", "test_anomalous")
]
SUBJECTS: dict[str, Subject | Solid] = {
    "can": Gear(teeth=0, bolts=0, radius=92.0, bore=70.0, metal=(176.0, 178.0, 182.0), mat=(20.0, 20.0, 22.0),
                turns=0.5, defects=("broken_rim", "dent", "scratch")),
    "fabric": Fabric(period=9.0, warp=(120.0, 60.0, 56.0), weft=(150.0, 92.0, 84.0)),
    "fruit_jelly": Stone(ground=(178.0, 80.0, 60.0), fleck=(206.0, 150.0, 70.0), vein=(196.0, 110.0, 84.0), grain=3.0),
    "rice": Stone(ground=(206.0, 202.0, 190.0), fleck=(232.0, 230.0, 222.0), vein=(190.0, 184.0, 170.0), grain=6.0),
    "sheet_metal": Fabric(period=15.0, warp=(150.0, 150.0, 152.0), weft=(176.0, 176.0, 178.0)),
    "vial": Capsule(half_length=84.0, radius=34.0, cap=(190.0, 190.0, 194.0), body=(206.0, 214.0, 210.0), text="",
                    defects=("crack", "poke", "squeeze")),
    "wallplugs": Capsule(half_length=70.0, radius=20.0, cap=(150.0, 150.0, 150.0), body=(166.0, 166.0, 166.0), text="",
                         defects=("crack", "poke", "squeeze")),
    "walnuts": Gear(teeth=0, bolts=0, radius=80.0, bore=8.0, metal=(150.0, 112.0, 76.0), mat=(210.0, 206.0, 198.0),
                    turns=0.5, defects=("broken_rim", "dent", "rust", "scratch")),
}  # fmt: skip


def _files(_: str, split: Split, index: int) -> Files:
    """Where a drawing of a stand-in goes: normals in the regular light, public test images in all of them."""
    if split.split == "unlabelled":
        number, mixed = divmod(index, 2)
        name = f"test_private_mixed/{number:03d}_mixed" if mixed else f"test_private/{number:03d}_regular"
        return Files(f"{name}.png")
    if split.split != "test":
        return Files(f"{split.split}/good/{index:03d}_regular.png")
    name = f"{split.kind}/{index:03d}_{LIGHTS[index % len(LIGHTS)]}"
    mask = f"test_public/ground_truth/{name}_mask.png" if split.defect is not None else None
    return Files(f"test_public/{name}.png", mask)


MVTEC_AD_2 = Entry(
    name="mvtec_ad_2",
    title="MVTec AD 2",
    licence="CC BY-NC-SA 4.0",
    terms="CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/): name the authors "
    "(MVTec Software GmbH), no commercial use, share adaptations under the same licence",
    layouts=(PUBLIC,),
    folders=("mvtec_ad_2", "MVTec_AD_2", "mvtec_ad2", "MVTecAD2"),
    archive=Archive(
        url="https://www.mydrive.ch/shares/121573/7f68fe2c4f7c2ceaa08f463aaeb2f414/download/"
        "466712769-1743422799/mvtec_ad_2.tar.gz",
        algorithm="sha256",
        digest="c0ded99ef32bfc8e352d52beb44515e5b292b8598cb963aadfa91ca0763505e4",
        page="https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
        download_bytes=32_739_596_982,
        unpacked_bytes=33_000_000_000,
    ),
    published=PUBLISHED,
    closed=True,
    upload=Upload(
        page="https://benchmark.mvtec.com",
        maps="anomaly_images",
        thresholded="anomaly_images_thresholded",
        splits={"test_private": "regular", "test_private_mixed": "mixed"},
    ),
    totals=TOTALS,
    subjects=SUBJECTS,
    drawn_counts={name: _counts(name, *(part[name] for part in _DRAWN)) for name in PRIVATE},
    drawn_files=_files,
)
