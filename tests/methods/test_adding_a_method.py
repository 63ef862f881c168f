"""The example of docs/adding-a-method.md is a working method."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from kdad_bench.methods import METHODS
from kdad_bench.methods.checkpoint import load, save
from kdad_bench.methods.protocol import Entry, Method
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
