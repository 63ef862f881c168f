"""An audit changes nothing of what is watched, goes on after a kill, and is seen by no table of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from kdad_bench.cli import cli
from kdad_bench.datasets import PAD
from kdad_bench.harness import audit
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.options import RunOptions
from kdad_bench.harness.output import Work, lacking
from kdad_bench.harness.perform import perform
from kdad_bench.harness.selection import refuse_contradictions
from kdad_bench.harness.view import View
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.pages import draw_pages
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.protocol import Fitting, Method, Scores
from kdad_bench.methods.training import loop, watching
from tests.harness.planned import jobs_of
from tests.leaderboard import plausible
from tests.methods.checks import assert_same_state, state
from tests.methods.toys import normals, small_method, with_defects

TRAINED = tuple(name for name in METHODS if entry(name).family == "student-teacher")
STEPS = 2
MEASURED = ("seconds", "_ms", "memory", "created_at", "images_per_second", "environment", "speed", "throughput")
Watched = dict[int, Scores]


def fitted(name: str, watch: Callable[[int, Any], None] | None) -> tuple[Method, list[Any]]:
    """The method after a short fit, and its log, with the state of the global source of chance at each step."""
    method, log = small_method(name, steps=STEPS, batch_size=2), []

    def remember(step: int, terms: Any) -> None:
        log.append((step, dict(terms), torch.get_rng_state().tolist()))

    method.fit(normals(4, seed=1), Fitting(log=remember, log_every=1, watch=watch, watch_every=1))
    return method, log


def heavy_hand(seen: Watched) -> Callable[[int, Any], None]:
    """Looks, and then spoils all that it was given: weights, modes, chance."""

    def watch(step: int, method: Any) -> None:
        assert not any(module.training for module in method.student.modules()), "the copy still trains"
        seen[step] = method.score(with_defects(2, seed=3)[0])
        torch.manual_seed(step)
        method.student.train()
        method.score(normals(3, seed=2))
        with torch.no_grad():
            for value in (*method.student.parameters(), *method.student.buffers()):
                value.zero_()

    return watch


def assert_unnoticed(name: str) -> None:
    """A fit that is watched at each step is that which is not, and what is seen last is what is kept."""
    seen: Watched = {}
    watched, log = fitted(name, heavy_hand(seen))
    alone, log_alone = fitted(name, None)
    assert_same_state(state(alone), state(watched), "the fit noticed that it was watched")
    assert log == log_alone
    assert list(seen) == [*range(1, STEPS + 1)]
    kept = watched.score(with_defects(2, seed=3)[0])
    assert torch.equal(kept.image, seen[STEPS].image), "what was seen last is not what is kept"
    assert torch.equal(kept.pixel, seen[STEPS].pixel), "what was seen last is not what is kept"


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_does_not_notice_that_it_is_watched(name: str) -> None:
    assert_unnoticed(name)


def no_copy(method: Any, step: int, fitting: Fitting) -> None:
    assert fitting.watch is not None
    fitting.watch(step, method)


def no_scope_of_chance(method: Any, step: int, fitting: Fitting) -> None:
    copy = deepcopy(method)
    copy.student.eval()
    no_copy(copy, step, fitting)


def in_training_mode(method: Any, step: int, fitting: Fitting) -> None:
    with torch.random.fork_rng():
        no_copy(deepcopy(method), step, fitting)


@pytest.mark.parametrize("fault", [no_copy, no_scope_of_chance, in_training_mode])
def test_a_careless_look_is_found_out(fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "show", fault)
    with pytest.raises(AssertionError):
        assert_unnoticed("stfpm")


def test_the_last_step_is_always_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "due", lambda step, total, fitting: step < total)
    with pytest.raises(AssertionError):
        assert_unnoticed("stfpm")


def test_what_follows_the_last_step_is_done_to_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fitting, "after", lambda fitting, finish: fitting)
    with pytest.raises(AssertionError, match="not what is kept"):
        assert_unnoticed("stad")


@pytest.mark.parametrize(
    ("total", "every", "steps"),
    [(10, 4, [4, 8, 10]), (3, None, [1, 2, 3]), (40, None, [*range(2, 41, 2)]), (41, None, [*range(3, 41, 3), 41])],
)
def test_looks_are_as_often_as_asked_for_or_twenty_at_the_most(total: int, every: int | None, steps: list[int]) -> None:
    fitting = Fitting(watch=lambda step, method: None, watch_every=every)
    assert [step for step in range(1, total + 1) if watching.due(step, total, fitting)] == steps
    assert not watching.due(total, total, Fitting(watch_every=every))


def performed(tree: Path, out: Path, *, audited: bool, every: int | None = 1, **changes: Any) -> Row:
    job = next(
        job
        for job in jobs_of(
            tree, overrides={"steps": STEPS, "image_size": 64, "batch_size": 2}, resolution=64, **changes
        )
        if job.method == "stfpm"
    )
    row = perform(job, Work(out=str(out), audit=audited, audit_every=every, checkpoint_every_seconds=0))
    assert isinstance(row, Row)
    assert row.status == "ok", row.reason
    return row


Done = tuple[Row, Path]


@pytest.fixture(scope="module")
def plain(tiny_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A job without an audit, and its results folder."""
    out = tmp_path_factory.mktemp("plain")
    return performed(tiny_tree, out, audited=False), out


@pytest.fixture(scope="module")
def straight(tiny_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The same job with one."""
    out = tmp_path_factory.mktemp("audited")
    return performed(tiny_tree, out, audited=True), out


def results_of(row: Row) -> dict[str, Any]:
    """The columns that are no measurement of time or memory."""
    named = {field.name: getattr(row, field.name) for field in fields(row)}
    return {name: value for name, value in named.items() if not any(part in name for part in MEASURED)}


def audit_in(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "audits").glob("*.json")
    return audit.checked(path)


def test_an_audited_row_is_the_row_and_the_last_point_says_what_the_row_says(plain: Done, straight: Done) -> None:
    row, out = straight
    assert results_of(row) == results_of(plain[0])
    assert len(results_of(row)) > 50
    assert plain[0].peak_memory_mb is not None
    assert row.peak_memory_mb is None  # the test set and the copies lay in it
    found = audit_in(out)
    assert found["job"] == row.job_id
    assert [point["step"] for point in found["curve"]] == [1, 2]
    assert found["kept"] == {name: getattr(row, name) for name in audit.FIGURES}
    assert found["curve"][-1] == {"step": 2, **found["kept"]}
    assert not (plain[1] / "audits").exists()


def test_a_job_that_sees_tiles_of_pictures_is_audited_on_these(tiny_tree: Path, tmp_path: Path) -> None:
    view = View(fit=PAD, tile=32)
    row, plain = (performed(tiny_tree, tmp_path / str(said), audited=said, view=view) for said in (True, False))
    assert results_of(row) == results_of(plain)
    found = audit_in(tmp_path / "True")
    assert found["point"] == "fit=pad,tile=32"
    assert found["curve"][-1] == {"step": 2, **found["kept"]}
    assert found["kept"] == {name: getattr(row, name) for name in audit.FIGURES}


def test_a_training_that_was_killed_goes_on_with_its_curve(
    straight: Done, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, seen = audit.Audit.look, []

    def killed(self: audit.Audit, step: int, method: Any) -> None:
        if step == 2 and 2 not in seen:
            seen.append(step)
            raise KeyboardInterrupt
        seen.append(step)
        look(self, step, method)

    monkeypatch.setattr(audit.Audit, "look", killed)
    with pytest.raises(KeyboardInterrupt):
        performed(tiny_tree, tmp_path / "killed", audited=True)
    half = audit_in(tmp_path / "killed")
    assert half["kept"] is None
    assert audit.gaps(half) == {}
    row = performed(tiny_tree, tmp_path / "killed", audited=True)
    assert seen == [1, 2, 2]  # the first was not looked at again
    assert audit_in(tmp_path / "killed") == audit_in(straight[1])
    assert results_of(row) == results_of(straight[0])


def test_a_state_that_gives_no_figures_leaves_a_gap_and_the_job_goes_on(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = audit.figures

    def once_not_finite(image: torch.Tensor, *others: Any) -> Any:
        monkeypatch.setattr(audit, "figures", figures)
        return figures(image * float("nan"), *others)

    monkeypatch.setattr(audit, "figures", once_not_finite)
    performed(tiny_tree, tmp_path, audited=True)
    first, second = audit_in(tmp_path)["curve"]
    assert first == {"step": 1, **dict.fromkeys(audit.FIGURES)}
    assert all(second[name] is not None for name in audit.FIGURES)


def test_an_audit_that_cannot_be_written_costs_a_warning(tiny_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "audits").write_text("a file")
    with pytest.warns(UserWarning, match="no audit is kept there"):
        row = performed(tiny_tree, tmp_path, audited=True)
    assert row.status == "ok"


def point(step: int, image: float | None, pixel: float | None = 0.5) -> dict[str, Any]:
    return {"step": step, "image_auroc": image, "pixel_auroc": pixel, "aupro_30": 0.25}


def an_audit(method: str = "a", job: str = "j", kept: Any = None, curve: Any = ()) -> dict[str, Any]:
    texts = dict.fromkeys(audit.ABOUT, "x") | {"method": method}
    return texts | {
        "format": 1,
        "job": job,
        "seed": 0,
        "resolution": 64,
        "every": None,
        "kept": kept,
        "curve": [*curve],
    }


def write_audits(folder: Path, *audits: dict[str, Any]) -> Path:
    (folder / "audits").mkdir(parents=True, exist_ok=True)
    for one in audits:
        (folder / "audits" / f"{one['job']}.json").write_text(json.dumps(one))
    return folder


def write_rows(folder: Path, *jobs: tuple[str, str], **columns: Any) -> Path:
    """A plausible row for each (job id, method), of a seed of its own."""
    for job, method in jobs:
        own = columns | {"title": method, "variant": None, "teacher": "resnet18"}
        store.write(replace(plausible.row("stfpm", "x", int(job, 36), **own), job_id=job, method=method), folder)
    return folder


def cells(found: Result) -> list[list[str]]:
    """The lines of the tables that were printed, headers too."""
    assert found.exit_code == 0, found.output
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.output.splitlines() if "|" in line]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["audit", *map(str, arguments)])


def test_the_gap_is_the_best_less_the_kept_and_never_below_zero(tmp_path: Path) -> None:
    curve = [point(1, 0.75), point(2, None, None), point(3, 0.5, 0.625)]
    kept = {"image_auroc": 0.5, "pixel_auroc": 0.75, "aupro_30": None}
    first = an_audit("a", "1", kept, curve)
    assert audit.gaps(first) == {"image_auroc": 0.25, "pixel_auroc": 0.0}
    second = an_audit("a", "2", kept | {"image_auroc": 0.75}, curve)
    other, unfinished = an_audit("b", "3", kept, ()), an_audit("c", "4", None, curve)
    write_rows(tmp_path, ("1", "a"), ("2", "a"), ("3", "b"))
    found = command(write_audits(tmp_path, first, second, other, unfinished))
    assert cells(found)[2:] == [
        ["a", "2", "3", "+0.125 (+0.250)", "+0.000 (+0.000)", "–"],
        ["b", "1", "0", "–", "–", "–"],
    ]
    assert "No ranking" in found.output
    assert "1 of 4 audits is of a job that has not ended" in found.output
    by_json = [json.loads(line) for line in command(tmp_path, "--json").output.splitlines()]
    assert [one["gaps"] for one in by_json] == [audit.gaps(one) for one in (first, second, other, unfinished)]


def test_other_weights_are_another_line_and_another_protocol_another_table(tmp_path: Path) -> None:
    """As in the tables of rows: networks from other weights, or judged otherwise, are never averaged."""
    curves = {"1": 0.75, "2": 1.0, "3": 0.875, "4": 0.625, "5": 0.5}
    kept = point(9, 0.5)
    write_audits(tmp_path, *(an_audit("a", job, kept, [point(1, best)]) for job, best in curves.items()))
    write_rows(tmp_path, ("1", "a"))
    write_rows(tmp_path, ("2", "a"), teacher_weights="random", teacher_sha256="0" * 64)
    write_rows(tmp_path, ("3", "a"), protocol_version="2")
    write_rows(tmp_path, ("4", "a"), also_presets=("standard",))
    write_rows(tmp_path, ("6", "b"), preset="standard")
    found = command(tmp_path)
    lines = [(name, jobs, gap) for name, jobs, _, gap, *_ in cells(found) if name.startswith("a")]
    assert lines == [
        ("a@resnet18 random", "1", "+0.500 (+0.500)"),
        ("a@resnet18 torchvision IMAGENET1K_V1", "2", "+0.188 (+0.250)"),
        ("a", "1", "+0.375 (+0.375)"),
    ]
    assert "protocol 2" in found.output
    assert "1 of 5 audits is of a job without a row that tables count; not counted" in found.output
    by_json = {one["job"]: one for one in map(json.loads, command(tmp_path, "--json").output.splitlines())}
    assert {by_json[job]["entrant"] for job in "14"} == {"a@resnet18 torchvision IMAGENET1K_V1"}
    assert by_json["1"]["table"] == by_json["2"]["table"] != by_json["3"]["table"]
    assert (by_json["5"]["table"], by_json["5"]["entrant"]) == (None, None)


def test_a_figure_that_rounding_put_above_one_is_read(tmp_path: Path) -> None:
    over = an_audit(kept=point(1, 1.0) | {"aupro_30": 1.0000000000000002}, curve=[point(1, 1.0, 1.0000000000000007)])
    found = command(write_audits(write_rows(tmp_path, ("j", "a")), over))
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        json.dumps(an_audit() | {"format": 2}),
        json.dumps(an_audit() | {"method": 3}),
        json.dumps(an_audit(curve=[{"step": 1}])),
        json.dumps(an_audit(curve=[point(1, 1.5)])),
        json.dumps(an_audit(curve=[point(1, 0.5) | {"step": "1"}])),
        json.dumps(an_audit(kept={"image_auroc": "high"})),
        json.dumps(an_audit(curve=[point(1, 0.5)])).replace("0.5", "NaN"),
        json.dumps(an_audit()).replace('"curve": []', '"curve": 3'),
    ],
)
def test_a_damaged_audit_is_one_line(content: str, tmp_path: Path) -> None:
    folder = write_audits(tmp_path, an_audit())
    (folder / "audits" / "j.json").write_text(content)
    found = command(tmp_path)
    assert found.exit_code == 2
    assert "j.json: damaged" in found.output
    assert found.output.count("\n") == 1


def test_a_folder_without_audits_is_one_line(tmp_path: Path) -> None:
    found = command(tmp_path)
    assert found.exit_code == 2
    assert "run --all --audit" in found.output


def test_nothing_that_ranks_sees_an_audit(plain: Done, tmp_path: Path) -> None:
    """The same rows and the same pages, whatever lies in audits/."""
    (path,) = plain[1].glob("*.parquet")
    (tmp_path / path.name).write_bytes(path.read_bytes())
    flattering = an_audit("stfpm", plain[0].job_id, dict.fromkeys(audit.FIGURES, 1.0), [point(1, 1.0, 1.0)])
    before, pages = store.read(tmp_path).rows(), drawn(tmp_path)
    write_audits(tmp_path, flattering)
    (tmp_path / "audits" / "another.parquet").write_bytes(next(tmp_path.glob("*.parquet")).read_bytes())
    assert store.read(tmp_path).rows() == before
    assert drawn(tmp_path) == pages
    assert len(before) == 1


def drawn(folder: Path) -> dict[str, bytes]:
    """Every page of a results folder."""
    draw_pages(folder, folder)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("leaderboard.*"))}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"audit": True, "modality": "rgb+depth"}, "audited apart"),
        ({"audit_every": 3}, "is for --audit"),
        ({"audit": True, "out": "memory://here"}, "not with a URL"),
    ],
)
def test_what_cannot_be_audited_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SelectionError, match=said):
        refuse_contradictions(RunOptions(everything=True, **options))


def test_finished_jobs_without_an_audit_are_counted(tmp_path: Path) -> None:
    write_audits(tmp_path, an_audit(job="1"))
    assert lacking(["1", "2"], Work(out=str(tmp_path), audit=True)) == {"audit": 1}
