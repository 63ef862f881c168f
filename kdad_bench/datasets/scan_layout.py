"""The layout of MVTec 3D-AD (Bergmann, Jin, Sattlegger, Steger, VISAPP 2022): a scan beside each photograph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdad_bench.datasets.category import GOOD, Sample
from kdad_bench.datasets.listing import (
    Unused,
    alike,
    child,
    folded,
    holds_images,
    is_severed,
    look,
    loose,
    nested,
    severed,
)
from kdad_bench.datasets.survey import Survey, masks_beside, matched, twins

SPLITS = ("train", "validation", "test")
SCANS = frozenset({".tiff", ".tif"})
PARTS = ("rgb", "xyz", "gt")


@dataclass(frozen=True, slots=True)
class ScanLayout:
    """`<split>/<kind>/rgb/NNN.png` with `xyz/NNN.tiff` beside it, and `gt/NNN.png` for its mask."""

    text: str = "<train|validation|test>/<good|defect>/rgb/*.png with xyz/*.tiff beside it, and test/<defect>/gt/*.png"

    def is_category(self, folder: Path) -> bool:
        """Whether `folder` looks like one category of MVTec 3D-AD: it has `train/good/rgb`, or `test/good/rgb` where
        `train` cannot be looked at."""
        place: Path | None = folder
        for name in ("test" if is_severed(folder, "train") else "train", GOOD, "rgb"):
            place = child(place, name) if place is not None else None
        return place is not None

    def categories(self, root: Path) -> dict[str, Path]:
        """Name -> folder of each category in `root`, or of `root` itself where it is one."""
        if self.is_category(root):
            return {root.name: root}
        return {folder.name: folder for folder in look(root).folders if self.is_category(folder)}

    def survey(self, folder: Path) -> Survey:
        """Sort the files of one category by their use. No image and no scan is opened."""
        found = Survey(name=folder.name, folder=folder, layout=self.text)
        splits = {name: child(folder, name) for name in SPLITS}
        gone = severed(folder, SPLITS)
        found.faults += gone.values()
        found.unused += loose(folder, "not in a split", gone)
        kinds = look(splits["test"]).folders
        found.faults += alike(folder / "test", [kind.name for kind in kinds])
        found.has_masks = any(look(child(kind, "gt")).files for kind in kinds if not _is_good(kind))
        marks = [place for kind in kinds if not _is_good(kind) and (place := child(kind, "gt")) is not None]
        if marks and not found.has_masks:
            found.faults.append(
                f"{marks[0]}: not one mask that can be used; the layout is {self.text}; "
                "mend it, or remove every gt folder to compute image metrics only"
            )
        for name, split in splits.items():
            top = look(split)
            found.unused += [*top.unused, *(Unused(path, "not in a folder of a kind") for path in top.files)]
            for kind in top.folders:
                if name == "test" or _is_good(kind):
                    self._kind(found, name, kind)
                else:
                    lost = nested([kind])
                    found.unused += [Unused(one.path, "only good/ holds normal images", one.files) for one in lost]
        for other in look(folder).folders:
            if other not in splits.values() and holds_images(other):
                found.unused += [Unused(one.path, "not a split", one.files) for one in nested([other])]
        test = folder / "test"
        found.check_splits(folder / "train" / GOOD / "rgb", test / GOOD, test)
        return found

    def _kind(self, found: Survey, split: str, kind: Path) -> None:
        """The images of `<split>/<kind>` with their scans and masks."""
        top, gone = look(kind), severed(kind, PARTS if split == "test" else PARTS[:2])
        found.faults += gone.values()
        rgb, xyz, gt = (child(kind, part) for part in PARTS)
        images, scans, masks = look(rgb), look(xyz, SCANS), look(gt)
        for one in (images, scans, masks):
            found.unused += [*one.unused, *nested(one.folders)]
        found.unused += [one for one in top.unused if one.path not in gone]
        found.unused += [Unused(path, "not in rgb, xyz or gt") for path in top.files]
        found.unused += nested([path for path in top.folders if path not in (rgb, xyz, gt)])
        beside = masks_beside(images.files, f"{kind / 'gt'}/")
        found.faults += beside.values()
        if split == "test" and not images.files:
            found.faults.append(f"{kind / 'rgb'}: an empty test folder; add its images or remove {kind.name}/")
        chosen, lost = matched(images.files, masks.files, ("",), "mask")
        scanned, orphans = matched(images.files, scans.files, ("",), "scan")
        found.unused += [*lost, *orphans]
        found.doubts += twins(images.files, {**chosen, **scanned})
        into = {"train": found.train, "validation": found.validation, "test": found.test}[split]
        for path in images.files:
            scan, mask = scanned.get(path), chosen.get(path)
            if scan is None:
                found.absent_scans.append(kind / "xyz" / f"{path.stem}.tiff")
            if split != "test" or _is_good(kind):
                found.blank += [(path, mask)] if mask is not None else []
                into.append(Sample(path=path, scan=scan))
                continue
            if mask is None and found.has_masks:
                found.faults.append(
                    f"{kind / 'gt' / path.name}: the mask is missing; "
                    "add it, or remove every gt folder to compute image metrics only"
                )
            into.append(Sample(path=path, defect=kind.name, masks=() if mask is None else (mask,), scan=scan))


def _is_good(kind: Path) -> bool:
    return folded(kind.name) == GOOD


SCAN = ScanLayout()
