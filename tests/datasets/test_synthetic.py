"""The drawn data sets: the same bytes everywhere, exact masks, defects that can be seen, and published sizes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from kdad_bench import datasets
from kdad_bench.datasets import entries, mvtec_loco, rehearsal, stand_in, synthetic_2d, synthetic_3d, visa
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.synthetic import drawing
from kdad_bench.datasets.synthetic import embedded as synthetic
from kdad_bench.datasets.synthetic.drawing import Canvas, Stream
from kdad_bench.datasets.synthetic.encoding import png, tiff
from kdad_bench.datasets.synthetic.solids import Solid
from kdad_bench.datasets.synthetic.subjects import Stone, Wood
from kdad_bench.datasets.verify import verify
from tests.datasets.short import short

EMBEDDED = {one.name: one for one in (synthetic_2d.DRAWN, synthetic_3d.DRAWN, rehearsal.DRAWN)}
EVERY = [(dataset, name) for dataset, one in EMBEDDED.items() for name in one.subjects]
STAND_INS = datasets.entries(lambda one: one.subjects)
SMALL = Canvas(96, 96)


def test_random_words_are_those_of_philox() -> None:
    assert [int(word) for word in Stream("a").words(2)] == [3032838489708147381, 5340701529479776103]
    assert Stream("a").between(0, 1) == Stream("a").between(0, 1) != Stream("b").between(0, 1)


def test_the_sine_polynomial_is_the_sine() -> None:
    t = np.linspace(-3, 3, 2001)
    assert np.abs(drawing.turn(t) - np.sin(2 * np.pi * t)).max() < 1e-7


def test_grain_has_mean_zero_and_variance_one() -> None:
    grain = Stream("grain").grain(200, 301)
    assert abs(float(grain.mean())) < 0.02
    assert abs(float(grain.std()) - 1) < 0.01


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (5, 7, 3), (300, 301, 3)])
@pytest.mark.parametrize("compress", [False, True])
def test_png_files_hold_the_pixels(tmp_path: Path, shape: tuple[int, ...], compress: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "image.png"
    path.write_bytes(png(pixels, compress=compress))
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_tiff_files_hold_the_points(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(7, 9, 3)).astype(np.float32)
    path = tmp_path / "points.tiff"
    path.write_bytes(tiff(points))
    assert np.array_equal(tifffile.imread(path), points)


@pytest.mark.parametrize("dataset", list(EMBEDDED))
def test_the_embedded_data_sets_have_their_known_bytes(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))  # a tree that was drawn before says nothing of what is drawn now
    found = datasets.categories(dataset, None)
    assert [category.name for category in found] == sorted(EMBEDDED[dataset].subjects)
    assert set(EMBEDDED[dataset].sha256) == set(EMBEDDED[dataset].subjects)
    for category in found:
        assert category.synthetic
        assert synthetic.tree_hash(category.root) == EMBEDDED[dataset].sha256[category.name]
        assert len(category.train) == 40
        assert sum(not sample.label for sample in category.test) == 12
        assert len({sample.defect for sample in category.test}) >= 4


DRAW = """
import hashlib
from kdad_bench.datasets import synthetic_2d, synthetic_3d
from kdad_bench.datasets.synthetic import embedded as synthetic
from kdad_bench.datasets.synthetic.drawing import Canvas
digest = hashlib.sha256()
for dataset in (synthetic_2d.DRAWN, synthetic_3d.DRAWN):
    for name, subject in dataset.subjects.items():
        for defect in (None, *subject.defects):
            image, mask, points = synthetic.drawn(subject, f"{name}/{defect}", Canvas(96, 96), defect)
            digest.update(image.tobytes() + mask.tobytes() + (b"" if points is None else points.tobytes()))
print(digest.hexdigest())
"""


def test_vector_instructions_do_not_change_a_bit() -> None:
    disabled = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
    answers = set()
    for extra in ({}, {"NPY_DISABLE_CPU_FEATURES": disabled}):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", DRAW],
            env={**os.environ, **extra}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        answers.add(done.stdout)
    assert len(answers) == 1
    assert len(answers.pop()) == 65


def lose(root: Path) -> None:
    (root / "train/good/000.png").unlink()


def change(root: Path) -> None:
    (root / "test/good/000.png").write_bytes((root / "train/good/001.png").read_bytes())


def tear(root: Path) -> None:
    path = root / "ground_truth/knot/000_mask.png"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [lose, change, tear])
def test_what_was_drawn_is_drawn_again_where_it_was_damaged(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cleaner of old files takes some of them: what was left ran under the name of the whole."""
    small = {"TRAIN": 2, "TEST_GOOD": 1, "PER_DEFECT": 1, "SIZE": 64}
    for name, value in small.items():
        monkeypatch.setattr(synthetic, name, value)
    synthetic.Embedded(name="small", subjects={"plank": Wood()}, sha256={}).generate(tmp_path / "first")
    known = synthetic.tree_hash(tmp_path / "first/plank")
    made = synthetic.Embedded(name="small", subjects={"plank": Wood()}, sha256={"plank": known})
    made.generate(tmp_path)
    (tmp_path / "plank/.DS_Store").touch()  # hidden: no damage
    before = (tmp_path / "plank").stat().st_ino
    made.generate(tmp_path)
    assert (tmp_path / "plank").stat().st_ino == before
    damage(tmp_path / "plank")
    made.generate(tmp_path)
    assert synthetic.tree_hash(tmp_path / "plank") == known
    assert {path.name for path in tmp_path.iterdir()} <= {"first", "plank", synthetic.MARKER, ".plank.lock"}


def test_what_was_drawn_is_never_called_real(tmp_path: Path) -> None:
    """By whatever path or table it is named."""
    (gear,) = datasets.categories("synthetic", None, ["gear"])
    table = tmp_path / "parts.csv"
    good, bad = (next(one for one in gear.test if one.label is label) for label in (False, True))
    chosen = [("train", gear.train[0]), ("test", good), ("test", bad)]
    lines = [f"{one.path},{split},{'anomaly' if one.label else 'good'}" for split, one in chosen]
    table.write_text("\n".join(["image,split,label", *lines]))
    for name in (f"folder:{gear.root}", f"folder:{gear.root.parent}", f"tabular:{table}"):
        assert all(one.synthetic for one in datasets.categories(name, None)), name


def test_other_bytes_than_the_known_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "TRAIN", 2)
    with pytest.raises(DatasetError, match="arithmetic of this machine differs"):
        synthetic_2d.DRAWN.generate(tmp_path, ["plank"])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(("dataset", "name"), EVERY)
def test_defects_change_the_image_inside_their_mask_and_hardly_outside(dataset: str, name: str) -> None:
    subject = EMBEDDED[dataset].subjects[name]
    for defect in subject.defects:
        for index in range(2):
            title = f"test/{name}/{defect}/{index}"
            with_defect = synthetic.drawn(subject, title, SMALL, defect)
            without = synthetic.drawn(subject, title, SMALL, None)
            assert not without.mask.any()
            change = np.abs(with_defect.image.astype(int) - without.image.astype(int)).max(axis=2)
            if with_defect.points is not None and without.points is not None:
                deeper = np.abs(with_defect.points[:, :, 2] - without.points[:, :, 2]) > 0.0005
                change = np.maximum(change, np.where(deeper, 60, 0))
            inside, outside = change[with_defect.mask], change[~with_defect.mask]
            assert np.percentile(inside, 90) >= 12, (defect, index)
            assert (inside > 8).mean() > 10 * (outside > 8).mean(), (defect, index)


def test_two_normal_images_differ_as_photographs_do() -> None:
    for dataset, name in EVERY:
        subject = EMBEDDED[dataset].subjects[name]
        first, second = (synthetic.drawn(subject, f"{name}/{index}", SMALL, None).image.astype(int) for index in (0, 1))
        assert 2 < np.abs(first - second).mean() < 60


@pytest.mark.parametrize("dataset", ["mvtec_ad", "mvtec_3d_ad"])
def test_the_published_tables_add_up(dataset: str) -> None:
    table = datasets.entry(dataset).published.values()
    sums = [sum(getattr(one, key) for one in table) for key in ("train", "validation", "test_good", "test_anomalous")]
    assert sums == ([3629, 0, 467, 1258] if dataset == "mvtec_ad" else [2656, 294, 249, 948])
    assert stand_in.image_count(dataset) == sum(sums)
    if dataset == "mvtec_ad":
        assert sum(len(one.types) for one in table) == 73


@pytest.mark.parametrize("like", ["mvtec_ad", "mvtec_3d_ad"])
def test_stand_ins_plan_the_published_numbers_for_every_category(like: str) -> None:
    assert set(STAND_INS[like].subjects) == set(STAND_INS[like].published)
    for name, counts in STAND_INS[like].published.items():
        planned = stand_in.splits(counts, STAND_INS[like].subjects[name])
        by_split = {(one.split, one.kind == "good"): 0 for one in planned}
        for one in planned:
            by_split[one.split, one.kind == "good"] += one.count
            assert one.count > 0
        assert by_split["train", True] == counts.train
        assert by_split["test", True] == counts.test_good
        assert by_split["test", False] == counts.test_anomalous
        assert by_split.get(("validation", True), 0) == counts.validation
        assert tuple(one.kind for one in planned if one.split == "test" and one.kind != "good") == counts.types


@pytest.mark.parametrize("like", ["mvtec_ad", "mvtec_3d_ad"])
def test_every_subject_of_a_stand_in_can_be_drawn(like: str) -> None:
    for name, subject in STAND_INS[like].subjects.items():
        counts = STAND_INS[like].published[name]
        longer = max(counts.width, counts.height)
        canvas = Canvas(80 * counts.width // longer, 80 * counts.height // longer)
        for defect in subject.defects:
            image, mask, points = synthetic.drawn(subject, f"{name}/{defect}", canvas, defect)
            assert image.shape == (canvas.height, canvas.width, 3)
            assert 0.0005 < mask.mean() < 0.35, (name, defect)
            assert (points is not None) == isinstance(subject, Solid)


def test_a_stand_in_is_written_marked_and_read_back(tmp_path: Path) -> None:
    drawn = []
    root = stand_in.generate("mvtec_ad", tmp_path, ["toothbrush"], size=64, done=lambda: drawn.append(1))
    counts = STAND_INS["mvtec_ad"].published["toothbrush"]
    assert len(drawn) == counts.train + counts.test_good + counts.test_anomalous
    assert root.name == "synthetic_mvtec_ad"
    assert datasets.find(tmp_path) == ["synthetic_mvtec_ad"]
    (category,) = datasets.categories("synthetic_mvtec_ad", tmp_path)
    assert (category.name, category.synthetic) == ("synthetic_toothbrush", True)
    assert (len(category.train), len(category.test)) == (60, 42)
    with Image.open(category.train[0].path) as image:
        assert image.size == (64, 64)
    assert stand_in.generate("mvtec_ad", tmp_path, ["toothbrush"], size=64) == root  # nothing to do
    with pytest.raises(DatasetError, match="another stand-in"):
        stand_in.generate("mvtec_ad", tmp_path, ["toothbrush"], size=65)


def test_the_draft_of_a_killed_stand_in_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "synthetic_visa"
    (root / ".pcb1.mefiqclh.tmp/pcb1").mkdir(parents=True)
    short("visa", tmp_path, monkeypatch)
    assert [path.name for path in root.iterdir() if path.name.endswith(".tmp")] == []
    assert (root / "synthetic_pcb1").is_dir()


STOPPED = {"mvtec_loco": mvtec_loco, "visa": visa}  # data set -> its module, which writes what is no drawing


@pytest.mark.parametrize("like", STOPPED)
@pytest.mark.parametrize("at", ["before", "after"])
def test_a_stand_in_that_was_stopped_is_whole_after_the_next_call(
    like: str, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether what lies beside the drawings was about to be written, or the category to appear."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((STOPPED[like], "write_text_whole", stop) if at == "before" else (stand_in, "settle", stop)))
        with pytest.raises(KeyboardInterrupt):
            short(like, tmp_path, monkeypatch)
    root = short(like, tmp_path, monkeypatch)
    assert verify(root).sound
    (found,) = datasets.categories(root.name, tmp_path)
    assert (len(found.train), found.saturation is not None) == (4, like == "mvtec_loco")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name[0] != "."}
    short(like, tmp_path, monkeypatch)  # nothing to do
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_two_commands_at_once_lose_no_line_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("candle", "pcb1", "pcb2")
    for name in names:
        for place in ("Normal/0000.JPG", "Anomaly/000.JPG"):
            path = tmp_path / "synthetic_visa" / f"synthetic_{name}" / "Data/Images" / place
            path.parent.mkdir(parents=True)
            path.write_bytes(b"")
    read = visa._rows

    def slowly(table: Path) -> list[list[str]]:
        found = read(table)
        time.sleep(0.2)  # another one writes meanwhile
        return found

    monkeypatch.setattr(visa, "_rows", slowly)
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: stand_in.generate("visa", tmp_path, [name]), names))
    rows = read(tmp_path / "synthetic_visa" / visa.TABLE)
    assert sorted(row[0] for row in rows) == sorted(f"synthetic_{name}" for name in names * 2)


def test_a_copy_among_the_drawings_has_no_line_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = short("visa", tmp_path, monkeypatch)
    before = (root / visa.TABLE).read_bytes()
    for path in sorted((root / "synthetic_pcb1/Data/Images").glob("*/*.JPG")):
        for name in (f"{path.stem} (copy).JPG", f"x{path.name}", f"{path.stem}.jpeg"):
            path.with_name(name).write_bytes(path.read_bytes())
    (root / visa.TABLE).unlink()
    short("visa", tmp_path, monkeypatch)
    assert (root / visa.TABLE).read_bytes() == before


def test_whoever_waited_for_a_drawing_does_not_draw_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes at once: the second finds the category once it has the lock."""
    written, waited, told = [], [], []
    write = stand_in.write_category

    def writes(folder: Path, *given: Any, **options: Any) -> None:
        written.append(folder.name)
        write(folder, *given, **options)

    @contextmanager
    def after_another(path: Path) -> Iterator[bool]:
        if not waited:
            waited.append(path)
            stand_in.generate("mvtec_ad", tmp_path, ["toothbrush"], size=64)
        yield True

    monkeypatch.setattr(stand_in, "write_category", writes)
    monkeypatch.setattr(stand_in.cache, "only_builder", after_another)
    stand_in.generate("mvtec_ad", tmp_path, ["toothbrush"], size=64, done=lambda: told.append(1))
    assert written == ["toothbrush"]
    assert len(told) == stand_in.image_count("mvtec_ad", ["toothbrush"]) == 102


def test_a_category_named_twice_is_one(tmp_path: Path) -> None:
    names = ("toothbrush", "synthetic_toothbrush", "toothbrush")
    told: list[int] = []
    stand_in.generate("mvtec_ad", tmp_path, names, size=64, done=lambda: told.append(1))
    assert stand_in.image_count("mvtec_ad", names) == len(told) == 102


@pytest.mark.parametrize(("like", "names", "size"), [("coco", [], 64), ("mvtec_ad", ["x"], 64), ("mvtec_ad", [], 8)])
def test_a_stand_in_that_cannot_be_drawn_is_refused(tmp_path: Path, like: str, names: list[str], size: int) -> None:
    with pytest.raises(DatasetError):
        stand_in.generate(like, tmp_path, names, size=size)


@pytest.mark.slow
def test_a_stand_in_has_the_published_size(tmp_path: Path) -> None:
    stand_in.generate("mvtec_ad", tmp_path, ["toothbrush"])
    for path in (tmp_path / "synthetic_mvtec_ad" / "synthetic_toothbrush").rglob("*.png"):
        with Image.open(path) as image:
            assert image.size == (1024, 1024)


def test_the_stone_is_seeded() -> None:
    first = synthetic.drawn(Stone(), "a", SMALL, "crack")
    assert np.array_equal(first.image, synthetic.drawn(Stone(), "a", SMALL, "crack").image)
    assert not np.array_equal(first.image, synthetic.drawn(Stone(), "b", SMALL, "crack").image)


def test_names_of_recalled_tables_are_complete() -> None:
    assert len(STAND_INS["mvtec_ad"].published) == 15
    assert len(STAND_INS["mvtec_3d_ad"].published) == 10


@pytest.mark.parametrize("name", EMBEDDED)
def test_no_embedded_category_bears_a_published_name(name: str) -> None:
    published = {category for one in entries().values() for category in one.published}
    assert len(published) >= 25
    older = {"fabric"}  # than the category of that name of MVTec AD 2; a renamed one would be another job
    assert not (published - older) & set(EMBEDDED[name].subjects)


def test_recipes_are_chosen_on_other_subjects_than_tables_show() -> None:
    shown = {type(subject) for subject in synthetic_2d.DRAWN.subjects.values()}
    assert not shown & {type(subject) for subject in rehearsal.DRAWN.subjects.values()}
