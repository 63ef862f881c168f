"""The layout of MVTec AD (Bergmann, Fauser, Sattlegger, Steger, CVPR 2019), in which most data sets are shipped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdad_bench.datasets.category import GOOD, Sample
from kdad_bench.datasets.listing import (
    Listing,
    Unused,
    alike,
    child,
    folded,
    form,
    holds_images,
    is_severed,
    look,
    loose,
    nested,
    severed,
)
from kdad_bench.datasets.survey import Survey, masks_beside, matched, twins

TEST = "test"
MASKS = "ground_truth"
SATURATION = "defects_config.json"  # of MVTec LOCO and its relatives
ENDINGS = ("_mask", "")  # of a mask's stem after that of its image
NO_KINDS = (MASKS, "masks")  # names that no kind of test images has
STRAY = "not in a folder of a kind"
UNLABELLED = "their labels are not published; not evaluated"


@dataclass(frozen=True, slots=True)
class PlainLayout:
    """`train/good`, `test/<kind>`, optional `validation/good` and `ground_truth/<kind>/<name>_mask.*`.

    Several masks of one image lie in a folder of its name, `ground_truth/<kind>/<name>/*`.
    """

    good: str = GOOD  # the name of the folders of normal images
    test: str = TEST
    masks_in_test: bool = False  # whether ground_truth lies in the folder of test images, and not beside it
    unlabelled: tuple[str, ...] = ()  # folders of test images whose labels are not published
    text: str = "train/good/*.png, test/good/*.png, test/<defect>/*.png, optional ground_truth/<defect>/<name>_mask.png"

    def is_category(self, folder: Path) -> bool:
        """Whether `folder` looks like one category: it has `train`, and what tells this layout from the others.

        Where either cannot be looked at, the other tells.
        """
        train, test = child(folder, "train"), child(folder, self.test)
        lost = is_severed(folder, "train")
        if train is None and not lost:
            return False
        if self.good != GOOD:
            return any(one is not None and child(one, self.good) is not None for one in (train, test if lost else None))
        if test is not None or (train is not None and is_severed(folder, self.test)):
            return True
        return self.test == TEST and train is not None and child(train, self.good) is not None

    def categories(self, root: Path) -> dict[str, Path]:
        """Name -> folder of each category in `root`, or of `root` itself where it is one."""
        if self.is_category(root):
            return {root.name: root}
        return {folder.name: folder for folder in look(root).folders if self.is_category(folder)}

    def survey(self, folder: Path) -> Survey:
        """Sort the files of one category by their use. No image is opened."""
        found = Survey(name=folder.name, folder=folder, layout=self.text)
        train, validation, test = (child(folder, name) for name in ("train", "validation", self.test))
        inside = test if self.masks_in_test else folder
        masks = child(inside, MASKS) if inside is not None else None
        gone = severed(folder, ("train", "validation", self.test)) | severed(inside, [MASKS])
        found.faults += gone.values()
        apart = [place for name in self.unlabelled if (place := child(folder, name)) is not None]
        found.train = self._normals(found, train)
        found.validation = self._normals(found, validation)
        self._test(found, test, masks, gone)
        found.unused += loose(folder, "not in a split", gone)
        for place in apart:
            self._unlabelled(found, place)
        for other in look(folder).folders:
            if other not in (train, validation, test, masks, *apart) and holds_images(other):
                found.unused += [Unused(one.path, "not a split", one.files) for one in nested([other])]
        if (folder / SATURATION).is_file():
            found.saturation = folder / SATURATION
        place = folder / self.test
        found.check_splits(folder / "train" / self.good, place / self.good, place)
        return found

    def _normals(self, found: Survey, split: Path | None) -> list[Sample]:
        """The images of `<split>/good`; whatever else lies in the split is not used."""
        good = child(split, self.good) if split is not None else None
        top, inside = look(split), look(good)
        found.unused += [*_strays(top), *inside.unused, *nested(inside.folders)]
        found.doubts += alike(good, [path.name for path in inside.files]) if good is not None else []
        masks = masks_beside(inside.files, f"{MASKS}/{self.good}/")
        found.faults += masks.values()
        found.unused += [
            Unused(one.path, f"only {self.good}/ holds normal images", one.files)
            for one in nested([path for path in top.folders if path != good])
        ]
        return [Sample(path=path) for path in inside.files if path not in masks]

    def _unlabelled(self, found: Survey, split: Path) -> None:
        inside = look(split)
        found.unlabelled += [Unused(path, UNLABELLED) for path in inside.files]
        found.unused += [*inside.unused, *nested(inside.folders)]

    def _test(self, found: Survey, test: Path | None, ground_truth: Path | None, gone: Collection[Path]) -> None:
        top, marks = look(test), look(ground_truth)
        found.unused += [one for one in (*_strays(top), *_strays(marks)) if one.path not in gone]
        masks = {kind.name: look(kind) for kind in marks.folders}
        every = list(masks.values())
        shown = [kind for kind in top.folders if kind != ground_truth]
        wrong = [kind for kind in shown if folded(kind.name) in NO_KINDS]
        place = self._place_of_masks(found.folder)
        found.faults += [f"{kind}: masks among the test images; move them to {place}/<kind>/" for kind in wrong]
        shown = [kind for kind in shown if kind not in wrong]
        for folder in (test, ground_truth):
            found.faults += alike(folder, [kind.name for kind in look(folder).folders]) if folder is not None else []
        called = _called([kind.name for kind in shown], masks)
        kinds = [(kind, look(kind), masks.pop(called.get(kind.name, ""), Listing())) for kind in shown]
        apart = [_apart(images.files, listing) for _, images, listing in kinds]
        found.has_masks = any(one.files for one in every) or any(one.files for own in apart for one in own.values())
        for (kind, images, listing), own in zip(kinds, apart, strict=True):
            self._kind(found, kind, images, listing, own)
        found.unused += [Unused(path, "a mask without an image") for one in masks.values() for path in one.files]
        for one in masks.values():
            found.unused += [*one.unused, *nested(one.folders)]
        if ground_truth is not None and not found.has_masks:
            found.faults.append(
                f"{ground_truth}: not one mask that can be used; the layout is {self.text}; "
                "mend it, or remove it to compute image metrics only"
            )

    def _kind(self, found: Survey, kind: Path, inside: Listing, masks: Listing, apart: dict[Path, Listing]) -> None:
        """The images of one folder of test images with their masks, those of an image in a folder `apart` included."""
        found.unused += [*inside.unused, *nested(inside.folders), *masks.unused]
        if not inside.files:
            found.faults.append(f"{kind}: an empty test folder; add its images or remove it")
        beside = masks_beside(inside.files, f"{self._place_of_masks(found.folder)}/{kind.name}/")
        found.faults += beside.values()
        images = [path for path in inside.files if path not in beside]
        chosen, lost = matched(images, masks.files, ENDINGS, "mask")
        found.unused += lost
        found.doubts += twins(images, chosen)
        is_good = folded(kind.name) == folded(self.good)
        own = {} if is_good else {path: one for path, one in apart.items() if path not in chosen and one.files}
        used = {one.files[0].parent for one in own.values()}
        found.unused += nested([folder for folder in masks.folders if folder not in used])
        for path in images:
            mask = chosen.get(path)
            if is_good:
                found.test.append(Sample(path=path))
                found.blank += [(path, mask)] if mask is not None else []
                continue
            several = own.get(path, Listing())
            found.unused += [*several.unused, *nested(several.folders)]
            if mask is None and not several.files and found.has_masks:
                found.faults.append(self._missing(path, found.folder))
            found.test.append(
                Sample(path=path, defect=kind.name, masks=several.files if mask is None else (mask,)),
            )

    def _place_of_masks(self, folder: Path) -> Path:
        return folder / self.test / MASKS if self.masks_in_test else folder / MASKS

    def _missing(self, path: Path, folder: Path) -> str:
        place = self._place_of_masks(folder)
        return (
            f"{place / path.parent.name / path.stem}_mask.png: the mask of {self.test}/{path.parent.name}/{path.name} "
            f"is missing; add it, or remove {MASKS} to compute image metrics only"
        )


def _called(kinds: Sequence[str], folders: Iterable[str]) -> dict[str, str]:
    """Kind -> the folder of its masks: the one of its name, else one that differs in Unicode form or in case alone and
    is of no other."""
    names = list(folders)
    found = {name: name for name in names if name in kinds}
    for spelt in (form, folded):
        left = {spelt(name): name for name in names if name not in found.values()}
        for kind in kinds:
            if kind not in found and spelt(kind) in left:
                found[kind] = left.pop(spelt(kind))
    return found


def _apart(images: Sequence[Path], masks: Listing) -> dict[Path, Listing]:
    """What lies in the folders of masks that bear the name of an image."""
    by_name = {form(folder.name): folder for folder in masks.folders} | {one.name: one for one in masks.folders}
    found = {image: by_name.get(image.stem) or by_name.get(form(image.stem)) for image in images}
    return {image: look(folder) for image, folder in found.items() if folder is not None}


def _strays(split: Listing) -> list[Unused]:
    """Files that lie directly in a split, where only folders are read."""
    return [*split.unused, *(Unused(path, STRAY) for path in split.files)]


PLAIN = PlainLayout()
