"""VisA: Zou, Jeong, Pemula, Zhang, Dabeer, ECCV 2022 (SPot-the-Difference). 12 categories, 10,821 images.

`split_csv/1cls.csv` beside the categories says what each image is for; the pixels of a mask are numbers of kinds of
defects. The copy that the authors' script converts to the layout of MVTec AD is read as well.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.entry import Archive, Counts, Entry
from kdad_bench.datasets.listing import Unused, child, holds_images, look, loose, nested
from kdad_bench.datasets.plain_layout import PLAIN
from kdad_bench.datasets.survey import Survey
from kdad_bench.datasets.synthetic.embedded import Files, Split
from kdad_bench.datasets.synthetic.solids import Solid
from kdad_bench.datasets.synthetic.subjects import Capsule, Gear, Stone, Subject, Wood
from kdad_bench.datasets.table_layout import Reader, lines_of
from kdad_bench.files import write_text_whole

TABLE = Path("split_csv") / "1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")
NOT_NAMED = f"not in {TABLE.as_posix()}"


@dataclass(frozen=True, slots=True)
class ClassesLayout:
    """`<object>/Data/Images/{Normal,Anomaly}` and `Data/Masks/Anomaly`, their uses in `split_csv/1cls.csv`."""

    text: str = "<object>/Data/Images/<Normal|Anomaly>/*.JPG, <object>/Data/Masks/Anomaly/*.png and split_csv/1cls.csv"

    def is_category(self, folder: Path) -> bool:
        """Whether `folder` is one object: it has `Data/Images`."""
        data = child(folder, "Data")
        return data is not None and child(data, "Images") is not None

    def categories(self, root: Path) -> dict[str, Path]:
        """Name -> folder of each category in `root`, or of `root` itself where it is one."""
        if self.is_category(root):
            return {root.name: root}
        return {folder.name: folder for folder in look(root).folders if self.is_category(folder)}

    def survey(self, folder: Path) -> Survey:
        """Sort the files of one category by what the table says. No image is opened.

        Raises DatasetError for a table that cannot be read.
        """
        found = Survey(name=folder.name, folder=folder, layout=self.text)
        table = folder.parent / TABLE
        if not table.is_file():
            found.faults.append(f"{table}: no such table; without it nobody knows which image is for what; restore it")
            return found
        place = Path(os.path.normpath(folder))
        Reader(
            table,
            found,
            place=lambda cell: Path(os.path.normpath(place.parent / cell)),
            normal=frozenset({"normal"}),
            anomalous=frozenset({"anomaly"}),
        ).sort(lines_of(table, of=folder.name))
        named = {path for one in found.samples for path in (one.path, *one.masks)}
        found.unused += _not_named(place, named, {folder for path in named for folder in path.parents})
        outside = sorted(path for path in named if not path.is_relative_to(place))
        found.faults += [f"{path}: named for {folder.name} and not in its folder; mend {TABLE}" for path in outside]
        return found


def _not_named(place: Path, named: Collection[Path], above: Collection[Path]) -> list[Unused]:
    """What lies in a folder and below it that the table does not name; `above` are the folders of what it names.

    Where it names no file of a folder, only images there, and what cannot be looked at, are a loss.
    """
    inside, found = look(place), list[Unused]()
    if any(path in named for path in inside.files):
        found += [*(Unused(path, NOT_NAMED) for path in inside.files if path not in named), *inside.unused]
    else:
        found += loose(place, NOT_NAMED)
    for folder in inside.folders:
        if folder in above:
            found += _not_named(folder, named, above)
        elif holds_images(folder):
            found += [Unused(one.path, NOT_NAMED, one.files) for one in nested([folder])]
    return found


CLASSES = ClassesLayout()


def _counts(train: int, good: int, anomalous: int = 100) -> Counts:
    # sizes differ within a category: these are for stand-ins
    # the copy that the authors' script converts calls the one kind otherwise
    return Counts(
        train=train,
        test_good=good,
        test_anomalous=anomalous,
        types=("anomaly",),
        renamed=("bad",),
        width=1500,
        height=1000,
    )


# split_csv/1cls.csv of the authors' repository; 9,621 normal and 1,200 anomalous images
PUBLISHED = {
    "candle": _counts(900, 100),
    "capsules": _counts(542, 60),
    "cashew": _counts(450, 50),
    "chewinggum": _counts(453, 50),
    "fryum": _counts(450, 50),
    "macaroni1": _counts(900, 100),
    "macaroni2": _counts(900, 100),
    "pcb1": _counts(904, 100),
    "pcb2": _counts(901, 100),
    "pcb3": _counts(905, 101),
    "pcb4": _counts(904, 101),
    "pipe_fryum": _counts(450, 50),
}

_BOARD = (28.0, 84.0, 56.0)
SUBJECTS: dict[str, Subject | Solid] = {
    "candle": Gear(teeth=0, bolts=0, radius=80.0, bore=6.0, metal=(226.0, 222.0, 210.0), mat=(30.0, 30.0, 32.0),
                   defects=("broken_rim", "dent", "rust", "scratch")),
    "capsules": Capsule(half_length=60.0, radius=24.0, cap=(60.0, 130.0, 70.0), body=(150.0, 190.0, 150.0)),
    "cashew": Capsule(half_length=58.0, radius=30.0, cap=(206.0, 176.0, 130.0), body=(206.0, 176.0, 130.0), text="",
                      defects=("crack", "poke", "squeeze")),
    "chewinggum": Capsule(half_length=50.0, radius=36.0, cap=(230.0, 230.0, 228.0), body=(230.0, 230.0, 228.0),
                          text="", defects=("crack", "poke", "squeeze")),
    "fryum": Gear(teeth=10, bolts=0, radius=72.0, bore=26.0, metal=(210.0, 160.0, 80.0), mat=(40.0, 40.0, 44.0),
                  defects=("broken_tooth", "dent", "rust", "scratch")),
    "macaroni1": Stone(ground=(214.0, 178.0, 90.0), fleck=(190.0, 150.0, 66.0), vein=(230.0, 200.0, 120.0)),
    "macaroni2": Stone(ground=(220.0, 188.0, 110.0), fleck=(196.0, 160.0, 80.0), vein=(236.0, 210.0, 140.0)),
    "pcb1": Wood(),
    "pcb2": Gear(teeth=0, bolts=3, radius=96.0, bore=24.0, metal=_BOARD, mat=(200.0, 200.0, 198.0)),
    "pcb3": Gear(teeth=8, bolts=4, radius=84.0, bore=20.0, metal=_BOARD, mat=(200.0, 200.0, 198.0)),
    "pcb4": Gear(teeth=4, bolts=3, radius=88.0, bore=30.0, metal=_BOARD, mat=(200.0, 200.0, 198.0)),
    "pipe_fryum": Capsule(half_length=70.0, radius=26.0, cap=(216.0, 150.0, 70.0), body=(216.0, 150.0, 70.0), text="",
                          defects=("crack", "poke", "squeeze")),
}  # fmt: skip


def _files(category: str, split: Split, index: int) -> Files:
    """Where a drawing of a stand-in goes; kinds of defects 1 to 4."""
    if split.defect is not None:
        stem = f"Anomaly/{index:03d}"
        return Files(f"Data/Images/{stem}.JPG", f"Data/Masks/{stem}.png", value=1 + index % 4)
    number = index if split.split == "train" else (PUBLISHED[category].train or 0) + index
    return Files(f"Data/Images/Normal/{number:04d}.JPG")


def _table(root: Path, category: str) -> None:
    """The lines of a stand-in's category, among those of the others in the table beside them; no write if they are.

    What lies there under a name that no drawing has, a copy say, gets none.
    """
    train = PUBLISHED[category.removeprefix("synthetic_")].train or 0
    before = _rows(root / TABLE)
    rows = [row for row in before if row and row[0] != category]
    for path in _drawn(root / category / "Data/Images/Normal"):
        place = path.relative_to(root).as_posix()
        rows.append([category, "train" if int(path.stem) < train else "test", "normal", place, ""])
    for path in _drawn(root / category / "Data/Images/Anomaly"):
        mask = f"{category}/Data/Masks/Anomaly/{path.stem}.png"
        rows.append([category, "test", "anomaly", path.relative_to(root).as_posix(), mask])
    if sorted(rows) == sorted(before):
        return
    text = io.StringIO(newline="")
    csv.writer(text).writerows([COLUMNS, *rows])
    write_text_whole(root / TABLE, text.getvalue())


def _drawn(folder: Path) -> list[Path]:
    """The images there that are called as `_files` calls them."""
    return [path for path in look(folder).files if re.fullmatch(r"[0-9]{3,4}\.JPG", path.name)]


def _rows(table: Path) -> list[list[str]]:
    if not table.exists():
        return []
    try:
        with open(table, encoding="utf-8", newline="") as file:
            return list(csv.reader(file))[1:]
    except (ValueError, csv.Error) as error:
        raise DatasetError(f"{table}: not a readable table ({error}); delete it, it is written again") from error


VISA = Entry(
    name="visa",
    title="VisA",
    licence="CC BY 4.0",
    terms="CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/): name the authors (Zou et al. 2022, Amazon); "
    "commercial use is not excluded",
    layouts=(CLASSES, PLAIN),
    folders=("visa", "VisA", "VisA_20220922", "VisA_pytorch/1cls", "visa_pytorch"),
    archive=Archive(
        url="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
        algorithm="sha256",
        digest="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
        page="https://github.com/amazon-science/spot-diff",
        download_bytes=2_000_000_000,
        unpacked_bytes=2_000_000_000,
    ),
    published=PUBLISHED,
    closed=True,
    subjects=SUBJECTS,
    drawn_files=_files,
    drawn_beside=_table,
)
