"""Lots: nested, by seed and category alone, with every kind of defect left to be judged."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdad_bench import datasets
from kdad_bench.datasets import Category, DatasetError, Sample
from kdad_bench.datasets.lots import Lot, draw, half, set_aside

ROOT = Path("/data/bolt")


def category(train: int = 40, kinds: tuple[int, ...] = (7, 4, 1), good: int = 6) -> Category:
    names = [("good", good), *((f"kind{number}", count) for number, count in enumerate(kinds))]
    test = tuple(
        Sample(path=ROOT / "test" / kind / f"{i}.png", defect=kind) for kind, many in names for i in range(many)
    )
    normals = tuple(Sample(path=ROOT / "train" / f"{i:03}.png") for i in range(train))
    return Category(dataset="folder:/data", name="bolt", root=ROOT, train=normals, test=test)


def few(count: int, *, seed: int = 0, hold_out: float = 0.0, of: Category | None = None) -> set[int]:
    return set(draw(of or category(), count=count, share=None, hold_out=hold_out, seed=seed).normals.tolist())


def dirty(share: float, *, count: int | None = None, seed: int = 0, of: Category | None = None) -> Lot:
    return draw(of or category(), count=count, share=share, hold_out=0.0, seed=seed)


@pytest.mark.parametrize("hold_out", [0.0, 0.2])
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_fewer_images_are_among_more(seed: int, hold_out: float) -> None:
    drawn = [few(count, seed=seed, hold_out=hold_out) for count in range(1, 33)]
    assert [len(one) for one in drawn] == list(range(1, 33))
    assert all(small < large for small, large in itertools.pairwise(drawn))


def test_a_lot_depends_on_seed_and_category_and_on_nothing_else() -> None:
    assert few(8) == few(8, of=replace(category(), root=Path("/other"), modality="depth", dataset="mvtec_ad"))
    assert few(8) != few(8, seed=1)
    assert few(8) != few(8, of=replace(category(), name="nut"))
    assert few(4) == {7, 18, 35, 38}  # the same on every machine and in every version


def test_what_is_held_out_is_in_no_lot_and_a_shipped_split_takes_nothing_away() -> None:
    _, apart = datasets.held_out(40, fraction=0.2, seed=0)
    assert few(32, hold_out=0.2) == set(range(40)) - set(apart.tolist())
    shipped = replace(category(), validation=(Sample(path=ROOT / "validation" / "0.png"),))
    assert len(few(40, hold_out=0.2, of=shipped)) == 40


@pytest.mark.parametrize(
    ("count", "hold_out", "words"),
    [
        (41, 0.0, "41 training images were asked for and there are 40; ask for at most 40"),
        (33, 0.2, r"33 training images were asked for and there are 32 \(8 more are held out\); ask for at most 32"),
    ],
)
def test_more_images_than_there_are_is_one_line_with_the_number(count: int, hold_out: float, words: str) -> None:
    with pytest.raises(DatasetError, match=f"^folder:/data/bolt: {words}$"):
        few(count, hold_out=hold_out)


def test_half_of_each_kind_of_defect_leaves_the_test_set_whatever_the_share() -> None:
    of = category()
    aside = set_aside(of, 0)
    kinds = [of.test[index].defect for index in aside]
    assert {kind: kinds.count(kind) for kind in kinds} == {"kind0": 3, "kind1": 2}
    assert half(of.test, "kind2") == 0  # one image: it stays
    assert not np.array_equal(np.sort(aside), np.sort(set_aside(of, 1)))
    for share in (0.0, 0.1, 0.4):
        assert set(dirty(share).slipped.tolist()) <= set(aside.tolist())


def test_more_contamination_replaces_more_of_the_same_normals_at_the_same_places() -> None:
    def layout(lot: Lot) -> list[str]:
        names = [f"n{index}" for index in lot.normals] + [f"d{index}" for index in lot.slipped]
        placed = [""] * len(names)
        for name, place in zip(names, lot.places, strict=True):
            placed[place] = name
        return placed

    layouts = [layout(dirty(share)) for share in (0.0, 0.1, 0.25, 0.4)]
    assert [sum(name[0] == "d" for name in one) for one in layouts] == [0, 1, 3, 5]
    assert {len(one) for one in layouts} == {12}  # 5 can be spared: at a share of 0.4 they are 5 of 12
    for less, more in itertools.pairwise(layouts):
        changed = [pair for pair in zip(less, more, strict=True) if pair[0] != pair[1]]
        assert all(before[0] == "n" and after[0] == "d" for before, after in changed)


def test_a_contaminated_set_may_be_as_small_as_asked_and_no_larger_than_can_be_filled() -> None:
    assert len(dirty(0.4, count=10).places) == 10
    assert len(dirty(0.1, count=40).slipped) == 4
    with pytest.raises(DatasetError, match=r"16 of 40 training images were to be defective and 5 .* smaller share"):
        dirty(0.4, count=40)
    with pytest.raises(DatasetError, match=r"0 of the test images can be spared"):
        dirty(0.1, of=category(kinds=(1, 1)))


@pytest.mark.parametrize(
    ("count", "share", "words"),
    [
        (1, 0.4, r"a share of 0.4 of 1 training image is 0.4 defective ones, which would be none; take more images"),
        (4, 0.1, r"a share of 0.1 of 4 .* would be none; take a share of 0.25, or more images"),
        (
            4,
            0.4,
            r"a share of 0.4 of 4 .* is 1.6 defective ones, which would be 2; take a share of 0.25, or more images",
        ),
        (3, 0.2, r"which would be 1; take a share of 0.333, or more images"),
        (2, 0.4, r"which would be 1; take more images"),
        (8, 0.1, r"which would be 1; take a share of 0.125, or more images"),
        (10, 0.15, r"which would be 2; take a share of 0.1 or 0.2, or more images"),
    ],
)
def test_a_share_that_no_whole_number_of_images_comes_near_is_refused(count: int, share: float, words: str) -> None:
    with pytest.raises(DatasetError, match=f"^folder:/data/bolt: .*{words}$"):
        dirty(share, count=count)


def test_what_is_slipped_in_is_the_share_that_was_asked_for_and_those_that_a_refusal_names_can_be_had() -> None:
    for count in range(1, 31):
        for share in np.linspace(0, 0.4, 41):
            try:
                lot = dirty(float(share), count=count, of=category(kinds=(24, 6)))
            except DatasetError as error:
                for named in re.findall(r"0\.\d+", str(error).partition("; take ")[2]):
                    assert len(dirty(float(named), count=count, of=category(kinds=(24, 6))).slipped) > 0
            else:
                assert len(lot.slipped) == pytest.approx(share * count, rel=0.25)
