"""The layout of MVTec AD (Bergmann, Fauser, Sattlegger, Steger, CVPR 2019), in which most data sets are shipped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdad_bench.datasets.category import GOOD, Sample
from kdad_bench.datasets.listing import Listing, Unused, child, holds_images, look, nested
from kdad_bench.datasets.survey import Survey, matched, twins

MASKS = "ground_truth"
ENDINGS = ("_mask", "")  # of a mask's stem after that of its image
STRAY = "not in a folder of a kind"


@dataclass(frozen=True, slots=True)
class PlainLayout:
    """`train/good`, `test/<kind>`, optional `validation/good` and `ground_truth/<kind>/<name>_mask.*`."""

    good: str = GOOD  # the name of the folders of normal images
    text: str = "train/good/*.png, test/good/*.png, test/<defect>/*.png, optional ground_truth/<defect>/<name>_mask.png"

    def is_category(self, folder: Path) -> bool:
        """Whether `folder` looks like one category: it has a folder `train/good`, or `train` beside `test`."""
        train = child(folder, "train")
        return train is not None and (child(train, self.good) is not None or child(folder, "test") is not None)

    def categories(self, root: Path) -> dict[str, Path]:
        """Name -> folder of each category in `root`, or of `root` itself where it is one."""
        if self.is_category(root):
            return {root.name: root}
        return {folder.name: folder for folder in look(root).folders if self.is_category(folder)}

    def survey(self, folder: Path) -> Survey:
        """Sort the files of one category by their use. No image is opened."""
        found = Survey(name=folder.name, folder=folder, layout=self.text)
        splits = {name: child(folder, name) for name in ("train", "validation", "test", MASKS)}
        found.train = self._normals(found, splits["train"])
        found.validation = self._normals(found, splits["validation"])
        self._test(found, splits["test"], splits[MASKS])
        for other in look(folder).folders:
            if other not in splits.values() and holds_images(other):
                found.unused += [Unused(one.path, "not a split", one.files) for one in nested([other])]
        test = folder / "test"
        found.check_splits(folder / "train" / self.good, test / self.good, test)
        return found

    def _normals(self, found: Survey, split: Path | None) -> list[Sample]:
        """The images of `<split>/good`; whatever else lies in the split is not used."""
        good = child(split, self.good) if split is not None else None
        top, inside = look(split), look(good)
        found.unused += [*_strays(top), *inside.unused, *nested(inside.folders)]
        found.unused += [
            Unused(one.path, f"only {self.good}/ holds normal images", one.files)
            for one in nested([path for path in top.folders if path != good])
        ]
        return [Sample(path=path) for path in inside.files]

    def _test(self, found: Survey, test: Path | None, ground_truth: Path | None) -> None:
        top, marks = look(test), look(ground_truth)
        found.unused += [*_strays(top), *_strays(marks)]
        masks = {kind.name.casefold(): look(kind) for kind in marks.folders}
        found.has_masks = any(listing.files for listing in masks.values())
        for kind in top.folders:
            self._kind(found, kind, masks.pop(kind.name.casefold(), Listing()))
        found.unused += [Unused(path, "a mask without an image") for one in masks.values() for path in one.files]
        for one in masks.values():
            found.unused += [*one.unused, *nested(one.folders)]
        if ground_truth is not None and not found.has_masks:
            found.faults.append(
                f"{ground_truth}: not one mask that can be used; the layout is {self.text}; "
                "mend it, or remove it to compute image metrics only"
            )

    def _kind(self, found: Survey, kind: Path, masks: Listing) -> None:
        """The images of one folder of test images with their masks."""
        inside = look(kind)
        found.unused += [*inside.unused, *nested(inside.folders), *masks.unused, *nested(masks.folders)]
        if not inside.files:
            found.faults.append(f"{kind}: an empty test folder; add its images or remove it")
        chosen, lost = matched(inside.files, masks.files, ENDINGS, "mask")
        found.unused += lost
        found.doubts += twins(inside.files, chosen)
        is_good = kind.name.casefold() == self.good.casefold()
        for path in inside.files:
            mask = chosen.get(path)
            if is_good:
                found.test.append(Sample(path=path))
                found.blank += [(path, mask)] if mask is not None else []
                continue
            if mask is None and found.has_masks:
                found.faults.append(_missing(path, found.folder))
            found.test.append(Sample(path=path, defect=kind.name, masks=() if mask is None else (mask,)))


def _strays(split: Listing) -> list[Unused]:
    """Files that lie directly in a split, where only folders are read."""
    return [*split.unused, *(Unused(path, STRAY) for path in split.files)]


def _missing(path: Path, folder: Path) -> str:
    wanted = folder / MASKS / path.parent.name / f"{path.stem}_mask.png"
    return (
        f"{wanted}: the mask of test/{path.parent.name}/{path.name} is missing; "
        f"add it, or remove {MASKS} to compute image metrics only"
    )


PLAIN = PlainLayout()
