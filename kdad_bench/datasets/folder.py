"""Any folder in the layout of MVTec AD or of MVTec 3D-AD, named by its path."""

from __future__ import annotations

from kdad_bench.datasets.category import MODALITIES
from kdad_bench.datasets.entry import Entry
from kdad_bench.datasets.plain_layout import PLAIN
from kdad_bench.datasets.scan_layout import SCAN

FOLDER = Entry(
    name="folder",
    title="any folder in the layout of MVTec AD or MVTec 3D-AD",
    licence="its own",
    layouts=(SCAN, PLAIN),
    modalities=MODALITIES,
    takes_path=True,
)
