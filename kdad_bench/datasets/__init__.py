"""Data sets: which there are, what their categories hold, and their images as arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdad_bench.datasets import mvtec_3d_ad, mvtec_ad
from kdad_bench.datasets.category import GOOD, MODALITIES, Category, DatasetError, Sample
from kdad_bench.datasets.loading import TestSet, load_test, load_train, load_validation, single_modalities
from kdad_bench.datasets.splits import Normals, held_out, load_normals
from kdad_bench.datasets.synthetic import embedded as synthetic
from kdad_bench.datasets.synthetic.stand_in import MARKER

__all__ = [
    "GOOD",
    "MODALITIES",
    "Category",
    "DatasetError",
    "Known",
    "Normals",
    "Sample",
    "TestSet",
    "categories",
    "find",
    "held_out",
    "known",
    "load_normals",
    "load_test",
    "load_train",
    "load_validation",
    "root_of",
    "single_modalities",
]

FOLDERS = {  # names under which the trees are found in the wild
    "mvtec_ad": ("mvtec_ad", "mvtec_anomaly_detection", "MVTecAD", "mvtec"),
    "mvtec_3d_ad": ("mvtec_3d_ad", "mvtec_3d_anomaly_detection", "MVTec3D-AD", "mvtec3d", "mvtec_3d"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A data set this package can read."""

    name: str
    title: str
    licence: str
    modalities: tuple[str, ...]


def known() -> tuple[Known, ...]:
    """Every kind of data set that can be named."""
    return (
        Known(name="mvtec_ad", title="MVTec AD", licence="CC BY-NC-SA 4.0", modalities=("rgb",)),
        Known(name="mvtec_3d_ad", title="MVTec 3D-AD", licence="CC BY-NC-SA 4.0", modalities=MODALITIES),
        Known(name="folder:PATH", title="any folder in the MVTec AD layout", licence="its own", modalities=("rgb",)),
        Known(name="synthetic", title="embedded, drawn on first use", licence="Apache-2.0", modalities=("rgb",)),
        Known(name="synthetic_3d", title="embedded, with scans", licence="Apache-2.0", modalities=MODALITIES),
    )


def find(data_root: Path) -> list[str]:
    """The names of the data sets that lie under `data_root`: real ones and drawn stand-ins."""
    found = [name for name in FOLDERS if root_of(name, data_root) is not None]
    if data_root.is_dir():
        found += [folder.name for folder in mvtec_ad.subfolders(data_root) if (folder / MARKER).is_file()]
    return found


def categories(
    dataset: str, data_root: Path | None, names: Sequence[str] = (), *, modality: str = "rgb"
) -> list[Category]:
    """The categories of a data set, all of them or those in `names`, in alphabetical order.

    `dataset` is mvtec_ad, mvtec_3d_ad, folder:PATH, synthetic, or the folder name of a drawn stand-in.
    Raises DatasetError with one line if the data set, a category or a file is missing.
    """
    if modality not in MODALITIES:
        raise DatasetError(f"modality '{modality}': must be one of {', '.join(MODALITIES)}")
    if dataset in synthetic.SUBJECTS:
        home = synthetic.home(dataset)
        synthetic.generate(dataset, home, _chosen(dataset, list(synthetic.SUBJECTS[dataset]), names))
        return _tree(dataset, home, names, modality)
    if dataset.startswith("folder:"):
        return _tree(dataset, Path(dataset.removeprefix("folder:")).expanduser(), names, modality)
    stand_in = data_root is not None and (data_root / dataset / MARKER).is_file()
    if dataset not in FOLDERS and not stand_in:
        have = ", ".join(item.name for item in known())
        raise DatasetError(f"data set '{dataset}' is not known; have: {have}, or a drawn stand-in under the data root")
    if data_root is None:
        raise DatasetError(
            f"{dataset}: no data root; give --data-root or set KDAD_DATA to the folder that holds {dataset}/"
        )
    root = root_of(dataset, data_root)
    if root is None:
        places = " or ".join(str(data_root / name) for name in FOLDERS[dataset][:2])
        raise DatasetError(f"{data_root}: no {dataset} there; put its categories in {places}, or fetch it")
    return _tree(dataset, root, names, modality)


def _tree(dataset: str, root: Path, names: Sequence[str], modality: str) -> list[Category]:
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; the layout is {mvtec_ad.LAYOUT}")
    drawn = dataset in synthetic.SUBJECTS or _is_drawn(root) or _is_drawn(root.parent)
    for layout in (mvtec_3d_ad, mvtec_ad):
        single = layout.is_category(root)
        have = [root.name] if single else layout.category_names(root)
        if have:
            folders = [root if single else root / name for name in _chosen(dataset, have, names)]
            if layout is mvtec_3d_ad:
                return [mvtec_3d_ad.category(dataset, item, synthetic=drawn, modality=modality) for item in folders]
            _refuse_depth(modality, dataset)
            return [mvtec_ad.category(dataset, item, synthetic=drawn) for item in folders]
    raise DatasetError(f"{root}: no category there; the layout is {mvtec_ad.LAYOUT}")


def _chosen(dataset: str, have: Sequence[str], names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in have:
            raise DatasetError(f"category '{name}' not in {dataset}; have: {', '.join(have)}")
    return [name for name in have if not names or name in names]


def _refuse_depth(modality: str, dataset: str) -> None:
    if modality != "rgb":
        raise DatasetError(f"modality '{modality}': {dataset} has no scans; use rgb, or mvtec_3d_ad")


def root_of(name: str, data_root: Path) -> Path | None:
    """The folder of a data set below `data_root`, or `data_root` itself where it is that folder."""
    layout = mvtec_3d_ad if name == "mvtec_3d_ad" else mvtec_ad
    places = [data_root / folder for folder in FOLDERS.get(name, (name,))]
    if data_root.name in FOLDERS.get(name, ()):
        places.append(data_root)
    for place in places:
        if place.is_dir() and (layout.category_names(place) or mvtec_3d_ad.category_names(place)):
            return place
    return None


def _is_drawn(root: Path) -> bool:
    try:
        return bool(json.loads((root / MARKER).read_text()).get("synthetic"))
    except (OSError, ValueError, AttributeError):
        return False
