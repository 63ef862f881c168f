"""VisA, BTAD, MPDD, MVTec AD 2 and MVTec LOCO: found, read, verified and run in the layouts they are shipped in."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets import stand_in
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.fetch import source_of
from kdad_bench.datasets.photographs import ASIDE, photographs
from kdad_bench.datasets.synthetic.drawing import Canvas
from kdad_bench.datasets.synthetic.embedded import drawn
from kdad_bench.datasets.verify import count, verify
from kdad_bench.leaderboard import store
from tests.conftest import write_tree
from tests.datasets.short import CATEGORY, EVERY, SIDE, pixels, short

NEW = list(CATEGORY)
ANOMALOUS = {"mvtec_ad_2": 2, "mvtec_loco": 2, "visa": 2, "btad": 2, "mpdd": 3, "mvtec_ad": 3, "mvtec_3d_ad": 4}


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.mark.parametrize("name", EVERY)
def test_a_short_stand_in_is_verified_and_run_from_end_to_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = short(name, tmp_path, monkeypatch)
    assert root.name in datasets.find(tmp_path)
    report = verify(root)
    assert report.sound, report
    assert report.compared_with == name
    (only,) = report.categories
    masks = ANOMALOUS[name] + (2 if name == "mvtec_3d_ad" else 0)  # its good images have some too
    assert (only.train, only.test_good, only.test_anomalous, only.masks) == (4, 2, ANOMALOUS[name], masks)
    modality = "rgb+depth" if name == "mvtec_3d_ad" else "rgb"
    done = command("run", "--method", "pixel_mean", "--dataset", root.name, "--data-root", tmp_path, "--seeds", 1,
                   "--out", tmp_path / "out", "--no-pictures", "--modality", modality)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert ("not evaluated" in " ".join(done.output.split())) == (name == "mvtec_ad_2")
    (row,) = store.read(tmp_path / "out").rows()
    assert (row["status"], row["dataset"], row["synthetic"]) == ("ok", root.name, True)
    for metric in ("pixel_auroc", "pixel_ap_small"):
        assert 0 < row[metric] <= 1
    assert (row["au_spro_05"] is not None) == (name == "mvtec_loco")  # it alone has a saturation
    # they ship normals of their own; those of two modalities bring the two to one scale, and give no threshold then
    assert (row["seg_f1"] is not None) == (name in ("mvtec_ad_2", "mvtec_loco"))


@pytest.mark.parametrize("name", [name for name in NEW if name != "mpdd"])
def test_an_archive_with_the_files_of_a_data_set_is_fetched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = short(name, tmp_path / "drawn", monkeypatch)
    (root / stand_in.MARKER).unlink()
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), "zip" if name == "btad" else "gztar", root.parent))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    done = command("data", "fetch", name, "--archive", archive, "--sha256", digest, "--out", tmp_path / "out",
                   "--accept-license")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert datasets.entry(name).terms in done.stderr
    assert [len(one.train) for one in datasets.categories(name, tmp_path / "out")] == [4]


@pytest.mark.parametrize("name", NEW)
def test_the_same_tree_is_read_as_a_folder_and_under_its_own_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = short(name, tmp_path, monkeypatch)
    (drawn,) = datasets.categories(root.name, tmp_path)
    (folder,) = datasets.categories(f"folder:{root}", None)
    mark = datasets.fingerprint(drawn)
    assert datasets.fingerprint(folder) == mark
    (root / stand_in.MARKER).unlink()
    real = root.rename(tmp_path / datasets.entry(name).folders[-1])
    assert datasets.find(tmp_path) == [name]
    (found,) = datasets.categories(name, tmp_path)
    assert [one.path.relative_to(real) for one in found.test] == [one.path.relative_to(root) for one in drawn.test]
    assert datasets.fingerprint(found) == mark


@pytest.mark.parametrize("name", NEW)
def test_what_is_drawn_for_the_whole_has_the_published_numbers(name: str) -> None:
    one = datasets.entry(name)
    assert set(one.subjects) == set(one.published)
    assert stand_in.image_count(name) == {
        "mvtec_ad_2": 8004, "mvtec_loco": 3651, "visa": 10821, "btad": 2540, "mpdd": 1346,
    }[name]  # fmt: skip
    for category, counts in one.drawn_counts.items():
        published = one.published[category]
        assert published.validation in (None, counts.validation)
        assert counts.unlabelled == published.unlabelled
    every = (one.drawn_counts or one.published).values()
    drawn = {key: value for key, value in one.totals.items() if key != "masks"}  # of regions, of which one is drawn
    assert {key: sum(getattr(counts, key) for counts in every) for key in drawn} == drawn


@pytest.mark.parametrize("name", NEW)
def test_every_defect_of_a_stand_in_can_be_drawn(name: str) -> None:
    one = datasets.entry(name)
    for category, subject in one.subjects.items():
        counts = one.published[category]
        longer = max(counts.width, counts.height)
        canvas = Canvas(96 * counts.width // longer, 96 * counts.height // longer)
        for defect in subject.defects:
            assert drawn(subject, category, canvas, defect).mask.any(), (category, defect)


@pytest.mark.parametrize("name", NEW)
def test_the_tree_of_another_data_set_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    place = tmp_path / datasets.entry(name).folders[0]
    write_tree(place, ("bolt",), train=2, test=1)
    done = command("run", "--method", "pixel_mean", "--dataset", name, "--data-root", tmp_path, "--dry-run")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    plain = "none of its 1 categories (bolt) is one of" in line
    assert plain == (name in ("mpdd", "mvtec_loco", "visa"))
    assert plain or f"no {name} there" in line


@pytest.mark.parametrize("name", NEW)
def test_half_an_archive_is_refused_with_a_line_for_each_kind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = short(name, tmp_path, monkeypatch)
    (found,) = datasets.categories(root.name, tmp_path)
    for sample in found.test:
        for mask in sample.masks[:1]:
            mask.unlink()
    first = next(sample for sample in found.test if sample.label)
    shutil.copy(next(one.path for one in found.train), first.path.with_name("999.png"))  # one whose mask is there
    others = [folder for folder in (root / found.name).rglob("*") if folder.name == first.masks[0].parent.name]
    (others[0] / "x").mkdir(exist_ok=True)
    for _ in range(2):
        done = command("run", "--method", "pixel_mean", "--dataset", root.name, "--data-root", tmp_path, "--dry-run")
        assert done.exit_code == 2
        assert "mask" in done.stderr
        assert len(done.stderr.splitlines()) <= 3
    for sample in found.train:
        sample.path.unlink()
    done = command("run", "--method", "pixel_mean", "--dataset", root.name, "--data-root", tmp_path, "--dry-run")
    assert done.exit_code == 2
    assert "image to learn from" in done.stderr or "4 lines with an image that is not there" in done.stderr


def test_the_tree_of_a_known_data_set_under_another_name_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path / "mvtec_ad", ("candle", "cashew"), train=2, test=1)
    with pytest.raises(DatasetError, match=r"none of its 2 categories \(candle, cashew\) is one of MVTec AD .* VisA\?"):
        datasets.categories("mvtec_ad", tmp_path)
    write_tree(tmp_path / "mvtec_ad", ("bottle",), train=2, test=1)
    assert len(datasets.category_names("mvtec_ad", tmp_path)) == 3


@pytest.mark.parametrize("name", NEW)
def test_masks_of_a_tree_are_no_photographs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = short(name, tmp_path, monkeypatch)
    (found,) = datasets.categories(root.name, tmp_path)
    taken = photographs([str(root)])
    masks = {path for sample in found.test for path in sample.masks}
    assert masks
    assert not masks & set(taken.files)
    assert {sample.path for sample in (*found.train, *found.test)} <= set(taken.files)
    assert sum(one.files for one in taken.unused if one.why == ASIDE) == len(masks)


def test_many_faults_of_one_kind_are_one_line(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "set", ("bolt",), train=2, test=5)
    for index in range(1, 5):
        (root / f"bolt/ground_truth/spot/{index:03}_mask.png").unlink()
    shutil.rmtree(root / "bolt/test/good")
    with pytest.raises(DatasetError) as error:
        datasets.categories(f"folder:{root}", None)
    first, second = error.value.lines
    assert first.endswith("image metrics only (and 3 more like it)")
    assert "001_mask.png" in first
    assert "no normal test image" in second
    done = command("run", "--method", "pixel_mean", "--dataset", f"folder:{root}", "--dry-run")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 2)


# --- VisA -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def visa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a short VisA."""
    return short("visa", tmp_path, monkeypatch)


def edit(visa: Path, change: Callable[[list[str]], list[str]], end: str = "\n", start: str = "") -> None:
    table = visa / "split_csv/1cls.csv"
    lines = table.read_text().splitlines()
    table.write_bytes((start + end.join([lines[0], *change(lines[1:])]) + end).encode())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_line_ends_and_a_mark_at_the_start_of_the_split_make_no_difference(visa: Path, end: str, start: str) -> None:
    (before,) = datasets.categories(f"folder:{visa}", None)
    edit(visa, lambda lines: lines, end, start)
    (after,) = datasets.categories(f"folder:{visa}", None)
    assert (after.train, after.test, after.remarks) == (before.train, before.test, ())


def test_numbers_of_kinds_in_a_mask_are_marks_and_not_shares(visa: Path) -> None:
    (found,) = datasets.categories(f"folder:{visa}", None)
    masks = datasets.load_test(found, SIDE).masks
    assert masks is not None
    assert {int(pixels(one.masks[0]).max()) for one in found.test if one.masks} == {1, 2}
    mask = pixels(found.test[-1].masks[0])
    marked = np.asarray(Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST)) > 0
    assert mask.shape != (SIDE, SIDE)
    assert np.array_equal(masks[-1], marked)
    assert marked.any()


FAULTS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a missing file": (
        lambda lines: [*lines, "synthetic_pcb1,test,normal,synthetic_pcb1/Data/Images/Normal/7777.JPG,"],
        "1 line with an image that is not there (synthetic_pcb1/Data/Images/Normal/7777.JPG)",
    ),
    "missing masks": (
        lambda lines: [line.replace("Masks/Anomaly/0", "Masks/Anomaly/9") for line in lines],
        "2 lines with a mask that is not there",
    ),
    "no mask": (
        lambda lines: [line.rpartition(",")[0] + "," if "/000.JPG" in line else line for line in lines],
        "1 line with an anomalous image without a mask",
    ),
    "a doubled line": (lambda lines: [*lines, lines[0], lines[0]], "2 lines with an image that another line names"),
    "an image in two splits": (
        lambda lines: [*lines, lines[0].replace(",train,", ",test,")], "1 line with an image that another line names",
    ),
    "labels": (lambda lines: [line.replace("normal", "fine") for line in lines], "6 lines with an unknown label ('fi"),
    "splits": (lambda lines: [line.replace("train", "fit") for line in lines], "4 lines with an unknown split ('fit')"),
    "anomalies to learn from": (
        lambda lines: [line.replace("test,anomaly", "train,anomaly") for line in lines],
        "2 lines with an anomalous image outside of the test split",
    ),
    "another object": (lambda lines: [line.replace("synthetic_pcb1,", "pcb9,") for line in lines], "no normal train"),
    "an uneven line": (lambda lines: [*lines, "synthetic_pcb1,test"], "1 line with more or fewer cells than columns"),
    "no image": (
        lambda lines: [*lines, "synthetic_pcb1,test,normal,,"], "1 line with no image (line 9 below the header)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_the_split_is_a_line_with_its_count_and_exit_2(visa: Path, case: str) -> None:
    change, said = FAULTS[case]
    edit(visa, change)
    done = command("run", "--method", "pixel_mean", "--dataset", f"folder:{visa}", "--dry-run")
    assert done.exit_code == 2
    assert sum(said in line for line in done.stderr.splitlines()) == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert any(said in line for line in verify(visa, against="none").categories[0].problems)


def test_equal_files_outside_of_the_folder_of_a_category_are_faults_and_no_traceback(visa: Path) -> None:
    for name in ("a.JPG", "b.JPG"):
        Image.new("RGB", (SIDE, SIDE), (9, 8, 7)).save(visa / name)
    edit(visa, lambda lines: [*lines, *(f"synthetic_pcb1,train,normal,{name}," for name in ("a.JPG", "b.JPG"))])
    report = verify(visa, against="none").categories[0]
    for name in ("a.JPG", "b.JPG"):
        assert any(f"{name}: named for synthetic_pcb1 and not in its folder" in line for line in report.problems)
    assert any(f"b.JPG: the same content as {visa / 'a.JPG'}" in line for line in report.notes), report


def test_several_kinds_of_faults_are_a_line_each(visa: Path) -> None:
    edit(visa, lambda lines: [*lines, lines[0], "synthetic_pcb1,dev,odd,nowhere.JPG,"])
    done = command("run", "--method", "pixel_mean", "--dataset", f"folder:{visa}", "--dry-run")
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    for word in ("not there", "another line", "unknown label ('odd')", "unknown split ('dev')"):
        assert sum(word in line for line in lines) == 1


def test_the_split_is_part_of_the_fingerprint(visa: Path) -> None:
    (before,) = datasets.categories(f"folder:{visa}", None)
    edit(visa, lambda lines: [line.replace("train", "test", 1) if "0001" in line else line for line in lines])
    (after,) = datasets.categories(f"folder:{visa}", None)
    assert sorted(before.files()) == sorted(after.files())
    assert datasets.fingerprint(before) != datasets.fingerprint(after)


def test_a_file_that_the_split_does_not_name_is_told(visa: Path) -> None:
    for part in ("Images/Normal", "Images/Anomaly", "Masks/Anomaly"):
        folder = visa / "synthetic_pcb1/Data" / part
        (folder / "extra.png").write_bytes(next(folder.iterdir()).read_bytes())
    (found,) = datasets.categories(f"folder:{visa}", None)
    assert len(found.remarks) == 3
    assert all("not in split_csv/1cls.csv" in line for line in found.remarks)
    assert sum("extra.png" in line for line in verify(visa).categories[0].problems) == 3


LOST = {  # case -> (what is copied, or nothing for a link, where it goes, how a line names it)
    "beside the images": ("Data/Images/Normal/0000.JPG", "Data/Images/extra.JPG", "extra.JPG"),
    "in another folder of images": ("Data/Images/Normal/0000.JPG", "Data/Images/Normal2/0.JPG", "Normal2"),
    "in a folder of a folder": ("Data/Images/Normal/0000.JPG", "Data/Images/Normal/more/0.JPG", "more"),
    "beside Data": ("Data/Images/Normal/0000.JPG", "0.JPG", "0.JPG"),
    "in a folder beside Data": ("Data/Images/Normal/0000.JPG", "Other/0.JPG", "Other"),
    "a mask of a normal image": ("Data/Masks/Anomaly/000.png", "Data/Masks/Normal/0.png", "Normal"),
    "a link": ("", "Data/Masks/more", "more"),
}


@pytest.mark.parametrize("case", LOST)
def test_a_file_anywhere_in_a_category_that_the_split_does_not_name_is_told(visa: Path, case: str) -> None:
    old, new, name = LOST[case]
    place = visa / "synthetic_pcb1" / new
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(visa / "synthetic_pcb1" / old, place) if old else place.symlink_to("/nowhere")
    (visa / "synthetic_pcb1/image_anno.csv").write_text("image,label\n")  # of the authors; no loss
    (found,) = datasets.categories(f"folder:{visa}", None)
    (remark,) = found.remarks
    (problem,) = verify(visa, against="none").categories[0].problems
    for line in (remark, problem):
        assert name in line
        assert ("not in split_csv/1cls.csv" if old else "links whose target is missing") in line


def test_without_the_split_nothing_is_guessed(visa: Path) -> None:
    shutil.rmtree(visa / "split_csv")
    with pytest.raises(DatasetError, match=r"1cls\.csv: no such table"):
        datasets.categories(f"folder:{visa}", None)


def test_a_second_category_joins_the_table(visa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (visa / "split_csv/1cls.csv").read_text().splitlines()
    short("visa", visa.parent, monkeypatch, "candle")
    after = (visa / "split_csv/1cls.csv").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == 2 * len(before) - 1
    assert [one.name for one in datasets.categories(visa.name, visa.parent)] == ["synthetic_candle", "synthetic_pcb1"]


def test_the_converted_copy_is_recognised(tmp_path: Path) -> None:
    write_tree(tmp_path / "VisA_pytorch/1cls", ("candle", "pcb1"), train=2, test=1)
    assert datasets.find(tmp_path) == ["visa"]
    assert datasets.category_names("visa", tmp_path) == ["candle", "pcb1"]
    assert count(tmp_path / "VisA_pytorch/1cls").compared_with == "visa"


# --- BTAD -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("category", "image", "mask"), [("01", ".bmp", ".png"), ("02", ".png", ".png"), ("03", ".bmp", ".bmp")]
)
def test_each_category_of_btad_has_its_own_kinds_of_files(
    category: str, image: str, mask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = short("btad", tmp_path, monkeypatch, category)
    (found,) = datasets.categories(root.name, tmp_path)
    assert {one.path.suffix for one in (*found.train, *found.test)} == {image}
    assert {path.suffix for one in found.test for path in one.masks} == {mask}
    assert {one.defect for one in found.test} == {"good", "ko"}
    masks = datasets.load_test(found, SIDE).masks
    assert masks is not None
    assert masks.any(axis=(1, 2)).tolist() == [one.label for one in found.test]


# --- MVTec AD 2 -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ad2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a short MVTec AD 2."""
    return short("mvtec_ad_2", tmp_path, monkeypatch)


def test_private_images_are_told_and_neither_evaluated_nor_a_fault(ad2: Path) -> None:
    (found,) = datasets.categories(f"folder:{ad2}", None)
    assert not any("private" in path.relative_to(found.root).as_posix() for path in found.files())
    assert [line.partition(": ")[2] for line in found.remarks] == [
        "2 files not used (000_regular.png, 001_regular.png): their labels are not published; not evaluated",
        "2 files not used (000_mixed.png, 001_mixed.png): their labels are not published; not evaluated",
    ]
    report = verify(ad2)
    assert report.sound
    assert report.categories[0].unlabelled == 4
    (ad2 / "synthetic_sheet_metal/test_private/000_regular.png").unlink()
    assert "unlabelled 3 and not 4" in verify(ad2).categories[0].problems[0]


def test_one_scene_in_several_lights_is_several_images_with_a_mask_each(ad2: Path) -> None:
    category = ad2 / "synthetic_sheet_metal"
    for light in ("overexposed", "shift_2"):
        for place, end in (("bad", ".png"), ("ground_truth/bad", "_mask.png")):
            folder = category / "test_public" / place
            shutil.copy(folder / f"000_regular{end}", folder / f"000_{light}{end}")
    (found,) = datasets.categories(f"folder:{ad2}", None)
    bad = {one.path.name: one.masks[0].name for one in found.test if one.label}
    assert bad == {f"{stem}.png": f"{stem}_mask.png" for stem in
                   ("000_overexposed", "000_regular", "000_shift_2", "001_overexposed")}  # fmt: skip
    (category / "test_public/ground_truth/bad/000_shift_2_mask.png").unlink()
    with pytest.raises(
        DatasetError, match=r"test_public/ground_truth/bad/000_shift_2_mask\.png: the mask of test_publ"
    ):
        datasets.categories(f"folder:{ad2}", None)


def test_the_validation_images_of_ad2_are_held_out(ad2: Path) -> None:
    (found,) = datasets.categories(f"folder:{ad2}", None)
    normals = datasets.load_normals(found, SIDE)
    assert (normals.source, len(normals.fit), len(normals.held_out)) == ("validation", 4, 2)


def test_totals_are_compared_where_the_numbers_of_categories_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = short("mvtec_ad_2", tmp_path, monkeypatch)
    monkeypatch.undo()
    report = count(root)
    assert any("can, fabric" in line for line in report.notes)
    assert not any("together" in line for line in report.problems)
    for name in datasets.entry("mvtec_ad_2").published:
        if name != "sheet_metal":
            shutil.copytree(root / "synthetic_sheet_metal", root / f"synthetic_{name}")
    (line,) = count(root).problems
    assert "together differ from the published numbers: train 32 and not 2528" in line


# --- MPDD, licences and sources ---------------------------------------------------------------------------------------


def test_renamed_kinds_of_defects_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = short("mpdd", tmp_path, monkeypatch)
    category = root / "synthetic_metal_plate"
    for part in ("test", "ground_truth"):
        (category / part / "defect").mkdir()
        for number, kind in enumerate(("major_rust", "scratches", "total_rust")):
            for path in (category / part / kind).iterdir():
                path.rename(category / part / "defect" / f"{number}{path.name}")
            (category / part / kind).rmdir()
    report = verify(root)
    assert report.sound
    assert report.categories[0].notes == [
        "synthetic_metal_plate: differs from the published numbers: types 1 and not 3"
    ]


def test_mpdd_has_a_page_and_no_archive(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"take it from https://github\.com/stepanje/MPDD"):
        source_of("mpdd")
    done = command("data", "fetch", "mpdd", "--out", tmp_path, "--accept-license")
    assert done.exit_code == 2
    assert "unpack it as mpdd/" in done.stderr
    assert list(tmp_path.iterdir()) == []


LICENCES = {"visa": "CC BY 4.0", "btad": "CC BY-SA 4.0", "mpdd": "CC BY-NC-SA 4.0", "mvtec_ad_2": "CC BY-NC-SA 4.0",
            "mvtec_loco": "CC BY-NC-SA 4.0"}  # fmt: skip


@pytest.mark.parametrize("name", NEW)
def test_the_licence_is_the_authors(name: str) -> None:
    one = datasets.entry(name)
    assert one.licence == LICENCES[name]
    assert one.terms.startswith(one.licence)
    assert ("no commercial use" in one.terms) == (name.startswith("mvtec"))
    assert ("commercial use is not excluded" in one.terms) == (name in ("visa", "btad"))
    page = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    assert line.endswith(f"| {one.licence} |")
