"""`kdad-bench run` measures speed once, after its jobs: alone, resumed, told where it fails, never a job's failure."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import kdad_bench
from kdad_bench.cli import cli
from kdad_bench.cli.progress import Progress
from kdad_bench.harness import measuring, speed_key
from kdad_bench.harness.speed import LEARNT_FROM
from kdad_bench.leaderboard import measurement, store
from kdad_bench.methods import entry
from tests.conftest import write_tree

SPADE = ("-m", "spade", "--set", "spade.images=100", "--image-size", "32", "--resolution", "32")


def run(tree: Path, out: Path, *more: object) -> Result:
    """The fastest real run: two jobs of a method without a teacher."""
    chosen = ("run", "-m", "pixel_mean", "-d", f"folder:{tree}", "--seeds", "1", "--no-pictures", "--out", out)
    return CliRunner().invoke(cli, [str(argument) for argument in (*chosen, *more)])


def rows(out: Path) -> list[dict[str, Any]]:
    return store.read(out).rows()


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens in a run: `job` as each ends, `measured METHOD` as each measurement begins."""
    events: list[str] = []
    ended, measure = Progress.ended, measuring.measure

    def told(self: Progress, *given: Any) -> None:
        events.append("job")
        ended(self, *given)

    def seen(job: Any, *given: Any) -> Any:
        workers = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
        events.append(f"measured {job.name}{' beside workers' if workers else ''}")
        return measure(job, *given)

    monkeypatch.setattr(Progress, "ended", told)
    monkeypatch.setattr(measuring, "measure", seen)
    return events


def test_a_run_that_waits_for_the_measurement_of_another_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    told: list[str] = []
    with measuring.machine(told.append):
        pass
    with (tmp_path / "speed.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def tell(line: str) -> None:
            told.append(line)
            fcntl.flock(other, fcntl.LOCK_UN)

        with measuring.machine(tell):
            pass
    assert told == ["another run measures speed on this machine; waiting for it"]


def test_what_a_listener_raises_is_no_failed_measurement_and_lets_none_begin_beside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    begun: list[Any] = []
    monkeypatch.setattr(measuring, "measure", lambda *given: begun.append(given))

    def tell(line: str) -> None:
        raise BrokenPipeError("nobody reads the lines")

    with (tmp_path / "speed.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        one = measuring.Wanted(job=Any, key="k")  # type: ignore[arg-type]
        with pytest.raises(BrokenPipeError, match="nobody reads"):
            list(measuring.measured([one], str(tmp_path / "out"), tell=tell))
    assert begun == []


@pytest.mark.parametrize("more", [(), ("--workers", "2")], ids=["in process", "workers"])
def test_each_configuration_is_measured_once_when_no_job_runs_any_more(
    more: tuple[str, ...], tiny_tree: Path, tmp_path: Path, timed: list[str]
) -> None:
    result = run(tiny_tree, tmp_path, *more)
    assert result.exit_code == 0, result.output
    assert timed == ["job", "job", "measured pixel_mean"]
    found = rows(tmp_path)
    assert len({row["speed_key"] for row in found} - {None}) == 1
    assert len({row["latency_ms"] for row in found} - {None}) == 1
    assert len(measurement.read(tmp_path)) == 1
    for name in ("latency_ms", "first_latency_ms", "one_thread_latency_ms", "one_thread_images_per_second"):
        assert all(row[name] > 0 for row in found), name
    assert "measured once per method and settings" in (tmp_path / "leaderboard.md").read_text()


def test_a_second_run_measures_nothing_and_the_next_data_set_shares(
    tiny_tree: Path, tmp_path: Path, timed: list[str]
) -> None:
    run(tiny_tree, tmp_path, "-c", "bolt")
    run(tiny_tree, tmp_path, "-c", "bolt")
    run(tiny_tree, tmp_path, "-c", "cloth")
    assert timed == ["job", "measured pixel_mean", "job"]
    assert len({row["latency_ms"] for row in rows(tmp_path)} - {None}) == 1


def test_a_twin_of_the_preset_shares_the_measurement_whoever_asks(
    tiny_tree: Path, tmp_path: Path, timed: list[str]
) -> None:
    assert entry("pixel_mean").presets["paper"] == entry("pixel_mean").presets["standard"]
    run(tiny_tree, tmp_path, "-c", "bolt", "--preset", "standard", "--no-measure-speed")
    found = run(tiny_tree, tmp_path, "-c", "bolt", "--preset", "paper")
    assert found.exit_code == 0, found.output
    assert timed == ["job", "measured pixel_mean"]
    assert all(row["latency_ms"] > 0 for row in rows(tmp_path))
    (made,) = measurement.read(tmp_path).values()
    assert made.configuration["quick"] is True  # the budget of the preset that the row is of


@pytest.mark.parametrize(("more", "again"), [(1, False), (9, True)])
def test_what_is_kept_of_many_more_images_is_measured_anew(
    more: int, again: bool, tmp_path: Path, timed: list[str]
) -> None:
    tree = write_tree(tmp_path / "tree", ("bolt",), train=4)
    run(tree, tmp_path / "out", *SPADE)
    for number in range(more):
        picture = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tree / "bolt" / "train" / "good" / f"more{number}.png")
    found = run(tree, tmp_path / "out", *SPADE)
    assert found.exit_code == 0, found.output
    assert timed.count("measured spade") == 1 + again
    counts = [made.environment[LEARNT_FROM] for made in measurement.read(tmp_path / "out").values()]
    assert max(counts) == (13 if again else 4)


def with_a_small_category(tree: Path) -> Path:
    """Three categories, of 12, 12 and 3 training images."""
    write_tree(tree, ("bolt", "cloth", "pin"), train=12)
    for picture in sorted((tree / "pin" / "train" / "good").iterdir())[3:]:
        picture.unlink()
    return tree


def learnt_from(out: Path) -> list[int]:
    """Images that SPADE had learnt from when it was measured."""
    return [made.environment[LEARNT_FROM] for made in measurement.read(out).values() if made.method == "spade"]


def test_a_call_for_one_small_category_does_not_replace_the_speed_of_all(tmp_path: Path, timed: list[str]) -> None:
    tree = with_a_small_category(tmp_path / "tree")
    run(tree, tmp_path / "out", *SPADE)
    for category, more in (("pin", ()), ("cloth", ()), ("pin", ()), ("pin", ("--force",))):
        found = run(tree, tmp_path / "out", *SPADE, "-c", category, *more)
        assert found.exit_code == 0, found.output
    assert timed.count("measured spade") == 1
    assert learnt_from(tmp_path / "out") == [12]


def test_a_small_category_that_came_first_gives_way_to_a_middling_one(tmp_path: Path, timed: list[str]) -> None:
    tree = with_a_small_category(tmp_path / "tree")
    counts = []
    for categories in (("-c", "pin"), (), ()):
        found = run(tree, tmp_path / "out", *SPADE, *categories)
        assert found.exit_code == 0, found.output
        counts += learnt_from(tmp_path / "out")
    assert timed.count("measured spade") == 2
    assert counts == [3, 12, 12]


def test_a_small_category_is_not_measured_again_for_others(tmp_path: Path, timed: list[str]) -> None:
    tree = with_a_small_category(tmp_path / "tree")
    for more in (("-c", "pin"), ("--no-measure-speed",), ("-c", "pin")):
        assert run(tree, tmp_path / "out", *SPADE, *more).exit_code == 0
    assert (timed.count("measured spade"), learnt_from(tmp_path / "out")) == (1, [3])


def test_what_a_killed_run_did_not_measure_is_measured_without_training(
    tiny_tree: Path, tmp_path: Path, timed: list[str]
) -> None:
    run(tiny_tree, tmp_path, "--no-measure-speed")
    before = rows(tmp_path)
    assert {row["latency_ms"] for row in before} == {None}
    again = run(tiny_tree, tmp_path)
    assert "2 already finished" in again.output
    assert timed == ["job", "job", "measured pixel_mean"]
    after = rows(tmp_path)
    assert [row["created_at"] for row in after] == [row["created_at"] for row in before]
    assert all(row["latency_ms"] > 0 for row in after)


def test_a_measurement_that_fails_is_a_line_at_the_end_and_no_failed_job(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> None:
        raise RuntimeError("the card fell\nout")

    monkeypatch.setattr(measuring, "measure", broken)
    found = run(tiny_tree, tmp_path)
    assert found.exit_code == 0, found.output
    assert found.output.rstrip().splitlines()[-1].startswith("speed not measured: pixel_mean: RuntimeError: the card")
    assert {row["status"] for row in rows(tmp_path)} == {"ok"}
    monkeypatch.undo()
    run(tiny_tree, tmp_path)
    assert all(row["latency_ms"] > 0 for row in rows(tmp_path))


def test_an_interrupt_while_speed_is_measured_loses_nothing(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "measure", interrupted)
    found = run(tiny_tree, tmp_path)
    assert found.exit_code == 130
    assert "Finished jobs are kept" in found.output
    assert len(rows(tmp_path)) == 2


def test_every_job_is_timed_where_that_is_asked_for(tiny_tree: Path, tmp_path: Path, timed: list[str]) -> None:
    run(tiny_tree, tmp_path, "--time-every-job")
    run(tiny_tree, tmp_path)
    assert timed == ["job", "job"]
    own = [row["latency_ms"] for row in rows(tmp_path)]
    assert all(value > 0 for value in own)
    assert {row["speed_key"] for row in rows(tmp_path)} == {None}
    run(tiny_tree, tmp_path, "--measure-speed")
    assert timed == ["job", "job", "measured pixel_mean"]
    assert len({row["latency_ms"] for row in rows(tmp_path)}) == 1
    assert "not both" in run(tiny_tree, tmp_path, "--time-every-job", "--measure-speed").output


def test_speed_is_measured_anew_where_that_or_force_is_asked_for(
    tiny_tree: Path, tmp_path: Path, timed: list[str]
) -> None:
    run(tiny_tree, tmp_path)
    (first,) = measurement.read(tmp_path).values()
    run(tiny_tree, tmp_path, "--measure-speed")
    (second,) = measurement.read(tmp_path).values()
    assert second.key == first.key
    assert second.created_at > first.created_at
    run(tiny_tree, tmp_path, "--force")
    assert timed.count("measured pixel_mean") == 3


def older(out: Path, load: float, threads: int = 1) -> None:
    """Make the rows of a folder those of schema 3, timed under a load average."""
    for line in rows(out):
        row = store.find(out, line["job_id"])
        assert row is not None
        environment = {**json.loads(row.environment), "load_1min": load, "cores": 2}
        store.write(
            replace(
                row, schema_version=3, speed_key=None, threads=threads, latency_ms=50.0 + row.seed,
                environment=json.dumps(environment),
            ),
            out,
        )  # fmt: skip


@pytest.mark.parametrize(("load", "busy"), [(1.2, False), (2.9, True)])
def test_older_rows_are_measured_alone_if_they_were_timed_beside_other_work(
    load: float, busy: bool, tiny_tree: Path, tmp_path: Path, timed: list[str]
) -> None:
    run(tiny_tree, tmp_path, "--no-measure-speed")
    older(tmp_path, load)
    found = run(tiny_tree, tmp_path)
    assert found.exit_code == 0, found.output
    assert ("measured pixel_mean" in timed) is busy
    assert ({row["latency_ms"] for row in rows(tmp_path)} == {50.0}) is not busy
    run(tiny_tree, tmp_path)
    assert timed.count("measured pixel_mean") == busy, "the measurement covers them now"
    if busy:
        (made,) = measurement.read(tmp_path).values()
        assert len(made.covers) == 2
        assert {row["speed_key"] for row in rows(tmp_path)} == {made.key}


def test_older_rows_that_come_later_are_covered_without_another_measurement(
    tiny_tree: Path, tmp_path: Path, timed: list[str]
) -> None:
    run(tiny_tree, tmp_path)
    older(tmp_path, 9.0)
    run(tiny_tree, tmp_path)
    assert timed.count("measured pixel_mean") == 1
    assert 50.0 not in {row["latency_ms"] for row in rows(tmp_path)}


def test_older_rows_of_another_machine_keep_what_they_have(
    tiny_tree: Path, tmp_path: Path, timed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_tree, tmp_path, "--no-measure-speed")
    older(tmp_path, 9.0)
    monkeypatch.setattr(speed_key, "cpu_model", lambda: "another processor")
    run(tiny_tree, tmp_path)
    assert "measured pixel_mean" not in timed
    assert {row["latency_ms"] for row in rows(tmp_path)} == {50.0}


def test_rows_of_another_machine_are_not_measured_here(
    tiny_tree: Path, tmp_path: Path, timed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_tree, tmp_path, "--no-measure-speed")
    monkeypatch.setattr(speed_key, "cpu_model", lambda: "another processor")
    found = run(tiny_tree, tmp_path)
    assert found.exit_code == 0
    assert "speed not measured: pixel_mean: its jobs ran on another machine" in found.output
    assert "measured pixel_mean" not in timed


def test_what_another_run_measured_while_this_one_waited_is_kept(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_tree, tmp_path)
    (made,) = measurement.read(tmp_path).values()
    (tmp_path / made.file_name).unlink()
    read = measurement.read

    def meanwhile(folder: Any) -> Any:
        measurement.write(made, tmp_path)
        return read(folder)

    monkeypatch.setattr(measurement, "read", meanwhile)
    monkeypatch.setattr(measuring, "measure", None)
    found = run(tiny_tree, tmp_path)
    assert "not measured" not in found.output
    assert read(tmp_path) == {made.key: made}


def test_json_tells_the_jobs_alone_which_name_their_measurement(tiny_tree: Path, tmp_path: Path) -> None:
    """Whoever reads a line per job, `row["category"]` of each, met objects of another kind among them."""
    found = run(tiny_tree, tmp_path, "--json")
    jobs = [json.loads(line) for line in found.stdout.splitlines()]
    assert {one["job_id"] for one in jobs} == {row["job_id"] for row in store.read(str(tmp_path)).rows()}
    ((key, made),) = measurement.read(tmp_path).items()
    assert [one["speed_key"] for one in jobs] == [key] * 2
    assert {one["latency_ms"] for one in jobs} == {None}
    assert made.figures["latency_ms"] > 0
    assert "ms/image" in found.stderr


def test_results_at_a_url_have_their_measurement_beside_them(tiny_tree: Path) -> None:
    out = "memory://measured/results"
    kdad_bench.run("pixel_mean", f"folder:{tiny_tree}", seeds=1, out=out)
    assert all(row["latency_ms"] > 0 for row in store.read(out).rows())
