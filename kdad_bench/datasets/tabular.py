"""Any tree of images, named by a table: a CSV or Parquet file with the columns image, split, label and mask."""

from __future__ import annotations

from kdad_bench.datasets.entry import Entry
from kdad_bench.datasets.table_layout import TableLayout

TABULAR = Entry(
    name="tabular",
    title="any tree, named by a CSV or Parquet table",
    licence="its own",
    layouts=(TableLayout(),),
    takes_path=True,
    takes_file=True,
)
