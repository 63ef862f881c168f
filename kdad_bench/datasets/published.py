"""The published sizes of MVTec AD and MVTec 3D-AD: what a complete copy holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Number of images of one category and their size in pixels."""

    train: int
    validation: int = 0
    test_good: int
    test_anomalous: int
    types: tuple[str, ...]  # folders of defects
    width: int
    height: int


def _ad(train: int, good: int, anomalous: int, side: int, types: str) -> Counts:
    return Counts(
        train=train, test_good=good, test_anomalous=anomalous, types=tuple(types.split()), width=side, height=side
    )


def _scan(train: int, validation: int, good: int, anomalous: int, width: int, height: int, types: str) -> Counts:
    return Counts(
        train=train,
        validation=validation,
        test_good=good,
        test_anomalous=anomalous,
        types=tuple(types.split()),
        width=width,
        height=height,
    )


# Qiao, Xing, Computer Science 51(6A), 2024, table 1; the sums 3629 + 467 + 1258 are those of Bergmann et al. 2019
MVTEC_AD = {
    "bottle": _ad(209, 20, 63, 900, "broken_large broken_small contamination"),
    "cable": _ad(
        224,
        58,
        92,
        1024,
        "bent_wire cable_swap combined cut_inner_insulation cut_outer_insulation missing_cable missing_wire "
        "poke_insulation",
    ),
    "capsule": _ad(219, 23, 109, 1000, "crack faulty_imprint poke scratch squeeze"),
    "carpet": _ad(280, 28, 89, 1024, "color cut hole metal_contamination thread"),
    "grid": _ad(264, 21, 57, 1024, "bent broken glue metal_contamination thread"),
    "hazelnut": _ad(391, 40, 70, 1024, "crack cut hole print"),
    "leather": _ad(245, 32, 92, 1024, "color cut fold glue poke"),
    "metal_nut": _ad(220, 22, 93, 700, "bent color flip scratch"),
    "pill": _ad(267, 26, 141, 800, "color combined contamination crack faulty_imprint pill_type scratch"),
    "screw": _ad(320, 41, 119, 1024, "manipulated_front scratch_head scratch_neck thread_side thread_top"),
    "tile": _ad(230, 33, 84, 840, "crack glue_strip gray_stroke oil rough"),
    "toothbrush": _ad(60, 12, 30, 1024, "defective"),
    "transistor": _ad(213, 60, 40, 1024, "bent_lead cut_lead damaged_case misplaced"),
    "wood": _ad(247, 19, 60, 1024, "color combined hole liquid scratch"),
    "zipper": _ad(
        240,
        32,
        119,
        1024,
        "broken_teeth combined fabric_border fabric_interior rough split_teeth squeezed_teeth",
    ),
}

# Bergmann et al. 2022. The total 2656 + 294 + 249 + 948 = 4147 is confirmed; the numbers of single categories, their
# sizes and their folders are not confirmed by a source at hand: a difference is shown as a note, not as a fault
MVTEC_3D_AD = {
    "bagel": _scan(244, 22, 22, 88, 800, 800, "combined contamination crack hole"),
    "cable_gland": _scan(223, 23, 21, 87, 400, 400, "bent cut hole thread"),
    "carrot": _scan(286, 29, 27, 132, 800, 800, "combined contamination crack cut hole"),
    "cookie": _scan(210, 22, 28, 103, 500, 500, "combined contamination crack hole"),
    "dowel": _scan(288, 34, 26, 104, 400, 400, "bent combined contamination cut"),
    "foam": _scan(236, 27, 20, 80, 900, 900, "color combined contamination cut"),
    "peach": _scan(361, 42, 26, 106, 600, 600, "combined contamination cut hole"),
    "potato": _scan(300, 33, 22, 92, 800, 800, "combined contamination cut hole"),
    "rope": _scan(298, 33, 32, 69, 900, 400, "contamination cut open"),
    "tire": _scan(210, 29, 25, 87, 600, 800, "combined contamination cut hole"),
}

TABLES = {"mvtec_ad": MVTEC_AD, "mvtec_3d_ad": MVTEC_3D_AD}
CONFIRMED = {"mvtec_ad": True, "mvtec_3d_ad": False}  # whether each number of the table is confirmed
