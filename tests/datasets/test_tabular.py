"""`tabular`: images anywhere, named by a CSV or Parquet table."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets import table_layout
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.decoding import CHUNK
from kdad_bench.datasets.table_layout import lines_of
from kdad_bench.datasets.verify import verify
from kdad_bench.harness import offers
from kdad_bench.harness.offers import OfferError
from kdad_bench.harness.offers import lines_of as offered_lines
from tests.conftest import SIDE, write_tree

Rows = list[dict[str, object]]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images in it, and no layout that says what they are for."""
    write_tree(tmp_path / "x", ("bolt",), train=4, test=2)
    place = tmp_path / "photos"
    for number, path in enumerate(sorted((tmp_path / "x").rglob("*.png"))):
        new = place / f"{number % 3}" / f"{path.parent.parent.name}-{path.parent.name}-{path.name}"
        new.parent.mkdir(parents=True, exist_ok=True)
        path.rename(new)
    return tmp_path


def rows_of(folder: Path) -> Rows:
    """A line for each image, with its mask."""
    files = sorted(path.relative_to(folder).as_posix() for path in (folder / "photos").rglob("*.png"))
    rows: Rows = []
    for file in files:
        split, kind, name = Path(file).name.split("-")
        if split == "ground_truth":
            continue
        mask = next((one for one in files if f"ground_truth-spot-{name[:3]}_mask" in one), "") if kind == "spot" else ""
        rows.append({"image": file, "split": split, "label": "good" if kind == "good" else "anomaly", "mask": mask})
    return rows


def write(path: Path, rows: Rows, end: str = "\n", comma: str = ",") -> Path:
    lines = [comma.join(rows[0]), *(comma.join(map(str, row.values())) for row in rows)]
    path.write_bytes((end.join(lines) + end).encode())
    return path


def test_a_table_is_a_category_that_is_run_from_end_to_end(folder: Path) -> None:
    table = write(folder / "parts.csv", rows_of(folder), "\r\n")
    report = verify(table)
    assert report.sound
    assert verify(write(folder / "parts.tsv", rows_of(folder), comma="\t")).categories == report.categories
    assert [(one.name, one.train, one.test_good, one.test_anomalous, one.masks) for one in report.categories] == [
        ("parts", 4, 2, 2, 2)
    ]
    done = command("run", "--method", "pixel_mean", "--dataset", f"tabular:{table}", "--seeds", 1,
                   "--out", folder / "out", "--no-pictures", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    (row,) = (json.loads(line) for line in done.stdout.splitlines() if '"job_id"' in line)
    assert (row["dataset"], row["category"], row["status"]) == (f"tabular:{table}", "parts", "ok")
    assert row["pixel_auroc"] > 0.5


def test_parquet_and_every_way_of_writing_csv_are_the_same_data(folder: Path) -> None:
    rows = rows_of(folder)
    numbers = [
        {**row, "label": {"good": 0, "anomaly": 1}[str(row["label"])], "mask": row["mask"] or None} for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(numbers), folder / "parquet.parquet")
    pq.write_table(
        pa.Table.from_pylist([{**row, "label": float(str(row["label"]))} for row in numbers]), folder / "floats.parquet"
    )
    write(folder / "plain.csv", rows)
    write(folder / "windows.csv", [{**row, "image": str(row["image"]).replace("/", "\\")} for row in rows], "\r\n", ";")
    noted = [{**row, "note, free; of anybody": "a, b; c"} for row in rows]
    write(folder / "tabs.tsv", noted, comma="\t")
    write(folder / "commas.TSV", rows)
    absolute = [{**row, "image": folder / str(row["image"]), "split": str(row["split"]).upper()} for row in rows]
    write(folder / "absolute.csv", absolute)
    turned = [dict(reversed(row.items())) for row in rows]
    (write(folder / "turned.csv", turned)).write_bytes(b"\xef\xbb\xbf" + (folder / "turned.csv").read_bytes())
    found = datasets.categories(f"tabular:{folder}", None)
    names = [one.name for one in found]
    assert names == ["absolute", "commas", "floats", "parquet", "plain", "tabs", "turned", "windows"]
    assert len({datasets.fingerprint(one) for one in found}) == 1
    assert {len(one.train) for one in found} == {4}
    assert datasets.remarks_on(found, None) == []
    masks = datasets.load_test(found[0], SIDE).masks
    assert masks is not None
    assert masks.sum(axis=(1, 2)).tolist() == [144 * one.label for one in found[0].test]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_some_megabytes_is_read_at_every_door(folder: Path, kind: str) -> None:
    """The beginning of a file tells an image, not a table."""
    rows = [{**row, "note": "x" * 100_000} for row in rows_of(folder)] * 2
    table = folder / f"parts.{kind}"
    if kind == "csv":
        write(table, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), table, use_dictionary=False, compression="none")
    assert table.stat().st_size > CHUNK
    assert len(lines_of(table)) == len(rows)
    assert len(list(offered_lines(table, ("image",), ()))) == len(rows)


@pytest.mark.parametrize("ours", ["NFC", "NFD"])
def test_a_table_names_files_in_any_unicode_form(folder: Path, ours: str) -> None:
    rows = rows_of(folder)
    theirs = {"NFC": "NFD", "NFD": "NFC"}[ours]
    for row in rows:
        name = folder / str(row["image"])
        name.rename(name.with_name(unicodedata.normalize(theirs, f"\u00e9{name.name}")))
        row["image"] = unicodedata.normalize(ours, f"{Path(str(row['image'])).parent}/\u00e9{name.name}")
    (found,) = datasets.categories(f"tabular:{write(folder / 'parts.csv', rows)}", None)
    assert all(sample.path.is_file() for sample in found.train)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_limits_of_a_table_hold(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(folder)
    table = folder / f"parts.{kind}"
    if kind == "csv":
        write(table, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), table)
    for name, most, words in (("MOST_LINES", len(rows) - 1, "lines"), ("MOST_BYTES", 100, "bytes")):
        with monkeypatch.context() as patch:
            patch.setattr(table_layout, name, most)
            with pytest.raises(DatasetError, match=rf"parts\.{kind}: .*{words}.* {most}") as error:
                lines_of(table)
            assert "\n" not in str(error.value)
            patch.setattr(offers, {"MOST_LINES": "MOST_OFFERS", "MOST_BYTES": "MOST_TABLE_BYTES"}[name], most)
            with pytest.raises(OfferError, match=rf"parts\.{kind}: .*{words}"):
                list(offered_lines(table, ("image",), ()))
    assert len(lines_of(table)) == len(rows)


def test_a_table_may_name_files_outside_of_its_folder(folder: Path) -> None:
    rows = [{key: f"../{value}" if key in ("image", "mask") and value else value for key, value in row.items()}
            for row in rows_of(folder)]  # fmt: skip
    (folder / "lists").mkdir()
    (outside,) = datasets.categories(f"tabular:{write(folder / 'lists/parts.csv', rows)}", None)
    (inside,) = datasets.categories(f"tabular:{write(folder / 'parts.csv', rows_of(folder))}", None)
    assert outside.root == inside.root == folder
    assert datasets.fingerprint(outside) == datasets.fingerprint(inside)


@pytest.mark.parametrize("change", [{"split": "validation"}, {"split": "test"}])
def test_the_use_of_an_image_is_part_of_the_fingerprint(folder: Path, change: dict[str, object]) -> None:
    rows = rows_of(folder)
    (before,) = datasets.categories(f"tabular:{write(folder / 'a.csv', rows)}", None)
    train = next(index for index, row in enumerate(rows) if row["split"] == "train")
    rows[train] |= change
    (after,) = datasets.categories(f"tabular:{write(folder / 'a.csv', rows)}", None)
    assert datasets.fingerprint(before) != datasets.fingerprint(after)
    bad = next(index for index, row in enumerate(rows) if row["label"] == "anomaly")
    rows = [{**row, "defect": "dent" if number == bad else ""} for number, row in enumerate(rows)]
    (named,) = datasets.categories(f"tabular:{write(folder / 'a.csv', rows)}", None)
    assert {one.defect for one in named.test} == {"good", "anomaly", "dent"}
    assert datasets.fingerprint(named) != datasets.fingerprint(after)


def test_images_of_one_name_are_told_apart(folder: Path) -> None:
    rows = rows_of(folder)
    for row in rows:
        old = folder / str(row["image"])
        new = old.parent / old.stem / "image.png"
        new.parent.mkdir()
        old.rename(new)
        row["image"] = new.relative_to(folder).as_posix()
    (found,) = datasets.categories(f"tabular:{write(folder / 'a.csv', rows)}", None)
    names = datasets.load_test(found, SIDE).names
    assert len(set(names)) == len(names) == 4
    assert all("photos/" in name for name in names)


def test_several_masks_of_one_image_and_none_at_all(folder: Path) -> None:
    rows = rows_of(folder)
    masks = [str(row["mask"]) for row in rows if row["mask"]]
    for row in rows:
        row["mask"] = "|".join(masks) if row["mask"] else ""
    (found,) = datasets.categories(f"tabular:{write(folder / 'a.csv', rows)}", None)
    assert [len(one.masks) for one in found.test if one.label] == [2, 2]
    lists = [{**row, "mask": str(row["mask"]).split("|") if row["mask"] else None} for row in rows]
    pq.write_table(pa.Table.from_pylist(lists), folder / "b.parquet")
    (listed,) = datasets.categories(f"tabular:{folder / 'b.parquet'}", None)
    assert (listed.train, listed.test) == (found.train, found.test)
    bare = [{key: value for key, value in row.items() if key != "mask"} for row in rows]
    (without,) = datasets.categories(f"tabular:{write(folder / 'a.csv', bare)}", None)
    assert not without.has_masks
    assert datasets.load_test(without, SIDE).masks is None


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("column", ["object", "Category"])
def test_several_products_in_one_table_are_refused(folder: Path, column: str, kind: str) -> None:
    """They were one category: a model of all of them, and one AUROC over them."""

    def made(products: list[str]) -> Path:
        rows = [{**row, column: products[place % len(products)]} for place, row in enumerate(rows_of(folder))]
        if kind == "csv":
            return write(folder / "a.csv", rows)
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
        return folder / "a.parquet"

    table = made(["cat", ""])
    assert datasets.categories(f"tabular:{table}", None)[0].remarks == ()
    line = f"{made(['cat', 'dog'])}: 2 different values of {column.casefold()} (cat, dog), and a table is one category"
    with pytest.raises(DatasetError) as error:
        datasets.categories(f"tabular:{table}", None)
    assert str(error.value) == f"{line}; make a table of each"
    assert verify(table).categories[0].problems == [str(error.value)]
    assert verify(table).exit_code == 2


def test_the_kind_of_a_defect_in_a_column_category_is_no_product(folder: Path) -> None:
    rows = rows_of(folder)
    for place, row in enumerate(rows):
        row["category"] = "ok" if row["label"] == "good" else f"kind {place}"
    (found,) = datasets.categories(f"tabular:{write(folder / 'a.csv', rows)}", None)
    assert found.remarks == ()


def test_a_mask_of_a_normal_image_must_mark_nothing(folder: Path) -> None:
    rows = rows_of(folder)
    mask = next(row["mask"] for row in rows if row["mask"])
    next(row for row in rows if row["label"] == "good" and row["split"] == "test")["mask"] = mask
    report = verify(write(folder / "a.csv", rows))
    (line,) = report.categories[0].problems
    assert line.endswith("_mask.png: marks something in the normal image test-good-001.png")
    (found,) = datasets.categories(f"tabular:{folder / 'a.csv'}", None)
    with pytest.warns(
        UserWarning, match=r"_mask\.png marks something in a normal image, which counts as normal"
    ) as seen:
        datasets.load_test(found, SIDE)
    assert len(seen) == 1


def test_a_mask_of_a_normal_image_may_lie_anywhere(folder: Path) -> None:
    rows = rows_of(folder)
    mask = folder / str(next(row["mask"] for row in rows if row["mask"]))
    elsewhere = folder.parent / f"{folder.name}-elsewhere.png"
    shutil.copy(mask, elsewhere)
    next(row for row in rows if row["label"] == "good")["mask"] = str(elsewhere)
    (found,) = datasets.categories(f"tabular:{write(folder / 'a.csv', rows)}", None)
    with pytest.warns(UserWarning, match=re.escape(f"the mask {elsewhere} marks something in a normal image")):
        datasets.load_test(found, SIDE)


def test_a_mask_that_several_anomalous_images_share_is_told_by_run_and_verify(folder: Path) -> None:
    rows = rows_of(folder)
    first, second = (row for row in rows if row["mask"])
    table = write(folder / "a.csv", rows)
    assert datasets.categories(f"tabular:{table}", None)[0].remarks == ()
    assert verify(table).sound
    second["mask"] = first["mask"]
    told = (
        f"{write(table, rows)}: 2 lines with a mask that another anomalous image has, too "
        "(ground_truth-spot-000_mask.png: test-spot-000.png, test-spot-001.png); is it meant for all of them?"
    )
    assert datasets.categories(f"tabular:{table}", None)[0].remarks == (told,)
    assert verify(table).categories[0].problems == [told]
    assert verify(table).exit_code == 1


def test_the_name_that_a_run_takes_is_no_path_to_verify(folder: Path) -> None:
    table = write(folder / "a.csv", rows_of(folder))
    done = command("data", "verify", f"tabular:{table}")
    assert (done.exit_code, done.stderr) == (2, f"kdad-bench: tabular:{table}: give the path alone: {table}\n")


FAULTS = {
    "missing files": ({"image": "nowhere.png"}, "1 line with an image that is not there (nowhere.png); restore"),
    "a missing mask": ({"mask": "nowhere.png"}, "1 line with a mask that is not there (nowhere.png); restore"),
    "a folder": ({"image": "photos"}, "1 line with an image that is not there (photos)"),
    "no image": ({"image": ""}, "1 line with no image"),
    "an unknown label": ({"label": "scratch"}, "1 line with an unknown label ('scratch'); have: 0, 1, abnormal"),
    "an unknown split": ({"split": "holdout"}, "1 line with an unknown split ('holdout'); have: train, val"),
    "a name that no file can have": ({"image": "x" * 5000}, "1 line with an image that is not there (xxxx"),
    "a mask that no file can have": ({"mask": "x" * 5000}, "1 line with a mask that is not there (xxxx"),
    "no label": ({"label": ""}, "1 line with an unknown label ('')"),
    "a defect of the normal": (
        {"label": "1", "split": "test", "defect": "good", "mask": "photos/0"}, "the defect of a normal one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_a_line_with_its_count_and_exit_2(folder: Path, case: str) -> None:
    change, said = FAULTS[case]
    rows = rows_of(folder)
    rows = [{**row, "defect": ""} for row in rows] if "defect" in change else rows
    rows[0] |= change
    table = write(folder / "a.csv", rows)
    done = command("run", "--method", "pixel_mean", "--dataset", f"tabular:{table}", "--dry-run")
    assert done.exit_code == 2
    assert sum(said in line for line in done.stderr.splitlines()) == 1, done.stderr
    assert command("data", "verify", table).exit_code == 2
    assert any(said in line for line in verify(table).categories[0].problems)


def test_every_kind_of_fault_has_a_line_of_its_own(folder: Path) -> None:
    rows = rows_of(folder)
    train = [row for row in rows if row["split"] == "train"]
    rows += [{**train[0]}, {**train[1]}]
    train[2]["image"], train[3]["label"] = "gone/1.png", "ugly"
    next(row for row in rows if row["mask"])["mask"] = ""
    rows.append({"image": "gone/2.png", "split": "train", "label": "bad", "mask": ""})
    done = command(
        "run", "--method", "pixel_mean", "--dataset", f"tabular:{write(folder / 'a.csv', rows)}", "--dry-run"
    )
    assert done.exit_code == 2
    table = f"kdad-bench: {folder}/a.csv: "
    assert [line.removeprefix(table).partition(" (")[0] for line in done.stderr.splitlines()] == [
        "2 lines with an image that is not there",
        "2 lines with an image that another line names",
        "1 line with an unknown label",
        "1 line with an anomalous image outside of the test split",
        "2 lines with an anomalous image without a mask, and others have one",
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_one_line(folder: Path, split: str) -> None:
    table = write(folder / "a.csv", [row for row in rows_of(folder) if row["split"] != split])
    with pytest.raises(
        DatasetError, match=r"no normal train image of a" if split == "train" else "no normal test image"
    ):
        datasets.categories(f"tabular:{table}", None)


# name -> (what becomes of the header, and of the cells of a line)
WRITTEN: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "columns in capitals": (str.upper, str),
    "columns in mixed case": (str.title, str),
    "spaces around names and cells": (lambda name: f"  {name} ", lambda cell: f" {cell}  "),
    "labels and splits in capitals": (str, lambda cell: cell if "/" in cell else cell.upper()),
    "every cell in quotes": (lambda name: f'"{name}"', lambda cell: f'"{cell}"'),
    "dots in paths": (str, lambda cell: f"./photos/../{cell}" if "/" in cell else cell),
}  # fmt: skip


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("comma", [",", ";", "\t"])
@pytest.mark.parametrize("case", WRITTEN)
def test_every_way_to_write_a_table_is_the_same_data(folder: Path, case: str, comma: str, end: str) -> None:
    name_of, cell_of = WRITTEN[case]
    rows = rows_of(folder)
    written = [{name_of(key): cell_of(str(cell)) for key, cell in row.items()} for row in rows]
    (before,) = datasets.categories(f"tabular:{write(folder / 'a.csv', rows)}", None)
    (after,) = datasets.categories(f"tabular:{write(folder / 'b.csv', written, end, comma)}", None)
    assert (after.train, after.test) == (before.train, before.test)
    assert [one.name for one in datasets.categories(f"tabular:{folder}", None)] == ["a", "b"]


@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_a_path_in_quotes_may_hold_what_parts_cells(folder: Path, comma: str) -> None:
    rows = rows_of(folder)
    for row in rows[:2]:
        old, new = folder / str(row["image"]), folder / f'photos/a{comma} "b{Path(str(row["image"])).name}'
        old.rename(new)
        row["image"] = '"' + new.relative_to(folder).as_posix().replace('"', '""') + '"'
    (found,) = datasets.categories(f"tabular:{write(folder / 'a.csv', rows, comma=comma)}", None)
    assert sum(comma in one.path.name for _, one in found.splits()) == 2


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_that_is_there_twice_is_one_line(folder: Path, kind: str) -> None:
    rows = [{**row, "Label": "good", "MASK": ""} for row in rows_of(folder)]
    table = folder / f"a.{kind}"
    if kind == "csv":
        write(table, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), table)
    with pytest.raises(DatasetError, match=r"a\.\w+: 2 columns are there twice \(label, mask\); keep one of each"):
        datasets.categories(f"tabular:{table}", None)


@pytest.mark.parametrize("defect", ["../../up", "dent/deep", "\x1b[31mred", '"two\nlines"', "x" * 5000, "..", "a\\b"])
def test_a_defect_that_no_folder_can_be_called_by_is_one_line(folder: Path, defect: str) -> None:
    """Maps are saved below its name, and looked for there."""
    rows = [{**row, "defect": defect if row["label"] == "anomaly" else ""} for row in rows_of(folder)]
    table = write(folder / "a.csv", rows)
    with pytest.raises(DatasetError) as caught:
        datasets.categories(f"tabular:{table}", None)
    (line,) = caught.value.lines
    assert line.startswith(f"{table}: 2 lines with a defect that is no name of letters that show, without a slash (")
    assert len(line) < len(str(table)) + 200
    for row in rows:
        row["defect"] = row["defect"] and "scratch: deep"
    (found,) = datasets.categories(f"tabular:{write(folder / 'b.csv', rows)}", None)
    assert {one.defect for one in found.test} == {"good", "scratch: deep"}


@pytest.mark.parametrize(
    "last", [pa.scalar(2**31 - 1, pa.int32()).cast(pa.date32()), pa.scalar(2**62, pa.int64()).cast(pa.timestamp("us"))]
)
def test_a_date_beyond_python_s_calendar_is_one_line(folder: Path, last: pa.Scalar) -> None:
    table = pa.Table.from_pylist(rows_of(folder))
    pq.write_table(table.append_column("defect", pa.repeat(last, len(table))), folder / "a.parquet")
    with pytest.raises(DatasetError, match=r"a\.parquet: not a readable table \(.*\); restore it"):
        datasets.categories(f"tabular:{folder / 'a.parquet'}", None)


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_a_folder_above_the_table_need_not_be_utf_8(folder: Path) -> None:
    rows = rows_of(folder)
    for row in rows:
        row["image"], row["mask"] = folder / str(row["image"]), row["mask"] and folder / str(row["mask"])
    moved = next(row for row in rows if row["split"] == "train")
    place = folder / os.fsdecode(b"d\xff")
    place.mkdir()
    shutil.move(str(moved["image"]), place / "own.png")
    moved["image"] = "own.png"
    table = f"tabular:{write(place / 'a.csv', rows)}"
    assert command("run", "-m", "pixel_mean", "-d", table, "--dry-run").exit_code == 0
    (found,) = datasets.categories(table, None)
    assert len(datasets.load_train(datasets.sealed(found), 16)) == len(found.train) == 4


def test_one_image_under_two_spellings_is_doubled(folder: Path) -> None:
    rows = rows_of(folder)
    rows += [{**rows[0], "image": f"./{rows[0]['image']}"}, {**rows[1], "image": folder / str(rows[1]["image"])}]
    with pytest.raises(DatasetError, match="2 lines with an image that another line names"):
        datasets.categories(f"tabular:{write(folder / 'a.csv', rows)}", None)


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_what_a_table_names_and_is_no_image_is_one_line(folder: Path, kind: str) -> None:
    rows = rows_of(folder)
    (folder / "notes.txt").write_text("no image")
    next(row for row in rows if row["mask"])[kind] = "notes.txt"
    done = command("run", "-m", "pixel_mean", "-d", f"tabular:{write(folder / 'a.csv', rows)}", "--dry-run")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.output
    assert f"{folder}: 1 file: not a readable image" in done.stderr
    assert "(notes.txt); restore it" in done.stderr


BROKEN = {
    "empty": b"",
    "only a header": b"image,split,label,mask\n",
    "no such columns": b"path,kind\na,b\n",
    "bytes": b"\xff\xfe\x00image,split,label\n",
    "UTF-16": "image,split,label\na.png,train,good\n".encode("utf-16"),
    "bars": b"image|split|label\na.png|train|good\n",
    "a mark alone": b"\xef\xbb\xbf",
    "line ends alone": b"\r\n\r\n\r\n",
    "no such column in any case": b"Image,Split,Kind\na.png,train,good\n",
    "a quote that does not end": b'image,split,label\n"a.png,train,good\nb.png,train,good\n',
    "NUL": b"image,split,label\n\0,\0,\0\n",
    "more cells": b"image,split,label\na,b,c,d\n",
    "fewer cells": b"image,split,label\na\n",
    "a long cell": b"image,split,label\n" + b"a" * 200_000 + b",train,good\n",
}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_no_table_is_one_line_and_exit_2(folder: Path, case: str, suffix: str) -> None:
    table = folder / f"a{suffix}"
    table.write_bytes(BROKEN[case])
    done = command("run", "--method", "pixel_mean", "--dataset", f"tabular:{table}", "--dry-run")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert str(table) in done.stderr


def test_a_table_in_another_encoding_is_told_which_to_save_it_in(folder: Path) -> None:
    table = folder / "a.csv"
    table.write_bytes("image\tsplit\tlabel\na.png\ttrain\tgood\n".encode("utf-16"))  # Excel's "Unicode text"
    with pytest.raises(DatasetError, match=r"a\.csv: not in UTF-8 \(.*\); save it as CSV in UTF-8$"):
        lines_of(table)


@pytest.mark.parametrize("name", ["nowhere.csv", "photos", "x" * 5000, ""])
def test_a_path_without_a_table_is_one_line(folder: Path, name: str) -> None:
    done = command("run", "--method", "pixel_mean", "--dataset", f"tabular:{folder / name}" if name else "tabular:",
                   "--dry-run")  # fmt: skip
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)


def test_two_tables_of_one_name_are_refused_and_other_tables_are_none(folder: Path) -> None:
    write(folder / "a.csv", rows_of(folder))
    (folder / "scores.csv").write_text("image,score\na.png,1\n")
    pq.write_table(pa.table({"x": [1]}), folder / "b.parquet")
    assert [one.name for one in datasets.categories(f"tabular:{folder}", None)] == ["a"]
    pq.write_table(pa.Table.from_pylist(rows_of(folder)), folder / "a.parquet")
    with pytest.raises(DatasetError, match=r"a\.csv and a\.parquet are of one name"):
        datasets.categories(f"tabular:{folder}", None)


def test_tables_that_are_no_category_are_told(folder: Path) -> None:
    write(folder / "a.csv", rows_of(folder))
    assert datasets.remarks_on(datasets.categories(f"tabular:{folder}", None), None) == []
    assert verify(folder).sound
    (folder / "b.csv").write_text("image,split,lable\nx.png,train,good\n")
    (folder / "c.parquet").write_bytes(b"PAR1 and no more")
    (folder / "d.csv").touch()
    (remark,) = datasets.remarks_on(datasets.categories(f"tabular:{folder}", None), None)
    assert remark == (
        f"{folder}: 3 files not used (b.csv, c.parquet, d.csv): no table with the columns image, split, label"
    )
    report = verify(folder)
    assert (len(report.problems), report.exit_code) == (3, 1)
    (found,) = datasets.categories(f"tabular:{folder / 'a.csv'}", None)  # one table was asked for
    assert datasets.remarks_on([found], None) == []


def test_a_damaged_table_among_others_is_not_passed_over(folder: Path) -> None:
    write(folder / "a.csv", rows_of(folder))
    (folder / "b.csv").write_text("image,split,label\nx\n")
    with pytest.raises(DatasetError, match=r"b\.csv: 1 line with more or fewer cells"):
        datasets.categories(f"tabular:{folder}", None)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300))
def test_any_bytes_are_lines_or_one_printable_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(b"image,split,label\n" + content)
    said = ""
    try:
        lines = lines_of(path)
    except DatasetError as error:
        lines, said = [], str(error)
    assert said.isprintable()
    assert bool(lines) != bool(said)


def test_nothing_of_a_normal_category_changes_its_fingerprint(tmp_path: Path) -> None:
    """Fingerprints of folders identify earlier results: they stay what they were."""
    root = write_tree(tmp_path / "set", ("bolt",), train=2, test=1)
    (found,) = datasets.categories(f"folder:{root}", None)
    import hashlib

    digest = hashlib.sha256(b"rgb")
    for path in sorted(found.files()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(found.root).as_posix()}\0{content}\n".encode())
    assert datasets.fingerprint(found) == digest.hexdigest()
    assert np.array_equal(datasets.load_test(found, SIDE).labels, [one.label for one in found.test])
