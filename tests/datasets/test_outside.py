"""Data sets from outside the package: a file or an installed package reaches a row; what cannot be is one line."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets import outside
from kdad_bench.datasets.entry import Counts
from kdad_bench.leaderboard import store
from kdad_bench.process import LOADED, SHARED, same

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-data-set.md"
FLAT = re.search(r"```python\n(\"\"\"Flat:.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[1]  # type: ignore[index]


@pytest.fixture
def root(tiny_tree: Path, tmp_path: Path) -> Path:
    """A data root in which the example finds one category: `flat/bolt/<split>_<kind>_<number>.png` and masks beside."""
    place = tmp_path / "root" / "flat" / "bolt"
    place.mkdir(parents=True)
    for path in (tiny_tree / "bolt").rglob("*.png"):
        split, kind = path.relative_to(tiny_tree / "bolt").parts[:2]
        shutil.copy(path, place / f"{split}_{kind}_{path.name}")
    return tmp_path / "root"


def written(folder: Path, text: str = FLAT, name: str = "flat.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def run(dataset: object, root: Path, out: Path) -> Result:
    return command("run", "-m", "pixel_mean", "-d", dataset, "--data-root", root, "--seeds", 1, "--resolution", 64,
                   "--no-pictures", "--out", out, "--executor", "local")  # fmt: skip


def test_a_file_reaches_a_row_from_a_worker_process_too(root: Path, tmp_path: Path) -> None:
    path = written(tmp_path)
    result = run(path, root, tmp_path / "out")
    assert result.exit_code == 0, result.output
    (row,) = store.read(tmp_path / "out").rows()
    assert (row["dataset"], row["category"], row["status"], row["test_images"]) == ("flat", "bolt", "ok", 6)
    assert row["pixel_auroc"] > 0.5
    assert "1 already finished" in run(f"{path}:FLAT", root, tmp_path / "out").output


def test_other_code_and_another_use_of_the_same_files_are_other_data(root: Path, tmp_path: Path) -> None:
    def mark(text: str) -> str:
        outside.ADDED.clear()
        (found,) = datasets.categories(str(written(tmp_path, text)), root)
        return datasets.fingerprint(found)

    assert mark(FLAT) == mark(FLAT)
    assert mark(FLAT + "# changed\n") != mark(FLAT)


def test_a_table_that_sorts_the_files_is_part_of_the_data(tmp_path: Path, tiny_tree: Path) -> None:
    from dataclasses import replace

    tree = replace(datasets.categories(f"folder:{tiny_tree}", None)[0], code="0")
    moved = replace(tree, train=tree.train[1:], validation=tree.train[:1])
    other = replace(tree, test=(replace(tree.test[0], defect="dent"), *tree.test[1:]))
    assert len({datasets.fingerprint(one) for one in (tree, moved, other)}) == 3


def test_what_its_code_sets_and_prints_is_put_back_and_no_output_of_ours(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rough = (
        "import sys, warnings\nimport numpy as np\nfrom PIL import ImageFile\nnp.seterr(all='raise')\nprint('loaded')\n"
    )
    deeds = (
        "        print('asked')\n        sys.setrecursionlimit(9999)\n        ImageFile.LOAD_TRUNCATED_IMAGES = True\n"
    )
    asks = re.search(r"    def survey\(self.*?\n", FLAT)[0]  # type: ignore[index]
    assert FLAT.count(asks) == 1
    text = FLAT.replace(asks, asks + deeds).replace("\n\n", f"\n\n{rough}", 1)
    assert rough in text
    names = [name for name in SHARED if name not in LOADED]
    before = {name: SHARED[name][0]() for name in names}
    name = outside.add_file(written(tmp_path, text), "", ())
    assert [one.name for one in datasets.categories(name, root)] == ["bolt"]
    assert [name for name in names if not same(SHARED[name][0](), before[name])] == []
    out, err = capsys.readouterr()
    assert out == ""
    assert {"loaded", "asked"} <= {*err.split()}


def test_every_command_knows_it(root: Path, tmp_path: Path) -> None:
    path = written(tmp_path)
    (found,) = datasets.categories(f"{path}", root)
    assert (found.dataset, len(found.train), len(found.test), found.remarks) == ("flat", 6, 6, ())
    assert datasets.load(str(path), "bolt", data_root=root, resolution=32).train.shape == (6, 32, 32, 3)
    outside.ADDED.clear()
    done = command("data", "verify", root / "flat", "--against", path)
    assert done.exit_code == 0, done.output
    done = command("data", "fetch", path, "--out", tmp_path, "--archive", tmp_path / "none.tar", "--accept-license")
    assert (done.exit_code, "no such archive" in done.stderr) == (2, True)
    done = command("data", "preview", path, "--data-root", root, "--out", tmp_path / "sheets", "--side", 16)
    assert done.exit_code == 0, done.output
    (tmp_path / "maps").mkdir()
    maps = command(
        "evaluate", tmp_path / "maps", "--name", "x", "-d", path, "--data-root", root, "--out", tmp_path / "o"
    )
    assert "no map there" in maps.stderr


def test_fewer_images_than_promised_name_a_remedy_that_works(root: Path, tmp_path: Path) -> None:
    more = FLAT.replace("train=6", "train=60")
    assert more != FLAT
    done = run(written(tmp_path, more), root, tmp_path / "out")
    line = (
        f"{root}/flat: 6 of 60 train images of Flat are there (bolt 6 of 60); restore them, or lower `published` and "
        "`totals` in the entry of flat to run on what is there"
    )
    assert (done.exit_code, line in done.stderr) == (2, True)
    assert run(f"folder:{root}/flat", root, tmp_path / "out").exit_code == 2  # which such a line named before
    outside.ADDED.clear()
    assert run(written(tmp_path), root, tmp_path / "out").exit_code == 0


def test_one_without_published_numbers_is_fetched_and_verified(root: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "flat"), "zip", root))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    counts = re.search(r"    published=\{.*?\n    \},\n", FLAT, re.DOTALL)
    assert counts is not None
    text = FLAT.replace(counts[0], "").replace('"0" * 64', f'"{digest}"')
    path, out = written(tmp_path, text), tmp_path / "out"
    done = command("data", "fetch", path, "--out", out, "--archive", archive, "--accept-license")
    assert done.exit_code == 0, done.output
    assert (out / "flat" / "bolt").is_dir()
    done = command("data", "verify", out / "flat", "--against", path)
    assert (done.exit_code, "1 category, 12 images, sound" in done.stdout) == (0, True)


@pytest.mark.parametrize("kind", ["@dataclass", "@dataclass(eq=False)", "@dataclass(frozen=True)", ""])
def test_a_layout_of_any_class_is_verified(kind: str, root: Path, tmp_path: Path) -> None:
    """One that can change has no hash, and one of no data class is equal to nothing else."""
    line = "@dataclass(frozen=True, slots=True)\nclass"
    assert FLAT.count(line) == 1
    path = written(tmp_path, FLAT.replace(line, f"{kind}\nclass"))
    for table in ("--against", path), ():
        done = command("data", "verify", root / "flat", *table)
        assert (done.exit_code, " 12 images, sound" in done.stdout) == (0, True), done.output


def test_a_layout_that_fails_on_its_own_folder_is_a_line_of_list_and_doctor(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.categories(str(written(tmp_path)), root)
    monkeypatch.setattr(outside.ADDED["flat"].entry.layouts[0].inner.__class__, "categories", lambda self, root: 1 / 0)
    done = command("list", "datasets", "--data-root", root)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "its layout's `categories` failed (ZeroDivisionError" in done.stderr
    lines = {one["what"]: one["text"] for one in json.loads(command("doctor", "--json", "--data-root", root).stdout)}
    assert "ZeroDivisionError" in lines["data"]


def test_a_folder_called_like_a_file_is_a_folder(tiny_tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_tree / "bolt", tmp_path / "x.py" / "bolt")
    (found,) = datasets.categories(f"folder:{tmp_path}/x.py", None)
    assert found.name == "bolt"


def test_an_installed_package_is_found_by_its_entry_point_and_listed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, name="flat_package.py")
    info = tmp_path / "flat_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flat-package\nVersion: 1.0\n")
    (info / "RECORD").write_text("flat_package.py,,\nflat_package-1.0.dist-info/METADATA,,\n")
    points = "[kdad_bench.datasets]\nflat = flat_package:FLAT\nbroken = nowhere:X\nother = flat_package:FLAT\n"
    (info / "entry_points.txt").write_text(points + "[kdad_bench.methods]\nlost = nowhere:Y\n")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = datasets.categories("flat", root)
    assert (found.dataset, found.code) == ("flat", outside.ADDED["flat"].sha256)
    for name, words in (("broken", "cannot be imported"), ("other", "the two names must be equal")):
        with pytest.raises(datasets.DatasetError, match=words):
            datasets.categories(name, root)
    listed = command("list", "datasets", "--data-root", root)
    assert (listed.exit_code, "flat" in listed.stdout) == (0, True)
    assert listed.stderr.count("entry point ") == 2
    assert "flat: installed (entry point flat = flat_package:FLAT)" in command("list", "datasets").stderr
    assert "lost" in command("list", "methods").stdout
    found_there = {one["what"]: one for one in json.loads(command("doctor", "--json").stdout)}
    assert (found_there["data set flat"]["state"], found_there["method lost"]["state"]) == ("ok", "note")
    sys.modules.pop("flat_package")


def changed(old: str, new: str) -> str:
    assert old in FLAT
    return FLAT.replace(old, new)


def surveyed(line: str) -> str:
    """The example, whose survey does that last."""
    return changed("        return found\n", f"        {line}\n        return found\n")


def of_bolt(old: str, new: str) -> str:
    """The example with other published numbers of the category that is there."""
    line = next(line for line in FLAT.splitlines() if line.lstrip().startswith('"bolt": Counts('))
    return changed(line, line.replace(old, new))


BAD = {
    "does not parse": ("def (\n", "", "SyntaxError"),
    "does not import": ("import nowhere_to_be_found\n", "", "ModuleNotFoundError"),
    "exits": ("raise SystemExit(0)\n", "", "SystemExit"),
    "no entry": ("x = 1\n", "", "it has no entry"),
    "no such entry": (FLAT, ":FLAR", "no 'FLAR' in it; have: FLAT"),
    "wrong type": (FLAT, ":FlatLayout", "of type type, not kdad_bench.datasets.entry.Entry"),
    "a name of ours": (changed('name="flat"', 'name="mvtec_ad"'), "", "is that of a data set of this package"),
    "a stand-in's name": (changed('name="flat"', 'name="synthetic_x"'), "", "as those of drawn stand-ins"),
    "no name": (changed('name="flat"', 'name="No Name"'), "", "is not of small letters"),
    "no title": (changed('title="Flat"', "title=3"), "", "title 3 is no line of text"),
    "no layout": (changed("layouts=(FlatLayout(),)", "layouts=()"), "", "layouts need at least one"),
    "a class for a layout": (changed("layouts=(FlatLayout(),)", "layouts=FlatLayout()"), "", "in a tuple"),
    "nowhere": (changed('folders=("flat",)', "folders=()"), "", "nothing says where it lies"),
    "a path as a folder": (changed('folders=("flat",)', 'folders=("../x",)'), "", "are not names of folders"),
    "one name as folders": (changed('folders=("flat",)', 'folders="flat"'), "", "in a tuple"),
    "a modality that is a list": (
        changed('folders=("flat",)', 'folders=("flat",), modalities=(["rgb"],)'), "", "modalities (['rgb'],)"
    ),
    "a modality": (changed('folders=("flat",)', 'folders=("flat",), modalities=("xyz",)'), "", "modalities ('xyz',)"),
    "published": (changed('"bolt": Counts(', '"nut": 3, "bolt": Counts('), "", "to Counts"),
    "a path that it takes not": (FLAT, ":FLAT:/x", "flat takes no path; write flat"),
    "raises in categories": (changed("        return {folder", "        1 / 0\n        return {folder"), "",
                             "its layout's `categories` failed (ZeroDivisionError"),
    "raises in survey": (changed("        found = Survey", "        [][0]\n        found = Survey"), "",
                         "its layout's `survey` failed (IndexError"),
    "gives no survey": (changed("        return found\n", "        return None\n"), "", "gave no Survey"),
    "gives a list": (changed("        return {folder", "        return [] or ['x']\n        return {folder"), "",
                     "gave list, not a dict"),
    "a category with a slash": (changed("folder.name: folder", "'a/' + folder.name: folder"), "", "calls a category"),
    "a leak": (changed("        return found\n", "        found.train.append(found.test[0])\n        return found\n"),
               "", "in train and in test"),
    "a defect to learn from": (changed("        return found\n", "        found.train.append(found.test.pop())\n"
                                       "        return found\n"), "", "with the defect 'spot'"),
    "no mask": (changed("masks=masks", "masks=()"), "", "has no mask for"),
    "elsewhere": (changed("        return found\n", "        found.train.append(Sample(path=Path('/etc/x.png')))\n"
                          "        return found\n"), "", "which is no Path below"),
    "a text as a path": (surveyed("found.train.append(Sample(path=str(folder / 'train_good_000.png')))"), "",
                         "train_good_000.png' in train, a str and no Path"),
    "a path as a sample": (surveyed("found.train.append(folder / 'x.png')"), "", "PosixPath in train, not a Sample"),
    "a defect with a slash": (surveyed("found.test.append(Sample(path=folder / 'x.png', defect='a/b'))"), "",
                              "has the defect 'a/b' in test, which is not of letters"),
    "no checksum": (changed('digest="0" * 64', 'digest="xyz"'), "", "archive: 'xyz' by 'sha256' is no checksum"),
    "another's checksum": (changed('algorithm="sha256"', 'algorithm="md5"'), "", "by 'md5' is no checksum"),
    "nothing to learn from": (changed("        return found\n", "        found.train.clear()\n        return found\n"),
                              "", "no image to learn from"),
    "an unused path": (surveyed("found.unused.append(folder / 'x.png')"), "", "in unused, which is not Unused("),
    "an unused text": (surveyed("found.unused.append('x.png')"), "", "has 'x.png' in unused"),
    "an unlabelled path": (surveyed("found.unlabelled.append(folder / 'x.png')"), "", "in unlabelled, which is not"),
    "a path as a fault": (surveyed("found.faults.append(folder)"), "", "in faults, which is not a line of text"),
    "a path as a doubt": (surveyed("found.doubts.append(folder)"), "", "in doubts, which is not a line of text"),
    "one text as doubts": (surveyed("found.doubts = 'x'"), "", "gives doubts of type str, not a list"),
    "a text as a scan": (surveyed("found.absent_scans.append('x')"), "", "in absent_scans, which is not a Path"),
    "half a blank": (surveyed("found.blank.append((folder,))"), "", "in blank, which is not two Paths"),
    "a text as saturation": (surveyed("found.saturation = 'x.json'"), "", "gives saturation as 'x.json'"),
    "saturation elsewhere": (surveyed("found.saturation = folder / '../x.json'"), "", "which is no Path below"),
    "a text as a bool": (surveyed("found.by_table = 'yes'"), "", "gives by_table as 'yes', neither True nor False"),
    "a number as a name": (surveyed("found.name = 3"), "", "calls its category 3"),
    "totals of what is none": (changed('folders=("flat",)', 'folders=("flat",), totals={"trains": 5}'), "",
                               "totals {'trains': 5} are not whole numbers"),
    "totals in words": (changed('folders=("flat",)', 'folders=("flat",), totals={"train": "5"}'), "",
                        "totals {'train': '5'} are not whole numbers"),
    "counts in words": (of_bolt("train=6", 'train="6"'), "", "train of 'bolt' is '6', no whole number"),
    "no other names": (of_bolt('("spot",)', '("spot",), renamed="dot"'), "",
                       "renamed of 'bolt' are 'dot', not names of defects"),
    "needs in words": (changed('folders=("flat",)', 'folders=("flat",), needs="a.json"'), "",
                       "needs 'a.json' are not names of files"),
    "no types": (of_bolt('("spot",)', "None"), "", "types of 'bolt' are None, not names of defects"),
    "takes_path in words": (changed('folders=("flat",)', 'folders=("flat",), takes_path="no"'), "",
                            "takes_path is 'no', neither"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_code_that_cannot_be_used_is_one_line_exit_code_2_and_nothing_written(
    case: str, root: Path, tmp_path: Path
) -> None:
    text, more, words = BAD[case]
    result = command("run", "-m", "pixel_mean", "-d", f"{written(tmp_path, text)}{more}", "--data-root", root, "--out",
                     tmp_path / "out")  # fmt: skip
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name_are_refused(root: Path, tmp_path: Path) -> None:
    twin = written(tmp_path, FLAT + "# other\n", "twin.py")
    datasets.categories(str(written(tmp_path)), root)
    with pytest.raises(datasets.DatasetError, match=r"the name 'flat' is that of .*flat\.py too; rename one of them"):
        datasets.categories(str(twin), root)
    written(tmp_path, FLAT + "# edited\n")
    with pytest.raises(datasets.DatasetError, match="has changed since this process read it; start Python anew"):
        datasets.categories(str(tmp_path / "flat.py"), root)


def test_two_entries_of_one_name_in_one_file_are_refused(root: Path, tmp_path: Path) -> None:
    entry = next(line.partition(" = ")[0] for line in FLAT.splitlines() if " = Entry(" in line)
    path = written(tmp_path, f"{FLAT}\nfrom dataclasses import replace\nTWIN = replace({entry}, title='Twin')\n")
    datasets.categories(f"{path}:{entry}", root)
    with pytest.raises(datasets.DatasetError, match="two of its entries are called 'flat'; rename one of them"):
        datasets.categories(f"{path}:TWIN", root)


def test_a_published_count_may_be_unknown_but_no_size() -> None:
    counts = Counts(train=None, validation=None, test_good=None, test_anomalous=None, types=(), width=8, height=8)
    assert [*outside.reasons_against_counts("bolt", counts)] == []
    for field in ("unlabelled", "width", "height"):
        (line,) = outside.reasons_against_counts("bolt", replace(counts, **{field: None}))
        assert line == f"published: {field} of 'bolt' is None, no whole number from 0 on"
