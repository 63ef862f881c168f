"""Every data set, by the name it has in the CLI and in result rows."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from kdad_bench.datasets import outside
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


def known(name: str) -> bool:
    """Whether `name` is that of a data set: of this package, of a file that was added, or of an installed package.

    Raises DatasetError for one of an installed package that cannot be used.
    """
    return name in DATASETS or outside.add_installed(name, DATASETS)


def named(dataset: str) -> tuple[str, str | None]:
    """(name, PATH or None) of `name`, `name:PATH` or `path/to/file.py[:ENTRY[:PATH]]`, whose code is loaded.

    The name need not be known. Raises DatasetError for code that cannot be used.
    """
    name, colon, path = dataset.partition(":")
    file = None if known(name) else outside.spelled(dataset)
    if file is None:
        return name, path if colon else None
    return outside.add_file(file[0], file[1], DATASETS), file[2] or None


def entry(name: str) -> Entry:
    """The entry registered under `name`; raises KeyError for a name that is neither in DATASETS nor was added."""
    if name in outside.ADDED:
        return outside.ADDED[name].entry
    module, _, attribute = DATASETS[name].partition(":")
    found: Entry = getattr(import_module(module), attribute)
    return found


def entries(wanted: Callable[[Entry], object] = lambda _: True) -> dict[str, Entry]:
    """Name -> entry of every data set for which `wanted(entry)` is true, in the order of the table, added ones last."""
    return {name: found for name in (*DATASETS, *outside.ADDED) if wanted(found := entry(name))}


def code_of(name: str) -> str:
    """SHA-256 of the code of a data set from outside; nothing for one of this package, whose version says it."""
    return outside.ADDED[name].sha256 if name in outside.ADDED else ""


def spelling(one: Entry) -> str:
    """How a data set is named on the command line."""
    return f"{one.name}:PATH" if one.takes_path else one.name
