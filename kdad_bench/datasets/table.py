"""Every data set, by the name it has in the CLI and in result rows."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from kdad_bench.datasets.entry import Entry

# name -> "module:entry". Strings, as for methods: the table names no module that would have to import the table.
DATASETS: dict[str, str] = {
    "mvtec_ad": "kdad_bench.datasets.mvtec_ad:MVTEC_AD",
    "mvtec_3d_ad": "kdad_bench.datasets.mvtec_3d_ad:MVTEC_3D_AD",
    "mvtec_ad_2": "kdad_bench.datasets.mvtec_ad_2:MVTEC_AD_2",
    "mvtec_loco": "kdad_bench.datasets.mvtec_loco:MVTEC_LOCO",
    "visa": "kdad_bench.datasets.visa:VISA",
    "btad": "kdad_bench.datasets.btad:BTAD",
    "mpdd": "kdad_bench.datasets.mpdd:MPDD",
    "folder": "kdad_bench.datasets.folder:FOLDER",
    "tabular": "kdad_bench.datasets.tabular:TABULAR",
    "synthetic": "kdad_bench.datasets.synthetic_2d:SYNTHETIC",
    "rehearsal": "kdad_bench.datasets.rehearsal:REHEARSAL",
    "synthetic_3d": "kdad_bench.datasets.synthetic_3d:SYNTHETIC_3D",
}


def entry(name: str) -> Entry:
    """The entry registered under `name`; raises KeyError for a name that is not in DATASETS."""
    module, _, attribute = DATASETS[name].partition(":")
    found: Entry = getattr(import_module(module), attribute)
    return found


def entries(wanted: Callable[[Entry], object] = lambda _: True) -> dict[str, Entry]:
    """Name -> entry of every data set for which `wanted(entry)` is true, in the order of the table."""
    return {name: found for name in DATASETS if wanted(found := entry(name))}


def spelling(one: Entry) -> str:
    """How a data set is named on the command line."""
    return f"{one.name}:PATH" if one.takes_path else one.name
