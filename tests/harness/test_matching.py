"""Offered maps and scores: what a path says, and what is missing, doubled or misnamed."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdad_bench.datasets import Category, Sample
from kdad_bench.harness.matching import Matching, match
from kdad_bench.harness.offers import Key, OfferError, key_of, of_scores, offers, slashed

KNOWN = ("bolt", "cloth")
IMAGES = ("good/000.png", "good/001.png", "spot/000.png", "spot/001.png")


def category(name: str = "bolt", images: tuple[str, ...] = IMAGES) -> Category:
    root = Path("/data") / name
    test = tuple(Sample(path=root / "test" / image, defect=image.partition("/")[0]) for image in images)
    return Category(dataset="mvtec_ad", name=name, root=root, train=(), test=test)


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def matched(place: Path, *chosen: Category, scores: Path | None = None) -> Matching:
    given = tuple(of_scores(scores, KNOWN)) if scores else ()
    return match(offers(place, KNOWN).found, given, chosen or (category(),), KNOWN)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("000.tiff", Key("", "", "000.tiff")),
        ("spot/000.tiff", Key("", "spot", "000.tiff")),
        ("test/spot/000.tiff", Key("", "spot", "000.tiff")),
        ("bolt/spot/000.tiff", Key("bolt", "spot", "000.tiff")),
        ("bolt/000.tiff", Key("bolt", "", "000.tiff")),
        ("bolt/test/spot/000.tiff", Key("bolt", "spot", "000.tiff")),
        ("mvtec_ad/bolt/test/spot/000.tiff", Key("bolt", "spot", "000.tiff")),
        ("bolt/test/spot/rgb/000.tiff", Key("bolt", "spot", "000.tiff")),
        ("anomaly_images/bolt/test_public/bad/000.tiff", Key("bolt", "bad", "000.tiff")),
        ("anomaly_images/bolt/test_public/000.tiff", Key("bolt", "", "000.tiff")),
        ("bolt\\test\\spot\\000.tiff", Key("bolt", "spot", "000.tiff")),
        ("/data/mvtec/bolt/test/spot/000.png", Key("bolt", "spot", "000.png")),
        ("bolr/test/spot/000.tiff", Key("bolr", "spot", "000.tiff")),
        ("runs/spot/000.tiff", Key("", "spot", "000.tiff")),
        ("u\u0308/e.tiff", Key("", "\u00fc", "e.tiff")),
        ("", Key("", "", "")),
        ("bolt/anomaly_maps/spot/000.tiff", Key("bolt", "spot", "000.tiff")),
        ("cloth/bolt/a/b/spot/000.tiff", Key("bolt", "spot", "000.tiff")),
        ("bolt/train/good/000.png", Key("bolt", "good", "000.png", "train")),
        ("validation/good/000.png", Key("", "good", "000.png", "validation")),
        ("bolt/maps/train/good/rgb/000.png", Key("bolt", "good", "000.png", "train")),
        ("bolt/ground_truth/spot/000.png", Key("bolt", "spot", "000.png", "ground_truth")),
        ("train/bolt/test/good/000.png", Key("bolt", "good", "000.png")),
        ("train/bolt/good/000.png", Key("bolt", "good", "000.png")),
        ("train/000.png", Key("", "train", "000.png")),
    ],
)
def test_a_path_says_which_image_a_map_belongs_to(text: str, key: Key) -> None:
    assert key_of(slashed(text), KNOWN) == key


def test_a_category_may_be_called_as_the_folder_of_a_split() -> None:
    assert key_of("train/good/000.png", ("train",)) == Key("train", "good", "000.png")
    assert key_of("train/train/good/000.png", ("train",)) == Key("train", "good", "000.png", "train")


@pytest.mark.parametrize("folder", ["train", "validation", "ground_truth"])
@pytest.mark.parametrize("kind", ["tree", "its folder", "index"])
def test_an_image_of_another_split_is_no_test_image_of_its_name(kind: str, folder: str, tmp_path: Path) -> None:
    names = [f"bolt/{folder}/good/{number:03}.png" for number in range(2)]
    names += ["bolt/test/spot/000.png", "bolt/test/spot/001.png"]
    tree(tmp_path / "maps", *(names if kind != "its folder" else names[:2]))
    (tmp_path / "i.csv").write_text("image,map\n" + "\n".join(f"{name},maps/{name}" for name in names))
    place = {"tree": "maps", "its folder": f"maps/bolt/{folder}", "index": "i.csv"}[kind]
    found = matched(tmp_path / place)
    missing = [f"mvtec_ad/bolt: no map of good/{number:03}.png" for number in range(2)]
    assert found.faults == (missing if kind != "its folder" else ["mvtec_ad/bolt: no map for any of its 4 test images"])
    (remark,) = found.remarks
    assert remark.startswith("mvtec_ad/bolt: 2 maps or scores in folders that hold no test images (train, validation,")


def test_a_table_may_take_its_test_images_from_such_a_folder(tmp_path: Path) -> None:
    root = Path("/train/bolt")
    test = tuple(Sample(path=root / "train" / image, defect=image.partition("/")[0]) for image in IMAGES)
    one = Category(dataset="tabular:/train/bolt.csv", name="bolt", root=root, train=(), test=test)
    found = matched(tree(tmp_path / "a", *(f"train/{image}" for image in IMAGES)), one)
    assert (found.faults, found.remarks) == ([], [])
    found = matched(tree(tmp_path / "b", *(f"validation/{image}" for image in IMAGES)), one)
    assert (len(found.faults), found.categories[0].apart) == (1, 4)


def test_a_table_may_lie_below_such_a_folder(tmp_path: Path) -> None:
    """Its folder is the root, so that no path below it says what those of the maps do."""
    root = Path("/data/validation")
    test = tuple(Sample(path=root / image, defect=image.partition("/")[0]) for image in IMAGES)
    one = Category(dataset="tabular:/data/validation/t.csv", name="t", root=root, train=(), test=test, by_table=True)
    found = matched(tree(tmp_path / "validation", *IMAGES), one)
    assert (found.faults, found.remarks) == ([], [])


@pytest.mark.parametrize("place", ["", "cloth", "cloth/anomaly_maps"])
def test_maps_of_a_category_that_was_not_chosen_are_not_those_of_the_one_that_was(place: str, tmp_path: Path) -> None:
    tree(tmp_path, *(f"cloth/anomaly_maps/{image}" for image in IMAGES))
    found = matched(tmp_path / place)
    if place == "cloth/anomaly_maps":  # nothing of what is given says so
        assert found.faults == []
        return
    assert found.faults == ["mvtec_ad/bolt: no map for any of its 4 test images"]
    assert found.remarks == ["4 maps or scores of categories that were not chosen"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_category_is_found_in_any_unicode_form_of_its_name(form: Literal["NFC", "NFD"], tmp_path: Path) -> None:
    apart, said = unicodedata.normalize("NFD", "K\u00e4fer"), unicodedata.normalize(form, "K\u00e4fer")
    tree(tmp_path / "maps", *(f"{said}/test/{image}" for image in IMAGES))
    lines = "\n".join(f"{image},maps/{said}/test/{image},{said}" for image in IMAGES)
    (tmp_path / "i.csv").write_text(f"image,map,category\n{lines}", encoding="utf-8")
    for place in ("maps", "i.csv"):
        found = match(offers(tmp_path / place, (apart,)).found, (), (category(apart),), (apart,))
        assert found.faults == []


LAYOUTS = ("{image}", "test/{image}", "bolt/{image}", "bolt/test/{image}", "anomaly_images/bolt/test_public/{image}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".tiff", ".TIF", ".npy", ".npz", ".png", ".png.tiff"])
def test_every_mirror_of_the_tree_matches_whole(layout: str, suffix: str, tmp_path: Path) -> None:
    tree(tmp_path, *(layout.format(image=image).removesuffix(".png") + suffix for image in IMAGES))
    found = matched(tmp_path)
    assert found.faults == []
    (one,) = found.categories
    assert [one.maps[number].key.defect for number in range(4)] == ["good", "good", "spot", "spot"]


def test_stems_that_only_one_image_has_need_no_folder(tmp_path: Path) -> None:
    tree(tmp_path, "bolt/test_public/a.tiff", "bolt/test_public/b.tiff")
    assert matched(tmp_path, category(images=("good/a.png", "spot/b.png"))).faults == []


FULL = tuple(f"test/{image.removesuffix('.png')}.npy" for image in IMAGES)
FAULTY = {
    "missing": (FULL[1:], ["mvtec_ad/bolt: no map of good/000.png"]),
    "doubled": (
        (*FULL, "test/good/000.tiff"),
        ["{root}/test/good/000.tiff: a second map of mvtec_ad/bolt good/000.png, after {root}/test/good/000.npy"],
    ),
    "misnamed": (
        (*FULL, "test/good/002.npy"),
        ["{root}/test/good/002.npy: no test image 'good/002.npy' in mvtec_ad/bolt (did you mean 'good/001.png'?)"],
    ),
    "another defect": ((*FULL, "test/scratch/000.npy"), ["no test image 'scratch/000.npy' in mvtec_ad/bolt"]),
    "another category": (
        (*FULL, "bolr/test/good/000.npy"),
        ["{root}/bolr/test/good/000.npy: no category 'bolr' (did you mean 'bolt'?); have: bolt, cloth"],
    ),
    "which image": (
        (*FULL[1:], "000.npy"),
        ["{root}/000.npy: may belong to 2 images of mvtec_ad/bolt (good/000.png, spot/000.png)", "no map of good/000"],
    ),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_each_fault_of_a_tree_is_one_line(fault: str, tmp_path: Path) -> None:
    names, lines = FAULTY[fault]
    found = matched(tree(tmp_path, *names)).faults
    assert len(found) == len(lines), found
    for said, wanted in zip(found, lines, strict=True):
        assert wanted.format(root=tmp_path) in said


def test_two_images_of_one_stem_need_their_whole_names(tmp_path: Path) -> None:
    twins = category(images=("good/000.png", "good/000.jpg"))
    tree(tmp_path / "a", "good/000.npy")
    assert "may belong to 2 images" in matched(tmp_path / "a", twins).faults[0]
    tree(tmp_path / "b", "good/000.png.npy", "good/000.jpg.npy")
    assert matched(tmp_path / "b", twins).faults == []


APART = ("good/a/image.png", "good/b/image.png", "spot/a/image.png", "spot/test/c/image.png")


def by_table() -> Category:
    """Images of one name in folders of their own, as a table may name them: `spot` images lie below `x/`."""
    root = Path("/data/bolt")
    test = tuple(Sample(path=root / "x" / image, defect=image.partition("/")[0]) for image in APART)
    return Category(dataset="tabular:/data/bolt.csv", name="bolt", root=root, train=(), test=test)


@pytest.mark.parametrize("above", ["good/x/", "x/", "runs/7/x/"])
def test_images_of_one_name_are_known_by_their_paths(above: str, tmp_path: Path) -> None:
    names = [f"{above}{image}".replace("good/x/spot", "spot/x/spot") for image in APART]
    tree(tmp_path / "maps", *(name.removesuffix(".png") + ".npy" for name in names))
    np.savez(tmp_path / "all.npz", maps=np.zeros((4, 2, 2)), names=np.array(names[::-1]), scores=np.arange(4.0)[::-1])
    (tmp_path / "i.csv").write_text(
        "image,map\n" + "\n".join(f"{name},{number}.npy" for number, name in enumerate(names))
    )
    for place in ("maps", "all.npz", "i.csv"):
        found = matched(tmp_path / place, by_table(), category("cloth", ("hole/9.png",)))
        (one, _) = found.categories
        assert (found.problems, one.problems, len(one.maps)) == ((), [], 4)
        if place == "maps":
            said = [one.maps[number].where for number in range(4)]
            assert all(image.removesuffix(".png") in where for image, where in zip(APART, said, strict=True))
        if place == "all.npz":
            assert [one.maps[number].score for number in range(4)] == [0, 1, 2, 3]
        if place == "i.csv":
            assert [str(one.maps[number].file)[-5:] for number in range(4)] == ["0.npy", "1.npy", "2.npy", "3.npy"]


def test_a_path_of_no_image_is_not_taken_for_another_of_its_name(tmp_path: Path) -> None:
    tree(tmp_path, "x/good/a/image.npy", "x/good/nowhere/image.npy", "image.npy")
    found = matched(tmp_path, by_table())
    assert len(found.categories[0].maps) == 1
    assert "nowhere/image.npy: no test image 'x/good/nowhere/image.npy' in" in "\n".join(found.faults)
    assert f"{tmp_path}/image.npy: may belong to 4 images of" in "\n".join(found.faults)
    assert "no map of good/x/good/b/image.png" in "\n".join(found.faults)


def test_maps_of_a_category_that_was_not_chosen_are_counted_and_no_fault(tmp_path: Path) -> None:
    tree(tmp_path, *(f"bolt/{name}" for name in FULL), "cloth/test/good/000.npy")
    found = matched(tmp_path)
    assert (found.faults, found.unused) == ([], 1)


def test_several_categories_need_a_category_in_the_path(tmp_path: Path) -> None:
    found = matched(tree(tmp_path, *FULL), category("bolt"), category("cloth"))
    assert sum("says no category" in line for line in found.faults) == 4
    assert "mvtec_ad/cloth: no map for any of its 4 test images" in found.faults


def test_maps_of_images_without_labels_are_counted_and_no_fault(tmp_path: Path) -> None:
    private = ("test_private/000_regular.png", "test_private_mixed/000_mixed.png")
    one = replace(category(), unlabelled=tuple(Path("/data/bolt") / name for name in private))
    names = [f"anomaly_images/bolt/{name.removesuffix('.png')}.tiff" for name in private]
    everything = [f"anomaly_images/bolt/test_public/{image.removesuffix('.png')}.tiff" for image in IMAGES]
    found = matched(tree(tmp_path / "all", *names, *everything), one)
    assert (found.faults, found.categories[0].unlabelled) == ([], 2)
    found = matched(tree(tmp_path / "private", *names), one)
    assert found.faults == ["mvtec_ad/bolt: no map for any of its 4 test images"]
    assert found.remarks == ["mvtec_ad/bolt: 2 maps or scores of images whose labels are not published, not used"]
    found = matched(tree(tmp_path / "all", "anomaly_images/bolt/test_private/777_regular.tiff"), one)
    assert "no test image 'test_private/777_regular.tiff'" in found.faults[0]


def test_a_file_is_the_map_of_one_image(tmp_path: Path) -> None:
    lines = ["image,map", *(f"{image},{number // 2}.npy" for number, image in enumerate(IMAGES))]
    (tmp_path / "index.csv").write_text("\n".join(lines))
    first, second = matched(tmp_path / "index.csv").faults
    assert first == (
        f"{tmp_path}/index.csv, line 3: {tmp_path}/0.npy is the map of mvtec_ad/bolt good/001.png and of mvtec_ad/bolt "
        "good/000.png; each image has its own"
    )
    assert "1.npy is the map of mvtec_ad/bolt spot/001.png and of" in second


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_file_of_several_names_is_the_map_of_one_image(link: Callable[[Path, Path], None], tmp_path: Path) -> None:
    tree(tmp_path, *FULL[:3])
    link(tmp_path / FULL[0], tmp_path / FULL[3])
    (line,) = matched(tmp_path).faults
    assert f"{FULL[3]} is the map of mvtec_ad/bolt spot/001.png and of mvtec_ad/bolt good/000.png" in line


def test_what_is_no_map_or_hidden_or_a_decision_is_left_out_and_said(tmp_path: Path) -> None:
    tree(
        tmp_path, *FULL, "notes.txt", ".DS_Store", ".cache/000.npy", "anomaly_images_thresholded/bolt/test/good/000.png"
    )
    found = offers(tmp_path, KNOWN)
    assert len(found.found) == 4
    assert found.remarks == (
        "not used: 1 file, no maps (.txt)",
        "not used: 1 map in anomaly_images_thresholded/, decisions",
    )


def index(path: Path, lines: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(lines), path)
    else:
        columns = list(lines[0])
        path.write_text("\n".join([",".join(columns), *(",".join(str(line[c]) for c in columns) for line in lines)]))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_index_gives_maps_and_scores(suffix: str, tmp_path: Path) -> None:
    lines = [{"image": f"test/{one}", "map": f"{n}.npy", "score": n / 2, "more": "x"} for n, one in enumerate(IMAGES)]
    (one,) = matched(index(tmp_path / f"index{suffix}", lines)).categories
    assert one.problems == []
    assert one.maps[3].file == tmp_path / "3.npy"
    assert [one.scores[number].score for number in range(4)] == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize("names", [IMAGES, tuple(name.removesuffix(".png") for name in IMAGES)])
def test_scores_come_from_a_table_of_their_own(names: tuple[str, ...], tmp_path: Path) -> None:
    tree(tmp_path / "maps", *FULL)
    scores = index(tmp_path / "scores.csv", [{"image": name, "score": 0.5} for name in names])
    assert matched(tmp_path / "maps", scores=scores).faults == []
    scores = index(tmp_path / "scores.csv", [{"image": name, "score": 0.5} for name in (*names[1:], names[1])])
    found = matched(tmp_path / "maps", scores=scores).faults
    assert len(found) == 2
    assert "line 5: a second score of mvtec_ad/bolt good/001.png" in found[0]
    assert found[1] == "mvtec_ad/bolt: no score of good/000.png"


def parquet(columns: dict[str, list[object]]) -> bytes:
    """The bytes of a Parquet file."""
    return parquet_of(pa.table(columns))


def parquet_twice() -> bytes:
    arrays = [pa.array([text]) for text in ("good/000.png", "a.npy", "b.npy")]
    return parquet_of(pa.Table.from_arrays(arrays, names=["image", "map", "map"]))


def parquet_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def test_an_index_of_windows_names_the_same_files(tmp_path: Path) -> None:
    tree(tmp_path / "maps", *FULL)
    lines = [
        {"image": name.replace("/", "\\"), "map": f"maps/{FULL[n]}".replace("/", "\\")} for n, name in enumerate(IMAGES)
    ]
    found = matched(index(tmp_path / "index.csv", lines))
    assert found.faults == []
    assert found.categories[0].maps[3].file == tmp_path / "maps" / FULL[3]


TABLES: dict[str, tuple[str, bytes, str]] = {
    "no column": ("a.csv", b"picture,map\na,b\n", "no column image; have: picture, map"),
    "no line": ("a.csv", b"image,map\n", "holds no line"),
    "nothing": ("a.csv", b"", "the file is empty"),
    "no map": ("a.csv", b"image,map\ngood/000.png,\n", "line 2: no map named"),
    "no number": ("a.csv", b"image,map,score\ngood/000.png,a.npy,high\n", "score 'high' is no number"),
    "no UTF-8": ("a.csv", b"image,map\n\xff\xfe,b\n", "no CSV in UTF-8"),
    "an open quote": ("a.csv", b'image,map\n"a,b\n', "no CSV in UTF-8"),
    "more fields than columns": (
        "a.csv",
        b"image,map\ngood/000.png,a.npy\ngood/1,5.png,b.npy\n",
        "line 3 has more fields than the 2 columns",
    ),
    "a column twice": ("a.csv", b"image,map, map\ngood/000.png,a.npy,b.npy\n", "2 columns are called map; keep one"),
    "no Parquet": ("a.parquet", b"image,map\n", "no Parquet file"),
    "lists for text": (
        "a.parquet",
        parquet({"image": [["good/000.png"]], "map": ["a.npy"]}),
        "column image holds list<",
    ),
    "bytes for text": (
        "a.parquet",
        parquet({"image": ["good/000.png"], "map": [b"a.npy"]}),
        "column map holds binary; give text",
    ),
    "a column of Parquet twice": ("a.parquet", parquet_twice(), "2 columns are called map; keep one"),
    "another suffix": ("a.txt", b"image,map\n", "neither a folder of maps"),
    "no stack": ("a.npz", b"nothing", "is not readable"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_cannot_be_used_is_one_line(case: str, tmp_path: Path) -> None:
    name, content, words = TABLES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OfferError) as caught:
        matched(tmp_path / name)
    assert words in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_place_without_maps_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OfferError, match="no map there; maps end in"):
        offers(tmp_path, KNOWN)
    with pytest.raises(OfferError, match="no such file or folder"):
        offers(tmp_path / "nowhere", KNOWN)
    np.savez(tmp_path / "one.npz", only=np.zeros((2, 2)))
    with pytest.raises(OfferError, match="needs the arrays `maps`"):
        offers(tmp_path / "one.npz", KNOWN)
