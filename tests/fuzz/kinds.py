"""What is attacked: for each kind of input how it is made once, and how one spoilt input is given to the product.

An attack answers "accepted" or "refused". Whatever else happens is a fault: any exception, output that steers a
terminal, an exit code without a word, JSON that is none, a cache that lies.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from click.testing import CliRunner
from PIL import Image

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets.category import DatasetError
from tests.conftest import write_tree
from tests.datasets import fuzz_archives
from tests.fuzz.mutation import VALUES, spoilt, spoilt_json, spoilt_lines

Attack = Callable[[random.Random, Path], str]  # (chance, an empty folder) -> accepted | refused
MOST_LINES = 60  # of stderr


def said(*arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command that ended as commands end."""
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2), result.exit_code
    assert result.exit_code == 0 or result.stderr.strip(), "an exit code without a word"
    lines = (result.stdout + result.stderr).splitlines()
    assert all(letter.isprintable() or letter == "\t" for line in lines for letter in line), "steers the terminal"
    assert len(result.stderr.splitlines()) < MOST_LINES, f"{len(result.stderr.splitlines())} lines"
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stdout, result.stderr


def strict(text: str) -> Any:
    """JSON as other readers read it: no NaN, no half of a surrogate pair."""
    content = json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(f"{name} in JSON")))
    json.dumps(content, ensure_ascii=False).encode("utf-8")
    return content


def trained(base: Path) -> tuple[Path, Path]:
    """(results folder of one job with a saved model, the tree it was trained on)."""
    tree = write_tree(base / "tree", categories=("bolt",), train=4, test=2)
    out = base / "results"
    arguments = ["run", "--method", "pixel_mean", "--dataset", f"folder:{tree}", "--seeds", "1", "--save-models"]
    small = ["--image-size", "64", "--resolution", "64", "--hold-out", "0.5", "--no-pictures"]
    assert said(*arguments, *small, "--out", out)[0] == 0
    return out, tree


# --- images -----------------------------------------------------------------------------------------------------------


def pictures() -> dict[str, bytes]:
    """File name -> a small sound image of each format."""
    value = np.arange(48 * 40, dtype=np.uint32).reshape(40, 48)
    rgb = Image.fromarray(np.stack([value * k % 251 for k in (1, 3, 7)], 2).astype(np.uint8))
    grey = rgb.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    sixteen = Image.fromarray((value * 31 % 65536).astype(np.uint16))
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {}), "palette.png": (rgb.quantize(16), {"transparency": 3}),
        "one.png": (grey.convert("1"), {}), "sixteen.png": (sixteen, {}),
        "alpha.png": (rgb.convert("RGBA"), {}), "turned.jpg": (rgb, {"exif": exif}),
        "grey.jpg": (grey, {"progressive": True}), "cmyk.jpg": (rgb.convert("CMYK"), {}), "plain.bmp": (rgb, {}),
        "lzw.tif": (rgb, {"compression": "tiff_lzw"}), "raw.tif": (grey, {}), "a.webp": (rgb, {}), "a.ppm": (rgb, {}),
        "deflate.tiff": (rgb, {"compression": "tiff_adobe_deflate"}), "a.pgm": (grey, {}),
    }  # fmt: skip
    found = {}
    for name, (image, options) in made.items():
        file = BytesIO()
        image.save(file, format=Image.registered_extensions()[Path(name).suffix], **options)
        found[name] = file.getvalue()
    return found


def images(base: Path) -> Attack:
    """Photographs and masks, read one by one; each tenth by `predict` beside a sound one."""
    known = pictures()
    results, tree = trained(base)
    (model,) = (results / "models").iterdir()
    sound = tree / "bolt" / "test" / "good" / "000.png"

    def attack(draw: random.Random, place: Path) -> str:
        name = draw.choice(list(known))
        path = place / name
        path.write_bytes(spoilt(draw, known[name], list(known.values())))
        if draw.random() < 0.1:
            shutil.copy(sound, place / "sound.png")
            code, output, _ = said("predict", model, place, "--json", "--out", place / "out", "--threshold", "1")
            found = strict(output)
            assert len(found["images"]) + len(found["failed"]) == 2, found
            return "refused" if code else "accepted"
        return read(path)

    return attack


def read(path: Path) -> str:
    """A file read as a photograph and as a mask."""
    from kdad_bench.datasets.decoding import mask_of, read_rgb

    answers = []
    for reader in (partial(read_rgb, shape=32), mask_of):
        try:
            reader(path)
            answers.append("accepted")
        except DatasetError as error:
            one_line(error, path)
            answers.append("refused")
    return answers[0]


def one_line(error: Exception, path: Path) -> None:
    """Whether a refusal is a printable line that names the file."""
    assert str(error).isprintable(), repr(str(error))
    assert path.name in str(error), str(error)
    assert len(str(error)) < 1000, len(str(error))


def scans(base: Path) -> Attack:
    """The scans of MVTec 3D-AD."""
    from kdad_bench.datasets.depth import read_depth

    x, y = np.meshgrid(np.linspace(-0.1, 0.1, 24), np.linspace(-0.1, 0.1, 20))
    points = np.dstack([x, y, np.full_like(x, 0.5)]).astype(np.float32)
    known = []
    for compression in (None, "zlib"):
        file = BytesIO()
        tifffile.imwrite(file, points, photometric="rgb", compression=compression)
        known.append(file.getvalue())

    def attack(draw: random.Random, place: Path) -> str:
        path = place / "scan.tiff"
        path.write_bytes(spoilt(draw, draw.choice(known), known))
        try:
            read_depth(path, 32, 0.01)
        except DatasetError as error:
            one_line(error, path)
            return "refused"
        return "accepted"

    return attack


# --- files of our own -------------------------------------------------------------------------------------------------


def models(base: Path) -> Attack:
    """A folder under models/, one of its files spoilt."""
    results, tree = trained(base)
    (model,) = (results / "models").iterdir()
    known = {path.name: path.read_bytes() for path in model.iterdir()}

    def answer(folder: Path) -> tuple[int, str]:
        return said("predict", folder, tree / "bolt" / "test" / "good", "--json", "--false-alarms", "0.5")[:2]

    assert answer(model)[0] == 0

    def attack(draw: random.Random, place: Path) -> str:
        folder = Path(shutil.copytree(model, place / "model"))
        name = draw.choice(["model.json", "decision.json", "model.safetensors"])
        make = spoilt if name.endswith("safetensors") else spoilt_json
        (folder / name).write_bytes(make(draw, known[name]))
        code, output = answer(folder)
        assert sorted(os.listdir(folder)) == sorted(known)
        if code == 0:
            assert all(np.isfinite(one["score"]) for one in strict(output)["images"])
        return "refused" if code else "accepted"

    return attack


def rows(base: Path) -> Attack:
    """A Parquet file of rows beside a sound one: spoilt bytes, or values that a writer of another kind put there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from kdad_bench.leaderboard import store

    results, _ = trained(base)
    (source,) = (path for path in results.glob("*.parquet") if path.name != "leaderboard.parquet")
    sound, table = source.read_bytes(), pq.read_table(source)

    def odd(draw: random.Random) -> bytes:
        columns = {name: table[name].to_pylist() for name in table.column_names}
        for name in draw.sample(list(columns), draw.choice((1, 2, 5))):
            columns[name] = [draw.choice((*VALUES, float("nan"), float("inf"), b"\xff"))]
            if draw.random() < 0.2:
                del columns[name]
        file = BytesIO()
        try:
            pq.write_table(pa.table(columns), file)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):  # no column can hold such a value
            return spoilt(draw, sound)
        return file.getvalue()

    def attack(draw: random.Random, place: Path) -> str:
        (place / "good").mkdir()
        (place / "good" / source.name).write_bytes(sound)
        (place / "good" / f"x{source.name}").write_bytes(odd(draw) if draw.random() < 0.5 else spoilt(draw, sound))
        found = store.read(place / "good")
        assert len(list(found.rows())) >= 1
        code = said("results", "verify", place / "good")[0]
        if draw.random() < 0.1:
            assert said("leaderboard", place / "good", "--out", place / "page")[0] in (0, 1)
            strict((place / "page" / "leaderboard.json").read_text(encoding="utf-8"))
        return "refused" if code else "accepted"

    return attack


def logs(base: Path) -> Attack:
    """The log of a job, one JSON line per step."""
    lines = [{"event": "start", "job": "j"}, *({"event": "step", "step": n, "loss": 1 / (n + 1)} for n in range(9))]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"event": "end"}]).encode()

    def attack(draw: random.Random, place: Path) -> str:
        (place / "logs").mkdir()
        (place / "logs" / "abc.jsonl").write_bytes(spoilt_lines(draw, text))
        extra = draw.choice(([], ["--json"], ["--last", "3"]))
        return "refused" if said("logs", "abc", "--results", place, *extra)[0] else "accepted"

    return attack


def caches(base: Path) -> Attack:
    """Decoded arrays, hash records and region indices: whatever stands in the cache, the answer is the true one."""
    from kdad_bench.datasets import cache
    from kdad_bench.metrics import region_index

    tree = write_tree(base / "tree", categories=("bolt",), train=3, test=2)
    (category,) = datasets.categories(f"folder:{tree}", None)
    folder = Path(os.environ["KDAD_CACHE"])
    true = datasets.load_test(category, 32)
    assert true.masks is not None
    regions = folder / "regions" / "one.regions"
    true_index = asdict(region_index(true.masks, regions))
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.stat().st_size}
    pixels = true.images.copy()

    def attack(draw: random.Random, place: Path) -> str:
        path = draw.choice(list(kept))
        path.unlink(missing_ok=True)
        data = (
            spoilt_json(draw, kept[path]) if path.suffix == ".json" else spoilt(draw, kept[path], list(kept.values()))
        )
        path.write_bytes(data)
        cache._remembered.clear()
        try:
            found = datasets.load_test(category, 32)
            assert (found.images == pixels).all(), f"{path.parent.name}: other pixels"
            index = asdict(region_index(true.masks, regions))
            assert all(np.array_equal(index[name], value) for name, value in true_index.items()), "another index"
        except DatasetError as error:
            one_line(error, path)
            return "refused"
        finally:
            path.unlink(missing_ok=True)
            path.write_bytes(kept[path])
        return "accepted"

    return attack


CONFIG = b"""[run]
methods = ["pixel_mean", "stfpm:held_out"]
datasets = ["folder:TREE"]
categories = ["bolt"]
seeds = "0,1"
preset = "quick"
device = "cpu"
resolution = 64

[run.weights]
efficientnet_lite0 = "random"

[settings]
batch_size = 4

[settings.stfpm]
loss_scale = "paper"
betas = [0.9, 0.99]
"""


def configs(base: Path) -> Attack:
    """The file of `run --config`; nothing is run."""
    tree = write_tree(base / "tree", categories=("bolt",), train=2, test=1)
    text = CONFIG.replace(b"TREE", os.fsencode(tree))

    def attack(draw: random.Random, place: Path) -> str:
        (place / "run.toml").write_bytes(spoilt_lines(draw, text))
        code = said("run", "--config", place / "run.toml", "--dry-run", "--out", place / "out")[0]
        assert os.listdir(place) == ["run.toml"], "a dry run wrote something"
        return "refused" if code else "accepted"

    return attack


def published(base: Path) -> Attack:
    """The tables of published numbers: they are the package's own, so a fault of theirs is a ValueError of one line."""
    from kdad_bench.leaderboard import published as module

    known = {path.name: path.read_bytes() for path in module.HERE.glob("*.csv")}

    def attack(draw: random.Random, place: Path) -> str:
        name = draw.choice(list(known))
        for other, data in known.items():
            (place / other).write_bytes(data if other != name else spoilt_lines(draw, data))
        here, module.HERE = module.HERE, place
        module.reported.cache_clear()
        try:
            module.reported()
        except ValueError as error:
            one_line(error, place)
            return "refused"
        finally:
            module.HERE = here
            module.reported.cache_clear()
        return "accepted"

    return attack


def archives(base: Path) -> Attack:
    """Archives of data sets; the campaign of their own in one form."""
    known = fuzz_archives.seeds()

    def attack(draw: random.Random, place: Path) -> str:
        answer = fuzz_archives.attack(fuzz_archives.drawn(draw, known), place)
        return "accepted" if answer == "unpacked" else "refused"

    return attack


PREPARE: dict[str, Callable[[Path], Attack]] = {
    "images": images,
    "scans": scans,
    "models": models,
    "rows": rows,
    "logs": logs,
    "caches": caches,
    "configs": configs,
    "published": published,
    "archives": archives,
}
