"""One model for all categories of a data set: learnt once, judged by category, the same whichever comes first."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import kdad_bench
from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.harness import calibration, material, run, together
from kdad_bench.harness.axes import Axes
from kdad_bench.harness.choices import MULTI_CLASS, SelectionError
from kdad_bench.harness.estimate import JOB_SECONDS, kind_of, learning, rules_of_thumb
from kdad_bench.harness.job import Job, id_of_row
from kdad_bench.harness.material import count_of
from kdad_bench.harness.output import Work
from kdad_bench.harness.perform import holding, perform
from kdad_bench.harness.plan import plan
from kdad_bench.harness.selection import Selection
from kdad_bench.harness.view import WHOLE, View
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.board import DRAWN, boards
from kdad_bench.leaderboard.row import COLUMNS, Row
from kdad_bench.methods import METHODS
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.stfpm import Stfpm
from tests.conftest import write_tree
from tests.harness.planned import WEIGHTS, jobs_of

SMALL: dict[str, Any] = {
    "methods": (("stfpm", ""),),
    "seeds": (0,),
    "resolution": 32,
    "overrides": {"steps": 1, "image_size": 32, "batch_size": 2},
    "setting": MULTI_CLASS,
}


@pytest.fixture
def no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "cost_of", lambda *given, **said: {})


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each training that takes place."""
    found: list[int] = []
    real = run.taught

    def counted(job: Job, work: Work, normal: Any, *rest: Any) -> Any:
        found.append(len(normal))
        return real(job, work, normal, *rest)

    monkeypatch.setattr(run, "taught", counted)
    return found


def small(tree: Path, **changes: Any) -> list[Job]:
    return jobs_of(tree, **{**SMALL, **changes})


def row_of(job: Job, work: Work) -> Row:
    row = perform(job, work)
    assert isinstance(row, Row)
    assert row.status == "ok", row.reason
    return row


# ---- which jobs there are


def test_the_order_of_categories_changes_no_job(tiny_tree: Path) -> None:
    there = tuple(datasets.categories(f"folder:{tiny_tree}", None))
    one, other = (small(tiny_tree, categories=order) for order in (there, there[::-1]))
    assert {job.id for job in one} == {job.id for job in other}
    assert len({job.id for job in one}) == 2
    assert {job.preset for job in one} == {job.preset for job in other}
    assert {job.training for job in (*one, *other)} == {one[0].training}
    for job in (*one, *other):  # the order in which their images are learnt from
        assert [sibling.category.name for sibling in job.siblings] == ["bolt", "cloth"]
    assert {job.id for job in one[0].siblings} == {job.id for job in one}


def test_a_single_job_is_what_it_was_and_another_choice_of_categories_is_another_job(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "three", ("bolt", "cloth", "nut"))
    there = tuple(datasets.categories(f"folder:{tree}", None))
    alone = small(tree, setting="single")
    assert all(job.training == job.id and job.siblings == (job,) for job in alone)
    assert "together" not in alone[0].identity
    chosen = [small(tree, categories=some) for some in (there, there[:2], there[::2])]
    bolts = [alone[0], *(jobs[0] for jobs in chosen)]
    assert {job.category.name for job in bolts} == {"bolt"}
    for told in ("id", "training", "preset"):
        assert len({getattr(job, told) for job in bolts}) == 4, told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"categories": 1}, r"--setting multi-class: one category alone of folder:.* \(bolt\); choose two or more"),
        ({"modality": "depth"}, "--setting multi-class is of photographs: not with --modality depth; leave one"),
        ({"view": View(fit="pad")}, "multi-class is of images squeezed whole into squares: not with --fit pad; leave"),
        ({"view": View(tile=16, overlap=4)}, "squeezed whole into squares: not with --tile 16; leave one of the two"),
    ],
)
def test_what_cannot_be_learnt_together_is_one_line(tiny_tree: Path, changes: dict[str, Any], words: str) -> None:
    there = tuple(datasets.categories(f"folder:{tiny_tree}", None))[: changes.get("categories")]
    chosen = tuple(replace(one, modality=changes.get("modality", "rgb")) for one in there)
    with pytest.raises(SelectionError, match=words):
        small(tiny_tree, categories=chosen, view=changes.get("view", WHOLE))


# ---- what is learnt from


def unequal(tmp_path: Path) -> tuple[datasets.Category, ...]:
    """Two categories, one of which has more training images."""
    write_tree(tmp_path, ("nothing", "cloth"), train=9, test=4)  # the second has other images than the first of a tree
    shutil.rmtree(tmp_path / "nothing")
    write_tree(tmp_path, ("bolt",), train=6, test=4)
    return tuple(datasets.categories(f"folder:{tmp_path}", None))


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        ({}, 6),
        ({"axes": (Axes(train_images=4),)}, 4),
        ({"hold_out": 0.34}, 4),
        ({"hold_out": 0.34, "axes": (Axes(train_images=3),)}, 3),
        ({"axes": (Axes(contamination=0.4),)}, 5),
    ],
)
def test_each_category_gives_as_many_images_and_keeps_its_own_held_out(
    tmp_path: Path, changes: dict[str, Any], each: int
) -> None:
    categories = unequal(tmp_path)
    jobs = small(tmp_path, categories=categories, **changes)
    sets = []
    for job in jobs:
        learnt, held_out = material.normals(job)
        assert len(learnt) == count_of(job) == 2 * each
        own = {image.tobytes() for image in datasets.load_train(job.category, 32)}
        assert sum(image.tobytes() in own for image in learnt) == each - 2 * (job.axes.contamination is not None)
        mine = [job.category.name for job in jobs].index(job.category.name)
        assert not any(image.tobytes() in own for image in learnt[1 - mine :: 2])  # one of each in turn
        assert {image.tobytes() for image in held_out} <= own - {image.tobytes() for image in learnt}
        np.testing.assert_array_equal(material.normals(job, learning=False)[1], held_out)
        assert len(material.normals(job, learning=False)[0]) == 0
        sets.append(learnt)
    np.testing.assert_array_equal(*sets)
    assert not np.array_equal(sets[0], material.normals(replace(jobs[0], seed=1))[0])


def test_a_method_is_told_by_a_number_of_which_category_each_image_is(
    tmp_path: Path, no_cost: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = write_tree(tmp_path / "three", ("bolt", "cloth", "nut"))
    given: list[tuple[Any, Fitting]] = []
    real = Stfpm.fit
    monkeypatch.setattr(Stfpm, "fit", lambda own, images, told: (given.append((images, told)), real(own, images, told)))
    row_of(small(tree)[1], Work(out=str(tmp_path / "out")))
    row_of(small(tree, setting="single")[1], Work(out=str(tmp_path / "out")))
    (images, told), (_, alone) = given
    assert told.categories is not None
    assert len(told.categories) == len(images)
    for number, job in enumerate(small(tree)):
        own = {image.tobytes() for image in datasets.load_train(job.category, 32)}
        seen = [image.tobytes() in own for image in (255 * images).round().byte().numpy()]
        assert seen == [category == number for category in told.categories]
    assert alone.categories is None


# ---- one model


def test_the_rows_of_all_categories_come_from_one_model_whichever_is_judged_first(
    tiny_tree: Path, tmp_path: Path, no_cost: None, fits: list[int]
) -> None:
    scores = []
    for name, turn in (("one", 1), ("other", -1)):
        work = Work(out=str(tmp_path / name))
        rows = {row.category: row for row in (row_of(job, work) for job in small(tiny_tree)[::turn])}
        assert {(row.setting, row.train_images) for row in rows.values()} == {(MULTI_CLASS, 12)}
        assert len({row.weights_sha256 for row in rows.values()}) == 1
        assert {row.train_seconds for row in rows.values()} == {rows["bolt"].train_seconds}
        assert len({row.losses for row in rows.values()}) == 1
        assert "setting: one model for 2 categories (papers: one for each)" in rows["bolt"].deviations
        assert not list((tmp_path / name / "checkpoints").iterdir())
        scores.append({category: (row.image_scores, row.weights_sha256) for category, row in rows.items()})
    assert fits == [12, 12]
    assert scores[0] == scores[1]
    assert scores[0]["bolt"][0] != scores[0]["cloth"][0]


def test_a_run_killed_between_two_categories_goes_on_with_the_model(
    tiny_tree: Path, tmp_path: Path, no_cost: None, fits: list[int]
) -> None:
    first, second = small(tiny_tree)
    work = Work(out=str(tmp_path))
    before = row_of(first, work)
    assert together.kept(second, work) is not None
    assert row_of(first, work) == before  # finished: nothing is done
    after = row_of(second, work)
    assert fits == [12]
    assert after.weights_sha256 == before.weights_sha256
    assert not together.place(second, work).exists()
    logs = {path.stem: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert {*logs} == {first.training, first.id, second.id}
    assert logs[first.training].count('"event": "step"') == 1
    assert all(f'"training": "{first.training}"' in logs[job.id] for job in (first, second))


def test_forced_jobs_learn_once_too_and_the_model_goes_when_all_are_redone(
    tiny_tree: Path, tmp_path: Path, no_cost: None, fits: list[int]
) -> None:
    jobs = small(tiny_tree)
    for work in (Work(out=str(tmp_path)), Work(out=str(tmp_path), force=True)):
        for job in jobs:
            row_of(job, work)
        assert not together.place(jobs[0], work).exists()
    assert fits == [12, 12]


def test_a_forced_run_judges_by_a_model_of_its_own_and_keeps_it_until_all_are_redone(
    tmp_path: Path, no_cost: None, fits: list[int]
) -> None:
    """An earlier run that was stopped, or in which a category failed, has left its model and marks of its rows."""
    bolt, cloth, nut = jobs = small(write_tree(tmp_path / "three", ("bolt", "cloth", "nut")))
    before, work = Work(out=str(tmp_path / "out")), Work(out=str(tmp_path / "out"), force=True)
    for job in (bolt, nut):
        row_of(job, before)
    assert together.kept(cloth, before) is not None
    assert together.kept(cloth, work) is None  # as a dry run asks, too
    for job in jobs:
        assert (together.kept(job, work) is None) is (job is bolt)
        row_of(job, work)
        assert together.place(job, work).exists() is (job is not nut)
    assert fits == [18, 18]


def test_a_row_that_is_written_is_one_where_those_of_others_cannot_be_looked_for(
    tiny_tree: Path, tmp_path: Path, no_cost: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(folder: str, job: str) -> None:
        if store.finished(folder):
            raise store.StoreError("the results folder keeps changing")

    monkeypatch.setattr(store, "find", find)
    row_of(small(tiny_tree)[0], Work(out=str(tmp_path)))


@pytest.mark.parametrize("damage", ["lost", "changed", "undescribed", "cut"])
def test_a_lost_or_damaged_model_is_learnt_again_and_must_come_out_the_same(
    damage: str, tiny_tree: Path, tmp_path: Path, no_cost: None, fits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(job: Job) -> None:
        weights = together.place(job, work) / "model.safetensors"
        if damage == "lost":
            shutil.rmtree(weights.parent)
        elif damage == "undescribed":
            (weights.parent / "model.json").unlink()
        elif damage == "cut":
            (weights.parent / "model.json").write_text('{"format": 1,')
        else:
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)

    work = Work(out=str(tmp_path))
    first, second = small(tiny_tree)
    row_of(first, work)
    harm(first)
    real = together.save_into
    monkeypatch.setattr(together, "save_into", lambda job, method, folder: real(job, other(method), folder))
    row = perform(second, work)
    assert isinstance(row, Row)
    assert row.status == "failed"
    assert "bolt has a row of another model" in str(row.reason)
    assert "--force judges all categories with one" in str(row.reason)
    monkeypatch.setattr(together, "save_into", real)
    row_of(second, replace(work, retry_failed=True))
    assert fits == [12, 12, 12]


def other(method: Any) -> Any:
    """The method with one weight changed."""
    with torch.no_grad():
        next(iter(method.module.parameters())).add_(1e-3)
    return method


def test_a_job_whose_model_another_runner_learns_waits_for_it(tiny_tree: Path, tmp_path: Path, no_cost: None) -> None:
    first, second = small(tiny_tree)
    work = Work(out=str(tmp_path))
    with holding(together.lock_of(first, work)) as ours:
        assert ours
        assert perform(second, work) is None
    row_of(first, work)
    with holding(together.lock_of(first, work)):  # it is there: nothing to wait for
        row_of(second, work)


def test_results_at_a_url_keep_the_model_in_the_cache(tiny_tree: Path, tmp_path: Path, no_cost: None, fits: list[int],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    work = Work(out="memory://together")
    rows = [row_of(job, work) for job in small(tiny_tree)]
    assert len({row.weights_sha256 for row in rows}) == 1
    assert fits == [12]
    assert not together.place(small(tiny_tree)[0], work).exists()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_categories_together(method: str, tmp_path: Path, no_cost: None) -> None:
    there = {one.name: one for one in datasets.categories("synthetic", None)}
    jobs = plan(
        Selection(
            methods=((method, ""),), categories=(there["caplet"], there["gear"]), seeds=(0,), preset="quick",
            device="cpu", resolution=64, overrides={"steps": 1, "image_size": 64}, setting=MULTI_CLASS,
            axes=(Axes(train_images=2),),
        ),
        WEIGHTS,
    )  # fmt: skip
    rows = [run.run(job, Work(out=str(tmp_path)), lambda step, terms: None) for job in jobs]
    assert [row.train_images for row in rows] == [4, 4]
    assert any(words.startswith("setting: one model for 2 categories") for words in rows[0].deviations) is (
        method not in ("pixel_mean", "dinomaly")  # the floor follows no source, and one paper is of this setting
    )
    assert len({row.weights_sha256 for row in rows}) == 1
    for row, job in zip(rows, jobs, strict=True):
        assert row.image_auroc is not None
        assert id_of_row({name: getattr(row, name) for name in COLUMNS}) == job.id
        assert id_of_row({**{name: getattr(row, name) for name in COLUMNS}, "setting": None}) != job.id


def test_the_page_says_what_it_means_to_each_method() -> None:
    page = (Path(__file__).parents[2] / "docs" / "axes.md").read_text(encoding="utf-8")
    table = page[page.index("one model for several categories |\n") :].partition("\n\n")[0]
    assert [name for name in METHODS if f"`{name}`" not in table] == []


# ---- what people see


def test_rows_of_one_model_have_a_table_of_their_own(tiny_tree: Path, tmp_path: Path, no_cost: None) -> None:
    command = ["run", "-m", "pixel_mean", "-d", f"folder:{tiny_tree}", "--seeds", "1", "--preset", "quick"]
    command += ["--resolution", "32", "--no-pictures", "--no-measure-speed", "--workers", "1", "--out", str(tmp_path)]
    for more in ([], ["--setting", "multi-class"]):
        done = CliRunner().invoke(cli, [*command, *more])
        assert done.exit_code == 0, done.output
    assert "one model for the categories of a data set (1 training)" in done.output
    found = boards(store.read(tmp_path, DRAWN).table)
    assert len(found) == 2
    assert [board.together for board in found] == [0, 2]
    assert re.search(
        r"\[resolution=32,setting=multi-class:2:[0-9a-f]{4}\] .*, one model for 2 categories$", found[1].title
    )
    assert found[1].caveats[0] == "multi-class"
    plan_of = CliRunner().invoke(cli, [*command, "--setting", "multi-class", "--dry-run"]).output
    assert "2 jobs, 2 finished, 0 to run;" in plan_of
    forced = CliRunner().invoke(cli, [*command, "--setting", "multi-class", "--dry-run", "--force"]).output
    assert "2 to run with 1 shared model;" in forced
    wrong = CliRunner().invoke(cli, [*command, "--setting", "multi-class", "-c", "bolt"])
    assert wrong.exit_code == 2
    assert wrong.output.count("\n") == 1


def test_the_setting_is_a_keyword_of_python_too(tiny_tree: Path, tmp_path: Path, no_cost: None) -> None:
    said: dict[str, Any] = {"datasets": f"folder:{tiny_tree}", "seeds": 1, "preset": "quick", "resolution": 32}
    said |= {"pictures": False, "measure_speed": False, "out": tmp_path}
    results = kdad_bench.run("pixel_mean", setting="multi-class", **said)
    frame = results.frame(["setting", "learnt_together", "weights_sha256"]).to_pylist()
    assert [line["setting"] for line in frame] == [MULTI_CLASS] * 2
    assert [one.partition("=")[0] for one in frame[0]["learnt_together"]] == ["bolt", "cloth"]
    assert len({line["weights_sha256"] for line in frame}) == 1
    with pytest.raises(ValueError, match="setting 'multi'"):
        kdad_bench.run("pixel_mean", setting="multi", **said)


def test_an_estimate_counts_one_training(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = small(tiny_tree, overrides={"steps": 1000, "image_size": 32, "batch_size": 2})
    assert [learns for _, learns in learning(jobs)] == [True, False]
    assert [learns for _, learns in learning(jobs, {jobs[0].training})] == [False, False]
    assert [learns for _, learns in learning(small(tiny_tree, setting="single"))] == [True, True]
    first, second = rules_of_thumb(jobs)
    assert first > second == JOB_SECONDS
    assert kind_of(jobs[0], 1) != kind_of(jobs[0], 1, learns=False)
    monkeypatch.setattr(calibration, "fit_seconds", seconds(1000.0))
    monkeypatch.setattr(calibration, "score_seconds", seconds(0.0))
    monkeypatch.setattr(calibration, "known_seconds", dict)
    found = calibration.calibrations(jobs, 1)
    assert found[kind_of(jobs[0], 1)] > 1000 > found[kind_of(jobs[0], 1, learns=False)]


def seconds(value: float) -> Callable[..., float]:
    return lambda *given: value
