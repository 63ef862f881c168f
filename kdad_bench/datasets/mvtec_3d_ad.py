"""MVTec 3D-AD: Bergmann, Jin, Sattlegger, Steger, VISAPP 2022. 10 categories, 4,147 scans."""

from __future__ import annotations

from kdad_bench.datasets.category import MODALITIES
from kdad_bench.datasets.entry import Archive, Counts, Entry
from kdad_bench.datasets.scan_layout import SCAN
from kdad_bench.datasets.synthetic.solids import Solid
from kdad_bench.datasets.synthetic.subjects import Subject


def _counts(train: int, validation: int, good: int, anomalous: int, width: int, height: int, types: str) -> Counts:
    return Counts(
        train=train,
        validation=validation,
        test_good=good,
        test_anomalous=anomalous,
        types=tuple(types.split()),
        width=width,
        height=height,
    )


# Bergmann et al. 2022. The total 2656 + 294 + 249 + 948 = 4147 is confirmed; the numbers of single categories, their
# sizes and their folders are not confirmed by a source at hand: a difference is shown as a note, not as a fault
PUBLISHED = {
    "bagel": _counts(244, 22, 22, 88, 800, 800, "combined contamination crack hole"),
    "cable_gland": _counts(223, 23, 21, 87, 400, 400, "bent cut hole thread"),
    "carrot": _counts(286, 29, 27, 132, 800, 800, "combined contamination crack cut hole"),
    "cookie": _counts(210, 22, 28, 103, 500, 500, "combined contamination crack hole"),
    "dowel": _counts(288, 34, 26, 104, 400, 400, "bent combined contamination cut"),
    "foam": _counts(236, 27, 20, 80, 900, 900, "color combined contamination cut"),
    "peach": _counts(361, 42, 26, 106, 600, 600, "combined contamination cut hole"),
    "potato": _counts(300, 33, 22, 92, 800, 800, "combined contamination cut hole"),
    "rope": _counts(298, 33, 32, 69, 900, 400, "contamination cut open"),
    "tire": _counts(210, 29, 25, 87, 600, 800, "combined contamination cut hole"),
}

SUBJECTS: dict[str, Subject | Solid] = {
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
}  # fmt: skip

MVTEC_3D_AD = Entry(
    name="mvtec_3d_ad",
    title="MVTec 3D-AD",
    licence="CC BY-NC-SA 4.0",
    terms="CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/): name the authors "
    "(MVTec Software GmbH), no commercial use, share adaptations under the same licence",
    layouts=(SCAN,),
    modalities=MODALITIES,
    folders=("mvtec_3d_ad", "mvtec_3d_anomaly_detection", "MVTec3D-AD", "mvtec3d", "mvtec_3d"),
    archive=Archive(
        url="https://www.mydrive.ch/shares/150646/25de33f1276dd418cd856f2f48a84cdb/download/"
        "428824485-1643299897/mvtec_3d_anomaly_detection.tar.xz",
        algorithm="md5",
        digest="d8bb2800fbf3ac88e798da6ae10dc819",
        page="https://www.mvtec.com/company/research/datasets/mvtec-3d-ad",
        download_bytes=13_000_000_000,
        unpacked_bytes=30_000_000_000,
    ),
    published=PUBLISHED,
    confirmed=False,
    totals={"train": 2656, "validation": 294, "test_good": 249, "test_anomalous": 948},
    subjects=SUBJECTS,
)
