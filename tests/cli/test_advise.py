"""`kdad-bench advise`: words, JSON, exit codes, one-line errors; normals are counted and no test image is asked for."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tifffile
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdad_bench.cli import cli
from kdad_bench.cli.run import options_of, run
from kdad_bench.harness.advising import Normals, normals_at, shortage
from kdad_bench.harness.agenda import agenda
from kdad_bench.harness.decision import needed_for, rank_of
from kdad_bench.harness.job import Job
from kdad_bench.leaderboard import store
from kdad_bench.methods import outside
from tests.leaderboard import plausible

PLAIN = (Path(__file__).parents[1] / "harness" / "plain_method.py.txt").read_text()
ROWS = Path(__file__).parents[2] / "docs" / "results" / "quick"


def advise(data: str, *arguments: str, results: Path = ROWS) -> Result:
    return CliRunner().invoke(cli, ["advise", "--data", data, "--results", str(results), *arguments])


def write_normals(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    return folder


def test_the_recorded_rows_advise_in_words_and_in_json(tmp_path: Path) -> None:
    write_normals(tmp_path / "bolt" / "train" / "good", 12)
    data = f"folder:{tmp_path}"
    done = advise(data, "--latency-ms", "1000")
    assert done.exit_code == 0, done.output
    said = json.loads(advise(data, "--latency-ms", "1000", "--json").stdout)
    best = said["best"]
    assert f"take     {best['key']}: image AUROC {best['accuracy']:.3f} [" in done.output
    assert all(one["accuracy"] <= best["accuracy"] for one in said["candidates"])
    assert [one["latency_ms"] for one in said["front"]] == sorted(one["latency_ms"] for one in said["front"])
    assert "at least 99 held-out normals" in done.output
    assert "- bolt: 12 normals: 88 more are needed to have one to learn from; 127 more" in done.output
    assert said["normals"][0]["more_at_least"] == 88
    for words in (f"Latency was measured on {said['measured_on']}", "synthetic images", "4 categories", "quick preset"):
        assert words in done.output
    assert f"kdad-bench run -m {best['key']} --preset quick -d {data} --save-models" in done.output
    spaced = write_normals(tmp_path / "my parts", 200)
    said = advise(f"folder:{spaced}").output.splitlines()[-1]
    assert said.startswith(
        "Next, with the normal ones in FOLDER/train/good, test images in FOLDER/test/good and FOLDER/"
    )
    assert "-d folder:FOLDER --hold-out" in said


def test_what_is_not_found_worse_is_told_with_what_it_may_lose(tmp_path: Path) -> None:
    data = f"folder:{write_normals(tmp_path / 'all', 200)}"
    said = json.loads(advise(data, "--json").stdout)
    assert (said["fastest_not_told_apart"] is None) == (said["worse_by"] is None)
    fast, best, loss = said["fastest_not_told_apart"], said["best"], said["worse_by"]
    assert fast is not None
    assert loss["difference"] == pytest.approx(best["accuracy"] - fast["accuracy"], abs=1e-6)
    assert loss["low"] <= 0 or loss["p"] >= 0.05
    (line,) = (one for one in advise(data).output.splitlines() if one.startswith("or "))
    words = (
        f"does not find worse; {loss['difference']:.3f} worse, 95 % interval {loss['low']:.3f} to {loss['high']:.3f}"
    )
    assert line.endswith(words)


def test_the_next_command_can_be_pasted(tmp_path: Path) -> None:
    write_normals(tmp_path / "my bolts" / "bolt" / "train" / "good", 12)
    data = f"folder:{tmp_path / 'my bolts'}"
    said = advise(data, "--data-root", str(tmp_path / "my bolts")).output.splitlines()[-1]
    words = shlex.split(said.partition(": ")[2])
    assert words[words.index("-d") + 1] == data
    assert words[words.index("--data-root") + 1] == str(tmp_path / "my bolts")
    assert "--data-root" not in advise(data).output


@pytest.mark.parametrize(
    "label",
    [
        "quick",
        "standard",
        "paper[channels=50,hold_out=0.25,image_size=64,resolution=64,strides=(8, 16),taps=standardised]",
        "quick[batch_size=4,fit=short-side,hold_out=1e-05,overlap=32,regulariser=0.02,tile=96]",
    ],
)
def test_the_next_command_runs_the_configuration_that_the_advice_is_about(
    label: str, tiny_tree: Path, tmp_path: Path
) -> None:
    """On images of one's own the usual preset is not the rows': networks ran whose latency nobody had judged."""
    table = store.read(ROWS).table
    table = table.filter(pc.equal(table["method"], "padim"))
    at = table.schema.get_field_index("preset")
    pq.write_table(table.set_column(at, "preset", pa.array([label] * len(table))), tmp_path / "rows.parquet")
    said = advise(f"folder:{tiny_tree}", results=tmp_path).output.splitlines()[-1]
    assert {job.preset for job in jobs_of(said, tmp_path)} == {label}


def jobs_of(said: str, folder: Path) -> list[Job]:
    """What the command at the end of a line would run."""
    words = shlex.split(said.partition(": kdad-bench run ")[2])
    assert words, said
    with run.make_context("run", [*words, "--dry-run", "--out", str(folder / "out")]) as context:
        options = options_of(context.params)
    options = options.model_copy(update={"all_weights": ("random",)})
    return list(agenda(options).jobs)


@pytest.mark.parametrize("variant", ["", "twice"])
def test_the_next_command_takes_the_file_of_a_method_of_one_s_own(
    variant: str, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is known to nobody but that file."""
    file = tmp_path / "my method.py"
    file.write_text(PLAIN.replace("needs_teacher=False", "needs_teacher=False, variants={'twice': {'strides': (4,)}}"))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    table = store.read(ROWS).table
    table = table.filter(pc.equal(table["method"], "padim"))
    said_of_it = {
        "method": "plain", "variant": variant or None, "code_sha256": sha256, "setting": "multi-class",
        "preset": "quick[setting=multi-class:2:055c]", "learnt_together": ["a=1", "b=2"],
    }  # fmt: skip
    for name, value in said_of_it.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(
            at, table.schema.field(at), pa.array([value] * len(table), table.schema.field(at).type)
        )
    pq.write_table(table, tmp_path / "rows.parquet")
    command, of_file, without = advise(f"folder:{tiny_tree}", results=tmp_path).output.splitlines()[-3:]
    jobs = jobs_of(command.replace("FILE.py", shlex.quote(str(file))), tmp_path)
    assert {(job.method, job.variant, job.code, job.together) for job in jobs} == {("plain", variant, sha256, ())}
    with monkeypatch.context() as patched:
        patched.setattr(outside, "installed", lambda: {"plain": None})
        said = advise(f"folder:{tiny_tree}", results=tmp_path).output
        assert f"kdad-bench run -m {'plain:twice' if variant else 'plain'} --preset quick" in said
    assert of_file == f"FILE.py: the file of the method plain whose SHA-256 begins {sha256[:8]}"
    assert without == "The rows are of one model for 2 categories; the command is of the plain setting"


def test_rows_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    shutil.copytree(ROWS, rows)
    (rows / "torn.parquet").write_bytes(b"PAR1")
    done = advise(f"folder:{write_normals(tmp_path / 'all', 3)}", results=rows)
    assert done.exit_code == 0
    assert "left out: torn.parquet: unreadable" in done.stderr


def test_a_metric_that_some_categories_lack_is_told_with_how_many_have_it(tmp_path: Path) -> None:
    for category, known in (("bottle", {}), ("cable", {"aupro_30": None})):
        for row in plausible.full_table(("stfpm", "rd4ad"), (category,), 2, **known):
            store.write(row, tmp_path / "rows")
    data = f"folder:{write_normals(tmp_path / 'all', 3)}"
    assert "AUPRO@0.3 (1 of 2) 0." in advise(data, "--metric", "aupro_30", results=tmp_path / "rows").output
    assert "image AUROC 0." in advise(data, results=tmp_path / "rows").output


def test_where_nothing_keeps_the_limits_the_nearest_is_named_with_what_it_misses(tmp_path: Path) -> None:
    normals = write_normals(tmp_path / "all", 200)  # no splits at all
    done = advise(f"folder:{normals}", "--latency-ms", "0.001", "--false-alarms", "0.05")
    assert done.exit_code == 1
    assert "No method is known to keep --latency-ms 0.001." in done.output
    assert "--latency-ms 0.001 is " in done.output
    assert "- all: 200 normals: enough" in done.output
    assert "--hold-out 0.095" in done.output
    said = json.loads(advise(f"folder:{normals}", "--latency-ms", "0.001", "--json").stdout)
    assert said["best"] is None
    assert said["nearest"]["over"]["latency_ms"] == pytest.approx(said["nearest"]["latency_ms"] / 0.001)
    assert min(one["latency_ms"] for one in said["candidates"]) == said["nearest"]["latency_ms"]


@pytest.mark.parametrize(
    ("data", "arguments", "results", "words"),
    [
        ("folder:{tmp}/none", (), ROWS, "none"),
        ("folder:{tmp}/empty", (), ROWS, "empty"),
        ("folder:{tmp}/bare", (), ROWS, "bolt: no normal images there; put them into train/good"),
        ("folder:{tmp}/good", ("--metric", "latency_ms"), ROWS, "--metric latency_ms: no accuracy; have: image_auroc"),
        ("folder:{tmp}/good", ("--false-alarms", "0"), ROWS, "false-alarms"),
        ("folder:{tmp}/good", ("--false-alarms", "1"), ROWS, "false-alarms"),
        ("folder:{tmp}/good", ("--latency-ms", "nan"), ROWS, "latency-ms"),
        ("folder:{tmp}/good", ("--memory-mb", "-5"), ROWS, "memory-mb"),
        ("folder:{tmp}/good", (), Path("nowhere"), "no results folder"),
        ("folder:{tmp}/good", (), Path("{tmp}/empty"), "no finished jobs; make some with `kdad-bench run --all`"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    data: str, arguments: tuple[str, ...], results: Path, words: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare" / "bolt" / "train" / "good").mkdir(parents=True)
    (tmp_path / "bare" / "bolt" / "test").mkdir()
    write_normals(tmp_path / "good", 2)
    done = advise(data.format(tmp=tmp_path), *arguments, results=Path(str(results).format(tmp=tmp_path)))
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert "Traceback" not in done.stderr


# ---- how many normals


@given(st.floats(1e-4, 0.999))
def test_what_is_needed_can_promise_the_rate_and_one_less_cannot(rate: float) -> None:
    count = needed_for(rate)
    assert rank_of(count, rate) <= count
    assert count == 0 or rank_of(count - 1, rate) > count - 1


@pytest.mark.parametrize(
    ("rate", "count"),
    [(0.999, 1), (0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.001, 999), (1e-17, 10**17 - 1), (1e-320, 10**320 - 1)],
)
def test_a_rate_needs_as_many_normals_as_its_inverse_less_one(rate: float, count: int) -> None:
    assert needed_for(rate) == count


@pytest.mark.parametrize(
    ("normals", "least", "like_rows", "share"),
    [
        (Normals(category="a", train=99), 1, 40, None),
        (Normals(category="a", train=100), 0, 39, None),  # 0.99 cannot be held out
        (Normals(category="a", train=139), 0, 0, 0.713),
        (Normals(category="a", train=1000), 0, 0, 0.099),
        (Normals(category="a", train=40, validation=99), 0, 0, None),
        (Normals(category="a", train=10, validation=90), 9, 39, None),
        (Normals(category="a", train=0, validation=99), 1, 40, None),
    ],
)
def test_what_lacks_is_counted_for_both_uses(normals: Normals, least: int, like_rows: int, share: float | None) -> None:
    found = shortage(normals, 0.01, 40)
    assert (found.more_at_least, found.more_like_rows, found.hold_out) == (least, like_rows, share)


def test_files_that_are_no_images_are_no_normals_and_are_told(tmp_path: Path) -> None:
    for folder in (write_normals(tmp_path / "all", 3), write_normals(tmp_path / "set" / "bolt" / "train" / "good", 3)):
        (folder / "empty.png").touch()
        (folder / "text.png").write_text("no image")
        tifffile.imwrite(folder / "floats.tif", np.zeros((8, 8), np.float32))
        tifffile.imwrite(folder / "five.tif", np.zeros((8, 8, 5), np.uint8), photometric="minisblack")
        Image.new("L", (8, 8)).save(folder / "two.tif", save_all=True, append_images=[Image.new("L", (8, 8))])
    (tmp_path / "all" / "nowhere.png").symlink_to(tmp_path / "nowhere")
    for data, name in ((tmp_path / "all", "all"), (tmp_path / "set", "bolt")):
        bad = 6 if name == "all" else 5
        assert normals_at(f"folder:{data}") == (Normals(category=name, train=3, unreadable=bad, bare=name == "all"),)
        words = f"- {name}: 3 normals ({bad} files beside them cannot be read as images): 97 more are needed"
        assert words in advise(f"folder:{data}").output
    for image in (tmp_path / "all").glob("?.png"):
        image.write_bytes(b"")
    done = advise(f"folder:{tmp_path / 'all'}")
    assert done.exit_code == 2
    assert "no normal images there that can be read (8 files are none)" in done.stderr


def test_one_normal_is_one_to_learn_from_and_none_to_hold_out(tmp_path: Path) -> None:
    normals = write_normals(tmp_path / "all", 1)
    done = advise(f"folder:{normals}")
    assert "- all: 1 normals: 99 more are needed to have one to learn from; 138 more" in done.output
    assert "--hold-out" not in done.output


def test_memory_that_no_row_tells_apart_from_the_libraries_is_named_and_the_list_is_short(tmp_path: Path) -> None:
    normals = write_normals(tmp_path / "all", 1)
    shutil.copytree(ROWS, tmp_path / "rows")
    (place,) = (tmp_path / "rows").glob("*.parquet")
    table = pq.read_table(place)
    tell = ["memory_at_start_mb" in (text or "") for text in table["environment"].to_pylist()]
    pq.write_table(table.filter(pa.array([not one for one in tell])), place, write_page_checksum=True)
    done = advise(f"folder:{normals}", "--memory-mb", "500", results=tmp_path / "rows")
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert sum(line.startswith("perhaps ") for line in lines) == 3
    assert sum(line.startswith("         and in the same way, less accurate: ") for line in lines) == 1
    assert "MB (whole process): its weights are " in done.output
    assert "- memory is that of the whole process: it holds Python, its libraries" in done.output
    said = json.loads(advise(f"folder:{normals}", "--memory-mb", "500", "--json", results=tmp_path / "rows").stdout)
    assert {one["over"]["memory_mb"] > 1 for one in said["perhaps"]} == {True}
    assert len(said["perhaps"]) > 3


def test_a_validation_split_is_counted_apart(tmp_path: Path) -> None:
    write_normals(tmp_path / "bolt" / "train" / "good", 3)
    write_normals(tmp_path / "bolt" / "validation" / "good", 2)
    write_normals(tmp_path / "nut" / "train" / "good", 4)
    found = normals_at(f"folder:{tmp_path}")
    assert found == (Normals(category="bolt", train=3, validation=2), Normals(category="nut", train=4))


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ("NVIDIA H200", "this machine has such a GPU"),
        ("NVIDIA T4", "this machine has NVIDIA T4, where it will differ"),
        (None, "and no GPU for CUDA, where it will differ"),
    ],
)
def test_figures_of_a_gpu_are_set_beside_the_gpu_of_this_machine(
    here: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: here is not None)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *device: here)
    rows = ROWS.with_name("gpu")
    data = f"folder:{write_normals(tmp_path / 'all', 3)}"
    done = advise(data, results=rows)
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Latency was measured")]
    assert line.startswith("Latency was measured on NVIDIA H200 with 16 threads")
    assert words in line
    said = json.loads(advise(data, "--json", results=rows).stdout)["this_machine"]
    assert said == here or (here is None and said.endswith("no GPU for CUDA"))
