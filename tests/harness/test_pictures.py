"""Contact sheets: which cases they show, and colours that mean the same in every line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdad_bench.harness import pictures


def cases(scores: list[float], labels: list[bool]) -> list[tuple[str, int]]:
    return pictures.chosen(np.array(scores, np.float32), np.array(labels))


def test_the_best_median_and_worst_anomalies_and_the_normals_are_shown_once_each() -> None:
    scores = [0.9, 0.1, 0.5, 0.6, 0.4, 0.8, 0.2, 0.3, 0.05, 0.45]
    found = cases(scores, [True] * 7 + [False] * 3)
    assert [index for kind, index in found if kind == "best found"] == [0, 5]
    assert {index for kind, index in found if kind == "median"} <= {2, 3, 4}
    assert [index for kind, index in found if kind == "worst, missed first"] == [1, 6]
    assert [index for kind, index in found if kind.startswith("normal, highest")] == [9, 7]
    assert len({index for _, index in found}) == len(found)


@pytest.mark.parametrize("labels", [[True, True], [False, False], [True, False], [True]])
def test_a_test_set_of_one_kind_or_of_one_image_still_has_a_sheet(labels: list[bool], tmp_path: Path) -> None:
    count = len(labels)
    pictures.contact_sheet(
        np.zeros((count, 3, 16, 16), np.uint8),
        None,
        np.zeros((count, 16, 16), np.float32),
        np.arange(count, dtype=np.float32),
        [f"{index}.png" for index in range(count)],
        tmp_path / "sheet.png",
        labels=np.array(labels),
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > pictures.TILE


def test_all_lines_share_one_colour_scale_and_the_mask_is_shown_as_it_is(tmp_path: Path) -> None:
    maps = np.stack([np.full((16, 16), 0.2, np.float32), np.full((16, 16), 1.0, np.float32)])
    masks = np.zeros((2, 16, 16), bool)
    masks[1, :8] = True
    pictures.contact_sheet(
        np.full((2, 3, 16, 16), 90, np.uint8), masks, maps, maps.mean((1, 2)), ["good/0.png", "crack/0.png"],
        tmp_path / "sheet.png", labels=np.array([False, True]), title="a title",
    )  # fmt: skip
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    step = pictures.TILE + pictures.GAP

    def tile(line: int, column: int) -> np.ndarray:
        top = pictures.HEADER + line * (pictures.TILE + pictures.CAPTION + pictures.GAP) + pictures.CAPTION
        left = pictures.GAP + column * step
        return pixels[top : top + pictures.TILE, left : left + pictures.TILE]

    anomalous, normal = tile(0, 2).mean(), tile(1, 2).mean()
    assert anomalous > normal + 50, "the same colours mean the same values in every line"
    assert (tile(0, 1)[: pictures.TILE // 2 - 1] == 255).all()
    assert (tile(0, 1)[pictures.TILE // 2 + 1 :] == 0).all()
    assert (tile(0, 0) == 90).all()


def test_colours_rise_in_brightness_and_are_clipped_at_both_ends() -> None:
    painted = pictures.colours(np.linspace(-1, 2, 31, dtype=np.float32)[None], 0.0, 1.0)[0].astype(int)
    brightness = painted @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(brightness) >= -1e-9).all()
    assert (painted[:10] == painted[0]).all()
    assert (painted[21:] == painted[-1]).all()
    assert painted[-1].sum() > painted[0].sum() + 300


def test_a_sheet_is_packed_without_a_search_for_its_smallest_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That search took over a second of each job, most of what is not training."""
    saved: list[tuple[Image.Image, dict[str, object]]] = []
    save = Image.Image.save

    def save_and_note(self: Image.Image, path: Path, **how: object) -> None:
        saved.append((self, how))
        save(self, path, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", save_and_note)
    maps = np.random.default_rng(0).random((2, 32, 32), np.float32)
    pictures.contact_sheet(
        np.full((2, 3, 32, 32), 90, np.uint8), None, maps, maps.mean((1, 2)), ["a.png", "b.png"],
        tmp_path / "sheet.png", labels=np.array([False, True]),
    )  # fmt: skip
    ((sheet, how),) = saved
    assert how == {"format": "PNG", "compress_type": pictures.RUNS}
    with Image.open(tmp_path / "sheet.png") as kept:
        assert kept.tobytes() == sheet.tobytes()
