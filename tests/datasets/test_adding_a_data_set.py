"""The example of docs/adding-a-data-set.md is a working data set."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.fetch import source_of
from tests.conftest import SIDE, draw

SAMPLES = [("train", "good")] * 4 + [("test", "good")] * 2 + [("test", "dent")] * 2
PAGE = Path(__file__).parents[2] / "docs" / "adding-a-data-set.md"


@pytest.fixture(scope="module")
def example() -> datasets.Entry:
    """The first code block of the page, run as a module."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    module = ModuleType("parts_example")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(blocks[0], str(PAGE), "exec"), module.__dict__)
    found = module.PARTS
    assert isinstance(found, datasets.Entry)
    assert f'"{found.name}": "kdad_bench.datasets.{found.name}:{found.name.upper()}"' in blocks[1]
    return found


@pytest.fixture
def root(example: datasets.Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with the example in it, which is registered; masks in two files, one of them a BMP."""
    monkeypatch.setitem(datasets.DATASETS, "parts", "parts_example:PARTS")
    for number, name in enumerate(example.published):
        folder, rng = tmp_path / "Parts_v1" / name, np.random.default_rng(number)
        lines = ["split,defect,image,masks"]
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        for index, (split, defect) in enumerate(
            [("train", "good")] * 4 + [("test", "good")] * 2 + [("test", "dent")] * 2
        ):
            image, mask = draw(rng, defect == "dent")
            Image.fromarray(image).save(folder / f"images/{index}.png")
            masks = [f"masks/{index}_0.bmp", f"masks/{index}_1.png"] if defect == "dent" else []
            for half, path in enumerate(masks):
                rows = (np.arange(SIDE) % 2 == half)[:, None]
                Image.fromarray((mask & rows).astype(np.uint8)).save(folder / path)
            lines.append(f"{split},{defect},images/{index}.png,{'|'.join(masks)}")
        (folder / "split.csv").write_bytes("\r\n".join(lines).encode())
    return tmp_path


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


def test_the_example_is_found_and_read(root: Path) -> None:
    assert datasets.find(root) == ["parts"]
    found = datasets.categories("parts", root)
    assert [(one.name, len(one.train), len(one.test), one.remarks) for one in found] == [
        ("bolt", 4, 4, ()),
        ("nut", 4, 4, ()),
    ]
    masks = datasets.load_test(found[0], SIDE).masks
    assert masks is not None
    assert masks.sum(axis=(1, 2)).tolist() == [0, 0, 144, 144]  # 12 x 12, from two files of every other row


def test_the_example_is_run_from_end_to_end(root: Path, tmp_path: Path) -> None:
    done = command("run", "--method", "pixel_mean", "--dataset", "parts", "--data-root", root, "--seeds", 1,
                   "--out", tmp_path / "out", "--no-pictures", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines() if '"job_id"' in line]
    assert [(row["dataset"], row["category"], row["status"]) for row in rows] == [
        ("parts", "bolt", "ok"), ("parts", "nut", "ok"),
    ]  # fmt: skip
    assert all(row["pixel_auroc"] > 0.5 for row in rows)


def test_every_command_knows_the_example(root: Path, tmp_path: Path) -> None:
    assert command("data", "verify", root / "Parts_v1", "--against", "parts").exit_code == 0
    listed = command("list", "datasets", "--data-root", root)
    assert listed.output.count("parts") == 2
    seen = command("data", "preview", "parts", "--data-root", root, "--out", tmp_path / "sheets", "--side", 32)
    assert seen.exit_code == 0, seen.output
    assert source_of("parts").url == "https://example.org/parts.tar.gz"
    assert "parts" in command("data", "fetch", "--help").output
    assert command("data", "generate", "--like", "parts", "--out", tmp_path).exit_code == 2  # it has no subjects


def test_the_example_passes_nothing_over(root: Path) -> None:
    part = root / "Parts_v1" / "nut"
    (part / "images" / "extra.png").write_bytes((part / "images" / "0.png").read_bytes())
    (part / "masks" / "readme.txt").write_text("x")
    (_, nut) = datasets.categories("parts", root)
    assert len(nut.remarks) == 2
    assert command("data", "verify", root / "Parts_v1").exit_code == 1
    (part / "images" / "3.png").unlink()
    with pytest.raises(DatasetError, match=r"3\.png: in split\.csv and not on disk"):
        datasets.categories("parts", root)


@pytest.mark.parametrize("text", ["", "split,image\nfoo,1\n", "split,defect,image,masks\ntrain,good\n", "\xff\xfe"])
def test_a_damaged_table_of_the_example_is_one_line(root: Path, text: str) -> None:
    (root / "Parts_v1/nut/split.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError) as error:
        datasets.categories("parts", root)
    assert "\n" not in str(error.value)
