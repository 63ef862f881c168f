"""Data sets whose files a table names: a line for each image says its split, its label and its mask."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from kdad_bench.datasets.category import GOOD, DatasetError, Sample, is_name
from kdad_bench.datasets.decoding import read_bytes
from kdad_bench.datasets.listing import SHOWN, is_file, is_folder, look
from kdad_bench.datasets.survey import Survey
from kdad_bench.parquet import chunks, unpacked_bytes

TABLES = frozenset({".csv", ".tsv", ".parquet"})
NEEDED = ("image", "split", "label")  # columns, in any case
PRODUCTS = ("object", "category")  # name what an image shows: one of them in a table, which is a category
OTHERS = ("mask", "defect", *PRODUCTS)  # that may be missing; `defect` names the kind
MOST_BYTES = 64 << 20
MOST_HEADER = 10_000
MOST_LINES = 1_000_000
MOST_NAME = 200  # bytes of the name of a kind of defect
LONG = 40  # letters of one, in a message
NORMAL = frozenset({"good", "normal", "ok", "0", "false"})
ANOMALOUS = frozenset({"anomaly", "anomalous", "abnormal", "bad", "ko", "defect", "defective", "1", "true"})
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
ANOMALY = "anomaly"  # the kind of a defect that has no name of its own
SEPARATOR = "|"  # between several masks of one image


class Line(NamedTuple):
    """What a line of a table says; texts as they stand there, without spaces around them."""

    number: int  # 1 is the first below the header
    image: str
    split: str
    label: str
    masks: tuple[str, ...]
    defect: str
    products: tuple[str, ...] = ("",) * len(PRODUCTS)


def lines_of(path: Path, of: str = "") -> list[Line]:
    """The lines of a CSV or Parquet table; those whose `object` is `of`, where that is asked for.

    CSV (.csv, .tsv) is UTF-8 with or without a byte order mark, with any line ends, its cells separated by commas,
    semicolons or tabs. Raises DatasetError for what is no such table or lacks a column.
    """
    rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    have = set(rows[0]) if rows else set()
    missing = [name for name in (*NEEDED, *(["object"] if of else [])) if name not in have]
    if missing:
        raise DatasetError(
            f"{path}: {'no' if rows else 'not one line, or no'} column {', '.join(missing)}; "
            f"a table has {', '.join(NEEDED)} and, where there are masks, mask"
        )
    return [_line(number, row) for number, row in enumerate(rows, 1) if not of or row["object"] == of]


def _line(number: int, row: dict[str, str]) -> Line:
    masks = tuple(part.strip() for part in row.get("mask", "").split(SEPARATOR) if part.strip())
    products = tuple(row.get(name, "") for name in PRODUCTS)
    return Line(number, row["image"], row["split"], row["label"], masks, row.get("defect", ""), products)


def _csv(path: Path) -> list[dict[str, str]]:
    try:
        text = read_bytes(path, image=False, most=MOST_BYTES).decode("utf-8-sig")
        header = re.split(r"[\r\n]", text, maxsplit=1)[0]
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator_of(header, path))
        columns = [column_of(name) for name in reader.fieldnames or ()]
        refuse_doubled(path, columns)
        reader.fieldnames = columns
        rows = list(islice(reader, MOST_LINES + 1))
        if len(rows) > MOST_LINES:
            raise DatasetError(f"{path}: more than {MOST_LINES} lines; {MOST_LINES} are the most")
        if "\0" in text:
            raise ValueError("it holds a character 0")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not in UTF-8 ({error}); save it as CSV in UTF-8") from error
    except (ValueError, csv.Error) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: not a readable table ({error}); restore it") from error
    uneven = [number for number, row in enumerate(rows, 1) if None in row or None in row.values()]
    if uneven:
        raise DatasetError(
            fault(
                path, len(uneven), f"more or fewer cells than columns (line {uneven[0]} below the header)", "mend them"
            )
        )
    return [{name: str(cell).strip() for name, cell in row.items()} for row in rows]


def separator_of(header: str, path: Path) -> str:
    """What parts the cells of the CSV table at `path`: the first of comma, semicolon and tab that its first line has;
    of a .tsv file the tab, if it has one."""
    return next((one for one in ("\t,;" if path.suffix.lower() == ".tsv" else ",;\t") if one in header), ",")


def column_of(name: str) -> str:
    """The name of a column as it is looked for: in small letters, without spaces around it."""
    return name.strip().casefold()


def refuse_doubled(path: Path, columns: Sequence[str]) -> None:
    """Raises DatasetError where two columns that are read have one name."""
    known = (*NEEDED, *OTHERS)
    doubled = [name for name in dict.fromkeys(columns) if name in known and columns.count(name) > 1]
    if doubled:
        raise DatasetError(f"{path}: {len(doubled)} columns are there twice ({', '.join(doubled)}); keep one of each")


def _parquet(path: Path) -> list[dict[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pa.BufferReader(read_bytes(path, image=False, most=MOST_BYTES))
        file = pq.ParquetFile(source)
        if file.metadata.num_rows > MOST_LINES:
            raise DatasetError(f"{path}: {file.metadata.num_rows} lines; {MOST_LINES} are the most")
        columns = [column_of(name) for name in file.schema_arrow.names]
        refuse_doubled(path, columns)
        wanted = [name for name in file.schema_arrow.names if column_of(name) in (*NEEDED, *OTHERS)]
        swollen = unpacked_bytes(source, chunks(source), wanted, MOST_BYTES)
        if swollen > MOST_BYTES:
            raise DatasetError(f"{path}: {swollen} bytes once it is read; {MOST_BYTES} are the most for a table")
        rows = file.read(wanted).to_pylist()
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        LookupError,
        ArithmeticError,
    ) as error:  # a date that Python has not
        if isinstance(error, DatasetError):
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DatasetError(f"{path}: not a readable table ({why}); restore it") from error
    return [{column_of(name): _text(cell) for name, cell in row.items()} for row in rows]


def _text(cell: Any) -> str:
    """A cell as text: nothing for null, 1 for 1.0 (what pandas makes of whole numbers beside nulls), the entries of a
    list as CSV has several masks."""
    if isinstance(cell, list):
        return SEPARATOR.join(map(_text, cell))
    if cell is None or cell != cell:
        return ""
    return str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell).strip()


def fault(table: Path, count: int, what: str, remedy: str, names: Sequence[str] = ()) -> str:
    """One line on a kind of fault: how many lines of the table have it, and the first few."""
    shown = f" ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})" if names else ""
    return f"{table}: {count} {'line' if count == 1 else 'lines'} with {what}{shown}; {remedy}"


@dataclass(slots=True)
class Reader:
    """The lines of one table sorted into a survey, its faults counted by kind."""

    table: Path
    found: Survey
    place: Callable[[str], Path]  # the file that a cell names
    normal: frozenset[str] = NORMAL
    anomalous: frozenset[str] = ANOMALOUS

    def sort(self, lines: Iterable[Line]) -> None:
        """Fill the survey with the samples of `lines`, and with a line for each kind of fault."""
        lines = list(lines)
        self.found.by_table = True
        self.found.has_masks = any(line.masks for line in lines)
        files = {line.number: (self.place(line.image), *map(self.place, line.masks)) for line in lines}
        self._check(lines, files)
        if self.found.faults:
            return
        splits = {"train": self.found.train, "validation": self.found.validation, "test": self.found.test}
        for line in lines:
            image, *masks = files[line.number]
            defect = GOOD if self._is_normal(line) else line.defect or ANOMALY
            splits[SPLITS[line.split.casefold()]].append(
                Sample(path=image, defect=defect, masks=() if self._is_normal(line) else tuple(masks))
            )
            if self._is_normal(line):
                self.found.blank += [(image, mask) for mask in masks]
        self._doubt_shared_masks()
        self._check_splits()

    def _is_normal(self, line: Line) -> bool:
        return line.label.casefold() in self.normal

    def _check(self, lines: Sequence[Line], files: dict[int, tuple[Path, ...]]) -> None:
        """Note what is wrong with the lines, a line for each kind."""
        have: dict[Path, bool] = {}
        for path in (path for paths in files.values() for path in paths):
            if path not in have:
                have[path] = is_file(path)
        seen: dict[Path, int] = {}
        doubled = [line for line in lines if seen.setdefault(files[line.number][0], line.number) != line.number]
        known = {*self.normal, *self.anomalous}
        labels = [line for line in lines if line.label.casefold() not in known]
        anomalous = [line for line in lines if line.label.casefold() in self.anomalous]
        kinds: list[tuple[Sequence[Line], str, str, Callable[[Line], str]]] = [
            ([line for line in lines if not line.image], "no image", "name it, or remove them", _number),
            (
                [line for line in lines if line.image and not have[files[line.number][0]]],
                "an image that is not there", "restore the files, or remove the lines", lambda line: line.image,
            ),
            (
                [line for line in lines if not all(have[path] for path in files[line.number][1:])],
                "a mask that is not there", "restore the files, or leave the cells empty",
                lambda line: next(
                    cell for cell, path in zip(line.masks, files[line.number][1:], strict=True) if not have[path]
                ),
            ),
            (
                [line for line in doubled if line.image], "an image that another line names", "keep one of them",
                lambda line: line.image,
            ),
            (
                labels, "an unknown label", f"have: {', '.join(sorted(known))}",
                lambda line: repr(line.label),
            ),
            (
                [line for line in lines if line.split.casefold() not in SPLITS],
                "an unknown split", f"have: {', '.join(SPLITS)}", lambda line: repr(line.split),
            ),
            (
                [line for line in anomalous if SPLITS.get(line.split.casefold(), "test") != "test"],
                "an anomalous image outside of the test split", "nothing learns from those; mend split or label",
                lambda line: line.image,
            ),
            (
                [line for line in anomalous if self.found.has_masks and not line.masks],
                "an anomalous image without a mask, and others have one",
                "name it, or leave all cells empty to compute image metrics only", lambda line: line.image,
            ),
            (
                [line for line in anomalous if line.defect.casefold() in self.normal],
                "an anomalous image and the defect of a normal one", "mend label or defect", lambda line: line.image,
            ),
            (
                [line for line in anomalous if line.defect and not _is_kind(line.defect)],
                "a defect that is no name of letters that show, without a slash", "files are called by it; name it so",
                lambda line: repr(line.defect[:LONG]),
            ),
        ]  # fmt: skip
        for those, what, remedy, name in kinds:
            if those:
                names = list(dict.fromkeys(map(name, those)))
                self.found.faults.append(fault(self.table, len(those), what, remedy, names))

        self._check_products(lines)

    def _check_products(self, lines: Sequence[Line]) -> None:
        """Note several products in one table: they would be learnt, and judged, as one.

        What anomalous images have in a column `category` may be the kind of their defect.
        """
        for place, name in enumerate(PRODUCTS):
            those = [line for line in lines if name == "object" or self._is_normal(line)]
            found = [one for one in dict.fromkeys(line.products[place] for line in those) if one]
            if len(found) > 1:
                shown = ", ".join(one[:LONG] for one in found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
                what = f"{len(found)} different values of {name} ({shown})"
                self.found.faults.append(f"{self.table}: {what}, and a table is one category; make a table of each")

    def _doubt_shared_masks(self) -> None:
        """Note masks that several anomalous images have: a slip of copying, if their defects differ."""
        having: dict[Path, list[Path]] = {}
        for sample in self.found.test:
            for mask in set(sample.masks):
                having.setdefault(mask, []).append(sample.path)
        shared = {mask: images for mask, images in having.items() if len(images) > 1}
        if shared:
            names = [f"{mask.name}: {', '.join(one.name for one in images[:SHOWN])}" for mask, images in shared.items()]
            count = len({image for images in shared.values() for image in images})
            what = "a mask that another anomalous image has, too"
            self.found.doubts.append(fault(self.table, count, what, "is it meant for all of them?", names))

    def _check_splits(self) -> None:
        """Note what is empty that must not be."""
        test = self.found.test
        empty = {
            "normal train image": not self.found.train,
            "normal test image": all(sample.label for sample in test),
            "anomalous test image": not any(sample.label for sample in test),
        }
        lacking = [what for what, is_empty in empty.items() if is_empty]
        if lacking:
            self.found.faults.append(
                f"{self.table}: no {', no '.join(lacking)} of {self.found.name}; the layout is {self.found.layout}"
            )


def _is_kind(defect: str) -> bool:
    """Whether a folder can be called like a kind of defect: maps are saved below its name. Colons are left to it."""
    return is_name(defect.replace(":", "_")) and len(defect.encode()) <= MOST_NAME


def _number(line: Line) -> str:
    return f"line {line.number} below the header"


@dataclass(frozen=True, slots=True)
class TableLayout:
    """A table is a category, named after its file; a folder of tables is several."""

    text: str = "a .csv, .tsv or .parquet table with the columns image, split, label and mask, or a folder of them"

    def categories(self, root: Path) -> dict[str, Path]:
        """Name -> file of each table in `root`, or of `root` itself where it is one.

        Raises DatasetError for two tables with one name.
        """
        if not is_folder(root):
            return {root.stem: root} if root.suffix.lower() in TABLES else {}
        found: dict[str, Path] = {}
        for path in look(root, TABLES).files:
            if not _is_table(path):
                continue
            if path.stem in found:
                raise DatasetError(f"{root}: {found[path.stem].name} and {path.name} are of one name; keep one")
            found[path.stem] = path
        return found

    def survey(self, folder: Path) -> Survey:
        """Sort the files that the table `folder` names by their use. No image is opened."""
        found = Survey(name=folder.stem, folder=folder.parent, layout=self.text)
        Reader(folder, found, lambda cell: _placed(folder.parent, cell)).sort(lines_of(folder))
        found.folder = _common(folder.parent, found)
        return found


def _is_table(path: Path) -> bool:
    """Whether a file begins as a table of images does, sound or not: other tables may lie beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            columns = pq.read_schema(path).names
        else:
            with open(path, "rb") as file:
                columns = re.split(r"[,;\s\"]+", file.readline(MOST_HEADER).decode("utf-8-sig", "replace"))
    except (pa.ArrowException, OSError, ValueError):
        return False
    return set(NEEDED) <= set(map(column_of, columns))


def _placed(folder: Path, cell: str) -> Path:
    """The file that a cell names, relative to the folder of its table; either kind of slash and any Unicode form do."""
    path = folder / cell
    if "\\" in cell and not is_file(path):
        path = folder / cell.replace("\\", "/")
    if not cell.isascii() and not is_file(path):
        spelt = (folder / unicodedata.normalize(one, cell.replace("\\", "/")) for one in ("NFC", "NFD"))
        path = next((other for other in spelt if is_file(other)), path)
    return Path(os.path.normpath(path))  # two spellings of one file are one


def _common(folder: Path, found: Survey) -> Path:
    """The folder of the table, or the first above it that holds every file it names."""
    named = [os.path.normpath(path) for one in found.samples for path in (one.path, *one.masks)]
    return Path(os.path.commonpath([os.path.normpath(folder), *named])) if named else folder
