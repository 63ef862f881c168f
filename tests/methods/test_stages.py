"""Trainings of two stages: where the second begins, and that each has a schedule and parameters of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.training import course, resume
from kdad_bench.methods.training.settings import SCHEDULES
from kdad_bench.methods.training.stages import last_of_first, progress_in_stage
from tests.methods.toys import normals, small_method, small_settings

# method -> the share that the first stage takes, its part of the student, the other part
STAGED = {"destseg": ("denoising", "network", "head"), "ast": ("flow", "flow", "student")}


@pytest.mark.parametrize(
    ("share", "total", "last"),
    [(0.2, 5000, 1000), (0.5, 7, 4), (0.0, 10, 0), (1.0, 10, 10), (0.5, 1, 0), (0.25, 2, 0), (1.0, 1, 1)],
)
def test_the_first_stage_ends_here(share: float, total: int, last: int) -> None:
    assert last_of_first(share, total) == last


def test_each_stage_goes_from_its_beginning_to_just_before_its_end() -> None:
    found = [progress_in_stage(step, 10, 4) for step in range(1, 11)]
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, 0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert [progress_in_stage(step, 3, 0) for step in (1, 2, 3)] == pytest.approx([0, 1 / 3, 2 / 3])
    assert [progress_in_stage(step, 3, 3) for step in (1, 2, 3)] == pytest.approx([0, 1 / 3, 2 / 3])


def watched(name: str, **changes: Any) -> tuple[list[set[str]], list[list[float]], list[dict[str, torch.Tensor]]]:
    """The terms, the learning rates and the student's state of every step of a toy fit."""
    method: Any = small_method(name, source="random", **changes)
    terms: list[set[str]] = []
    rates: list[list[float]] = []
    states: list[dict[str, torch.Tensor]] = []
    make, held = method.optimiser, []
    method.optimiser = lambda: held.append(make()) or held[0]

    def log(step: int, said: Mapping[str, float]) -> None:
        terms.append(set(said) - {"loss"})
        rates.append([group["lr"] for group in held[0].param_groups])
        states.append({key: value.clone() for key, value in method.student.state_dict().items()})

    method.fit(normals(8, seed=1), Fitting(log=log, log_every=1))
    return terms, rates, states


@pytest.mark.parametrize("name", STAGED)
def test_each_stage_moves_its_own_part_alone_norms_included(name: str) -> None:
    share, first, second = STAGED[name]
    terms, _, states = watched(name, steps=4, batch_size=4, **{share: 0.5})
    assert terms[0] == terms[1] != terms[2] == terms[3]
    for before, after, moves, stays in ((0, 1, first, second), (2, 3, second, first)):
        same = {key for key in states[0] if torch.equal(states[before][key], states[after][key])}
        assert {key for key in states[0] if key.startswith(f"{stays}.")} <= same
        weights = {key for key in states[0] if key.startswith(f"{moves}.") and key.endswith("weight")}
        assert len(weights & same) < len(weights) / 2


@pytest.mark.parametrize("name", STAGED)
def test_each_stage_has_the_whole_schedule(name: str) -> None:
    share = STAGED[name][0]
    _, rates, _ = watched(name, steps=6, batch_size=4, schedule="one_cycle", learning_rate=0.01, **{share: 0.5})
    expected = [0.01 * SCHEDULES["one_cycle"](k / 3) for k in (0, 1, 2, 0, 1, 2)]
    assert [rate[0] for rate in rates] == pytest.approx(expected)


@pytest.mark.parametrize("name", STAGED)
def test_the_only_step_of_a_stage_learns_though_rates_rise_from_0(name: str) -> None:
    _, rates, _ = watched(name, steps=3, batch_size=4, schedule="warm_cosine", **{STAGED[name][0]: 0.4})
    assert [rate[0] > 0 for rate in rates] == [True, False, True]


@pytest.mark.parametrize("name", STAGED)
def test_no_state_of_the_first_stage_is_kept_for_its_map(name: str) -> None:
    """Held-out normals choose among states in which all has learnt."""
    method: Any = small_method(name, source="random", steps=4, batch_size=2, held_out=0.5, **{STAGED[name][0]: 0.5})
    assert [method.comparable(step, 4) for step in (1, 2, 3, 4)] == [False, False, True, True]
    method.fit(normals(4, seed=1))
    assert bool(method.score(normals(1, seed=2)).pixel.isfinite().all())


WITHOUT_A_STEP = [  # of its first stage, or of its second
    ("ast", {"flow": 0.5, "steps": 1}, "steps: 0 for the flow, 1 for the student"),
    ("ast", {"flow": 0.6, "steps": 1}, "steps: 1 for the flow, 0 for the student"),
    ("destseg", {"denoising": 0.2, "steps": None, "epochs": 2}, "steps: 0 for the student, 2 for the head"),
    ("destseg", {"denoising": 0.9, "steps": None, "epochs": 3}, "steps: 3 for the student, 0 for the head"),
    ("stad", {"descriptors": 0.4, "steps": None, "epochs": 2}, "steps: 0 for the descriptors, 2 for the students"),
    ("efficientad", {"steps": None, "epochs": 1}, "steps: 0 for the PDN, 1 for the student"),
]


@pytest.mark.parametrize(("name", "changes", "said"), WITHOUT_A_STEP, ids=str)
def test_a_stage_that_is_asked_for_and_has_no_step_is_said(name: str, changes: dict[str, Any], said: str) -> None:
    """As its loss does it: one kind of terms in all steps."""
    settings = small_settings(name, batch_size=8, **changes)
    learnt = 8 - round(8 * sum(getattr(settings, name) for name in settings.APART))
    assert [one for one in settings.learning_from(learnt) if one.startswith("steps")] == [said]
    assert len({frozenset(one) for one in watched(name, batch_size=8, **changes)[0]}) == 1
    enough = replace(settings, steps=200)
    assert not [one for one in enough.learning_from(learnt) if one.startswith("steps")]


SEEN = [  # settings, of eight images -> images of all steps, and how many states are compared
    ("stfpm", {"steps": 3, "batch_size": 2}, 6, 0),
    ("stfpm", {"steps": 4, "batch_size": 2}, 8, 0),
    ("stfpm", {"steps": 2, "batch_size": 3, "drop_last": True}, 6, 0),
    ("stfpm", {"steps": 2, "batch_size": 2, "held_out": 0.25}, 4, 1),
    ("stfpm", {"steps": 4, "batch_size": 2, "held_out": 0.25}, 6, 2),
    ("ast", {"flow": 0.5, "steps": 4, "batch_size": 3, "held_out": 0.25}, 6, 1),
    ("ast", {"flow": 0.5, "steps": 6, "batch_size": 3, "held_out": 0.25}, 6, 2),
    ("destseg", {"denoising": 0.8, "steps": 2, "batch_size": 2, "held_out": 0.25}, 4, 0),
]


@pytest.mark.parametrize(("name", "changes", "images", "states"), SEEN, ids=str)
def test_what_the_steps_saw_and_what_was_compared_is_what_a_row_says(
    name: str, changes: dict[str, Any], images: int, states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[float] = []
    seen: set[int] = set()
    chosen = course.Course.chosen

    def watched_choice(self: course.Course, step: int) -> torch.Tensor:
        seen.update(chosen(self, step).tolist())
        return chosen(self, step)

    monkeypatch.setattr(resume.Progress, "keep_if_better", lambda self, value: judged.append(value))
    monkeypatch.setattr(course.Course, "chosen", watched_choice)
    method: Any = small_method(name, source="random", **changes)
    method.fit(normals(8, seed=1))
    assert (len(seen), len(judged)) == (images, states)
    learnt = 6 if "held_out" in changes else 8
    said = [one for one in method.settings.learning_from(learnt) if one.startswith(("images: ", "states compared: "))]
    few = [f"images: {images} of {learnt} in the steps, which are less than an epoch"] * (images < learnt)
    words = {0: "none, the last is kept", 1: "one, the last"}
    alone = [f"states compared: {words[states]}"] if "held_out" in changes and states < 2 else []
    assert said == few + alone


@pytest.mark.parametrize(
    ("name", "changes", "images", "said"),
    [
        ("spade", {"images": 5}, 4, "neighbours: 4 images, all there are (settings: 5)"),
        ("spade", {"images": 5}, 5, ""),
        ("patchcore", {"coreset": 0.03}, 1, "image score: the plain maximum, by a memory of one patch (settings: 9)"),
        ("patchcore", {"coreset": 0.03}, 3, "image score: eq. 7 with b = 5, the whole memory (settings: 9)"),
        ("patchcore", {"coreset": 0.03}, 8, ""),
        ("patchcore", {"coreset": 0.001, "reweighted": 0}, 1, ""),
        ("rdpp", {"batch_size": 8, "passes": 2, "steps": 9}, 3, "passes of a batch: 1 (settings: 2)"),
        ("rdpp", {"batch_size": 8, "passes": 2, "steps": 9}, 4, "batches: of 4, all there are (settings: 8)"),
    ],
    ids=str,
)
def test_what_few_images_leave_of_a_setting_is_said(name: str, changes: dict[str, Any], images: int, said: str) -> None:
    settings = small_settings(name, **changes)
    assert settings.learning_from(images)[-1:] == ((said,) if said else ())
    assert settings.learning_from(0) == ()
    if name == "patchcore":
        method: Any = small_method(name, **changes)
        method.fit(normals(images, seed=1))
        kept = len(method.kept.get_buffer("memory"))
        assert said == "" or ("one patch" in said if kept == 1 else f"b = {kept}," in said)


@pytest.mark.parametrize(
    ("name", "changes", "compared"),
    [
        ("ast", {"flow": 1.0, "steps": 4}, False),
        ("ast", {"flow": 1.0, "steps": None, "epochs": 3}, False),
        ("ast", {"flow": 0.5, "steps": 4}, True),
        ("destseg", {"denoising": 0.9, "steps": 3}, False),
        ("stad", {"descriptors": 0.9, "steps": 3}, True),
        ("stfpm", {"steps": 3}, True),
    ],
    ids=str,
)
def test_held_out_normals_that_choose_nothing_are_said(
    name: str, changes: dict[str, Any], compared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[float] = []
    monkeypatch.setattr(resume.Progress, "keep_if_better", lambda self, value: judged.append(value))
    method: Any = small_method(name, source="random", batch_size=4, held_out=0.3, **changes)
    method.fit(normals(6, seed=1))
    said = next(one for one in method.settings.deviations if one.startswith("selection"))
    assert bool(judged) is compared
    assert ("epoch of the least mean map" in said) is compared
    assert ("held out for nothing" in said) is not compared
