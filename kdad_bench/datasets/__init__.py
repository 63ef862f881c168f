"""Data sets: which there are, what their categories hold, and their images as arrays."""

from __future__ import annotations

from kdad_bench.datasets import outside
from kdad_bench.datasets.bundle import Data, load
from kdad_bench.datasets.cache import contents_of, fingerprint
from kdad_bench.datasets.category import GOOD, MODALITIES, Category, DatasetError, Sample
from kdad_bench.datasets.entry import Entry
from kdad_bench.datasets.finding import (
    canonical,
    categories,
    category_names,
    find,
    located,
    names_at_hand,
    remarks_on,
    under_known_names,
)
from kdad_bench.datasets.fitting import FITS, PAD, SHORT_SIDE, SQUASH, fitted
from kdad_bench.datasets.loading import (
    TestSet,
    load_pictures,
    load_test,
    load_train,
    load_validation,
    names_of,
    single_modalities,
)
from kdad_bench.datasets.sealing import all_sealed, hashed, leaks, sealed, sealed_apart
from kdad_bench.datasets.splits import Normals, copies, held_out, load_normals
from kdad_bench.datasets.table import DATASETS, entries, entry, known, named

__all__ = [
    "DATASETS",
    "FITS",
    "GOOD",
    "MODALITIES",
    "PAD",
    "SHORT_SIDE",
    "SQUASH",
    "Category",
    "Data",
    "DatasetError",
    "Entry",
    "Normals",
    "Sample",
    "TestSet",
    "all_sealed",
    "canonical",
    "categories",
    "category_names",
    "contents_of",
    "copies",
    "entries",
    "entry",
    "find",
    "fingerprint",
    "fitted",
    "hashed",
    "held_out",
    "known",
    "leaks",
    "load",
    "load_normals",
    "load_pictures",
    "load_test",
    "load_train",
    "load_validation",
    "located",
    "named",
    "names_at_hand",
    "names_of",
    "outside",
    "remarks_on",
    "sealed",
    "sealed_apart",
    "single_modalities",
    "under_known_names",
]
