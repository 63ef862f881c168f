"""MVTec LOCO AD: Bergmann, Batzner, Fauser, Sattlegger, Steger, IJCV 2022. 5 categories, 3,651 images.

One file of ground truth for each annotated region, in a folder for each image; the value of its pixels names the kind
of defect, whose saturation stands in `defects_config.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

from kdad_bench.datasets.entry import Archive, Counts, Entry
from kdad_bench.datasets.plain_layout import PLAIN, SATURATION
from kdad_bench.datasets.synthetic.embedded import Files, Split
from kdad_bench.datasets.synthetic.solids import Solid
from kdad_bench.datasets.synthetic.subjects import Capsule, Gear, Stone, Subject, Wood
from kdad_bench.files import write_text_whole

TYPES = ("logical_anomalies", "structural_anomalies")


def _counts(train: int, validation: int, good: int, logical: int, structural: int, width: int, height: int) -> Counts:
    return Counts(
        train=train,
        validation=validation,
        test_good=good,
        test_anomalous=logical + structural,
        types=TYPES,
        width=width,
        height=height,
    )


# of the archive, as counted in public (1778 + 305 + 575 + 561 + 432); the paper prints 1772 and 304 for the first two
PUBLISHED = {
    "breakfast_box": _counts(351, 62, 102, 83, 90, 1600, 1280),
    "juice_bottle": _counts(335, 54, 94, 142, 94, 800, 1600),
    "pushpins": _counts(372, 69, 138, 91, 81, 1700, 1000),
    "screw_bag": _counts(360, 60, 122, 137, 82, 1600, 1100),
    "splicing_connectors": _counts(360, 60, 119, 108, 85, 1700, 850),
}

SUBJECTS: dict[str, Subject | Solid] = {
    "breakfast_box": Stone(ground=(206.0, 178.0, 130.0), fleck=(150.0, 84.0, 52.0), vein=(230.0, 210.0, 170.0)),
    "juice_bottle": Capsule(half_length=90.0, radius=34.0, cap=(226.0, 190.0, 60.0), body=(196.0, 60.0, 44.0)),
    "pushpins": Gear(teeth=0, bolts=3, radius=92.0, bore=16.0, metal=(206.0, 180.0, 60.0), mat=(214.0, 214.0, 210.0)),
    "screw_bag": Gear(teeth=6, bolts=3, mat=(120.0, 124.0, 130.0)),
    "splicing_connectors": Wood(),
}


def _files(_: str, split: Split, index: int) -> Files:
    """Where a drawing of a stand-in goes."""
    image = f"{split.split}/{split.kind}/{index:03d}.png"
    if split.defect is None:
        return Files(image)
    return Files(image, f"ground_truth/{split.kind}/{index:03d}/000.png", value=255 - TYPES.index(split.kind))


def _saturation(folder: Path) -> None:
    """What a stand-in saturates at: logical anomalies at half of their area, structural ones at all of it."""
    entries = [
        {"defect_name": kind, "pixel_value": 255 - place, "saturation_threshold": share, "relative_saturation": True}
        for place, (kind, share) in enumerate(zip(TYPES, (0.5, 1.0), strict=True))
    ]
    write_text_whole(folder / SATURATION, json.dumps(entries, indent=2) + "\n")


MVTEC_LOCO = Entry(
    name="mvtec_loco",
    title="MVTec LOCO AD",
    licence="CC BY-NC-SA 4.0",
    terms="CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/): name the authors "
    "(MVTec Software GmbH), no commercial use, share adaptations under the same licence",
    layouts=(PLAIN,),
    folders=("mvtec_loco", "mvtec_loco_anomaly_detection", "MVTecLOCO", "MVTec_LOCO", "loco"),
    archive=Archive(
        url="https://www.mydrive.ch/shares/48237/1b9106ccdfbb09a0c414bd49fe44a14a/download/"
        "430647091-1646842701/mvtec_loco_anomaly_detection.tar.xz",
        algorithm="sha256",
        digest="9e7c84dba550fd2e59d8e9e231c929c45ba737b6b6a6d3814100f54d63aae687",
        page="https://www.mvtec.com/company/research/datasets/mvtec-loco",
        download_bytes=6_000_000_000,
        unpacked_bytes=6_500_000_000,
    ),
    published=PUBLISHED,
    closed=True,
    totals={"masks": 1246},  # files, as counted in public
    needs=(SATURATION,),
    subjects=SUBJECTS,
    drawn_files=_files,
    drawn_inside=_saturation,
)
