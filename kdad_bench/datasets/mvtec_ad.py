"""The MVTec AD layout on disk: Bergmann, Fauser, Sattlegger, Steger, CVPR 2019; any folder in it is a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdad_bench.datasets.category import GOOD, Category, DatasetError, Sample
from kdad_bench.datasets.decoding import SUFFIXES

LAYOUT = "train/good/*.png, test/good/*.png, test/<defect>/*.png, optional ground_truth/<defect>/<name>_mask.png"


def images(folder: Path) -> tuple[Path, ...]:
    """The image files of a folder in the order of their names; hidden files and other suffixes are passed over."""
    if not folder.is_dir():
        return ()
    return tuple(
        sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
    )


def subfolders(folder: Path) -> tuple[Path, ...]:
    """The folders in a folder in the order of their names, without hidden ones."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def is_category(folder: Path) -> bool:
    """Whether `folder` looks like one category: it has a folder `train/good`, or `train` beside `test`."""
    return (folder / "train" / GOOD).is_dir() or ((folder / "train").is_dir() and (folder / "test").is_dir())


def category_names(root: Path) -> list[str]:
    """The names of the categories below `root`, in alphabetical order."""
    return [folder.name for folder in subfolders(root) if is_category(folder)]


def category(dataset: str, folder: Path, *, synthetic: bool = False) -> Category:
    """Read the file names of one category in the MVTec AD layout. No image is opened.

    Raises DatasetError, naming the path, for an empty split or a missing mask.
    """
    train = images(folder / "train" / GOOD)
    if not train:
        raise DatasetError(f"{folder / 'train' / GOOD}: no image to learn from; the layout is {LAYOUT}")
    masks = _masks(folder / "ground_truth")
    samples: list[Sample] = []
    for kind in subfolders(folder / "test"):
        found = images(kind)
        if not found:
            raise DatasetError(f"{kind}: an empty test folder; add its images or remove it")
        for path in found:
            mask = None if kind.name == GOOD or not masks else _mask_of(path, kind.name, folder, masks)
            samples.append(Sample(path=path, defect=kind.name, mask=mask))
    check_both_labels(samples, folder / "test")
    return Category(
        dataset=dataset,
        name=folder.name,
        root=folder,
        train=train,
        test=tuple(samples),
        synthetic=synthetic,
        has_masks=bool(masks),
    )


def check_both_labels(samples: Sequence[Sample], folder: Path) -> None:
    """Raise DatasetError unless there are both normal and anomalous test images."""
    if not any(not sample.label for sample in samples):
        raise DatasetError(f"{folder / GOOD}: no normal test image; the layout is {LAYOUT}")
    if not any(sample.label for sample in samples):
        raise DatasetError(f"{folder}: no anomalous test image beside {GOOD}/; the layout is {LAYOUT}")


def _masks(ground_truth: Path) -> dict[tuple[str, str], Path]:
    """(defect, file stem without `_mask`) -> mask file."""
    return {
        (kind.name, path.stem.removesuffix("_mask")): path for kind in subfolders(ground_truth) for path in images(kind)
    }


def _mask_of(path: Path, defect: str, folder: Path, masks: dict[tuple[str, str], Path]) -> Path:
    mask = masks.get((defect, path.stem))
    if mask is None:
        wanted = folder / "ground_truth" / defect / f"{path.stem}_mask.png"
        raise DatasetError(
            f"{wanted}: the mask of test/{defect}/{path.name} is missing; "
            "add it, or remove ground_truth to compute image metrics only"
        )
    return mask
