"""A cache that may be torn, full, read-only or out of date never gives other pixels than the files have."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kdad_bench import datasets
from kdad_bench.datasets import cache, depth
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.loading import load_regions
from tests.conftest import SIDE, write_tree
from tests.datasets.test_mvtec_3d_ad import write_scans


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path / "cache"))
    return write_tree(tmp_path / "tree", ("bolt",), train=4, test=2) / "bolt"


def only(tree: Path) -> datasets.Category:
    (found,) = datasets.categories(f"folder:{tree}", None)
    return found


def forget() -> None:
    """What another process would not know."""
    cache._remembered.clear()
    cache._sound.clear()


def entries() -> list[Path]:
    return sorted((cache.folder() / "arrays").glob("*.npy"))


def test_zeros_in_an_array_after_a_crash_are_noticed(tree: Path) -> None:
    before = datasets.load_train(only(tree), 16).copy()
    for path in entries():
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
        path.write_bytes(data)
    assert np.array_equal(datasets.load_train(only(tree), 16), before)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1), value=st.integers(0, 255), cut=st.booleans())
def test_no_damage_to_an_array_changes_a_pixel(
    tmp_path_factory: pytest.TempPathFactory, place: float, value: int, cut: bool
) -> None:
    root = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDAD_CACHE", str(root / "cache"))
        category = only(write_tree(root / "tree", ("bolt",), train=2, test=1) / "bolt")
        before = datasets.load_train(category, 8).copy()
        for path in entries():
            data = bytearray(path.read_bytes())
            spot = min(int(place * len(data)), len(data) - 1)
            data[spot:] = b"" if cut else bytes([value]) + data[spot + 1 :]
            path.write_bytes(data)
        assert np.array_equal(datasets.load_train(category, 8), before)


def test_another_decoder_finds_nothing_of_the_earlier_one(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photographs and masks follow Pillow, reliefs NumPy and SciPy too."""

    def made(*, scans: bool) -> set[str]:
        place = tmp_path / "scans" if scans else tree
        (found,) = datasets.categories(f"folder:{place}", None, modality="depth" if scans else "rgb")
        before = {path.name for path in (cache.folder() / "arrays").glob("*.npy")}
        datasets.load_train(found, 16)
        datasets.load_test(found, 16)
        return {path.name for path in (cache.folder() / "arrays").glob("*.npy")} - before

    write_scans(tmp_path / "scans" / "plate")
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path / "own"))
    first = {scans: made(scans=scans) for scans in (False, True)}
    assert [made(scans=scans) for scans in (False, True)] == [set(), set()]
    monkeypatch.setattr(cache, "DECODER", "Pillow 0")
    assert [len(made(scans=scans)) for scans in (False, True)] == [len(first[False]), len(first[True])]
    monkeypatch.setattr(depth, "RENDERED_BY", "NumPy 0, SciPy 0")
    assert made(scans=False) == set()
    assert len(made(scans=True)) == 3  # the heights, and the reliefs of both splits


def test_an_array_is_checked_once_in_a_process(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    original = cache._checksum
    monkeypatch.setattr(cache, "_checksum", lambda values: checked.append(values.nbytes) or original(values))
    category = only(tree)
    for _ in range(3):
        datasets.load_train(category, 16)
    assert checked.count(4 * 3 * 16 * 16) == 2  # when it was written and when it was first read


def test_a_file_changed_in_place_with_its_size_and_time_is_seen(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aged(monkeypatch)
    path = tree / "train/good/000.png"
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="BMP")
    about = path.stat()
    before = datasets.load_train(only(tree), SIDE).copy()
    pixels[0, 0] += 1
    Image.fromarray(pixels).save(path, format="BMP")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    forget()
    after = datasets.load_train(only(tree), SIDE)
    assert (after[0, :, 0, 0].astype(int) - before[0, :, 0, 0]).tolist() == [1, 1, 1]


def test_what_was_changed_a_moment_ago_is_not_remembered(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree / "train/good/000.png"
    hashed: list[Path] = []
    original = cache.file_hash
    monkeypatch.setattr(cache, "file_hash", lambda one: hashed.append(one) or original(one))
    path.touch()
    monkeypatch.setattr(cache.time, "time_ns", lambda: path.stat().st_ctime_ns + cache.RACY_NS // 2)
    cache.content_hashes([path])
    cache.content_hashes([path])
    assert hashed == [path, path]
    monkeypatch.setattr(cache.time, "time_ns", lambda: path.stat().st_ctime_ns + 2 * cache.RACY_NS)
    for _ in range(3):
        cache.content_hashes([path])
    assert hashed == [path] * 3


def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every file had been written long ago, so that its hash is remembered."""
    monkeypatch.setattr(cache, "RACY_NS", -(10**18))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "cut": lambda data: data[: len(data) // 2],
    "list": lambda data: b"[]",
    "null": lambda data: b"null",
    "numbers": lambda data: b'{"crc": 1, "files": 2}',
    "deep": lambda data: b"[" * 100_000,
    "not UTF-8": lambda data: b"\xff" * 50,
    "another hash": lambda data: data.replace(b"0", b"1"),
    "of an earlier version": lambda data: json.dumps({"000.png": [1, 2, "0" * 64]}).encode(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_records_of_hashes_are_made_again(tree: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    aged(monkeypatch)
    first = datasets.fingerprint(only(tree))
    records = list((cache.folder() / "hashes").glob("*.json"))
    assert len(records) == 4
    kept = {path: path.read_bytes() for path in records}
    for path in records:
        path.write_bytes(DAMAGE[damage](kept[path]))
    forget()
    assert datasets.fingerprint(only(tree)) == first
    assert {path: path.read_bytes() for path in records} == kept


def test_hashes_are_remembered_by_other_processes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aged(monkeypatch)
    first = datasets.fingerprint(only(tree))
    forget()
    monkeypatch.setattr(cache, "file_hash", lambda path: pytest.fail(f"{path} is hashed again"))
    assert datasets.fingerprint(only(tree)) == first


# --- disks ------------------------------------------------------------------------------------------------------------


def refusing(code: int) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line(tree: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refusing(code))
    with pytest.raises(DatasetError, match="free space or set KDAD_CACHE") as error:
        datasets.load_train(only(tree), 16)
    assert "\n" not in str(error.value)
    assert [path.name for path in (cache.folder() / "arrays").iterdir() if path.suffix in (".tmp", ".npy")] == []


def test_space_is_taken_before_it_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (True, False):
        if not has:
            monkeypatch.delattr(os, "posix_fallocate")
        with open(tmp_path / str(has), "w+b") as file:
            cache._take(file, 3_000_000)
        assert (tmp_path / str(has)).stat().st_blocks * 512 >= 3_000_000


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_cache_only_costs_memory(tree: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    first = datasets.load_test(only(tree), 16)
    for name in ("write_whole", "write_text_whole"):
        monkeypatch.setattr(cache, name, refusing(code))
    forget()
    again = datasets.load_test(only(tree), 16)  # what is there is used
    assert isinstance(again.images, np.memmap)
    assert np.array_equal(again.images, first.images)
    fresh = datasets.load_test(only(tree), 24)
    assert not isinstance(fresh.images, np.memmap)
    assert fresh.masks is not None
    assert not fresh.images.flags.writeable
    monkeypatch.undo()
    monkeypatch.setenv("KDAD_CACHE", str(tree.parent / "another"))
    assert np.array_equal(datasets.load_test(only(tree), 24).images, fresh.images)


def test_embedded_data_that_are_there_need_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = datasets.categories("synthetic", None, ["plank"])
    monkeypatch.setattr(Path, "mkdir", refusing(errno.EROFS))
    monkeypatch.setattr(cache, "folder", lambda: before.root.parents[2])
    monkeypatch.setattr(cache, "only_builder", lambda path: pytest.fail("a lock is asked for"))
    assert datasets.categories("synthetic", None, ["plank"]) == [before]


def test_embedded_data_that_cannot_be_written_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    monkeypatch.setattr(Path, "mkdir", refusing(errno.EROFS))
    with pytest.raises(DatasetError, match="set KDAD_CACHE"):
        datasets.categories("synthetic", None, ["plank"])


KILLED = """
import os, sys
from kdad_bench.datasets import cache, depth
def fill(array):
    os.kill(os.getpid(), 9)
cache.array("killed", (1000,), __import__("numpy").uint8, fill)
"""


def test_a_killed_builder_leaves_nothing_for_good(tree: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], env=dict(os.environ), check=False)
    assert done.returncode == -9
    assert list((cache.folder() / "arrays").glob(".*.tmp"))
    datasets.load_train(only(tree), 16)
    assert list((cache.folder() / "arrays").glob(".*.tmp")) == []


# --- what was read is what was hashed ---------------------------------------------------------------------------------


CHANGES = ("train/good/001.png", "test/good/001.png", "test/spot/001.png", "ground_truth/spot/001_mask.png")


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_changed_after_the_plan_is_refused(tree: Path, name: str) -> None:
    planned = datasets.sealed(only(tree))
    assert datasets.fingerprint(planned) == datasets.fingerprint(only(tree))
    datasets.load_train(planned, 16)
    datasets.load_test(planned, 16)
    Image.fromarray(np.eye(SIDE, dtype=np.uint8)).save(tree / name)
    load = datasets.load_train if name.startswith("train") else datasets.load_test
    with pytest.raises(DatasetError, match="changed since the run was planned") as error:
        load(planned, 16)
    assert str(tree / name) in str(error.value)
    load(only(tree), 16)  # a new plan takes it


def test_the_fingerprint_of_a_plan_does_not_follow_the_disk(tree: Path) -> None:
    planned = datasets.sealed(only(tree))
    first = datasets.fingerprint(planned)
    (tree / "test/good/000.png").unlink()
    assert datasets.fingerprint(planned) == first
    with pytest.raises(DatasetError, match=r"000\.png: cannot be read"):
        datasets.load_test(planned, 16)


def first_entry(text: str, work: Callable[[], object]) -> None:
    """Call `work` and remove the entry of the cache of which the kind is `text`: what a cleaner may do."""
    made: dict[str, str] = {}
    original = cache.key

    def noted(kind: str, *more: Any) -> str:
        made[kind] = original(kind, *more)
        return made[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "key", noted)
        work()
    (cache.folder() / "arrays" / f"{made[text]}.npy").unlink()
    forget()


@pytest.mark.parametrize("split", ["train", "masks", "doubts of masks", "shares"])
def test_a_file_that_changes_while_it_is_read_enters_no_cache(
    tree: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    path = tree / ("train/good/002.png" if split == "train" else "ground_truth/spot/000_mask.png")
    if split == "shares":
        facts = {"defect_name": "spot", "pixel_value": 255, "saturation_threshold": 8, "relative_saturation": False}
        (tree / "defects_config.json").write_text(json.dumps([facts]))
    original = cache.unchanged
    category = only(tree)
    work = {"train": datasets.load_train, "shares": load_regions}.get(split, datasets.load_test)
    if split not in ("train", "masks"):
        first_entry(split, lambda: work(category, 16))

    def change_after(category: datasets.Category, files: list[Path]) -> dict[Path, str]:
        found = original(category, files)
        if path in files:
            Image.fromarray(np.full((SIDE, SIDE), 7, np.uint8)).save(path)
        return found

    monkeypatch.setattr(cache, "unchanged", change_after)
    with pytest.raises(DatasetError, match="changed while it was read"):
        work(category, 16)


def test_a_pipe_in_the_place_of_a_record_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "record.json")
    assert cache._record(tmp_path / "record.json") == {}


@pytest.mark.parametrize("root", ["/data/bolt", "/", ".", "data", "/data/bolt/", "/data/./bolt"])
def test_the_name_of_a_file_inside_a_folder_is_that_of_relative_to(root: str) -> None:
    for name in ("train/good/000.png", "a", "bolt/x.png", "Größe/ü.png"):
        path = Path(root) / name
        assert cache._inside(path, Path(root)) == path.relative_to(Path(root)).as_posix() == name
    for other in (Path("/data/bolted/x"), Path("elsewhere/x")):
        if root not in ("/", "."):
            with pytest.raises(ValueError, match="is not in the subpath"):
                cache._inside(other, Path(root))


def test_files_enter_a_fingerprint_in_the_order_of_paths() -> None:
    """`a/x` stands before `a.b/x`, as paths are ordered and texts are not."""
    names, root = ["a.b/x.png", "a/x.png", "a/x/y.png", "a-b/x.png"], Path("/data/bolt")
    samples = tuple(datasets.Sample(path=root / name) for name in names)
    one = datasets.Category(
        dataset="mvtec_ad", name="bolt", root=root, train=samples, test=(), seal=dict.fromkeys(names, "0")
    )
    digest = hashlib.sha256(b"rgb")
    for path in sorted(sample.path for sample in samples):
        digest.update(path.relative_to(root).as_posix().encode() + bytes(1) + b"0\n")
    assert datasets.fingerprint(one) == digest.hexdigest()
    assert sorted(names) != [path.relative_to(root).as_posix() for path in sorted(sample.path for sample in samples)]
