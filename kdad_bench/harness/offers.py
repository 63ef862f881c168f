"""What a person offers for evaluation, before anything is matched: files of a tree, lines of an index, of scores."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from kdad_bench.datasets import DatasetError
from kdad_bench.datasets.decoding import read_bytes
from kdad_bench.datasets.table_layout import TABLES, column_of, separator_of
from kdad_bench.harness.maps import READERS, MapError, read_stack
from kdad_bench.leaderboard.text import counted
from kdad_bench.parquet import chunks, unpacked_bytes
from kdad_bench.text import reason_of

MOST_OFFERS = 1_000_000  # files of a tree or lines of a table
MOST_TABLE_BYTES = 64 << 20
SPLITS = ("test", "test_public")  # folders of test images: MVTec AD and MVTec AD 2
APART = ("train", "validation", "ground_truth")  # folders beside them, of images that nothing is judged on
BINARY = "anomaly_images_thresholded"  # MVTec AD 2's folder of decisions per pixel, which are no scores


class OfferError(ValueError):
    """What was offered cannot be looked at at all: one line with the remedy."""


class Key(NamedTuple):
    """Which image something is said to belong to; what is not said is empty."""

    category: str
    defect: str
    name: str  # of the file
    apart: str = ""  # the folder of APART that it lies in


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """One map, or one score, and where it stands."""

    key: Key
    where: str  # a path, or a path and a line
    path: str = ""  # all that is said of the image, as `slashed` writes it
    file: Path | None = None  # of a map
    array: NDArray[Any] | None = None  # a map that was read already
    score: float | None = None
    is_file: bool = False  # the name ends with a suffix of a map's file, which is none of the image's


@dataclass(frozen=True, kw_only=True, slots=True)
class Offers:
    """All of them, and a line for each kind of thing that is not used."""

    found: tuple[Offer, ...]
    remarks: tuple[str, ...] = ()


def offers(place: Path, known: Collection[str]) -> Offers:
    """The maps at `place`: a folder, an index (.csv, .tsv, .parquet) or a stack (.npz); `known`: names of categories.

    Raises OfferError.
    """
    known = frozenset(map(normal, known))
    if place.is_dir():
        return of_tree(place, known)
    suffix = place.suffix.lower()
    if suffix in TABLES:
        return Offers(found=tuple(of_index(place, known)))
    if suffix == ".npz":
        return Offers(found=tuple(of_stack(place, known)))
    if not place.exists():
        raise OfferError(f"{place}: no such file or folder; give the maps")
    raise OfferError(f"{place}: neither a folder of maps, nor an index (.csv, .tsv, .parquet), nor a stack (.npz)")


def normal(text: str) -> str:
    """One spelling for letters that Unicode can write in two ways: macOS takes the other one."""
    return unicodedata.normalize("NFC", text)


def slashed(text: str) -> str:
    """A path of any system and spelling with single slashes between its parts."""
    parts = normal(text).replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def key_of(said: str, known: Collection[str]) -> Key:
    """What a path, as `slashed` writes it, says of the image: `[...][category/][...][test/][defect/]name`.

    Other folders may lie between a category of `known` and a defect where there is no `test`.
    """
    parts = said.split("/")
    folders, name = parts[:-1], parts[-1] if parts else ""
    if len(folders) > 1 and folders[-1] == "rgb":  # MVTec 3D-AD keeps images of a defect one folder deeper
        folders.pop()
    for place in range(len(folders) - 1, -1, -1):
        if folders[place] in SPLITS and len(folders) - place <= 2:
            return Key(folders[place - 1] if place else "", folders[-1] if place < len(folders) - 1 else "", name)
    if len(folders) > 1:
        *above, split = folders[:-1]
        if split not in APART or (split in known and above[-1:] != [split]):
            above, split = [*above, split], ""
        return Key(next((one for one in reversed(above) if one in known), ""), folders[-1], name, split)
    if folders and folders[0] in known:
        return Key(folders[0], "", name)
    return Key("", folders[0] if folders else "", name)


def of_tree(root: Path, known: Collection[str]) -> Offers:
    """Every file of a map below `root`; raises OfferError for a folder without one."""
    found, others, binary = [], dict[str, int](), 0
    top = normal(root.absolute().name)  # it may say what the paths below it do not
    for folder, name in walked(root):
        suffix = os.path.splitext(name)[1].lower()
        inside = os.path.relpath(folder, root)
        if suffix not in READERS:
            others[suffix or name] = others.get(suffix or name, 0) + 1
        elif BINARY in inside.split(os.sep):
            binary += 1
        else:
            path, said = Path(folder, name), slashed(f"{inside}/{name}")
            tells = top in known or (top in APART and "/" in said)
            key = key_of(f"{top}/{said}" if tells else said, known)
            found.append(Offer(key=key, where=str(path), path=said, file=path, is_file=True))
    kinds = ", ".join(sorted(others)[:5])
    remarks = [f"not used: {counted(sum(others.values()), 'file')}, no maps ({kinds})"] if others else []
    if not found:
        raise OfferError("; ".join([f"{root}: no map there", *remarks, f"maps end in {', '.join(READERS)}"]))
    remarks += [f"not used: {counted(binary, 'map')} in {BINARY}/, decisions"] if binary else []
    return Offers(found=tuple(found), remarks=tuple(remarks))


def walked(root: Path) -> Iterator[tuple[str, str]]:
    """(folder, name) of the files below `root` in the order of their names; hidden ones and linked folders are left
    out."""
    count = 0
    for folder, inside, names in os.walk(root):
        inside[:] = sorted(name for name in inside if not name.startswith((".", "__MACOSX")))
        for name in sorted(names):
            if not name.startswith("."):
                count += 1
                yield folder, name
        if count > MOST_OFFERS:
            raise OfferError(f"{root}: more than {MOST_OFFERS} files; give the folder of the maps alone")


def of_stack(path: Path, known: Collection[str]) -> Iterator[Offer]:
    """The maps of one file, and its scores where it has some."""
    try:
        stack = read_stack(path)
    except MapError as error:
        raise OfferError(f"{path}: {error}") from error
    if stack is None:
        raise OfferError(f"{path}: no stack of maps; it needs the arrays `maps` [N, H, W] and `names` [N]")
    for number, name in enumerate(stack.names):
        score = stack.scores[number] if stack.scores else None
        where = f"{path}, map {number}"
        said = slashed(name)
        height, width = stack.sizes[number] if stack.sizes else stack.maps.shape[1:]
        array = stack.maps[number, :height, :width]
        yield Offer(key=key_of(said, known), where=where, path=said, array=array, score=score)


def of_index(path: Path, known: Collection[str]) -> Iterator[Offer]:
    """The maps that an index names in its columns `image` and `map`, beside an optional `score`."""
    for where, line in lines_of(path, ("image", "map"), ("score", "category")):
        if not line["map"]:
            raise OfferError(f"{where}: no map named in column `map`")
        score = score_of(line["score"], where) if line.get("score") else None
        said = slashed(line["image"])
        key = keyed(said, line, known)
        yield Offer(key=key, where=where, path=said, file=beside(path, line["map"]), score=score)


def beside(index: Path, name: str) -> Path:
    """The file that an index names, from its folder on; one written with the separators of Windows is found as well."""
    place = index.parent / name
    return index.parent / name.replace("\\", "/") if "\\" in name and not place.exists() else place


def of_scores(path: Path, known: Collection[str]) -> Iterator[Offer]:
    """The image scores of a table with the columns `image` and `score`; `known` are names of categories."""
    known = frozenset(map(normal, known))
    for where, line in lines_of(path, ("image", "score"), ("category",)):
        said = slashed(line["image"])
        key = keyed(said, line, known)
        yield Offer(key=key, where=where, path=said, score=score_of(line["score"], where))


def keyed(said: str, line: Mapping[str, str], known: Collection[str]) -> Key:
    """The image of a line, of which its path says `said`; its column `category` says more."""
    key = key_of(said, known)
    return key._replace(category=normal(line["category"])) if line.get("category") else key


def score_of(text: str, where: str) -> float:
    """The number; NaN where it is none, which the check of values names."""
    try:
        return float(text.replace("_", "?"))  # 1_000 is a number to Python alone
    except ValueError as error:
        raise OfferError(f"{where}: score '{text[:40]}' is no number") from error


def lines_of(path: Path, needed: Sequence[str], more: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, column -> text) of each line of a CSV or Parquet file. Raises OfferError."""
    if path.suffix.lower() not in TABLES:
        raise OfferError(f"{path}: a table is a .csv, .tsv or .parquet file")
    try:
        data = read_bytes(path, image=False, most=MOST_TABLE_BYTES)
    except DatasetError as error:
        raise OfferError(str(error)) from error
    wanted = (*needed, *more)
    try:
        columns, lines = (
            parquet_lines(data, wanted) if path.suffix.lower() == ".parquet" else csv_lines(data, wanted, path)
        )
    except OfferError as error:
        raise OfferError(f"{path}: {error}") from error
    lacking = [name for name in needed if name not in columns]
    if lacking:
        raise OfferError(f"{path}: no column {', '.join(lacking)}; have: {', '.join(columns[:10]) or 'none'}")
    if not lines:
        raise OfferError(f"{path}: holds no line")
    for number, line in lines:
        yield f"{path}, line {number}", line


def refuse_nested(fields: Sequence[Any]) -> None:
    """Raises OfferError for a column of Parquet that holds neither text nor numbers."""
    import pyarrow.types as kinds

    for field in fields:
        kind = field.type.value_type if kinds.is_dictionary(field.type) else field.type
        plain = (
            kinds.is_string,
            kinds.is_large_string,
            kinds.is_string_view,
            kinds.is_integer,
            kinds.is_floating,
            kinds.is_null,
        )
        if not any(is_one(kind) for is_one in plain):
            raise OfferError(f"column {field.name} holds {kind}; give text, and numbers for scores")


Lines = tuple[list[str], list[tuple[int, dict[str, str]]]]


def csv_lines(data: bytes, wanted: Sequence[str], path: Path) -> Lines:
    """The columns and the lines, numbered as an editor does, of what was read from `path`."""
    try:
        text = data.decode("utf-8-sig")
        header = re.split(r"[\r\n]", text, maxsplit=1)[0]
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator_of(header, path))
        columns = [column_of(name) for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        refuse_twins(columns, wanted)
        lines: list[tuple[int, dict[str, str]]] = []
        for line in reader:
            if len(lines) == MOST_OFFERS:
                raise OfferError(f"more than {MOST_OFFERS} lines; more than a table may hold")
            if None in line:  # the fields that no column has
                raise OfferError(
                    f"line {reader.line_num} has more fields than the {len(columns)} columns; quote text with commas"
                )
            texts = {name: str(line.get(name) or "").strip() for name in columns if name in wanted}
            lines.append((reader.line_num, texts))
    except (UnicodeDecodeError, csv.Error) as error:
        raise OfferError(f"no CSV in UTF-8 ({error}); write it again as such") from error
    return columns, lines


def refuse_twins(columns: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises OfferError for a wanted column that is there twice."""
    for name in wanted:
        if columns.count(name) > 1:
            raise OfferError(f"{columns.count(name)} columns are called {name}; keep one")


def parquet_lines(data: bytes, wanted: Sequence[str]) -> Lines:
    """The columns and the lines, counted from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = io.BytesIO(data)
        file = pq.ParquetFile(source)
        columns = [column_of(name) for name in file.schema_arrow.names]
        refuse_twins(columns, wanted)
        chosen = [field for field in file.schema_arrow if column_of(field.name) in wanted]
        refuse_nested(chosen)
        names = [field.name for field in chosen]
        swollen = unpacked_bytes(source, chunks(source), names, MOST_TABLE_BYTES)
        if file.metadata.num_rows > MOST_OFFERS or swollen > MOST_TABLE_BYTES:
            raise OfferError(f"{file.metadata.num_rows} lines of {swollen} bytes; more than a table may hold")
        table = file.read(names, use_threads=False).to_pylist()
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        if isinstance(error, OfferError):
            raise
        raise OfferError(f"no Parquet file ({reason_of(error)[:120]}); write it again") from error
    texts = [{column_of(name): "" if value is None else str(value) for name, value in line.items()} for line in table]
    return columns, list(enumerate(texts, 1))
