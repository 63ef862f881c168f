"""The MVTec 3D-AD layout on disk: Bergmann, Jin, Sattlegger, Steger, VISAPP 2022."""

from __future__ import annotations

from pathlib import Path

from kdad_bench.datasets.category import GOOD, Category, DatasetError, Sample
from kdad_bench.datasets.mvtec_ad import check_both_labels, images, subfolders

LAYOUT = "<train|validation|test>/<good|defect>/rgb/*.png with xyz/*.tiff beside it, and test/<defect>/gt/*.png"


def is_category(folder: Path) -> bool:
    """Whether `folder` looks like one category of MVTec 3D-AD: it has `train/good/rgb`."""
    return (folder / "train" / GOOD / "rgb").is_dir()


def category_names(root: Path) -> list[str]:
    """The names of the categories below `root`, in alphabetical order."""
    return [folder.name for folder in subfolders(root) if is_category(folder)]


def scan_path(image: Path) -> Path:
    """The xyz file that belongs to an RGB file: `<kind>/rgb/000.png` -> `<kind>/xyz/000.tiff`."""
    return image.parent.parent / "xyz" / f"{image.stem}.tiff"


def category(dataset: str, folder: Path, *, synthetic: bool = False, modality: str = "rgb") -> Category:
    """Read the file names of one category in the MVTec 3D-AD layout. No image and no scan is opened.

    Raises DatasetError, naming the path, for an empty split, a missing mask, or a missing scan where the
    modality needs scans.
    """
    train = images(folder / "train" / GOOD / "rgb")
    if not train:
        raise DatasetError(f"{folder / 'train' / GOOD / 'rgb'}: no image to learn from; the layout is {LAYOUT}")
    validation = images(folder / "validation" / GOOD / "rgb")
    kinds = subfolders(folder / "test")
    has_masks = any(images(kind / "gt") for kind in kinds if kind.name != GOOD)
    samples: list[Sample] = []
    for kind in kinds:
        found = images(kind / "rgb")
        if not found:
            raise DatasetError(f"{kind / 'rgb'}: an empty test folder; add its images or remove {kind.name}/")
        for path in found:
            mask = _mask_of(path) if has_masks and kind.name != GOOD else None
            samples.append(Sample(path=path, defect=kind.name, mask=mask))
    check_both_labels(samples, folder / "test")
    every = [*train, *validation, *(sample.path for sample in samples)]
    absent = next((scan_path(path) for path in every if not scan_path(path).is_file()), None)
    if absent is not None and modality != "rgb":
        raise DatasetError(f"{absent}: the scan is missing; restore it or use the modality rgb")
    return Category(
        dataset=dataset,
        name=folder.name,
        root=folder,
        train=train,
        test=tuple(samples),
        validation=validation,
        synthetic=synthetic,
        modality=modality,
        has_masks=has_masks,
        has_scans=absent is None,
    )


def _mask_of(path: Path) -> Path:
    mask = path.parent.parent / "gt" / path.name
    if not mask.is_file():
        raise DatasetError(
            f"{mask}: the mask is missing; add it, or remove every gt folder to compute image metrics only"
        )
    return mask
