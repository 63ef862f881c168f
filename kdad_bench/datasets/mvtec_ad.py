"""MVTec AD: Bergmann, Fauser, Sattlegger, Steger, CVPR 2019. 15 categories, 5,354 images."""

from __future__ import annotations

from kdad_bench.datasets.entry import Archive, Counts, Entry
from kdad_bench.datasets.plain_layout import PLAIN
from kdad_bench.datasets.synthetic.solids import Solid
from kdad_bench.datasets.synthetic.subjects import Capsule, Fabric, Gear, Stone, Subject, Wood


def _counts(train: int, good: int, anomalous: int, side: int, types: str) -> Counts:
    return Counts(
        train=train, test_good=good, test_anomalous=anomalous, types=tuple(types.split()), width=side, height=side
    )


# Qiao, Xing, Computer Science 51(6A), 2024, table 1; the sums 3629 + 467 + 1258 are those of Bergmann et al. 2019
PUBLISHED = {
    "bottle": _counts(209, 20, 63, 900, "broken_large broken_small contamination"),
    "cable": _counts(
        224,
        58,
        92,
        1024,
        "bent_wire cable_swap combined cut_inner_insulation cut_outer_insulation missing_cable missing_wire "
        "poke_insulation",
    ),
    "capsule": _counts(219, 23, 109, 1000, "crack faulty_imprint poke scratch squeeze"),
    "carpet": _counts(280, 28, 89, 1024, "color cut hole metal_contamination thread"),
    "grid": _counts(264, 21, 57, 1024, "bent broken glue metal_contamination thread"),
    "hazelnut": _counts(391, 40, 70, 1024, "crack cut hole print"),
    "leather": _counts(245, 32, 92, 1024, "color cut fold glue poke"),
    "metal_nut": _counts(220, 22, 93, 700, "bent color flip scratch"),
    "pill": _counts(267, 26, 141, 800, "color combined contamination crack faulty_imprint pill_type scratch"),
    "screw": _counts(320, 41, 119, 1024, "manipulated_front scratch_head scratch_neck thread_side thread_top"),
    "tile": _counts(230, 33, 84, 840, "crack glue_strip gray_stroke oil rough"),
    "toothbrush": _counts(60, 12, 30, 1024, "defective"),
    "transistor": _counts(213, 60, 40, 1024, "bent_lead cut_lead damaged_case misplaced"),
    "wood": _counts(247, 19, 60, 1024, "color combined hole liquid scratch"),
    "zipper": _counts(
        240,
        32,
        119,
        1024,
        "broken_teeth combined fabric_border fabric_interior rough split_teeth squeezed_teeth",
    ),
}

PLAIN_CAPSULE = ("crack", "poke", "squeeze")  # defects of a capsule without print
SUBJECTS: dict[str, Subject | Solid] = {
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
        text="", defects=PLAIN_CAPSULE),
    "tile": Stone(),
    "toothbrush": Capsule(half_length=98.0, radius=30.0, cap=(70.0, 110.0, 180.0), body=(220.0, 220.0, 222.0),
        text="", defects=PLAIN_CAPSULE),
    "transistor": Capsule(half_length=60.0, radius=40.0, cap=(52.0, 52.0, 54.0), body=(60.0, 60.0, 62.0),
        text="K7"),
    "wood": Wood(),
    "zipper": Fabric(period=13.0, warp=(60.0, 60.0, 62.0), weft=(104.0, 104.0, 106.0)),
}  # fmt: skip

MVTEC_AD = Entry(
    name="mvtec_ad",
    title="MVTec AD",
    licence="CC BY-NC-SA 4.0",
    terms="CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/): name the authors "
    "(MVTec Software GmbH), no commercial use, share adaptations under the same licence",
    layouts=(PLAIN,),
    folders=("mvtec_ad", "mvtec_anomaly_detection", "MVTecAD", "mvtec"),
    archive=Archive(
        url="https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/"
        "420938113-1629960298/mvtec_anomaly_detection.tar.xz",
        algorithm="sha256",
        digest="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
        page="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        download_bytes=5_300_000_000,
        unpacked_bytes=5_400_000_000,
    ),
    published=PUBLISHED,
    subjects=SUBJECTS,
)
