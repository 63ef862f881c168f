"""`results pack` and `results check`: what is packed checks out, and what was changed since does not."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import kdad_bench
from kdad_bench.cli import cli
from kdad_bench.harness.job import id_of_row
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import EXTERNAL, SINCE_7, Row

Members = dict[str, bytes]


def command(*arguments: object) -> Result:
    done = CliRunner().invoke(cli, ["results", *map(str, arguments)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one finished job on embedded data, its model and its maps, and one that failed."""
    out = tmp_path_factory.mktemp("submission") / "results"
    options = {"seeds": 1, "resolution": 64, "settings": {"image_size": 64}, "hold_out": 0.25}
    kdad_bench.run("pixel_mean", "synthetic", "caplet", out=out, save_maps=True, save_models=True, pictures=False,
                   measure_speed=False, **options)  # fmt: skip
    store.write(Row.failed(reason="made for a test", job_id="f" * 16, method="stfpm", dataset="synthetic",
                           category="caplet", seed=0, preset="quick"), out)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    path = folder.parent / "pack.zip"
    done = command("pack", folder, "--out", path, "--maps")
    assert done.exit_code == 0, done.output
    assert "2 jobs, 1 with maps" in done.stdout
    assert hashlib.sha256(path.read_bytes()).hexdigest() in done.stdout
    return path


def test_a_pack_checks_out_to_the_same_figures(folder: Path, packed: Path) -> None:
    done = command("check", packed, "--all", "--results", folder)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert "2 jobs, 1 failed; 1 row follows from scores" in done.stdout
    assert "its maps give its 16 figures" in done.stdout
    assert "4 files beside rows" in done.stdout
    assert "SegF1 of 1 row was not computed anew" in done.stdout


def test_the_report_as_json(packed: Path, tmp_path: Path) -> None:
    done = command("check", packed, "--all", "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["sound"], report["jobs"], report["problems"]) == (0, True, 2, [])
    assert len(report["judged"]) == 1
    found = members(packed)
    with_row(found, lambda row: row.update(image_auroc=0.99))
    done = command("check", written(tmp_path / "changed.zip", found, mended=True), "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["sound"]) == (1, False)
    assert all("image_auroc is 0.99" in line for line in report["problems"])


def test_rows_of_before_the_figures_of_thresholds_check_out(packed: Path, tmp_path: Path) -> None:
    found = members(packed)
    with_row(found, lambda row: row.update({**dict.fromkeys(SINCE_7), "normal_scores": []}))
    done = command("check", written(tmp_path / "older.zip", found, mended=True), "--all")
    assert (done.exit_code, done.stderr) == (0, ""), done.output


def test_the_same_results_give_the_same_bytes(folder: Path, packed: Path, tmp_path: Path) -> None:
    assert command("pack", folder, "--out", tmp_path / "again.zip", "--maps").exit_code == 0
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    assert command("pack", folder, "--out", tmp_path / "small.zip").exit_code == 0
    done = command("check", tmp_path / "small.zip")
    assert (done.exit_code, "the pack has no maps" in done.stdout) == (0, True)


def members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(path: Path, found: Members, *, mended: bool) -> Path:
    """The members as a pack; with `mended` its manifest has their hashes, as who changes it would write them."""
    if mended:
        manifest = json.loads(found["manifest.json"])
        manifest["files"] = {name: hashlib.sha256(found[name]).hexdigest() for name in found if name != "manifest.json"}
        found["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in found.items():
            archive.writestr(name, content)
    return path


def with_row(found: Members, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the finished row."""
    table = pq.read_table(io.BytesIO(found["rows.parquet"]))
    rows = table.to_pylist()
    change(next(row for row in rows if row["status"] == "ok"))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), sink)
    found["rows.parquet"] = sink.getvalue()


def with_maps(found: Members, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the maps."""
    (name,) = (name for name in found if name.startswith("maps/"))
    stack = np.load(io.BytesIO(found[name]))
    sink = io.BytesIO()
    np.savez(sink, maps=change(stack["maps"]), names=stack["names"])
    found[name] = sink.getvalue()


def row_with(**values: Any) -> Callable[[Members], object]:
    return lambda found: with_row(found, lambda row: row.update(values))


def manifest_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Members], object]:
    def spoil(found: Members) -> None:
        manifest = json.loads(found["manifest.json"])
        change(manifest)
        found["manifest.json"] = json.dumps(manifest).encode()

    return spoil


def maps_with(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Members], object]:
    return lambda found: with_maps(found, change)


def swapped(found: Members) -> None:
    with_row(found, lambda row: row.update(image_names=row["image_names"][::-1]))


def swap_labels(found: Members) -> None:
    with_row(found, lambda row: row.update(image_labels=[not one for one in row["image_labels"]]))


def shuffled(maps: np.ndarray) -> np.ndarray:
    """The pixels of one map change places: no maximum changes."""
    maps = maps.copy()
    maps[-1] = np.random.default_rng(0).permutation(maps[-1].ravel()).reshape(maps[-1].shape)
    return maps


# what is changed -> (how, whether the manifest is made to fit, words of the line)
CHANGED: dict[str, tuple[Callable[[Members], object], bool, str]] = {
    "a byte of the maps": (maps_with(shuffled), False, ".npz: its SHA-256 is not the manifest's"),
    "a byte of the rows": (row_with(pixel_auroc=0.99), False, "rows.parquet: its SHA-256 is not the manifest's"),
    "a missing file": (lambda found: found.pop(next(n for n in found if n.startswith("maps/"))), False, "missing from"),
    "missing rows": (lambda found: found.pop("rows.parquet"), False, "rows.parquet: missing from the pack"),
    "a file more": (lambda found: found.update({"notes.txt": b"x"}), False, "in the pack and not in its manifest"),
    "rows that are none": (lambda found: found.update({"rows.parquet": b"PAR1xxxxPAR1"}), True, "rows.parquet: "),
    "an image figure": (row_with(image_auroc=0.99), True, "image_auroc is 0.99, and "),
    "a pixel figure": (row_with(aupro_30=0.99), True, "from its maps and the data"),
    "SegF1 beyond any threshold's": (row_with(seg_f1=0.999), True, "seg_f1 is 0.999, above "),
    "a figure taken away": (row_with(pixel_ap=None), True, "pixel_ap is None, and "),
    "false alarms": (row_with(false_alarms=0.123), True, "false_alarms is 0.123, and "),
    "scores of unseen normals": (lambda f: with_row(f, lambda row: row["normal_scores"].pop()), True, "alarm_floor is"),
    "a job's hash of its maps": (
        manifest_with(lambda found: next(iter(found["jobs"].values())).update(maps="0" * 64)), False, "two hashes of"
    ),
    "the seed": (row_with(seed=7), True, "its id is not that of its settings, data and seed"),
    "a setting": (row_with(settings='{"sigma": 1.0}'), True, "its id is not that of"),
    "the teacher": (row_with(teacher_sha256="0" * 64), True, "its id is not that of"),
    "the share held out": (row_with(preset="quick[image_size=64,resolution=64]"), True, "its id is not that of"),
    "the names": (swapped, True, "holds maps of other images than the row names"),
    "the labels": (swap_labels, True, "its images or labels are not those of the data"),
    "a score lost": (lambda f: with_row(f, lambda row: row["image_scores"].pop()), True, "not one score, label and"),
    "pixels of a map": (maps_with(shuffled), True, "pixel_auroc is "),
    "maps as float16": (maps_with(lambda maps: maps.astype(np.float16)), True, "not float32"),
    "maps of another size": (maps_with(lambda maps: maps[:, :32, :32]), True, "(32, 32), not float32 (64, 64)"),
    "a map that is not finite": (maps_with(lambda maps: maps * np.float32("nan")), True, "a score must be finite"),
    "a job without a row": (manifest_with(lambda m: m["jobs"].update({"a" * 16: {}})), True, "and without a row"),
    "a row without a job": (manifest_with(lambda m: m["jobs"].pop("f" * 16)), True, "a row and not in the manifest"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_what_was_changed_is_named_and_the_exit_code_is_1(case: str, packed: Path, tmp_path: Path) -> None:
    spoil, mended, words = CHANGED[case]
    found = members(packed)
    spoil(found)
    done = command("check", written(tmp_path / "changed.zip", found, mended=mended), "--all")
    assert done.exit_code == 1, done.output
    assert words in done.stderr
    assert all(line.isprintable() for line in done.stderr.splitlines())


def test_other_data_and_a_name_that_is_code_are_not_looked_at(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name in (f"{tmp_path}/evil.py", f"folder:{tmp_path}", "mvtec_ad"):
        found = members(packed)
        with_row(found, lambda row, name=name: row.update(dataset=name))  # type: ignore[misc]
        done = command("check", written(tmp_path / "other.zip", found, mended=True), "--all")
        assert "only the maxima of its maps were looked at" in done.stdout
        assert (done.exit_code, done.stderr.count("\n"), "its id is not" in done.stderr) == (1, 1, True)
    assert not (tmp_path / "ran").exists()


def slip(name: str, mode: int = 0o100644) -> Callable[[Path, bytes], object]:
    def write(path: Path, content: bytes) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("manifest.json", "{}")
            archive.writestr(info, "x")

    return write


def zipped(name: str, content: bytes) -> Callable[[Path, bytes], object]:
    def write(path: Path, _: bytes) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)

    return write


def doubled(path: Path, _: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings(action="ignore"):
        for content in ("{}", '{"format": 1}'):
            archive.writestr("manifest.json", content)


JOBS = b'{"format": 1, "kdad_bench": "1", "files": {}, "jobs": {"%s": {}}}'
HOSTILE: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "cut short": (lambda path, content: path.write_bytes(content[: len(content) // 2]), "a damaged archive, or none"),
    "cut by a byte": (lambda path, content: path.write_bytes(content[:-1]), "a damaged archive, or none"),
    "empty": (lambda path, content: path.write_bytes(b""), "damaged archive, or none"),
    "text": (lambda path, content: path.write_text("hello"), "damaged archive, or none"),
    "outside": (slip("../outside"), "would be written outside of the folder"),
    "absolute": (slip("/tmp/outside"), "would be written outside of the folder"),
    "a link": (slip("link", stat.S_IFLNK | 0o777), "is a symbolic link"),
    "a name that steers": (slip("a\x1b[31m"), "has a name with control characters"),
    "doubled members": (doubled, "clashes with an earlier one (twice"),
    "names alike but for capitals": (slip("Manifest.json"), "clashes with an earlier one"),
    "a device": (slip("null", stat.S_IFCHR | 0o666), "is a device or a pipe"),
    "a bomb": (zipped("manifest.json", bytes(300 << 20)), "bytes become more than"),
    "no manifest": (zipped("rows.parquet", b"x"), "no pack of results (it has no manifest.json)"),
    "no JSON": (zipped("manifest.json", b"{"), "manifest.json: damaged"),
    "a list": (zipped("manifest.json", b"[]"), "holds list and not dict"),
    "a newer format": (zipped("manifest.json", b'{"format": 2}'), "a pack of format 2, this version reads 1"),
    "a field more": (zipped("manifest.json", b'{"format": 1, "kdad_bench": "1", "files": {}, "jobs": {}, "x": 1}'),
                     "manifest.json is damaged (x: "),
    "a job that is a pattern": (zipped("manifest.json", JOBS % b"a**"), "is no id: 'a**'"),
    "a job that is a path": (zipped("manifest.json", JOBS % b"../../x"), "is no id: '../../x'"),
    "a job that steers": (zipped("manifest.json", JOBS % b"\\u001b[31m"), "manifest.json is damaged (jobs.\\x1b[31m"),
    "hashes that are none": (zipped("manifest.json", b'{"format": 1, "kdad_bench": "", "files": {"a": 1}, "jobs": {}}'),
                             "manifest.json is damaged (files.a: "),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_pack_is_one_line_and_exit_code_2(case: str, packed: Path, tmp_path: Path) -> None:
    write, words = HOSTILE[case]
    path = tmp_path / "inside" / "hostile.zip"
    path.parent.mkdir()
    write(path, packed.read_bytes())
    done = command("check", path)
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["hostile.zip", "inside"]


def test_many_problems_are_some_lines_and_a_count(packed: Path, tmp_path: Path) -> None:
    found = members(packed) | {f"more/{number}.txt": b"x" for number in range(100)}
    done = command("check", written(tmp_path / "more.zip", found, mended=False))
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 41
    assert "and 60 more lines like these" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-d", "folder:nowhere"), "no such folder"),
        (("-d", "mvtec_a"), "did you mean 'mvtec_ad'"),
        (("-d", ""), "for a path write folder:"),
        (("--results", "nowhere"), "does not exist"),
        (("--data-root", "nowhere"), "no such folder"),
        (("--sample", 1, "--all"), "--sample and --all exclude each other"),
    ],
)
def test_what_would_be_compared_with_nothing_is_one_line_and_exit_code_2(
    arguments: tuple[object, ...], words: str, packed: Path
) -> None:
    done = command("check", packed, *arguments)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.output
    assert words in done.stderr


def test_what_cannot_be_packed_is_one_line_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    torn, empty, other = (tmp_path / name for name in ("torn", "empty", "other"))
    for place in (torn, empty, other / "maps"):
        place.mkdir(parents=True)
    (torn / "x.parquet").write_bytes(b"PAR1")
    (row,) = [path for path in folder.glob("*.parquet") if ".failed" not in path.name]
    (other / row.name).write_bytes(row.read_bytes())
    (maps,) = (folder / "maps").iterdir()
    stack = np.load(maps)
    np.savez(other / "maps" / maps.name, maps=stack["maps"].astype(np.float16), names=stack["names"])
    out = tmp_path / "out.zip"
    cases = ((torn, "rows do not count (1), the"), (empty, "no row there"), (tmp_path / "none", "no results folder"),
             (other, "holds float16 maps"), ("memory://x", "without --maps"))  # fmt: skip
    for place, words in cases:
        if str(place).startswith("memory"):
            store.write(store.find(folder, row.stem[-16:]), "memory://x")  # type: ignore[arg-type]
        done = command("pack", place, "--out", out, "--maps")
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.output
        assert words in done.stderr
        assert not out.exists()
    done = command("pack", folder, "--out", tmp_path / ("x" * 300))
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)


def test_rows_of_other_code_are_packed_without_maps_and_no_run_is_advised(folder: Path, tmp_path: Path) -> None:
    (row,) = [row for row in store.read(folder).rows() if row["status"] == "ok"]
    found = store.find(folder, row["job_id"])
    assert found is not None
    store.write(replace(found, job_id="e" * 16, method="external:theirs", origin=EXTERNAL), tmp_path / "results")
    done = command("pack", tmp_path / "results", "--out", tmp_path / "pack.zip", "--maps")
    assert (done.exit_code, done.stderr) == (
        0,
        "1 row of `evaluate` packed without maps: no results folder keeps those\n",
    )


def test_an_id_follows_from_its_row(folder: Path) -> None:
    rows = [row for row in store.read(folder).rows() if row["status"] == "ok"]
    assert [id_of_row(row) for row in rows] == [row["job_id"] for row in rows]


def test_rows_on_an_object_store_are_packed_without_their_maps(folder: Path, tmp_path: Path) -> None:
    url = "memory://packed/results"
    rows = [Row(**row) for row in store.read(folder).rows()]
    for row in rows:
        store.write(row, url)
    done = command("pack", url, "--out", tmp_path / "pack.zip", "--maps")
    assert done.exit_code != 0
    assert "pack without --maps" in done.stderr
    done = command("pack", url, "--out", tmp_path / "pack.zip")
    assert done.exit_code == 0, done.output
    with zipfile.ZipFile(tmp_path / "pack.zip") as pack:
        content = next(pack.read(name) for name in pack.namelist() if name.endswith(".parquet"))
    assert set(pq.read_table(io.BytesIO(content))["job_id"].to_pylist()) == {row.job_id for row in rows}


def test_nothing_is_said_of_seg_f1_where_no_map_is_in_the_pack(folder: Path, tmp_path: Path) -> None:
    assert command("pack", folder, "--out", tmp_path / "bare.zip").exit_code == 0
    assert "SegF1" not in command("check", tmp_path / "bare.zip").stdout
