"""`kdad-bench run` as a person uses it: results, resume, failures, bad input."""

from __future__ import annotations

import inspect
import io
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kdad_bench import datasets
from kdad_bench.cli import VARIABLES, cli
from kdad_bench.harness.choices import PRESETS, SelectionError
from kdad_bench.harness.output import refuse_what_will_not_be_written
from kdad_bench.kernels import dispatch
from kdad_bench.leaderboard import store
from kdad_bench.methods import METHODS


def run(*arguments: object) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(cli, [str(argument) for argument in ("run", *arguments)])


def rows(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """(method, category, seed) -> row."""
    return {(row["method"], row["category"], row["seed"]): row for row in store.read(folder).rows()}


def floor(tree: Path, out: Path, *more: object) -> Result:
    """The method without a teacher on both categories: the fastest real run."""
    return run("--method", "pixel_mean", "--dataset", f"folder:{tree}", "--seeds", "1", "--out", out, *more)


METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05")


def test_a_run_leaves_a_row_per_job_a_leaderboard_a_log_and_a_picture(tiny_tree: Path, tmp_path: Path) -> None:
    result = floor(tiny_tree, tmp_path)
    assert result.exit_code == 0, result.output
    found = rows(tmp_path)
    assert set(found) == {("pixel_mean", "bolt", 0), ("pixel_mean", "cloth", 0)}
    for row in found.values():
        assert row["status"] == "ok"
        assert all(0 <= row[name] <= 1 for name in METRICS)
        assert row["image_auroc"] == 1.0  # a blob of +90 grey levels on noise of 6
        assert row["test_images"] == 6
        assert row["latency_ms"] > 0
        assert (tmp_path / "pictures" / f"{row['job_id']}.png").stat().st_size > 1000
        assert (tmp_path / "logs" / f"{row['job_id']}.jsonl").exists()
    assert "Pixel mean" in (tmp_path / "leaderboard.md").read_text()


def test_a_second_run_does_nothing_and_force_does_all_again(tiny_tree: Path, tmp_path: Path) -> None:
    floor(tiny_tree, tmp_path)
    before = rows(tmp_path)
    again = floor(tiny_tree, tmp_path)
    assert "2 already finished" in again.output
    assert rows(tmp_path) == before
    forced = floor(tiny_tree, tmp_path, "--force")
    assert forced.exit_code == 0
    after = rows(tmp_path)
    assert {row["job_id"] for row in after.values()} == {row["job_id"] for row in before.values()}
    assert all(after[key]["created_at"] > before[key]["created_at"] for key in before)


def test_the_same_job_gives_the_same_numbers_alone_inside_a_larger_run_and_again(
    tiny_tree: Path, tmp_path: Path
) -> None:
    common = ("--dataset", f"folder:{tiny_tree}", "--weights", "random", "--steps", "2", "--seeds", "2")
    common = (*common, "--image-size", "64", "--resolution", "64", "--batch-size", "4", "--no-pictures")
    all_of_it = run(*common, "--method", "stfpm", "--method", "pixel_mean", "--out", tmp_path / "all")
    alone = run(*common, "--method", "stfpm", "--category", "cloth", "--out", tmp_path / "alone")
    again = run(*common, "--method", "stfpm", "--category", "cloth", "--out", tmp_path / "alone2")
    assert (all_of_it.exit_code, alone.exit_code, again.exit_code) == (0, 0, 0), all_of_it.output + alone.output
    for seed in (0, 1):
        key = ("stfpm", "cloth", seed)
        one, two, three = (rows(tmp_path / name)[key] for name in ("all", "alone", "alone2"))
        assert one["job_id"] == two["job_id"] == three["job_id"]
        for name in (*METRICS, "image_scores", "image_auroc_max"):
            assert one[name] == two[name] == three[name], name
        losses = [[{**point} for point in json.loads(row["losses"])] for row in (one, two, three)]
        assert losses[0] == losses[1] == losses[2]
    assert (
        rows(tmp_path / "all")[("stfpm", "cloth", 0)]["image_scores"]
        != rows(tmp_path / "all")[("stfpm", "cloth", 1)]["image_scores"]
    )


def test_a_job_that_fails_leaves_a_failed_row_the_others_still_run_and_the_exit_code_is_1(
    tiny_tree: Path, tmp_path: Path
) -> None:
    arguments = ("--dataset", f"folder:{tiny_tree}", "--seeds", "1", "--out", tmp_path, "--category", "bolt")
    diverging = ("--weights", "random", "--steps", "3", "--set", "stfpm.learning_rate=1e38")
    result = run("--method", "stfpm", "--method", "pixel_mean", *arguments, *diverging)
    assert result.exit_code == 1, result.output
    found = rows(tmp_path)
    assert found[("pixel_mean", "bolt", 0)]["status"] == "ok"
    failed = found[("stfpm", "bolt", 0)]
    assert failed["status"] == "failed"
    assert failed["reason"] in result.output
    assert failed["image_auroc"] is None
    again = run("--method", "stfpm", "--method", "pixel_mean", *arguments, *diverging)
    assert again.exit_code == 1
    assert "--retry-failed" in again.output
    assert rows(tmp_path)[("stfpm", "bolt", 0)]["created_at"] == failed["created_at"]
    plan = run("--method", "stfpm", "--method", "pixel_mean", *arguments, *diverging, "--dry-run")
    assert plan.exit_code == 1  # as the run that it tells of
    assert f"fail  {failed['job_id']}" in plan.output
    assert "1 of the finished jobs failed; retry them with --retry-failed" in plan.output
    told = run("--method", "stfpm", *arguments, *diverging, "--dry-run", "--json").stdout.splitlines()
    assert json.loads(told[0]) | {"run": False, "failed": True} == json.loads(told[0])
    retried = run("--method", "stfpm", *arguments, *diverging, "--dry-run", "--retry-failed")
    assert retried.exit_code == 0, retried.output
    run("--method", "stfpm", *arguments, *diverging, "--retry-failed")
    assert rows(tmp_path)[("stfpm", "bolt", 0)]["created_at"] > failed["created_at"]


def test_missing_teacher_weights_fail_the_job_with_the_remedy(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    from kdad_bench.methods.backbones import weights

    def unreachable(name: str) -> Path:
        raise weights.WeightsError(f"teacher {name}: no weights here; give a file with --weights")

    monkeypatch.setattr(weights, "download", unreachable)
    arguments = ("--dataset", f"folder:{tiny_tree}", "--category", "bolt", "--seeds", "1", "--out", tmp_path / "out")
    result = run("--method", "stfpm", "--teacher", "resnet18", *arguments)
    assert result.exit_code == 1
    assert "give a file with --weights" in result.output


@pytest.mark.parametrize(
    ("teacher", "code", "words"),
    [
        ("resnet18", 0, "      needs: the weights of teacher 'resnet18' are not on this machine; a run downloads them"),
        (
            "pdn_small",
            1,
            "      will fail: teacher pdn_small: its weights (teacher_small.pth) are only taken from a file",
        ),
    ],
)
def test_a_plan_ends_with_1_only_where_the_run_cannot_have_the_weights(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str, code: int, words: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    method = "efficientad" if teacher == "pdn_small" else "stfpm"
    plan = run(
        "--method", method, "--teacher", teacher, "--dataset", f"folder:{tiny_tree}", "--category", "bolt",
        "--seeds", "1", "--out", tmp_path / "out", "--preset", "paper" if method == "efficientad" else "quick",
        "--dry-run",
    )  # fmt: skip
    assert words in plan.output
    assert plan.exit_code == code


def test_a_tree_without_masks_has_null_pixel_metrics(tmp_path: Path) -> None:
    import shutil

    from tests.conftest import write_tree

    tree = write_tree(tmp_path / "tree", categories=("bolt",))
    shutil.rmtree(tree / "bolt" / "ground_truth")
    result = floor(tree, tmp_path / "out")
    assert result.exit_code == 0, result.output
    (row,) = rows(tmp_path / "out").values()
    assert row["pixel_auroc"] is None
    assert row["aupro_30"] is None
    assert row["image_auroc"] == 1.0


def test_a_mask_that_marks_nothing_is_told(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    from tests.conftest import write_tree

    tree = write_tree(tmp_path / "tree", categories=("bolt",))
    mask = tree / "bolt" / "ground_truth" / "spot" / "001_mask.png"
    Image.fromarray(np.zeros_like(np.array(Image.open(mask)))).save(mask)
    with pytest.warns(UserWarning, match="mask") as seen:
        result = floor(tree, tmp_path / "out")
    lost, vanished = (str(one.message) for one in seen)
    assert lost.endswith("bolt: the mask ground_truth/spot/001_mask.png marks no pixel")
    assert "px: no defect pixel in the masks of 1 anomalous images (image 'spot/001.png')" in vanished
    assert vanished.endswith("as normal in the pixel metrics")  # which no resolution changes
    assert result.exit_code == 0, result.output
    (row,) = rows(tmp_path / "out").values()
    assert row["status"] == "ok"


def test_a_dry_run_prints_the_plan_and_writes_nothing(tiny_tree: Path, tmp_path: Path) -> None:
    result = floor(tiny_tree, tmp_path / "none", "--dry-run")
    assert result.exit_code == 0
    assert "2 jobs, 0 finished, 2 to run" in result.output
    assert not (tmp_path / "none").exists()


def test_a_dry_run_ends_as_the_run_would(tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for given in ((), ("--dry-run",)):
        result = floor(tiny_tree, tmp_path / "out", "--executor", "ray", *given)
        assert result.exit_code == 2
        assert "pip install 'kdad-bench[ray]'" in result.output


def test_a_folder_that_cannot_be_made_is_told_at_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_what_will_not_be_written(tmp_path / "deeper" / "out")
    assert not [*tmp_path.iterdir()]
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(SelectionError, match=r"cannot be made in .* nothing can be written; choose --out"):
        refuse_what_will_not_be_written(tmp_path / "deeper" / "out")


def test_json_lines_on_stdout_are_one_per_job_and_progress_goes_to_stderr(tiny_tree: Path, tmp_path: Path) -> None:
    result = floor(tiny_tree, tmp_path, "--json")
    found = [one for one in map(json.loads, result.stdout.splitlines()) if "job_id" in one]
    assert [one["category"] for one in found] == ["bolt", "cloth"]
    assert all(one["status"] == "ok" for one in found)
    assert "[2/2]" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "say --all"),
        (("--method", "stfmp"), "did you mean 'stfpm'"),
        (("--method", "stfpm", "--device", "cuda:7"), "cuda:7"),
        (("--method", "stfpm", "--device", "gpu"), "not one of auto, cpu"),
        (("--method", "stfpm", "--seeds", "x"), "neither a count"),
        (("--method", "stfpm", "--teacher", "resnet19"), "did you mean 'resnet18'"),
        (("--method", "stfpm", "--set", "nonsense"), "not [METHOD.]FIELD=VALUE"),
        (("--method", "stfpm", "--set", "stfmp.steps=3"), "did you mean 'stfpm'"),
        (("--dataset", "mvtec_ad"), "KDAD_DATA"),
        (("--dataset", "folder:/does/not/exist"), "/does/not/exist"),
        (("--method", "pixel_mean", "--category", "bottel"), "category 'bottel'"),
        (("--method", "stfpm", "--weights", "/no/such/file.pth"), "/no/such/file.pth"),
        (("--config", "/no/such.toml"), "/no/such.toml"),
        (("--method", "stfpm", "--set", "lerning_rate=0.1"), "did you mean 'learning_rate'"),
        (("--method", "pixel_mean", "--set", "learning_rate=0.1"), "'learning_rate' is not a setting"),
        (("--method", "stfpm", "--set", "rd4ad.steps=4"), "rd4ad is not among the chosen methods"),
        (("--method", "stfpm", "--set", "seed=3"), "choose seeds with --seeds"),
        (("--method", "stfpm", "--set", "steps=0"), "steps 0 is not in [1, inf)"),
        (("--method", "stfpm", "--set", "batch_size=0"), "batch_size 0 is not in [1, inf)"),
        (("--method", "stfpm", "--set", "learning_rate=nan"), "learning_rate nan is not in (0, inf)"),
        (("--method", "rd4ad", "--set", "betas=[0.5, 1.0]"), "is not in [0, 1)"),
        (("--method", "rd4ad", "--set", "sigma=-1"), "sigma -1.0 is not in (0, 1000]"),
        (("--method", "stfpm", "--image-size", "48"), "image_size 48 is not a multiple of 32"),
        (("--method", "stfpm", "--image-size", "1000000"), "8192"),
        (("--method", "stfpm", "--seeds", "99999999999999999999,"), "a seed is at most 9223372036854775807"),
        (("--method", "stfpm", "--seeds", "99999999"), "a count of more than 10000"),
        (("--method", "stfpm", "--hold-out", "nan"), "not a finite number"),
        (("--method", "stfpm", "--job-timeout", "nan"), "not a finite number"),
        (("--method", "stfpm", "--threads", "100000"), "512"),
        (("--method", "stfpm", "--address", "there:1"), "--executor ray"),
        (("--method", "stfpm", "--device", "cpu", "--gpu-fraction", "0.5"), "a share of a GPU: not with --device cpu"),
        (("--method", "stfpm", "--gpu-fraction", "0.5", "--workers", "3"), "take --gpu-fraction 0.333 or --workers 2"),
        (("--method", "stfpm", "--drawers", "-1"), "--drawers"),
        (("--method", "stfpm", "--executor", "ray", "--workers", "2"), "--executor local"),
        (("--method", "stfpm", "--out", "s3://"), "names no place"),
        (("--method", "stfpm", "--out", "memory://x", "--save-models"), "--save-models writes beside the rows"),
        (
            ("-d", "synthetic", "-d", "rehearsal", "-c", "gear"),
            "--dataset rehearsal: has none of the chosen categories",
        ),
        (("--method", "pixel_mean", "--out", "memory://x"), "rows there end with this command; give a folder or"),
        (("--all", "--data-root", "/does/not/exist"), "data root /does/not/exist: no such folder"),
        (
            ("-d", "synthetic", "-c", "caplet,gear"),
            "not in synthetic; give each by itself, in a list or as `--category A --category B`; have: caplet",
        ),
        (
            ("-m", "pixel_mean,stfpm"),
            "(did you mean 'pixel_mean'?); give each by itself, in a list or as `--method A --method B`; have: ",
        ),
        (
            ("-d", "synthetic,visa"),
            "is not known; give each by itself, in a list or as `--dataset A --dataset B`; have: mvtec_ad",
        ),
        (
            ("-d", "folder:/no,folder:/such"),
            "no such folder; give each by itself, in a list or as `--dataset A --dataset B`; the layout is",
        ),
        (("--all", "--data-root", "/etc/passwd"), "data root /etc/passwd: is no folder; name the one that holds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KDAD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    shown = " ".join(result.output.replace("│", " ").split())
    assert words in shown
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_data_root_without_data_is_refused_and_not_replaced_by_synthetic_data(
    tiny_tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    found = run("--method", "pixel_mean", "--data-root", tmp_path / "empty", "--out", tmp_path / "out")
    assert found.exit_code == 2
    for name in datasets.entries(lambda one: one.folders):
        assert f"{name}/" in found.output
    none = run("--method", "pixel_mean", "--data-root", tmp_path / "none", "--out", tmp_path / "out")
    assert "no such folder; name the one that holds mvtec_ad/, " in none.output
    found = run("--method", "pixel_mean", "--data-root", tiny_tree, "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert f"give the folder it lies in, or --dataset folder:{tiny_tree}" in found.output
    assert not (tmp_path / "out").exists()


def test_weights_that_are_none_are_refused_before_anything_runs(tiny_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("none\n")
    arguments = ("--method", "stfpm", "--dataset", f"folder:{tiny_tree}", "--out", tmp_path / "out")
    found = run(*arguments, "--weights", tmp_path / "weights")
    assert found.exit_code == 2
    assert "not a plain state_dict" in found.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["foo", "triton"])
def test_kernels_that_are_not_there_are_refused_before_anything_runs(
    tiny_tree: Path, tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_KERNELS", value)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = floor(tiny_tree, tmp_path / "out", "--device", "cpu")
    assert found.exit_code == 2, found.output
    assert "KDAD_KERNELS" in found.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [("KDAD_GRAPHS", "0", "on, off"), ("KDAD_TRITON_LAUNCH", "oficial", "planned, official")],
)
def test_a_switch_that_is_none_is_refused_not_ignored(
    name: str, value: str, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    found = CliRunner().invoke(cli, ["list", "methods"])
    assert (found.exit_code, found.output) == (
        2,
        f"kdad-bench: {name}={value!r} is not one of {known}; unset it or choose one\n",
    )


def test_the_variables_of_the_command_line_are_those_of_the_kernels() -> None:
    assert VARIABLES["KDAD_KERNELS"] == dispatch.PATHS


def test_tensorboard_is_asked_for_before_anything_runs(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdad_bench.harness.selection.find_spec", lambda name: None)
    found = floor(tiny_tree, tmp_path / "out", "--tensorboard")
    assert found.exit_code == 2
    assert "pip install tensorboard" in found.output
    assert not (tmp_path / "out").exists()


def test_a_label_names_only_what_changed_the_job(tiny_tree: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", f"folder:{tiny_tree}", "--category", "bolt", "--seeds", "1", "--dry-run", "--json")
    found = run("--method", "pixel_mean", "--method", "stfpm", *arguments, "--set", "learning_rate=0.1")
    presets = [json.loads(line).get("preset") for line in found.stdout.splitlines()]
    assert presets[:2] == ["standard", "standard[learning_rate=0.1]"]


def test_methods_that_settings_put_on_boards_of_their_own_are_told(tiny_tree: Path, tmp_path: Path) -> None:
    """Before the run and at its end: nothing compares them, on no page."""
    arguments = (
        "--method", "pixel_mean", "--method", "padim", "--dataset", f"folder:{tiny_tree}", "--seeds", "1",
        "--preset", "quick", "--weights", "random", "--no-measure-speed", "--no-pictures", "--train-images", "2,all",
    )  # fmt: skip
    parted = (*arguments, "--set", "padim.channels=20", "--out", tmp_path)
    boards = "quick (pixel_mean); quick[channels=20] (padim)"
    line = f"settings put the methods on 2 boards, which are not compared: {boards}\n"
    assert run(*parted, "--dry-run").output.count(line) == 1
    made = run(*parted)
    assert made.exit_code == 0, made.output
    assert made.output.count(line) == 2
    told = run(*arguments, "--out", tmp_path, "--dry-run").output
    assert "boards" not in told


def test_what_a_finished_job_lacks_is_told(tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    floor(tiny_tree, tmp_path)
    again = floor(tiny_tree, tmp_path, "--save-models", "--save-maps").output
    assert "2 of the finished jobs have no saved model; --force redoes them" in again
    assert "2 of the finished jobs have no saved map; --force redoes them" in again
    assert "state of the code" not in again
    planned = floor(tiny_tree, tmp_path, "--save-models", "--save-maps", "--dry-run").output
    assert "2 of the finished jobs have no saved model; --force redoes them" in planned
    monkeypatch.setattr("kdad_bench.harness.environment.git_state", lambda: ("0" * 40, False))
    assert "2 of the finished jobs were run by another state of the code" in floor(tiny_tree, tmp_path).output


def test_other_work_on_the_machine_is_told(tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")  # so that the run does not set it for the tests after this one
    monkeypatch.setattr("kdad_bench.harness.environment.busy_elsewhere", lambda: 0.52)
    assert "other work keeps 52% of the processors busy" in floor(tiny_tree, tmp_path).output
    assert "other work" not in floor(tiny_tree, tmp_path).output  # nothing left to run
    assert "other work" not in floor(tiny_tree, tmp_path, "--dry-run").output
    assert "other work keeps 52%" in floor(tiny_tree, tmp_path, "--force", "--dry-run").output
    monkeypatch.setattr("kdad_bench.harness.environment.busy_elsewhere", lambda: 0.02)
    assert "other work keeps" not in floor(tiny_tree, tmp_path, "--force").output


def test_several_workers_are_processes(tiny_tree: Path, tmp_path: Path) -> None:
    found = floor(tiny_tree, tmp_path, "--workers", "2", "--threads", "1")
    assert found.exit_code == 0, found.output
    assert {row["threads"] for row in rows(tmp_path).values()} == {1}


def test_a_damaged_checkpoint_starts_the_training_anew(tiny_tree: Path, tmp_path: Path) -> None:
    arguments = ("--method", "stfpm", "--dataset", f"folder:{tiny_tree}", "--category", "bolt", "--seeds", "1")
    arguments = (*arguments, "--weights", "random", "--steps", "2", "--image-size", "64", "--out", tmp_path)
    planned = json.loads(run(*arguments, "--dry-run", "--json").stdout.splitlines()[0])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / f"{planned['job_id']}.pt").write_bytes(b"torn")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{planned['job_id']}.jsonl").write_text('{"event": "start"}\n')
    with pytest.warns(RuntimeWarning, match="damaged checkpoint"):
        found = run(*arguments)
    assert found.exit_code == 0, found.output
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_results_folder_that_is_a_file_is_refused(tiny_tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_text("mine")
    result = floor(tiny_tree, path)
    assert result.exit_code == 2
    assert str(path) in result.output
    assert path.read_text() == "mine"


def test_every_method_has_an_entry_of_its_own_name_with_every_preset() -> None:
    from kdad_bench.methods import entry

    for name in METHODS:
        found = entry(name)
        assert found.name == name
        assert set(found.presets) == set(PRESETS)


def moving_away(monkeypatch: pytest.MonkeyPatch, out: Path, moved: Path) -> None:
    """Once the first job has ended, the results folder is renamed by somebody."""
    from kdad_bench.cli.progress import Progress

    ended = Progress.ended

    def ended_and_moved(self: Progress, *given: Any) -> None:
        ended(self, *given)
        if not moved.exists():
            out.rename(moved)

    monkeypatch.setattr(Progress, "ended", ended_and_moved)


def test_rows_of_a_folder_that_was_moved_meanwhile_are_written_again(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving_away(monkeypatch, tmp_path / "out", tmp_path / "moved")
    found = floor(tiny_tree, tmp_path / "out", "--no-pictures")
    assert found.exit_code == 0, found.output
    assert f"1 row of this run had no place in {tmp_path / 'out'} at first, or left it: written there" in found.output
    assert len(rows(tmp_path / "out")) == 2
    assert "cloth" in (tmp_path / "out" / "leaderboard.md").read_text()


def test_a_planned_job_without_a_row_is_told_and_the_exit_code_is_1(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor(tiny_tree, tmp_path / "out", "--no-pictures", "--category", "bolt")
    moving_away(monkeypatch, tmp_path / "out", tmp_path / "moved")
    found = floor(tiny_tree, tmp_path / "out", "--no-pictures")
    assert found.exit_code == 1, found.output
    assert "bolt seed 0: its row is gone" in found.output
    assert f"1 of 2 jobs have no row in {tmp_path / 'out'}; run them again" in found.output
    assert floor(tiny_tree, tmp_path / "out", "--no-pictures").exit_code == 0


def test_a_folder_that_is_gone_at_the_end_is_told(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor(tiny_tree, tmp_path / "out", "--no-pictures")
    from kdad_bench.cli import run as command

    run_jobs = command.run_jobs

    def run_and_lose(*given: Any) -> bool:
        (tmp_path / "out").rename(tmp_path / "moved")
        return run_jobs(*given)

    monkeypatch.setattr(command, "run_jobs", run_and_lose)
    found = floor(tiny_tree, tmp_path / "out", "--no-pictures")
    assert found.exit_code == 1, found.output
    assert f"no leaderboard: {tmp_path / 'out'} cannot be read" in found.output
    assert f"2 of 2 jobs have no row in {tmp_path / 'out'}; run them again" in found.output


def test_from_the_command_to_the_training_it_is_six_calls(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdad_bench.methods.pixel_mean import PixelMean

    walked: list[list[str]] = []
    fit = PixelMean.fit

    def seen(self: PixelMean, *given: Any) -> None:
        frames = [frame for frame in inspect.stack() if "/kdad_bench/" in frame.filename]
        walked.append([f"{Path(frame.filename).stem}.{frame.function}" for frame in reversed(frames)])
        fit(self, *given)

    monkeypatch.setattr(PixelMean, "fit", seen)
    floor(tiny_tree, tmp_path, "--category", "bolt", "--no-pictures", "--no-measure-speed")
    ((*walk,),) = walked
    command = walk.index("run.run")
    assert len(walk[command:]) <= 6, walk  # with the call of `fit` itself, from the last of them


@pytest.mark.parametrize("command", ["run", "predict", "doctor", "bench"])
def test_a_quoted_home_folder_is_no_folder_called_tilde(
    command: str, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    chosen = {
        "run": ("run", "--method", "pixel_mean", "--dataset", f"folder:{tiny_tree}", "--seeds", "1", "--out", "~/out"),
        "predict": ("predict", "~/out/models/none", str(tiny_tree), "--out", "~/out"),
        "doctor": ("doctor", "--data-root", "~/data", "--out", "~/out"),
        "bench": ("bench", "end-to-end", "--dataset", "mvtec_ad", "--data-root", "~/data"),
    }[command]
    found = CliRunner().invoke(cli, list(chosen))
    assert [path.name for path in tmp_path.iterdir()] == ["home"], found.output
    assert "~/" not in found.output.replace("\n", "")  # a lone one marks a noisy time
    if command == "run":
        assert len(rows(tmp_path / "home" / "out")) == 2


def test_what_a_run_says_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from kdad_bench.cli.run_report import PlainConsole

    PlainConsole().print("[bold]a\x1b[2Jb[/bold]\nc\x07", "d\u202e")
    assert capsys.readouterr().out == "a\\x1b[2Jb\nc\\x07 d\\u202e\n"


def test_a_run_that_was_stopped_is_not_said_to_go_on_where_it_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdad_bench.cli.run_report import PlainConsole, stopped

    monkeypatch.setattr("sys.argv", ["kdad-bench", "run", "--all", "--force"])
    for force, words in ((False, "go on with: kdad-bench run"), (True, "run all of them again with: kdad-bench run")):
        text = io.StringIO()
        assert stopped(3, PlainConsole(file=text, width=200), force=force) == 130
        assert f"(3 were to run); {words}" in text.getvalue()


def refusing(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The results folder takes no row so many times."""
    write, left = store.write, [times]

    def refuse(row: Any, folder: str) -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise store.StoreError("no space left; free some space")
        return write(row, folder)

    monkeypatch.setattr(store, "write", refuse)


@pytest.mark.parametrize(("status", "option"), [("ok", "--force"), ("failed", "--retry-failed")])
def test_a_row_that_finds_no_place_in_the_end_is_told_where_an_older_one_stays(
    status: str, option: str, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bolt = (tiny_tree, tmp_path, "--no-pictures", "--no-measure-speed", "--category", "bolt", "--workers", 1)
    with monkeypatch.context() as patched:
        if status == "failed":
            patched.setattr("kdad_bench.harness.perform.run", lambda *given: 1 / 0)
        floor(*bolt)
    with monkeypatch.context() as patched:
        refusing(patched, 1)
        found = floor(*bolt, option)
    assert found.exit_code == 0, found.output
    assert f"1 row of this run had no place in {tmp_path} at first" in found.output
    before = rows(tmp_path)
    if status == "failed":
        with monkeypatch.context() as patched:
            patched.setattr("kdad_bench.harness.perform.run", lambda *given: 1 / 0)
            for path in tmp_path.glob("*.parquet"):
                path.unlink()
            floor(*bolt)
        before = rows(tmp_path)
    refusing(monkeypatch, 100)
    found = floor(*bolt, option)
    assert found.exit_code == 1, found.output
    assert "bolt seed 0: no space left; free some space" in found.output
    remedy = f"1 of 1 jobs have no row in {tmp_path}, 1 of them but an earlier one; run them again with {option}"
    assert remedy in found.output
    assert "ZeroDivisionError" not in found.output  # why it failed at another time
    assert rows(tmp_path) == before


def test_a_forced_job_that_fails_is_told_though_its_older_row_stays(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bolt = (tiny_tree, tmp_path, "--no-pictures", "--no-measure-speed", "--category", "bolt", "--workers", 1)
    floor(*bolt)
    monkeypatch.setattr("kdad_bench.harness.perform.run", lambda *given: 1 / 0)
    found = floor(*bolt, "--force")
    assert found.exit_code == 1, found.output
    assert "ZeroDivisionError: division by zero (at perform.py:" in found.output
    assert "(its earlier row stays)" in found.output
    assert "1 of 1 jobs failed; redo them with --force" in found.output
    assert [row["status"] for row in rows(tmp_path).values()] == ["ok"]


def test_ctrl_c_keeps_rows_that_had_no_place_at_first(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdad_bench.harness import perform

    done, real = list[str](), perform.run

    def stop_at_the_second(job: Any, *given: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(job.id)
        return real(job, *given)

    monkeypatch.setattr(perform, "guarded", nullcontext)  # which makes an error of what a method raises
    monkeypatch.setattr(perform, "run", stop_at_the_second)
    refusing(monkeypatch, 1)
    found = floor(tiny_tree, tmp_path, "--no-pictures", "--workers", 1)
    assert found.exit_code == 130, found.output
    assert "Finished jobs are kept" in found.output
    assert [row["job_id"] for row in rows(tmp_path).values()] == done


def test_the_help_says_that_json_is_of_jobs_alone() -> None:
    said = " ".join(CliRunner().invoke(cli, ["run", "--help"]).stdout.replace("│", " ").split())
    assert "per job on stdout; progress, and the measurements of speed, on stderr" in said
