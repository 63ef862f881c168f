"""Axes: a property of the job, the same jobs in whatever order they are asked for, and every method along each."""

from __future__ import annotations

import itertools
import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets import Category, DatasetError
from kdad_bench.datasets.loading import Regions
from kdad_bench.harness import job as jobs
from kdad_bench.harness import material, run
from kdad_bench.harness.axes import PLAIN, Axes, counts_from, points
from kdad_bench.harness.choices import MULTI_CLASS, SelectionError
from kdad_bench.harness.job import Job, TeacherWeights, id_of_row
from kdad_bench.harness.left_out import planned
from kdad_bench.harness.material import judged_category, judged_on, lot_of
from kdad_bench.harness.options import options_from
from kdad_bench.harness.output import Work
from kdad_bench.harness.plan import plan
from kdad_bench.harness.selection import Selection
from kdad_bench.leaderboard.row import COLUMNS
from kdad_bench.methods import METHODS
from tests.conftest import write_tree
from tests.harness.planned import QUICKER, WEIGHTS, jobs_of, selection

DIRTY = Axes(contamination=0.4)
ALONG = (Axes(train_images=1), Axes(train_images=3), DIRTY, Axes(corruption="rotation:3"), Axes(corruption="jpeg:5"))


@pytest.fixture(scope="module")
def dirty_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of six training images, with three defective ones to spare in each."""
    return write_tree(tmp_path_factory.mktemp("dirty"), test=6)


@dataclass(frozen=True)
class Settings:
    """Of no method: what an identity is made of, and nothing that will ever change."""

    image_size: int = 64
    seed: int = 3
    strides: tuple[int, ...] = (4, 8)


def recorded(**changes: Any) -> Job:
    place = Category(dataset="folder:/data/x", name="bolt", root=Path("/data/x"), train=(), test=())
    weights = TeacherWeights(teacher="resnet18", source="file.pth", sha256="ab" * 32)
    plain: dict[str, Any] = {
        "method": "stfpm", "variant": "", "category": place, "seed": 3, "preset": "quick", "resolution": 128,
        "settings": Settings(), "weights": weights, "device": "cpu", "fingerprint": "ef" * 32,
    }  # fmt: skip
    return Job(**{**plain, **changes})


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, "334ae9ebd77ee253"),
        ({"hold_out": 0.2}, "bfb0744ca643ff33"),
        ({"device": "cuda:1", "deterministic": True, "code": "cd" * 32}, "e7b2111c8f7b1159"),
    ],
)
def test_a_job_without_axes_has_the_identity_that_it_had_before_there_were_any(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], known: str
) -> None:
    monkeypatch.setattr(jobs, "__version__", "0.2.0")
    monkeypatch.setattr(jobs, "PROTOCOL_VERSION", "3")
    assert recorded(**changes).id == known
    assert len({known, *(recorded(**changes, axes=axes).id for axes in ALONG)}) == 1 + len(ALONG)


def test_the_order_of_axes_and_of_values_changes_no_job_and_not_their_order(dirty_tree: Path) -> None:
    said = {
        "train_images": ["3", "4", "all"],
        "contamination": ["0", "0.3", "none"],
        "corruption": ["blur:1", "shift:3", "none"],
    }
    found = set()
    for orders in zip(*(itertools.permutations(values) for values in said.values()), strict=True):
        for turned in (1, -1):
            texts = dict(list(zip(said, map(",".join, orders), strict=True))[::turned])
            options = options_from(texts)
            axes = points(options.train_images, options.contamination, options.corruption)
            found.add(tuple((job.id, job.label) for job in jobs_of(dirty_tree, axes=axes, seeds=(0,))))
    (ids,) = found
    assert len(set(ids)) == 27 * 4
    assert {job.id for job in jobs_of(dirty_tree, seeds=(0,))} < {one for one, _ in ids}


def test_all_methods_have_the_same_jobs_in_whatever_order_everything_is_asked_for(dirty_tree: Path) -> None:
    axes = points((None, 4), (None, 0.3), ("shift:3",))
    there = tuple(datasets.categories(f"folder:{dirty_tree}", None))
    methods = tuple((name, "") for name in METHODS)
    for setting in ("single", MULTI_CLASS):
        one, other = (
            jobs_of(dirty_tree, methods=methods[::turn], categories=there[::turn], axes=axes[::turn], seeds=(0,),
                    setting=setting)
            for turn in (1, -1)
        )  # fmt: skip
        assert {job.id: job.label for job in one} == {job.id: job.label for job in other}
        assert len({job.id for job in one}) == len(METHODS) * 2 * 4


def test_a_point_is_named_in_the_preset_the_label_the_row_and_the_deviations(tiny_tree: Path) -> None:
    axes = Axes(train_images=4, contamination=0.25, corruption="blur:3")
    job = jobs_of(tiny_tree, axes=(axes,), overrides={"steps": 7})[0]
    assert job.preset == "quick[contamination=0.25,corruption=blur:3,steps=7,train_images=4]"
    assert job.label.endswith("seed 0 contamination=0.25,corruption=blur:3,train_images=4")
    columns = run.columns_of(job)
    assert (columns["k_shot"], columns["contamination"], columns["corruption"]) == (4, 0.25, "blur:3")
    said = [words.partition(":")[0] for words in columns["deviations"]]
    assert {"train_images", "contamination", "corruption"} <= set(said)
    assert jobs_of(tiny_tree)[0].axes == PLAIN
    assert pickle.loads(pickle.dumps(job)).id == job.id  # on its way to a worker


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("train_images", "0", "'0' is no number of images from 1 to 1000000, nor 'all'"),
        ("train_images", "-1", "'-1' is no number"),
        ("train_images", "2.5", "'2.5' is no number"),
        ("train_images", "", "'' is no number"),
        ("train_images", "4,", "'' is no number"),
        ("train_images", "9" * 5000, "is no number"),
        ("train_images", "٣", "is no number"),
        ("train_images", "3,03", "'3,03' names a value twice"),
        ("train_images", "all,none", "names a value twice"),
        ("contamination", "0.41", "'0.41' is no share from 0 to 0.4, nor 'none'"),
        ("contamination", "-0.1", "'-0.1' is no share"),
        ("contamination", "nan", "'nan' is no share"),
        ("contamination", "10%", "'10%' is no share"),
        ("contamination", "0,-0.0", "names a value twice"),
        ("corruption", "blr:1", "no corruption 'blr' .did you mean 'blur'.*; have: brightness, contrast"),
        ("corruption", "blur", "'blur': the level is one of 1 to 5, as in blur:3"),
        ("corruption", "blur:6", "the level is one of 1 to 5"),
        ("corruption", "blur:1:2", "the level is one of 1 to 5"),
        ("corruption", "blur:1,blur:1", "names a value twice"),
    ],
)
def test_a_value_that_is_none_is_one_line_with_the_remedy(option: str, value: str, words: str) -> None:
    with pytest.raises(SelectionError, match=words) as found:
        options_from({option: value})
    assert str(found.value).startswith(f"--{option.replace('_', '-')} ")
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 200


def test_a_list_of_a_config_file_is_read_like_the_text_of_the_command_line() -> None:
    assert counts_from([1, 4, "all"]) == counts_from("1,4,all") == (1, 4, None)
    assert options_from({"contamination": [0, 0.1], "corruption": ["blur:1"]}).contamination == (0.0, 0.1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--train-images", "7"), "folder:.*bolt: 7 training images were asked for and there are 6"),
        (("--contamination", "0.4", "--train-images", "6"), "2 of 6 training images were to be defective and 1 of the"),
        (
            ("--contamination", "0.1", "--train-images", "1"),
            "a share of 0.1 of 1 training image is 0.1 defective ones, w",
        ),
        (
            ("--contamination", "0.3,0.33", "--train-images", "3"),
            "0.3 and 0.33 are one on .*bolt: 1 of 3 training images",
        ),
        (("--corruption", "nose:1"), "no corruption 'nose' .did you mean 'noise'"),
    ],
)
def test_the_command_answers_in_one_line_and_runs_nothing(
    tiny_tree: Path, tmp_path: Path, given: tuple[str, ...], words: str
) -> None:
    command = ["run", "-m", "pixel_mean", "-d", f"folder:{tiny_tree}", "--out", str(tmp_path / "out"), *given]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 2, done.output
    lines = [line for line in done.output.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("kdad-bench: ")
    assert re.search(words, lines[0])
    assert not list(tmp_path.glob("out/*.parquet"))


def test_one_command_gives_one_curve_and_takes_the_plain_jobs_that_are_there(tiny_tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        "run",
        "-m",
        "pixel_mean",
        "-d",
        f"folder:{tiny_tree}",
        "-c",
        "bolt",
        "--seeds",
        "2",
        "--preset",
        "quick",
    ]
    command += ["--resolution", "32", "--no-pictures", "--no-measure-speed", "--workers", "1", "--out", str(out)]
    assert CliRunner().invoke(cli, command).exit_code == 0
    done = CliRunner().invoke(cli, [*command, "--train-images", "2,all,5"])
    assert done.exit_code == 0, done.output
    assert "6 jobs: 1 method x 1 category x 2 seeds x 3 points, preset quick, cpu, 2 already finished" in done.output
    page = (out / "leaderboard.md").read_text(encoding="utf-8")
    assert "| # | method | 2 | 5 | all (6) | area |" in page
    again = CliRunner().invoke(cli, [*command, "--train-images", "5,2"])
    assert "4 jobs: 1 method x 1 category x 2 seeds x 2 points, preset quick, cpu, 4 already finished" in again.output


def test_photographic_corruptions_need_a_photograph(tiny_tree: Path) -> None:
    scans = tuple(replace(one, modality="depth") for one in datasets.categories(f"folder:{tiny_tree}", None))
    with pytest.raises(SelectionError, match=r"--corruption noise:2: .*--modality depth has none; take shift or rot"):
        jobs_of(tiny_tree, categories=scans, axes=(Axes(corruption="noise:2"),))


def test_a_lone_batch_is_looked_for_in_what_is_left_to_learn_from(tiny_tree: Path) -> None:
    lone: dict[str, Any] = {"methods": (("rd4ad", ""),), "overrides": {"image_size": 32, "batch_size": 5}}
    with pytest.raises(SelectionError, match="1 images in batches of 5 leave one alone"):
        jobs_of(tiny_tree, axes=(Axes(train_images=1),), resolution=32, **lone)
    assert jobs_of(tiny_tree, axes=(Axes(train_images=5),), resolution=32, **lone)


# ---- what is learnt from and what is judged


def embedded(methods: tuple[tuple[str, str], ...] = (("pixel_mean", ""),), **changes: Any) -> list[Job]:
    """Jobs on one embedded category at 64 px, two steps of the optimiser."""
    (category,) = (one for one in datasets.categories("synthetic", None) if one.name == "caplet")
    chosen = Selection(
        methods=methods, categories=(category,), seeds=(0,), preset="quick", device="cpu", resolution=64,
        overrides={"steps": 2, "image_size": 64}, method_overrides=QUICKER,
    )  # fmt: skip
    return plan(replace(chosen, **changes), WEIGHTS)


def test_few_images_are_some_of_those_of_the_plain_job_and_nested() -> None:
    plain, few, more = (material.normals(embedded(axes=(axes,))[0])[0] for axes in (PLAIN, *ALONG[:2]))
    assert [len(one) for one in (plain, few, more)] == [40, 1, 3]
    bytes_of = [{image.tobytes() for image in one} for one in (plain, few, more)]
    assert bytes_of[1] < bytes_of[2] < bytes_of[0]


@pytest.mark.parametrize("hold_out", [0.0, 0.2])
@pytest.mark.parametrize(
    "axes", [Axes(train_images=3), Axes(contamination=0.2), Axes(contamination=0.4, train_images=5)]
)
def test_each_image_is_the_one_that_the_lot_says_at_the_place_that_it_says(axes: Axes, hold_out: float) -> None:
    (job,) = embedded(axes=(axes,), hold_out=hold_out, seeds=(3,))
    lot = lot_of(job)
    assert lot is not None
    train = datasets.load_train(job.category, 64)[lot.normals]
    expected = np.concatenate([train, datasets.load_test(job.category, 64).images[lot.slipped]])
    np.testing.assert_array_equal(material.normals(job)[0][lot.places], expected)


@pytest.mark.parametrize("axes", [Axes(train_images=4), DIRTY], ids=str)
def test_held_out_normals_are_those_of_the_plain_job_clean_and_not_learnt_from(axes: Axes) -> None:
    plain = material.normals(embedded(hold_out=0.2)[0])
    learnt, held_out = material.normals(embedded(hold_out=0.2, axes=(axes,))[0])
    np.testing.assert_array_equal(held_out, plain[1])
    apart = {image.tobytes() for image in held_out}
    assert not apart & {image.tobytes() for image in learnt}


def test_contaminated_sets_hold_that_many_defective_images_and_the_test_set_none_of_them() -> None:
    job = embedded()[0]
    whole = material.test_set(job)
    defective = {image.tobytes() for image, label in zip(whole.images, whole.labels, strict=True) if label}
    kept = []
    for share, count in ((0.0, 0), (0.1, 3), (0.4, 12)):
        dirty = replace(job, axes=Axes(contamination=share))
        learnt, _ = material.normals(dirty)
        test = material.test_set(dirty)
        slipped = {image.tobytes() for image in learnt} & defective
        assert (len(learnt), len(slipped)) == (30, count)
        assert not slipped & {image.tobytes() for image in test.images}
        assert test.masks is not None
        np.testing.assert_array_equal(test.masks.any(axis=(1, 2)), test.labels)
        kept.append(test.names)
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) == len(whole.names) - 12
    places = judged_category(DIRTY, job.category, job.seed).test
    assert tuple(f"{sample.defect}/{sample.path.name}" for sample in places) == kept[0]
    other = material.test_set(replace(job, seed=1, axes=DIRTY)).names
    assert len(other) == len(kept[0])
    assert other != kept[0]


def test_annotated_regions_stay_with_the_images_that_are_judged() -> None:
    job = embedded(axes=(DIRTY,))[0]
    whole = material.test_set(replace(job, axes=PLAIN))
    assert whole.masks is not None
    images = np.flatnonzero(whole.labels)
    regions = Regions(whole.masks[images], images, images / 100)
    test = judged_on(job.axes, job.category, job.seed, whole._replace(regions=regions))
    assert test.masks is not None
    assert test.regions is not None
    np.testing.assert_array_equal(test.regions.images, np.flatnonzero(test.labels))
    np.testing.assert_array_equal(test.regions.masks, test.masks[test.labels])
    np.testing.assert_array_equal(
        test.regions.shares, [whole.names.index(name) / 100 for name in np.array(test.names)[test.labels]]
    )


def test_a_training_never_sees_a_corruption() -> None:
    plain = material.normals(embedded(hold_out=0.2)[0])
    worse = material.normals(embedded(hold_out=0.2, axes=(Axes(corruption="noise:5"),))[0])
    for one, other in zip(plain, worse, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(
        material.test_set(embedded(axes=ALONG[3:4])[0]).images, material.test_set(embedded()[0]).images
    )


def test_what_cannot_be_contaminated_is_refused(tiny_tree: Path) -> None:
    with pytest.raises(DatasetError, match="smaller share or fewer images"):
        jobs_of(tiny_tree, axes=(Axes(contamination=0.4, train_images=6),))


def test_two_shares_that_slip_in_the_same_images_are_no_two_points_also_where_nothing_was_named(
    dirty_tree: Path,
) -> None:
    axes = points((None, 4), (0.25, 0.3), (None, "blur:1"))
    with pytest.raises(
        SelectionError, match=r"^--contamination 0.25 and 0.3 are one on .*bolt: 1 of 4 training images"
    ):
        jobs_of(dirty_tree, axes=[one for one in axes if one.train_images or one.contamination == 0.3])
    with pytest.raises(SelectionError, match="are one on"):
        planned(selection(dirty_tree, axes=points((4,), (0.25, 0.3), (None,)), named=frozenset()), WEIGHTS)
    assert jobs_of(dirty_tree, axes=points((3, 4), (0.0, 0.3), (None, "blur:1")))


@pytest.mark.parametrize("axes", [ALONG[0], DIRTY, ALONG[3]], ids=lambda axes: axes.label)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_along_every_axis(
    method: str, axes: Axes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "cost_of", lambda *given, **said: {})
    (job,) = embedded(methods=((method, ""),), axes=(axes,))
    row = run.run(job, Work(out=str(tmp_path)), lambda step, terms: None)
    assert row.status == "ok"
    assert row.train_images == {1: 1, None: 30 if axes == DIRTY else 40}[axes.train_images]
    assert row.test_images == len(row.image_names) == (24 if axes == DIRTY else 36)
    assert (row.k_shot, row.contamination, row.corruption) == tuple(axes.columns.values())
    assert row.image_names == tuple(material.test_set(replace(job, method="pixel_mean")).names)
    assert row.image_auroc is not None
    assert id_of_row({name: getattr(row, name) for name in COLUMNS}) == job.id
