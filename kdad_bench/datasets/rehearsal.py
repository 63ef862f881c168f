"""`rehearsal`: three drawn categories on which recipes are chosen, and which no table of this project shows."""

from __future__ import annotations

from kdad_bench.datasets.entry import Entry
from kdad_bench.datasets.plain_layout import PLAIN
from kdad_bench.datasets.synthetic.embedded import Embedded
from kdad_bench.datasets.synthetic.rehearsal import Disc, Mesh
from kdad_bench.datasets.synthetic.subjects import Stone

DRAWN = Embedded(
    name="rehearsal",
    subjects={"disc": Disc(), "mesh": Mesh(), "slab": Stone()},
    sha256={
        "disc": "3cd8669e49ac3864e8cd68e1bddaaca67e0be3990d88a42a2a299b11dfde1697",
        "mesh": "18f3516d8fc62e002d68a3a0acdc492104f78ae2e533a205721f05264b1defe2",
        "slab": "cd9b15d96264d7183e5bb83a4a0d395b4f109b2a4a11ff11fc339bf27abadba0",
    },
)

REHEARSAL = Entry(
    name="rehearsal",
    title="embedded, for choosing recipes",
    licence="Apache-2.0",
    layouts=(PLAIN,),
    drawn=DRAWN.draw,
    drawn_names=tuple(DRAWN.subjects),
)
