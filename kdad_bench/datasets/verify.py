"""Is a copy of a data set complete and sound? Every fault is reported, not only the first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdad_bench.datasets import cache, mvtec_3d_ad, mvtec_ad
from kdad_bench.datasets.category import GOOD, DatasetError
from kdad_bench.datasets.decoding import open_image, read_mask
from kdad_bench.datasets.published import CONFIRMED, TABLES, Counts

SPLITS = ("train", "validation", "test")


@dataclass(kw_only=True, slots=True)
class CategoryReport:
    """What was found of one category."""

    name: str
    train: int = 0
    validation: int = 0
    test_good: int = 0
    test_anomalous: int = 0
    types: list[str] = field(default_factory=list)
    masks: int = 0
    scans: int = 0
    published: dict[str, int] | None = None  # the published numbers, where the category has a table
    problems: list[str] = field(default_factory=list)  # what makes results wrong or a run fail
    notes: list[str] = field(default_factory=list)  # what is worth knowing


@dataclass(kw_only=True, slots=True)
class Report:
    """What was found of a data set."""

    path: str
    compared_with: str | None
    categories: list[CategoryReport]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """True if there is no problem anywhere."""
        return not self.problems and not any(category.problems for category in self.categories)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {"sound": self.sound, **asdict(self)}


def verify(root: Path, *, against: str | None = None, done: Callable[[str], None] = lambda _: None) -> Report:
    """Examine a data set (or a single category) in either layout. `done` is called with each category's name.

    `against` is mvtec_ad, mvtec_3d_ad or "none"; without it the table is recognised by the names of the categories.
    Files are decoded, masks compared with their images, and contents compared between train, validation and test.
    Raises DatasetError only if `root` holds no category at all.
    """
    return _report(root, against, done, examine=True)


def _report(root: Path, against: str | None, done: Callable[[str], None], *, examine: bool) -> Report:
    if against not in (None, "none", *TABLES):
        raise DatasetError(f"no published table '{against}'; have: {', '.join(TABLES)}, none")
    scans = mvtec_3d_ad.is_category(root) or bool(mvtec_3d_ad.category_names(root))
    layout = mvtec_3d_ad if scans else mvtec_ad
    folders = [root] if layout.is_category(root) else [root / name for name in layout.category_names(root)]
    if not folders:
        raise DatasetError(f"{root}: no category there; the layout is {mvtec_ad.LAYOUT}")
    names = [folder.name.removeprefix("synthetic_") for folder in folders]
    table_name = against or _recognised("mvtec_3d_ad" if scans else "mvtec_ad", names)
    table = TABLES.get(table_name or "", {})
    report = Report(path=str(root), compared_with=table_name if table else None, categories=[])
    for folder, name in zip(folders, names, strict=True):
        found = _category_3d(folder, examine) if scans else _category(folder, examine)
        if name in table:
            _compare(found, table[name], confirmed=CONFIRMED[str(table_name)])
        elif table:
            found.notes.append(f"not a category of {table_name}")
        report.categories.append(found)
        done(folder.name)
    absent = sorted(set(table) - set(names))
    if absent and not layout.is_category(root):  # a part of a data set is no fault unless the whole was asked for
        line = f"{root}: categories of {table_name} that are not there: {', '.join(absent)}"
        (report.problems if against else report.notes).append(line)
    return report


def count(root: Path, *, against: str | None = None) -> Report:
    """The numbers of a data set compared with the published table; no image is decoded. As `verify` otherwise."""
    return _report(root, against, lambda _: None, examine=False)


def _recognised(name: str, categories: Sequence[str]) -> str | None:
    """The table that the categories belong to, if at least half of them are in it."""
    return name if 2 * sum(one in TABLES[name] for one in categories) >= len(categories) else None


def _compare(found: CategoryReport, counts: Counts, *, confirmed: bool) -> None:
    wanted = {
        "train": counts.train,
        "validation": counts.validation,
        "test_good": counts.test_good,
        "test_anomalous": counts.test_anomalous,
        "types": len(counts.types),
    }
    found.published = wanted
    have = {**asdict(found), "types": len(found.types)}
    differing = [f"{key} {have[key]} and not {value}" for key, value in wanted.items() if have[key] != value]
    if differing:
        line = f"{found.name}: differs from the published numbers: {', '.join(differing)}"
        (found.problems if confirmed else found.notes).append(line)


def _category(folder: Path, examine: bool) -> CategoryReport:
    """One category in the MVTec AD layout."""
    found = CategoryReport(name=folder.name)
    splits: dict[str, list[Path]] = {
        "train": list(mvtec_ad.images(folder / "train" / GOOD)),
        "validation": [],
        "test": [],
    }
    found.train = len(splits["train"])
    masks = {
        (kind.name, path.stem.removesuffix("_mask")): path
        for kind in mvtec_ad.subfolders(folder / "ground_truth")
        for path in mvtec_ad.images(kind)
    }
    pairs: list[tuple[Path, Path | None]] = [(path, None) for path in splits["train"]]
    for kind in mvtec_ad.subfolders(folder / "test"):
        images = mvtec_ad.images(kind)
        _count(found, kind, len(images))
        splits["test"] += images
        for path in images:
            mask = masks.pop((kind.name, path.stem), None)
            if masks or mask is not None or found.masks:
                found.masks += mask is not None
                if mask is None and kind.name != GOOD:
                    found.problems.append(f"{path}: has no mask in ground_truth/{kind.name}")
            pairs.append((path, mask))
    found.problems += [f"{path}: a mask without an image" for path in masks.values()]
    for path in mvtec_ad.subfolders(folder / "train"):
        if path.name != GOOD:
            found.notes.append(f"{path}: not used; only train/{GOOD} is learnt from")
    _empty_splits(found, folder)
    if examine:
        _examine(found, folder, splits, pairs)
    return found


def _category_3d(folder: Path, examine: bool) -> CategoryReport:
    """One category in the MVTec 3D-AD layout."""
    found = CategoryReport(name=folder.name)
    splits: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    pairs: list[tuple[Path, Path | None]] = []
    for split in SPLITS:
        for kind in mvtec_ad.subfolders(folder / split):
            images = mvtec_ad.images(kind / "rgb")
            splits[split] += images
            masks = {path.name: path for path in mvtec_ad.images(kind / "gt")}
            if split == "test":
                _count(found, kind, len(images))
            for path in images:
                mask = masks.pop(path.name, None)
                found.masks += mask is not None
                if split == "test" and mask is None and kind.name != GOOD:
                    found.problems.append(f"{kind / 'gt' / path.name}: the mask is missing")
                pairs.append((path, mask))
                if mvtec_3d_ad.scan_path(path).is_file():
                    found.scans += 1
                else:
                    found.problems.append(f"{mvtec_3d_ad.scan_path(path)}: the scan is missing")
            found.problems += [f"{path}: a mask without an image" for path in masks.values()]
    found.train, found.validation = len(splits["train"]), len(splits["validation"])
    _empty_splits(found, folder)
    if not examine:
        return found
    _examine(found, folder, splits, pairs)
    scans = [mvtec_3d_ad.scan_path(path) for path, _ in pairs if mvtec_3d_ad.scan_path(path).is_file()]
    with ThreadPoolExecutor(cache.workers()) as pool:
        found.problems += [line for line in pool.map(_scan_problem, scans) if line]
    return found


def _count(found: CategoryReport, kind: Path, count: int) -> None:
    if kind.name == GOOD:
        found.test_good = count
        return
    found.test_anomalous += count
    found.types.append(kind.name)
    if not count:
        found.problems.append(f"{kind}: an empty test folder")


def _empty_splits(found: CategoryReport, folder: Path) -> None:
    if not found.train:
        found.problems.append(f"{folder / 'train' / GOOD}: no image to learn from")
    if not found.test_good:
        found.problems.append(f"{folder / 'test' / GOOD}: no normal test image")
    if not found.test_anomalous:
        found.problems.append(f"{folder / 'test'}: no anomalous test image")


def _examine(
    found: CategoryReport, folder: Path, splits: dict[str, list[Path]], pairs: Sequence[tuple[Path, Path | None]]
) -> None:
    """Unreadable files, masks that do not fit, and equal contents in two splits."""
    with ThreadPoolExecutor(cache.workers()) as pool:
        found.problems += [line for line in pool.map(_pair_problem, pairs) if line]
    readable = {split: [path for path in paths if path.stat().st_size] for split, paths in splits.items()}
    hashes = cache.content_hashes([path for paths in readable.values() for path in paths])
    by_content: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for split, paths in readable.items():
        for path in paths:
            by_content[hashes[path]].append((split, path))
    for same in by_content.values():
        first, *others = same
        for split, path in others:
            line = f"{path}: the same content as {first[1].relative_to(folder)}"
            (found.problems if split != first[0] else found.notes).append(line)


def _pair_problem(pair: tuple[Path, Path | None]) -> str | None:
    image, mask = pair
    try:
        size = open_image(image).size
        if mask is not None:
            marked = read_mask(mask, None, size)
            is_good = GOOD in (image.parent.name, image.parent.parent.name)
            if bool(marked.any()) == is_good:
                return f"{mask}: marks {'something in a normal image' if is_good else 'no pixel'}"
    except DatasetError as error:
        return str(error)
    return None


def _scan_problem(path: Path) -> str | None:
    from kdad_bench.datasets.decoding import image_size
    from kdad_bench.datasets.depth import FEWEST, read_scan

    try:
        points = read_scan(path)
        image = path.parent.parent / "rgb" / f"{path.stem}.png"
        size = image_size(image) if image.is_file() else None
    except DatasetError as error:
        return str(error)
    if size is not None and (points.shape[1], points.shape[0]) != size:
        return f"{path}: {points.shape[1]} x {points.shape[0]} points and its image {size[0]} x {size[1]} pixels"
    count = int((points[:, :, 2] > 0).sum())
    return f"{path}: only {count} points with data" if count < FEWEST else None
