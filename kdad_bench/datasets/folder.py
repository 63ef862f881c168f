"""Any folder in one of the layouts of the published data sets, named by its path."""

from __future__ import annotations

from kdad_bench.datasets.btad import OK_KO
from kdad_bench.datasets.category import MODALITIES
from kdad_bench.datasets.entry import Entry
from kdad_bench.datasets.mvtec_ad_2 import PUBLIC
from kdad_bench.datasets.plain_layout import PLAIN
from kdad_bench.datasets.scan_layout import SCAN
from kdad_bench.datasets.visa import CLASSES

FOLDER = Entry(
    name="folder",
    title="any folder in the layout of one of these data sets",
    licence="its own",
    layouts=(SCAN, PUBLIC, OK_KO, CLASSES, PLAIN),
    modalities=MODALITIES,
    takes_path=True,
)
