"""`synthetic`: four drawn categories in the layout of MVTec AD, made on first use."""

from __future__ import annotations

from kdad_bench.datasets.entry import Entry
from kdad_bench.datasets.plain_layout import PLAIN
from kdad_bench.datasets.synthetic.embedded import Embedded
from kdad_bench.datasets.synthetic.subjects import Capsule, Fabric, Gear, Wood

DRAWN = Embedded(
    name="synthetic",
    subjects={"caplet": Capsule(), "fabric": Fabric(), "gear": Gear(), "plank": Wood()},
    sha256={
        "caplet": "7a8640a5f3e936ef5ed2a042de59e20db77ab0193ee38d907ff4de1f4ef4033f",
        "fabric": "d8a81ca7e867aa9885d7bf518dfe08fc4c0403810b4ff2028c0198b882870940",
        "gear": "f3a9838d883a2b08ae72894a1853c951ea863c31c3544c90a41b2458a4ae7fd8",
        "plank": "3279ab19811c33d6c9035e69052ba75ed03da106e0b1f0ffe26fa4177cd02cdc",
    },
)

SYNTHETIC = Entry(
    name="synthetic",
    title="embedded, drawn on first use",
    licence="Apache-2.0",
    layouts=(PLAIN,),
    drawn=DRAWN.draw,
    drawn_names=tuple(DRAWN.subjects),
)
