"""`synthetic`: four drawn categories in the layout of MVTec AD, made on first use."""

from __future__ import annotations

from kdad_bench.datasets.entry import Entry
from kdad_bench.datasets.plain_layout import PLAIN
from kdad_bench.datasets.synthetic.embedded import Embedded
from kdad_bench.datasets.synthetic.subjects import Capsule, Fabric, Gear, Wood

DRAWN = Embedded(
    name="synthetic",
    subjects={"capsule": Capsule(), "fabric": Fabric(), "gear": Gear(), "wood": Wood()},
    sha256={
        "capsule": "1c6e7dd156aa11835081d88c36ef8f2ab52729fb53985bcf0d455a8e76b0176c",
        "fabric": "d8a81ca7e867aa9885d7bf518dfe08fc4c0403810b4ff2028c0198b882870940",
        "gear": "f3a9838d883a2b08ae72894a1853c951ea863c31c3544c90a41b2458a4ae7fd8",
        "wood": "f460a158f8ea3030a7ac9ffcb78b28e696693dc5067674ed300378d70d7c59f5",
    },
)

SYNTHETIC = Entry(
    name="synthetic",
    title="embedded, drawn on first use",
    licence="Apache-2.0",
    layouts=(PLAIN,),
    drawn=DRAWN.draw,
)
