"""The example of docs/adding-a-method.md is a working method."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kdad_bench.methods import METHODS
from kdad_bench.methods.checkpoint import load, save
from kdad_bench.methods.protocol import Entry, Fitting, Method
from tests.methods import checks
from tests.methods.toys import CPU, normals, teacher_of

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"


@pytest.fixture(scope="module")
def example() -> Entry:
    """The first code block of the page, run as a module."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    module = ModuleType("narrow_example")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(blocks[0], str(PAGE), "exec"), module.__dict__)
    found = module.NARROW
    assert isinstance(found, Entry)
    assert f'"{found.name}": "kdad_bench.methods.{found.name}:{found.name.upper()}"' in blocks[1]
    return found


def build(example: Entry, **changes: object) -> Method:
    settings = replace(example.presets["quick"], **{"image_size": 64, "steps": 2, **changes})
    return example.build(settings, teacher_of(settings.teacher, settings.strides), CPU)


def test_the_example_passes_the_checks_of_every_method(example: Entry) -> None:
    checks.answers_have_the_shape_of_the_images(build(example))
    checks.the_teacher_is_never_trained(build(example))
    checks.the_seed_decides_everything(lambda: build(example))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda terms: {}, r"Narrow.loss gives no term; give a mapping from names to scalar tensors"),
        (lambda terms: terms["feature"], r"Narrow.loss gives a Tensor; give a mapping"),
        (lambda terms: {"f": 1.0}, r"Narrow.loss: the term 'f' is a float; give a scalar tensor"),
        (
            lambda terms: {"f": terms["feature"].expand(2)},
            r"Narrow.loss: the term 'f' is of shape \(2,\); give a scalar",
        ),
        (
            lambda terms: {"f": terms["feature"].expand(1, 0)},
            r"Narrow.loss: the term 'f' is of shape \(1, 0\); give a scalar",
        ),
        (lambda terms: {"f": terms["feature"].detach()}, r"Narrow.loss: no term has a gradient \(f\); compute it from"),
    ],
)
def test_a_loss_of_no_named_scalars_is_told_by_the_name_of_the_method(
    example: Entry, monkeypatch: pytest.MonkeyPatch, given: Callable[[Any], Any], words: str
) -> None:
    method = build(example)
    before = {name: value.clone() for name, value in method.module.state_dict().items()}
    real = method.loss  # type: ignore[attr-defined]
    monkeypatch.setattr(method, "loss", lambda batch: given(real(batch)), raising=False)
    with pytest.raises(ValueError, match=f"^{words}"):
        method.fit(normals(4, seed=1))
    weights = [name for name in before if name.endswith("weight")]
    assert all(torch.equal(method.module.state_dict()[name], before[name]) for name in weights)  # no step was taken


def test_terms_of_one_value_are_taken_whatever_their_dimensions(
    example: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, float]] = []
    fitting = Fitting(log=lambda step, values: told.append(dict(values)), log_every=1)
    weights = []
    for dimensions in ((), (1,), (1, 1)):
        method = build(example)
        real = method.loss  # type: ignore[attr-defined]

        def shaped(batch: Any, real: Any = real, dimensions: tuple[int, ...] = dimensions) -> dict[str, torch.Tensor]:
            return {"whole": real(batch)["feature"].reshape(dimensions), "none": torch.zeros(())}

        monkeypatch.setattr(method, "loss", shaped, raising=False)
        method.fit(normals(4, seed=1), fitting)
        weights.append(torch.cat([value.reshape(-1) for value in method.module.state_dict().values()]))
    assert torch.equal(weights[1], weights[0])
    assert torch.equal(weights[2], weights[0])
    assert told[:2] == told[2:4] == told[4:]
    assert [set(values) for values in told] == [{"whole", "none", "loss"}] * 6


def test_a_student_that_is_no_network_is_told_by_the_name_of_the_method(
    example: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example.build, "build_student", lambda self, teacher: 5)
    with pytest.raises(ValueError, match=r"^Narrow.build_student gives a int, no nn.Module$"):
        build(example)


def test_the_example_learns_to_find_defects(example: Entry) -> None:
    method = build(example, steps=60)
    with pytest.raises(AssertionError, match="AUROC"):
        checks.defects_stand_out(method, image=0.9, pixel=0.9)
    method.fit(normals(24, seed=1))
    checks.defects_stand_out(method, image=0.9, pixel=0.9)
    checks.scoring_changes_nothing(method)
    checks.scores_do_not_depend_on_the_batch(method)


def test_the_example_reloads_once_it_is_registered(
    example: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "narrow", "narrow_example:NARROW")
    method = build(example)
    save("narrow", method, tmp_path)
    name, again = load(tmp_path)
    assert name == "narrow"
    assert again.score(normals(1, seed=1)).pixel.equal(method.score(normals(1, seed=1)).pixel)
