"""The training loop: budget, order, cache, checkpoints, selection, precision and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.backbones.folding import folded
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.stfpm import Stfpm
from kdad_bench.methods.training import loop
from kdad_bench.methods.training import teacher as frozen
from kdad_bench.methods.training.chance import chance, seeded
from kdad_bench.methods.training.loop import planned_steps
from kdad_bench.methods.training.resume import CheckpointError, Progress
from kdad_bench.methods.training.settings import SCHEDULES, DistillationSettings
from kdad_bench.methods.training.teacher import Teacher
from tests.methods.checks import assert_same_state, state
from tests.methods.toys import CPU, normals, small_method, small_settings, teacher_of, with_defects


class Interrupted(Exception):
    """Stands for a machine that is switched off."""


def stop_at(limit: int) -> Any:
    def log(step: int, terms: Mapping[str, float]) -> None:
        if step == limit:
            raise Interrupted

    return log


PUBLISHED: dict[str, Any] = {"teacher": "pdn_small", "strides": (4,), "width": 128, "features": 384}


@pytest.mark.parametrize(
    ("name", "changes", "reads"),
    [
        ("efficientad", PUBLISHED, False),
        ("efficientad", {}, True),
        ("ast", {"inputs": "depth"}, False),
        ("ast", {"inputs": "rgb"}, True),
        ("ast", {"inputs": "rgb+depth"}, True),
    ],
)
def test_no_statistics_are_taken_of_a_teacher_from_which_nothing_follows(
    name: str, changes: dict[str, Any], reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(Teacher, "learn_statistics", lambda teacher, images: taken.append(len(images)))
    method = small_method(name, source="random", taps="standardised", steps=1, batch_size=2, **changes)
    method.fit(normals(4, seed=1))
    assert bool(taken) == reads
    assert any(line.startswith("taps: ") for line in method.settings.deviations) == reads


def test_steps_replace_epochs_and_epochs_count_incomplete_batches() -> None:
    settings = DistillationSettings(epochs=3, batch_size=4)
    assert planned_steps(settings, 10) == (9, 3)
    assert planned_steps(replace(settings, drop_last=True), 10) == (6, 2)
    assert planned_steps(replace(settings, steps=5), 10) == (5, 3)
    assert planned_steps(replace(settings, batch_size=64), 10) == (3, 1)


def test_every_epoch_sees_every_image_once_in_a_new_order() -> None:
    settings = DistillationSettings(batch_size=4)
    epochs = [torch.cat([loop.course_of(settings, 10).chosen(3 * epoch + k + 1) for k in range(3)]) for epoch in (0, 1)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    assert epochs[0].tolist() != torch.arange(10).tolist()
    for epoch, seen in enumerate(epochs):
        assert torch.equal(seen, torch.randperm(10, generator=chance(settings.seed, "order", epoch)))


@pytest.mark.parametrize("name", ["stfpm", "eca_mskdad"])
def test_a_resumed_fit_is_the_same_as_an_uninterrupted_one_bit_for_bit(name: str, tmp_path: Path) -> None:
    images, path = normals(10, seed=1), tmp_path / "deep" / "fit.pt"
    whole, broken, resumed = (small_method(name, steps=5, batch_size=4, schedule="cosine") for _ in range(3))
    whole.fit(images)
    with pytest.raises(Interrupted):
        broken.fit(images, Fitting(log=stop_at(4), log_every=1, checkpoint=path, checkpoint_every_seconds=0))
    assert path.exists()
    steps: list[int] = []
    resumed.fit(images, Fitting(log=lambda step, _: steps.append(step), log_every=1, checkpoint=path))
    assert steps == [4, 5]  # the third step was the last one kept
    assert_same_state(state(whole), state(resumed), "resuming changed the result")
    assert not path.exists()
    assert list(path.parent.iterdir()) == []


def test_a_resumed_fit_remembers_the_best_epoch_so_far(tmp_path: Path) -> None:
    images, path = normals(10, seed=1), tmp_path / "fit.pt"
    settings = {"steps": 6, "batch_size": 4, "held_out": 0.2}
    whole, broken, resumed = (small_method("stfpm", **settings) for _ in range(3))
    whole.fit(images)
    with pytest.raises(Interrupted):
        broken.fit(images, Fitting(log=stop_at(6), log_every=1, checkpoint=path, checkpoint_every_seconds=0))
    resumed.fit(images, Fitting(checkpoint=path))
    assert_same_state(state(whole), state(resumed), "resuming lost the best epoch")


def progress(path: Path) -> Progress:
    layer = torch.nn.Linear(2, 2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    fitting = Fitting(checkpoint=path, checkpoint_every_seconds=60.0)
    return Progress(
        layer, torch.optim.SGD(layer.parameters(), lr=0.1), scaler, fitting, lambda: "fit", torch.device("cpu")
    )


@pytest.mark.parametrize(("seconds", "saved"), [(0.0, False), (59.9, False), (60.0, True), (61.0, True)])
def test_a_checkpoint_is_due_once_its_time_is_over(
    seconds: float, saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = progress(tmp_path / "fit.pt")
    kept.saved_at = 1000.0
    monkeypatch.setattr("kdad_bench.methods.training.resume.time.monotonic", lambda: 1000.0 + seconds)
    kept.save_when_due(7)
    assert (tmp_path / "fit.pt").is_file() == saved


def test_a_resumed_fit_draws_what_the_stopped_one_would_have_drawn(tmp_path: Path) -> None:
    """No method of the package draws from torch's own source while it learns; one of another may."""
    kept = progress(tmp_path / "fit.pt")
    kept.saved_at = -1e9
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        kept.save_when_due(7)
        expected = torch.rand(3)
        torch.manual_seed(6)
        assert progress(tmp_path / "fit.pt").resume() == 7
        assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_of_another_fit_is_refused_and_a_damaged_one_dropped(tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    with pytest.raises(Interrupted):
        small_method("stfpm").fit(
            normals(8, seed=1), Fitting(log=stop_at(2), log_every=1, checkpoint=path, checkpoint_every_seconds=0)
        )
    for other, images in ((small_method("stfpm", seed=1), normals(8, seed=1)), (small_method("stfpm"), normals(8, 2))):
        with pytest.raises(CheckpointError, match=r"fit\.pt: the checkpoint of another fit"):
            other.fit(images, Fitting(checkpoint=path))
    path.write_bytes(path.read_bytes()[:1000])
    whole, anew = small_method("stfpm"), small_method("stfpm")
    whole.fit(normals(8, seed=1))
    with pytest.warns(RuntimeWarning, match=r"fit\.pt: damaged checkpoint .* the training starts from its beginning"):
        anew.fit(normals(8, seed=1), Fitting(checkpoint=path))
    assert_same_state(state(whole), state(anew), "the damaged checkpoint left a trace")
    assert not path.exists()


def test_a_checkpoint_outlives_images_that_cannot_be_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(settings: DistillationSettings, normal: Tensor) -> str:
        raise MemoryError

    path = tmp_path / "fit.pt"
    path.write_bytes(b"whatever was done so far")
    monkeypatch.setattr(loop, "fingerprint_of", fails)
    with pytest.raises(MemoryError):
        small_method("stfpm").fit(normals(8, seed=1), Fitting(checkpoint=path))
    assert path.read_bytes() == b"whatever was done so far"


def test_features_computed_once_are_those_computed_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = normals(8, seed=1)
    kept, recomputed = small_method("stfpm", steps=3, batch_size=8), small_method("stfpm", steps=3, batch_size=8)
    kept.fit(images)
    monkeypatch.setattr(frozen, "CACHE_BYTES", 0)
    recomputed.fit(images)
    for key, value in state(kept).items():
        torch.testing.assert_close(value, state(recomputed)[key], rtol=1e-3, atol=1e-4)


def test_the_log_hears_of_the_first_the_last_and_every_tenth_step() -> None:
    heard: dict[int, Mapping[str, float]] = {}
    method = small_method("eca_mskdad", steps=11, batch_size=2, image_size=32)
    method.fit(normals(4, seed=1), Fitting(log=lambda step, terms: heard.update({step: terms})))
    assert sorted(heard) == [1, 10, 11]
    for terms in heard.values():
        assert set(terms) == {"feature", "feature_augmented", "relative", "loss"}
        assert terms["loss"] == pytest.approx(terms["feature"] + terms["feature_augmented"] + terms["relative"])


def test_the_kept_epoch_is_the_one_with_the_least_mean_map_on_held_out_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, dict[str, Tensor]]] = []
    measure = loop._mean_map

    def spy(method: Any, images: Tensor) -> float:
        assert len(images) == 2
        value = measure(method, images) * (1 if len(seen) == 1 else 5)  # the second epoch wins
        seen.append((value, {key: tensor.clone() for key, tensor in method.student.state_dict().items()}))
        return value

    monkeypatch.setattr(loop, "_mean_map", spy)
    method = small_method("stfpm", steps=None, epochs=3, batch_size=4, held_out=0.2)
    method.fit(normals(10, seed=1))
    assert len(seen) == 3
    assert min(value for value, _ in seen) == seen[1][0]
    best = {f"student.{key}": tensor for key, tensor in seen[1][1].items()}
    assert all(torch.equal(value, best[key]) for key, value in state(method).items() if key in best)


@pytest.mark.parametrize("name", ["efficientad", "stad"])
def test_networks_without_norms_are_judged_by_the_weights_of_each_epoch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[float] = []
    mean_map = loop._mean_map

    def heard(method: loop.Trainable, images: torch.Tensor) -> float:
        values.append(mean_map(method, images))
        return values[-1]

    monkeypatch.setattr(loop, "_mean_map", heard)
    small_method(name, steps=4, batch_size=2, held_out=0.3).fit(normals(4, seed=1))
    assert len(values) == len(set(values)) == 4


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_what_was_scored_before_a_fit_does_not_outlive_it(optimiser: str) -> None:
    method = small_method("dinomaly", steps=3, batch_size=2, optimiser=optimiser)  # the first has a rate of 0
    images = normals(2, seed=1)
    before = method.score(images).pixel
    method.fit(images)
    after = method.score(images).pixel
    assert not torch.equal(after, before)
    getattr(method, "folded_student").forget()  # noqa: B009  # Method knows no student
    assert torch.equal(method.score(images).pixel, after)


def test_standardised_taps_have_no_mean_and_unit_deviation_over_the_normals() -> None:
    teacher, images = Teacher(teacher_of("efficientnet_lite0"), standardise=True), normals(12, seed=1)
    teacher.learn_statistics(images)
    with torch.no_grad():
        for tap in teacher(images):
            torch.testing.assert_close(tap.mean((0, 2, 3)), torch.zeros(tap.shape[1]), atol=1e-3, rtol=0)
            torch.testing.assert_close(tap.std((0, 2, 3), correction=0), torch.ones(tap.shape[1]), atol=1e-3, rtol=0)


def test_a_teacher_stays_in_eval_mode_whatever_is_asked() -> None:
    teacher = Teacher(teacher_of("efficientnet_lite0"), standardise=False)
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    method = small_method("stfpm")
    method.module.train()
    assert not getattr(method, "teacher").training  # noqa: B009


def test_all_parameters_of_the_student_learn_and_nothing_else_requires_a_gradient() -> None:
    for name in ("stfpm", "rd4ad", "eca_mskdad", "dskd", "bmkd"):
        method = small_method(name, steps=1, learning_rate=0.01, optimiser="adam")
        before = state(method)
        method.fit(normals(8, seed=1))
        learnt = {f"student.{key}" for key, _ in getattr(method, "student").named_parameters()}  # noqa: B009
        same = {key for key, value in state(method).items() if torch.equal(value, before[key])}
        assert not learnt & same, f"{name}: {sorted(learnt & same)[:3]} did not learn"
        asking = {key for key, parameter in method.module.named_parameters() if parameter.requires_grad}
        assert asking == learnt


@pytest.mark.parametrize(
    ("name", "precision"),
    [("stfpm", "bf16"), ("rd4ad", "bf16"), ("eca_mskdad", "bf16"), ("bmkd", "bf16"), ("stfpm", "fp16")],
)
def test_training_and_scoring_work_under_autocast(name: str, precision: str) -> None:
    method = small_method(name, precision=precision, steps=2, batch_size=2, image_size=32)
    method.fit(normals(2, seed=1))
    scores = method.score(with_defects(2, seed=2)[0])
    assert scores.pixel.dtype == scores.image.dtype == torch.float32
    assert bool(scores.pixel.isfinite().all())
    assert all(value.isfinite().all() for value in state(method).values())


@pytest.mark.parametrize(("name", "side"), [("stfpm", 160), ("rd4ad", 96), ("eca_mskdad", 96), ("bmkd", 96)])
def test_any_size_divisible_by_32_works(name: str, side: int) -> None:
    method = small_method(name, image_size=side, steps=1, batch_size=2)
    method.fit(normals(2, seed=1, side=64))
    assert method.score(normals(1, seed=2, side=side)).pixel.shape == (1, side, side)


@pytest.mark.parametrize("teacher", ["resnet18", "vgg16", pytest.param("resnet50", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "taps"), [("stfpm", "standardised"), ("rd4ad", "raw"), ("eca_mskdad", "raw"), ("bmkd", "standardised")]
)
def test_every_teacher_family_works(name: str, taps: str, teacher: str) -> None:
    method = small_method(name, teacher=teacher, source="random", image_size=32, steps=1, batch_size=2, taps=taps)
    method.fit(normals(2, seed=1, side=32))
    assert method.score(normals(1, seed=2, side=32)).pixel.shape == (1, 32, 32)


def test_what_cannot_be_learnt_from_or_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"N > 0; got \(0, 3, 64, 64\)"):
        small_method("stfpm").fit(torch.empty(0, 3, 64, 64))
    for changes in ({"schedule": "linear"}, {"optimiser": "lion"}, {"precision": "fp8"}, {"compiled": "yes"}):
        (field, value), *_ = changes.items()
        with pytest.raises(ValueError, match=f"{field} '{value}' is not known; have: "):
            small_method("stfpm", **changes).fit(normals(2, seed=1))
    with pytest.raises(ValueError, match="taps 'cooked' is not known"):
        small_method("stfpm", taps="cooked")
    with pytest.raises(ValueError, match=r"Stfpm needs a teacher with taps at strides \(4, 8, 16\); got no teacher"):
        Stfpm(small_settings("stfpm"), None, CPU)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
@pytest.mark.parametrize("name", ["stfpm", "rd4ad", "fractalad:kd"])
def test_a_compiled_student_learns_the_same_and_is_its_own_network_afterwards(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []

    def traced(module: torch.nn.Module, *, mode: str, dynamic: bool) -> None:
        assert mode == "reduce-overhead"
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager", dynamic=dynamic)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    name, _, variant = name.partition(":")
    changes: dict[str, Any] = dict(entry(name).variants[variant]) if variant else {}
    changes["learning_rate"] = 1e-3  # steps so small that rounding stays small
    if name == "fractalad":
        changes["fractal_points"] = 2_000
    images = normals(6, seed=1)
    plain, other = (small_method(name, compiled=mode, **changes) for mode in ("off", "reduce-overhead"))
    losses: list[list[float]] = [[], []]
    for method, found in zip((plain, other), losses, strict=True):
        kept = found.append
        method.fit(images, Fitting(log=lambda step, terms, kept=kept: kept(terms["loss"]), log_every=1))
    assert compiled == list(other.learners())
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert all(module._compiled_call_impl is None for module in other.module.modules())
    assert torch.allclose(other.score(images).pixel, plain.score(images).pixel, rtol=0.05, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_a_mode_of_compilation_ends_with_the_fit_even_when_it_fails() -> None:
    student = small_method("stfpm").student

    def fail() -> None:
        with loop.compiled([student], "default"):
            assert student._compiled_call_impl is not None
            assert folded(student)._compiled_call_impl is None
            raise Interrupted

    with pytest.raises(Interrupted):
        fail()
    assert student._compiled_call_impl is None
    student.compile()  # by the user: it stays so
    own = student._compiled_call_impl
    with pytest.raises(Interrupted):
        fail()
    assert student._compiled_call_impl is own


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("name", [name for name in METHODS if name != "pixel_mean"])
def test_every_method_trains_compiled(name: str) -> None:
    images = normals(12, seed=1)
    found: dict[str, list[float]] = {"off": [], "default": []}
    for mode, losses in found.items():
        kept = losses.append
        method = small_method(name, compiled=mode, held_out=0.2, learning_rate=1e-3)
        method.fit(images, Fitting(log=lambda step, terms, kept=kept: kept(terms["loss"]), log_every=1))
    assert found["default"] == pytest.approx(found["off"], rel=5e-3)  # rounding, after three steps


def test_a_loss_that_is_not_finite_stops_the_fit_with_its_terms() -> None:
    with pytest.raises(FloatingPointError, match=r"step 1: the loss is not finite .*feature"):
        small_method("stfpm").fit(torch.full((2, 3, 64, 64), float("nan")))


def test_schedules_start_and_end_where_they_say() -> None:
    assert SCHEDULES["constant"](0.7) == 1
    assert SCHEDULES["cosine"](0.0) == 1
    assert SCHEDULES["cosine"](0.5) == pytest.approx(0.5)
    assert SCHEDULES["one_cycle"](0.0) == pytest.approx(0.1)
    assert SCHEDULES["one_cycle"](0.1) == pytest.approx(1.0)
    assert SCHEDULES["one_cycle"](0.999) < 1e-4


def test_the_norm_momentum_is_the_students_and_not_the_teachers() -> None:
    method = small_method("stfpm", norm_momentum=0.25)
    momenta = {
        part: {module.momentum for module in getattr(method, part).modules() if hasattr(module, "momentum")}
        for part in ("student", "teacher")
    }
    assert momenta == {"student": {0.25}, "teacher": {0.01}}


def test_chance_is_a_function_of_seed_purpose_and_index() -> None:
    def draw(*what: Any) -> float:
        return float(torch.rand(1, generator=chance(*what)))

    assert draw(0, "order", 3) == draw(0, "order", 3)
    drawn = torch.randperm(10, generator=chance(3, "order", 2))
    assert drawn.tolist() == [6, 4, 3, 8, 0, 9, 5, 7, 1, 2]  # rows already measured were drawn so
    assert len({draw(0, "order", 3), draw(1, "order", 3), draw(0, "augmentation", 3), draw(0, "order", 4)}) == 4


def test_a_seeded_scope_leaves_the_random_state_as_it_found_it_even_when_it_fails() -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()

    def fail() -> None:
        with seeded(3, CPU):
            torch.rand(5)
            raise Interrupted

    with pytest.raises(Interrupted):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
