"""Methods from outside the package: a file with one command to the leaderboard, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import kdad_bench
from kdad_bench import Detector
from kdad_bench.cli import cli
from kdad_bench.cli.ending import first_interrupt
from kdad_bench.leaderboard import store
from kdad_bench.methods import METHODS, outside
from kdad_bench.outside import module_of

PLAIN = (Path(__file__).parents[1] / "harness" / "plain_method.py.txt").read_text()


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def run(method: object, tree: Path, out: Path, *more: object) -> Result:
    what = ("-d", f"folder:{tree}", "-c", "bolt", "--seeds", "1", "--resolution", 64, "--no-pictures", "--out", out)
    here = () if {"--executor", "--workers"} & {*more} else ("--workers", 1)  # in this process
    return command("run", "--method", method, *what, *here, *more)


def written(folder: Path, text: str = PLAIN, name: str = "plain.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_of_at_most_60_lines_reaches_the_leaderboard_with_one_command(tiny_tree: Path, tmp_path: Path) -> None:
    path = written(tmp_path)
    assert len(PLAIN.splitlines()) <= 60
    result = run(path, tiny_tree, tmp_path / "out")
    assert result.exit_code == 0, result.output
    (row,) = store.read(tmp_path / "out").rows()
    assert (row["method"], row["title"], row["status"]) == ("plain", "Plain", "ok")
    assert row["code_sha256"] == outside.ADDED["plain"].sha256
    assert "Plain" in (tmp_path / "out" / "leaderboard.md").read_text()
    assert "1 already finished" in run(f"{path}:PLAIN", tiny_tree, tmp_path / "out").output


def test_words_on_settings_that_fail_are_told_before_anything_is_trained(tiny_tree: Path, tmp_path: Path) -> None:
    text = PLAIN.replace("    strides:", '    DEPARTURES = {"x": lambda settings: settings.nothing}\n    strides:')
    assert text != PLAIN
    found = run(written(tmp_path, text), tiny_tree, tmp_path / "out", "-m", "pixel_mean")
    assert found.exit_code == 2, found.output
    assert "method 'plain': no row can be made of its settings (AttributeError: " in found.output
    assert "Traceback" not in found.output
    assert not (tmp_path / "out" / "logs").exists()


def test_other_code_is_another_job_and_another_entrant(tiny_tree: Path, tmp_path: Path) -> None:
    for text in (PLAIN, PLAIN + "# changed\n"):
        assert run(written(tmp_path, text), tiny_tree, tmp_path / "out").exit_code == 0
        outside.ADDED.clear()
    found = store.read(tmp_path / "out").rows()
    assert len({row["job_id"] for row in found}) == len({row["code_sha256"] for row in found}) == 2
    page = (tmp_path / "out" / "leaderboard.md").read_text()
    assert all(f"Plain (code {row['code_sha256'][:8]})" in page for row in found)


def test_a_worker_process_runs_the_code_that_was_planned(tiny_tree: Path, tmp_path: Path) -> None:
    result = run(written(tmp_path), tiny_tree, tmp_path / "out", "--executor", "local", "--set", "plain.image_size=96")
    assert result.exit_code == 0, result.output
    (row,) = store.read(tmp_path / "out").rows()
    assert (row["status"], row["image_size"], row["preset"]) == ("ok", 96, "quick[image_size=96,resolution=64]")


def test_an_installed_package_is_found_by_its_entry_point(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, name="plain_package.py")
    info = tmp_path / "plain_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-package\nVersion: 1.0\n")
    (info / "RECORD").write_text("plain_package.py,,\nplain_package-1.0.dist-info/METADATA,,\n")
    (info / "entry_points.txt").write_text("[kdad_bench.methods]\nplain = plain_package:PLAIN\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = run("plain", tiny_tree, tmp_path / "out")
    sys.modules.pop("plain_package", None)
    assert result.exit_code == 0, result.output
    (row,) = store.read(tmp_path / "out").rows()
    assert row["method"] == "plain"
    first = outside.ADDED.pop("plain").sha256
    assert row["code_sha256"] == first
    written(tmp_path, PLAIN + "# changed\n", "plain_package.py")
    assert outside.add_installed("plain", METHODS)
    sys.modules.pop("plain_package", None)
    assert outside.ADDED["plain"].sha256 != first


def installed_in_place(kind: str, site: Path, project: Path) -> None:
    """What a build back end leaves behind of `pip install -e`, for the package `plain_place` below `project`."""
    info = site / "plain_place-1.0.dist-info"
    record = "__editable___plain_place_1_0_finder.py,,\n"
    if kind == "a path":
        record = "__editable__.plain_place-1.0.pth,,\n"
    if kind == "an egg-info":
        info = project / "plain_place.egg-info"
    info.mkdir()
    (info / "PKG-INFO" if kind == "an egg-info" else info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: plain-place\nVersion: 1.0\n"
    )
    if kind == "an egg-info":
        (project / "setup.py").write_text("")
        (info / "SOURCES.txt").write_text("setup.py\nplain_place/__init__.py\nplain_place/entry.py\n")
    else:
        (info / "RECORD").write_text(record)
        (site / record.partition(",")[0]).write_text("# a stub\n")
    (info / "entry_points.txt").write_text("[kdad_bench.methods]\nplain = plain_place.entry:PLAIN\n")


@pytest.mark.parametrize("kind", ["a finder", "a path", "an egg-info"])
def test_the_code_of_a_package_installed_in_place_is_all_that_lies_in_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edited code, and a module that is new, have another hash; what lies beside the package has none."""
    site, project = tmp_path / "site", tmp_path / "project"
    package = project / "plain_place"
    for folder in (site, package / "parts"):
        folder.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    written(package, name="entry.py")
    (package / "parts" / "loss.py").write_text("SCALE = 1\n")
    (package / "parts" / "again").symlink_to(package)  # a circle
    installed_in_place(kind, site, project)
    for place in (project, site):
        monkeypatch.syspath_prepend(place)

    def code() -> str:
        assert outside.add_installed("plain", METHODS)
        for name in [name for name in sys.modules if name.partition(".")[0] == "plain_place"]:
            sys.modules.pop(name)
        return outside.ADDED.pop("plain").sha256

    found = [code()]
    assert code() == found[0]
    (package / "parts" / "loss.py").write_text("SCALE = 2\n")
    found.append(code())
    (package / "parts" / "new.py").write_text("")
    found.append(code())
    (package / "entry.py").write_text(PLAIN + "# changed\n")
    found.append(code())
    assert len({*found}) == len(found)
    (project / "setup.py").write_text("# changed\n")
    assert code() == found[-1]


def test_a_file_of_a_package_that_is_gone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, name="plain_lost.py")
    info = tmp_path / "plain_lost-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-lost\nVersion: 1.0\n")
    (info / "RECORD").write_text("plain_lost.py,,\nplain_loss.py,,\n")
    (info / "entry_points.txt").write_text("[kdad_bench.methods]\nplain = plain_lost:PLAIN\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(outside.OutsideError, match=r"plain_loss\.py: cannot be read \(No such file or directory\)"):
        outside.add_installed("plain", METHODS)
    sys.modules.pop("plain_lost")


def test_a_file_is_run_by_its_own_rules_and_not_by_those_of_the_module_that_loads_it() -> None:
    """An annotation is a value there, unless the file itself postpones it."""
    module = module_of(b"x: int = 0\n", "f" * 64, "file.py")
    sys.modules.pop(module.__name__)
    assert module.__annotations__ == {"x": int}


def entry(**changes: str) -> str:
    return (
        PLAIN
        + "\nfrom dataclasses import replace\nPLAIN = replace(PLAIN, "
        + ", ".join(f"{name}={value}" for name, value in changes.items())
        + ")\n"
    )


FIELD = "    strides: tuple[int, ...] = (8,)\n"
LATER = """from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from decimal import Decimal
"""


def with_field(line: str) -> str:
    """The method with one more setting."""
    return PLAIN.replace(FIELD, f"{FIELD}    {line}\n")


BAD = {
    "does not parse": ("def (\n", "", "SyntaxError"),
    "does not import": ("import nowhere_to_be_found\n", "", "ModuleNotFoundError"),
    "exits": ("raise SystemExit(0)\n", "", "SystemExit"),
    "no entry": ("x = 1\n", "", "it has no entry"),
    "no such entry": (PLAIN, ":PLAIM", "no 'PLAIM' in it; have: PLAIN"),
    "wrong type": (PLAIN, ":Plain", "of type type, not kdad_bench.methods.protocol.Entry"),
    "two entries": (PLAIN + "OTHER = PLAIN\n", "", "say which entry"),
    "a name of ours": (entry(name="'stfpm'"), "", "is that of a method of this package"),
    "no name": (entry(name="'No Name'"), "", "is not of small letters"),
    "no preset": (entry(presets="{}"), "", "presets need 'quick' and 'paper'"),
    "a preset of no known name": (
        PLAIN.replace("presets={", 'presets={"debug": PlainSettings(image_size=64), '),
        "",
        "preset 'debug' is none of quick, standard and paper",
    ),
    "nothing to build": (entry(build="None"), "", "build is of type NoneType"),
    "no family": (entry(family="'cousin'"), "", "a family of"),
    "a title that steers a terminal": (entry(title="'a\\x1b[2Jb'"), "", "title 'a\\x1b[2Jb' is no line of text"),
    "no paper": (entry(paper="3"), "", "paper 3 is no line of text"),
    "neither true nor false": (entry(needs_teacher="'no'"), "", "needs_teacher is 'no', neither True nor False"),
    "variants in a list": (entry(variants="[1]"), "", "variants are of type list"),
    "a variant of a number": (entry(variants="{'wide': 3}"), ":PLAIN:wide", "variant 'wide' is no name"),
    "a variant of no field": (
        entry(variants="{'wide': {'zzz': 1}}"),
        ":PLAIN:wide",
        "variant 'wide' does not fit preset",
    ),
    "a variant of no value": (entry(variants="{'wide': {'steps': -1}}"), "", "variant 'wide' does not fit preset"),
    "presets of two classes": (
        PLAIN.replace('"paper": PlainSettings()', '"paper": Settings()'),
        "",
        "presets are of PlainSettings and Settings; take one class of settings for all",
    ),
    "a setting that JSON has not": (
        with_field("far: float = float('inf')"),
        "",
        "preset 'quick': setting 'far' is inf, which JSON cannot keep; take a finite number",
    ),
    "a setting that is not what it says": (
        with_field("word: str = None"),
        "",
        "preset 'quick': setting 'word' is None: Input should be a valid string",
    ),
    "an annotation that is not there": (
        LATER + with_field("exact: Decimal | None = None"),
        "",
        "preset 'quick': its settings cannot be kept in a row or a saved model (PydanticUserError: ",
    ),
    "a variant that JSON has not": (
        with_field("far: float = 1.0").replace(
            "    build=Plain,", "    variants={'wide': {'far': float('nan')}}, build=Plain,"
        ),
        "",
        "variant 'wide' of preset 'quick': setting 'far' is nan, which JSON cannot keep",
    ),
    "no such published variant": (entry(published_variant="'wide'"), "", "published_variant 'wide' is none of its"),
    "no such modality setting": (entry(modality_setting="'zzz'"), "", "modality_setting 'zzz' is none of its settings"),
    "an error that cannot be said": (
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\nraise Odd\n",
        "",
        "imported (Odd: )",
    ),
    "no such variant": (PLAIN, ":PLAIN:wide", "no variant 'wide'"),
    "a long file": ("#" * (1 << 20) + "\n", "", "more than 1048576 bytes"),
    "null bytes": ("x = 1\0\n", "", "cannot be imported"),
}


@pytest.mark.parametrize("case", BAD)
def test_code_that_cannot_be_used_is_one_line_exit_code_2_and_nothing_written(
    case: str, tiny_tree: Path, tmp_path: Path
) -> None:
    text, more, words = BAD[case]
    result = run(f"{written(tmp_path, text)}{more}", tiny_tree, tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


SCORE = "    def score(self, images):\n"


def test_what_a_method_prints_is_no_output_of_ours(tiny_tree: Path, tmp_path: Path) -> None:
    text = "print('at import')\n" + PLAIN.replace(SCORE, SCORE + "        print('in score')\n", 1)
    result = run(written(tmp_path, text), tiny_tree, tmp_path / "out", "--json", "--no-measure-speed")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["ok"]
    assert "at import" in result.stderr
    assert "in score" in result.stderr


def test_what_a_file_sets_at_import_is_put_back(tmp_path: Path) -> None:
    before = torch.get_default_dtype(), torch.get_num_threads(), os.getcwd()
    lines = "import os\ntorch.set_default_dtype(torch.float64)\ntorch.set_num_threads(7)\nos.chdir('/')\n"
    name = outside.add_file(written(tmp_path, PLAIN + lines), "", METHODS)
    assert name == "plain"
    assert (torch.get_default_dtype(), torch.get_num_threads(), os.getcwd()) == before


def test_a_method_that_exits_is_a_failed_job_and_no_success(tiny_tree: Path, tmp_path: Path) -> None:
    text = PLAIN.replace(SCORE, SCORE + "        raise SystemExit(0)\n", 1)
    result = run(written(tmp_path, text), tiny_tree, tmp_path / "out", "--no-measure-speed", "--executor", "in-process")
    assert result.exit_code == 1, result.output
    (row,) = store.read(tmp_path / "out").rows()
    assert row["status"] == "failed"
    assert row["reason"].startswith("SystemExit: 0")


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ("os._exit(0)", "SystemExit: os._exit(0) (at "),
        ("os.abort()", "SystemExit: os.abort() (at "),
        ("os.kill(os.getpid(), 9)", "its worker process died (signal SIGKILL)"),
    ],
)
def test_a_method_that_ends_its_process_is_a_failed_job(
    ends: str, reason: str, tiny_tree: Path, tmp_path: Path
) -> None:
    text = PLAIN.replace(SCORE, SCORE + f"        import os; {ends}\n", 1)
    path, out = written(tmp_path, text), tmp_path / "out"
    result = command("run", "-m", path, "-d", f"folder:{tiny_tree}", "-c", "bolt", "--seeds", 1, "--resolution", 64,
                     "--no-pictures", "--no-measure-speed", "--out", out)  # fmt: skip
    assert result.exit_code == 1, result.output
    (row,) = store.read(out).rows()
    assert row["status"] == "failed"
    assert row["reason"].startswith(reason)


@pytest.mark.parametrize("ends", ["os._exit(0)", "os._exit(3)", "os.abort()", "raise SystemExit(0)"])
def test_a_file_that_ends_the_process_as_it_is_imported_is_one_line_and_exit_code_2(
    ends: str, tiny_tree: Path, tmp_path: Path
) -> None:
    """In a process of its own, as it would end this one."""
    path = written(tmp_path, f"import os\n{ends}\n{PLAIN}")
    done = subprocess.run(
        [sys.executable, "-m", "kdad_bench", "run", "-m", path, "-d", f"folder:{tiny_tree}", "--out", tmp_path / "out"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    said = ends if ends.startswith("os") else "0"
    assert line.endswith(f": cannot be imported (SystemExit: {said}); mend it")


@pytest.mark.parametrize("raised", ["EOFError('one process alone')", "SystemExit('one process alone')"])
def test_a_file_that_no_worker_can_import_is_a_failed_job_with_its_reason(
    raised: str, tiny_tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = f"import multiprocessing\nif multiprocessing.parent_process() is not None:\n    raise {raised}\n"
    path, out = written(tmp_path, PLAIN + lines), tmp_path / "out"
    result = run(path, tiny_tree, out, "--executor", "local", "--no-measure-speed")
    assert result.exit_code == 1, result.output
    (row,) = store.read(out).rows()
    kind = raised.partition("(")[0]
    assert row["reason"].startswith(f"a process of its own cannot read it ({path}: cannot be imported ({kind}: ")
    assert row["reason"].endswith("; mend it); give --executor in-process")
    assert "Traceback" not in capfd.readouterr().err


def test_settings_that_no_worker_can_read_are_a_failed_job_with_its_reason(tiny_tree: Path, tmp_path: Path) -> None:
    """Not by `__setstate__`: in a frozen class with slots Python 3.11.2 puts its own in its place."""
    unread = '\ndef unread():\n    raise EOFError("not here")\n'
    field = 'own: str = "a"\n\n    def __reduce__(self):\n        return unread, ()'
    path, out = written(tmp_path, with_field(field) + unread), tmp_path / "out"
    result = run(path, tiny_tree, out, "--executor", "local", "--no-measure-speed")
    assert result.exit_code == 1, result.output
    (row,) = store.read(out).rows()
    assert row["reason"].startswith("a process of its own cannot read it (EOFError: not here (at ")


def test_speed_is_not_measured_of_a_method_that_ends_the_process_then(tiny_tree: Path, tmp_path: Path) -> None:
    """Its job ends well, in a worker; what is measured runs in the command's own process."""
    text = PLAIN.replace(
        SCORE, SCORE + "        import os, multiprocessing\n"
        "        if multiprocessing.parent_process() is None: os._exit(0)\n", 1
    )  # fmt: skip
    path, out = written(tmp_path, text), tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "kdad_bench", "run", "-m", path, "-d", f"folder:{tiny_tree}", "-c", "bolt", "--seeds",
         "1", "--resolution", "64", "--no-pictures", "--out", out],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert "speed not measured" in done.stdout + done.stderr
    assert "SystemExit: os._exit(0)" in done.stdout + done.stderr
    (row,) = store.read(out).rows()
    assert row["status"] == "ok"
    trial = subprocess.run(
        [sys.executable, "-m", "kdad_bench", "run", "-m", path, "-d", f"folder:{tiny_tree}", "-c", "bolt", "--seeds",
         "1", "--resolution", "64", "--dry-run", "--out", tmp_path / "other"],
        check=False, capture_output=True, text=True, env={**os.environ, "KDAD_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert trial.returncode == 0, trial.stderr
    assert "1 job" in trial.stdout + trial.stderr


@pytest.mark.parametrize("raised", ["KeyboardInterrupt('mine')", "type('Own', (BaseException,), {})('mine')"])
def test_whatever_a_method_raises_is_a_failed_job_and_a_signal_of_a_person_ends_the_run(
    raised: str, tiny_tree: Path, tmp_path: Path
) -> None:
    text = PLAIN.replace(SCORE, SCORE + f"        raise {raised}\n", 1)
    before = signal.signal(signal.SIGINT, first_interrupt)  # as the command has it
    try:
        result = run(written(tmp_path, text), tiny_tree, tmp_path / "out", "--no-measure-speed")
        assert result.exit_code == 1, result.output
        (row,) = store.read(tmp_path / "out").rows()
        assert row["status"] == "failed"
        assert ": mine (at " in row["reason"]
        outside.ADDED.clear()
        text = PLAIN.replace(SCORE, SCORE + "        import os; os.kill(os.getpid(), 2)\n", 1)
        stopped = run(written(tmp_path, text), tiny_tree, tmp_path / "person", "--no-measure-speed")
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.exit_code == 130, stopped.output
    assert "Stopped. Finished jobs are kept" in stopped.output
    assert store.read(tmp_path / "person").rows() == []


@pytest.mark.parametrize("kind", ["file", "package"])
def test_a_failure_names_the_line_of_the_method_and_not_of_who_called_it(
    kind: str, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "        torch.stack([torch.zeros(2), torch.zeros(3)])\n"  # raised in torch, called by the method
    text = PLAIN.replace(SCORE, SCORE + wrong, 1)
    line = text.splitlines().index(wrong.rstrip()) + 1
    folder = tmp_path / "kdad_bench_work"  # as torch's own files may lie below it
    folder.mkdir()
    method: object = written(folder, text, "plain_package.py")
    if kind == "package":
        info = folder / "plain_package-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-package\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[kdad_bench.methods]\nplain = plain_package:PLAIN\n")
        monkeypatch.syspath_prepend(folder)
        method = "plain"
    run(method, tiny_tree, tmp_path / "out", "--no-measure-speed")
    sys.modules.pop("plain_package", None)
    (row,) = store.read(tmp_path / "out").rows()
    assert row["reason"].startswith("RuntimeError: stack expects each tensor to be equal size")
    assert row["reason"].endswith(f" (at plain_package.py:{line})")


def test_an_error_that_cannot_be_said_is_a_failed_job(tiny_tree: Path, tmp_path: Path) -> None:
    odd = "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\n\n\n"
    text = PLAIN.replace("class Plain:", odd + "class Plain:", 1).replace(SCORE, SCORE + "        raise Odd\n", 1)
    result = run(written(tmp_path, text), tiny_tree, tmp_path / "out", "--no-measure-speed", "--executor", "in-process")
    assert result.exit_code == 1, result.output
    (row,) = store.read(tmp_path / "out").rows()
    assert row["reason"].startswith("Odd: no message")


def test_what_is_no_file_is_refused(tiny_tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    for name, words in (("pipe", "not a regular file"), ("folder", "folder.py"), ("none", "No such file")):
        result = run(tmp_path / f"{name}.py", tiny_tree, tmp_path / "out")
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert words in result.stderr


def test_two_files_of_one_name_are_refused(tiny_tree: Path, tmp_path: Path) -> None:
    path, twin = written(tmp_path), written(tmp_path, PLAIN + "# other\n", "twin.py")
    result = run(path, tiny_tree, tmp_path / "out", "--method", twin)
    assert result.exit_code == 2
    assert "the name 'plain' is that of" in result.stderr


def test_a_method_without_networks_fails_before_its_training(tiny_tree: Path, tmp_path: Path) -> None:
    text = PLAIN.replace("def networks(", "def others(").replace("    def fit(self, normal, fitting=None):\n", (
        "    def fit(self, normal, fitting=None):\n        raise RuntimeError('it was trained')\n"
    ))  # fmt: skip
    assert run(written(tmp_path, text), tiny_tree, tmp_path / "out").exit_code == 1
    (row,) = store.read(tmp_path / "out").rows()
    assert "method 'plain' has no networks; `check-method` goes" in row["reason"]


def test_two_entries_of_one_name_in_one_file_are_told_and_an_edited_file_is_another(tmp_path: Path) -> None:
    twin = "TWIN = Entry(name='plain', title='Twin', paper='none', presets=PLAIN.presets, build=Plain)\n"
    path = written(tmp_path, f"{PLAIN}ALIAS = PLAIN\n{twin}")
    assert Detector(f"{path}:PLAIN").method == Detector(f"{path}:ALIAS").method == "plain"
    with pytest.raises(ValueError, match=r"plain\.py: two of its entries are called 'plain'; rename one of them"):
        Detector(f"{path}:TWIN")
    written(tmp_path, PLAIN + "# edited\n")
    with pytest.raises(ValueError, match=r"plain\.py: has changed since this process read it; start Python anew"):
        Detector(path)


def test_a_saved_model_is_loaded_with_its_file_and_with_no_other(tiny_tree: Path, tmp_path: Path) -> None:
    path, other = written(tmp_path), written(tmp_path, PLAIN + "# other\n", "other.py")
    out, image = tmp_path / "out", tiny_tree / "bolt" / "test" / "good" / "000.png"
    result = run(path, tiny_tree, out, "--save-models", "--executor", "local")
    assert result.exit_code == 0, result.output
    (row,) = store.read(out).rows()
    (model,) = (out / "models").iterdir()

    def predict(*more: object) -> Result:
        outside.ADDED.clear()
        return command("predict", model, image, *more)

    done = predict("--method", f"{path}:PLAIN")
    assert done.exit_code == 0, done.output
    measured = dict(zip(row["image_names"], row["image_scores"], strict=True))
    assert float(done.stdout.split()[0]) == pytest.approx(measured["good/000.png"], rel=1e-5)
    for more, words in (((), "method 'plain' is in a file, "), (("--method", other), "saved with code ")):
        done = predict(*more)
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
        assert words in done.stderr
        assert "give" in done.stderr
    outside.ADDED.clear()
    detector = kdad_bench.Detector.load(model, method=path)
    outside.ADDED.clear()
    with pytest.raises(ValueError, match=r"plain\.py'; give it with method FILE"):
        kdad_bench.Detector.load(model)
    assert detector.predict([image]).scores[0] == pytest.approx(measured["good/000.png"], rel=1e-5)
    description = json.loads((model / "model.json").read_text())
    assert description["code_sha256"] == row["code_sha256"]
    del description["code_sha256"]  # as if it were this package's
    (model / "model.json").write_text(json.dumps(description))
    assert "saved with code that was in no file" in predict("--method", path).stderr


OWN_SETTINGS = {
    "a list": "widths: list[int] = field(default_factory=lambda: [8, 16])",
    "a dict": "weights: dict[str, float] = field(default_factory=lambda: {'a': 0.5})",
    "settings within": "inside: Inside = Inside(2)",
    "texts by name": "side: Side = Side.LEFT",
}
CLASSES = """from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True)
class Inside:
    depth: int = 1


class Side(StrEnum):
    LEFT = "left"


"""


@pytest.mark.parametrize("case", OWN_SETTINGS)
def test_settings_of_every_kind_survive_a_saved_model_and_a_row(case: str, tiny_tree: Path, tmp_path: Path) -> None:
    """One lone image is learnt from, for which the plan asks the method itself."""
    path, out = written(tmp_path, CLASSES + with_field(OWN_SETTINGS[case])), tmp_path / "out"
    result = run(path, tiny_tree, out, "--save-models", "--train-images", 1, "--no-measure-speed", "--image-size", 32)
    assert result.exit_code == 0, result.output
    (model,) = (out / "models").iterdir()
    loaded = Detector.load(model, method=path)
    preset = outside.ADDED["plain"].entry.presets["quick"]
    assert loaded.settings == replace(preset, image_size=32)
    again = command("results", "reproduce", out, "--method", path, "--dataset", f"folder:{tiny_tree}")
    assert again.exit_code == 0, again.output
    assert ": identical" in again.output


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_an_override_that_json_has_not_is_refused_before_anything_runs(
    value: str, tiny_tree: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, with_field("far: float = 1.0"))
    result = run(path, tiny_tree, tmp_path / "out", "--set", f"plain.far={value}")
    assert result.exit_code == 2
    assert f"method 'plain': setting 'far' is {value}, which JSON cannot keep" in result.stderr
    assert not (tmp_path / "out").exists()


INNER = """

class Judge(Plain):
    \"\"\"It judges by twice what another has learnt, which it keeps beside.\"\"\"

    def __init__(self, settings, teacher, device):
        super().__init__(settings, teacher, device)
        self.inner = Plain(settings, teacher, device)

    def fit(self, normal, fitting=None):
        self.inner.fit(normal, fitting)
        self.module.mean, self.module.weight = self.inner.module.mean.clone(), 2 * self.inner.module.weight


PLAIN = Entry(name="plain", title="Plain", paper="none", presets=PLAIN.presets, build=Judge, needs_teacher=False)
"""


@pytest.mark.parametrize("view", [(), ("--fit", "pad", "--tile", 32)], ids=["whole", "windows"])
def test_the_method_that_judged_is_saved_and_not_one_that_it_calls_inner(
    view: tuple[object, ...], tiny_tree: Path, tmp_path: Path
) -> None:
    path, out = written(tmp_path, PLAIN + INNER), tmp_path / "out"
    size = ("--image-size", 32) if view else ()
    result = run(path, tiny_tree, out, "--save-models", "--no-measure-speed", *view, *size)
    assert result.exit_code == 0, result.output
    (row,) = store.read(out).rows()
    (model,) = (out / "models").iterdir()
    measured = dict(zip(row["image_names"], row["image_scores"], strict=True))
    image = tiny_tree / "bolt" / "test" / "good" / "000.png"
    found = Detector.load(model, method=path).predict([image]).scores[0]
    assert found == pytest.approx(measured["good/000.png"], rel=1e-5)


def test_a_saved_model_of_a_file_is_exported_with_it_and_used_without(tiny_tree: Path, tmp_path: Path) -> None:
    path, other = written(tmp_path), written(tmp_path, PLAIN.replace('"plain"', '"twin"'), "twin.py")
    out, images = tmp_path / "out", tiny_tree / "bolt" / "test"
    assert run(path, tiny_tree, out, "--save-models", "--hold-out", 0.5).exit_code == 0
    (model,) = (out / "models").iterdir()
    export, bench = (
        ("export", model, "--to", "torch", "--false-alarms", 0.25),
        ("bench", "export", model, "--rounds", 1),
    )
    for line in ((*export, "--check-on", images), bench):
        for more, words in (
            ((), "give it with --method FILE"),
            (("--method", f"{path}:PLAIN:narrow"), "a model knows its variant by itself"),
        ):
            outside.ADDED.clear()
            failed = command(*line, *more)
            assert (failed.exit_code, len(failed.stderr.splitlines())) == (2, 1)
            assert words in failed.stderr
        outside.ADDED.clear()
        done = command(*line, "--method", f"{path}:PLAIN")
        assert done.exit_code == 0, done.output
        failed = command(*line, "--method", other)  # the model's own file is known by now
        assert failed.exit_code == 2
        assert f"{model} is of method 'plain'; leave --method out" in failed.stderr
    outside.ADDED.clear()
    graph = model / "torch"
    said = json.loads(command("predict", graph, images, "--json").stdout)
    detector = kdad_bench.Detector.load(graph)
    found = detector.predict([one["image"] for one in said["images"]])
    assert found.scores.tolist() == pytest.approx([one["score"] for one in said["images"]], rel=1e-5)
    assert (detector.method, detector.threshold_) == ("plain", pytest.approx(said["threshold"]))
    assert "plain" in repr(detector)
    assert not outside.ADDED


@pytest.mark.parametrize("variant", ["nosuchvariant", "published"])
def test_a_variant_beside_a_model_is_refused(variant: str, tmp_path: Path) -> None:
    for line in (("predict", tmp_path, "a.png"), ("export", tmp_path, "--to", "torch"), ("bench", "export", tmp_path)):
        failed = command(*line, "--method", f"pixel_mean:{variant}")
        assert failed.exit_code == 2
        assert f"a model knows its variant by itself; leave ':{variant}' out" in failed.stderr
    with pytest.raises(ValueError, match="a model knows its variant by itself"):
        kdad_bench.Detector.load(tmp_path, method=f"pixel_mean:{variant}")


def test_a_config_file_has_settings_of_methods_in_files(tiny_tree: Path, tmp_path: Path) -> None:
    path = written(tmp_path)
    config = tmp_path / "run.toml"
    config.write_text(f"[run]\nmethods = ['{path}']\n[settings.plain]\nimage_size = 96\n")
    more = ("-d", f"folder:{tiny_tree}", "--dry-run", "--json", "--preset", "quick", "--config", config)
    done = command("run", *more)
    assert done.exit_code == 0, done.output
    assert "quick[image_size=96]" in done.stdout
    outside.ADDED.clear()
    config.write_text("[settings.plain]\nimage_size = 96\n")
    assert "quick[image_size=96]" in command("run", *more, "--method", path).stdout
    outside.ADDED.clear()
    for text, words in (("my_own_code", "run.toml:1: settings.my_own_code: not a method; name its file among"),
                        ("stfmp", "did you mean 'stfpm'")):  # fmt: skip
        config.write_text(f"[settings.{text}]\nimage_size = 96\n")
        done = command("run", *more)
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
        assert words in done.stderr


def test_a_new_method_is_written_once_and_runs(tiny_tree: Path, tmp_path: Path) -> None:
    result = command("new", "method", "my_own", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    path = tmp_path / "my_own.py"
    assert len(path.read_text().splitlines()) <= 60
    assert "%" not in path.read_text()
    again = command("new", "method", "my_own", "--out", tmp_path)
    assert (again.exit_code, len(again.stderr.splitlines())) == (2, 1)
    assert "is there already" in again.stderr
    result = run(path, tiny_tree, tmp_path / "out", "--steps", 2, "--image-size", 64, "--weights", "random")
    assert result.exit_code == 0, result.output
    (row,) = store.read(tmp_path / "out").rows()
    assert (row["method"], row["title"], row["status"]) == ("my_own", "MyOwn", "ok")


@pytest.mark.parametrize("name", ["stfpm", "My_own", "class", "a-b", "../x", "1st"])
def test_a_name_that_cannot_be_a_method_is_refused(name: str, tmp_path: Path) -> None:
    result = command("new", "method", name, "--out", tmp_path)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert list(tmp_path.iterdir()) == []
