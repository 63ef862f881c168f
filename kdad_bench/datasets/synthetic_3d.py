"""`synthetic_3d`: two drawn categories in the layout of MVTec 3D-AD, with a scan for each image."""

from __future__ import annotations

from kdad_bench.datasets.category import MODALITIES
from kdad_bench.datasets.entry import Entry
from kdad_bench.datasets.scan_layout import SCAN
from kdad_bench.datasets.synthetic.embedded import Embedded
from kdad_bench.datasets.synthetic.solids import Solid

DRAWN = Embedded(
    name="synthetic_3d",
    subjects={
        "biscuit": Solid(),
        "sponge": Solid(
            half_width=92.0, half_height=58.0, thickness=0.026, crust=(96.0, 118.0, 150.0), pale=(128.0, 150.0, 178.0)
        ),
    },
    sha256={
        "biscuit": "8ec5ea577ca019b29a71717b113b9d1661c77dea18ad43f0cb2b437823242559",
        "sponge": "47db679be32f4efe959d71576099875f438be3370c3b54984fbbf8673f2c3245",
    },
)

SYNTHETIC_3D = Entry(
    name="synthetic_3d",
    title="embedded, with scans",
    licence="Apache-2.0",
    layouts=(SCAN,),
    modalities=MODALITIES,
    drawn=DRAWN.draw,
    drawn_names=tuple(DRAWN.subjects),
)
