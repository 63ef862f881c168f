"""The faults of `mutate` are faults, and the tests notice the quick ones of those that somebody thought of."""

from __future__ import annotations

import ast

import pytest

from tests.wrong.mutants import EQUIVALENT, TESTS, mutations
from tests.wrong.mutate import EVERY, ROOT, for_module, generated, modules, named, noticed, path_of
from tests.wrong.named import NAMED, Named

QUICK = (  # a second each; `python -m tests.wrong.mutate` runs all of NAMED
    "WideResNet-50-2's decoder without widening",
    "SGD without weight decay",
    "one draw of the augmentation for the whole batch",
    "RD4AD with Adam's usual betas",
    "STFPM with anomalib's weight decay",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_named_fault_is_noticed(name: str) -> None:
    (one,) = (one for one in NAMED if one.name == name)
    mutant = named(one)
    found, by = noticed(mutant.module, mutant.make(), mutant.tests)
    assert found
    assert mutant.tests[0].partition("::")[2].partition("[")[0] in by  # by its test, and not because it does not load


def test_no_fault_is_noticed_where_there_is_none() -> None:
    module = "rd4ad"
    source = path_of(module).read_text(encoding="utf-8")
    found, by = noticed(module, source, (f"{TESTS[module][0]}::test_the_paper_preset_is_the_papers_recipe",))
    assert not found, by


def test_every_named_fault_is_in_the_source() -> None:
    for one in EVERY:
        assert named(one).make() != path_of(one.module).read_text(encoding="utf-8")
        ast.parse(named(one).make())
        assert one.tests
    with pytest.raises(ValueError, match="is there 0 times"):
        named(Named("none", "rd4ad", "no such line", "", ()))


def test_generated_faults_are_many_and_change_modules_that_still_compile() -> None:
    total = 0
    for module in modules():
        plain = ast.unparse(ast.parse(path_of(module).read_text(encoding="utf-8")))
        made = generated(module)
        total += len(made)
        assert len({(mutant.line, mutant.what) for mutant in made}) == len(made)
        for mutant in made[::60]:  # all would take longer than it is worth
            assert mutant.make() != plain, mutant.what
            compile(mutant.make(), module, "exec", dont_inherit=True)
    assert total > 1000


def test_every_module_has_tests_and_every_equivalent_fault_is_still_generated() -> None:
    for module in modules():
        assert all((ROOT / test).is_file() for test in for_module(module)), module
    known = {(mutant.module, mutant.text, mutant.what) for module in modules() for mutant in generated(module)}
    assert set(EQUIVALENT) <= known


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1 + 2", "x = 1 - 2"),
        ("x = a < b", "x = a <= b"),
        ("x = a and b", "x = a or b"),
        ("x = not a", "x = a"),
        ("x = True", "x = False"),
        ("x = 0.5", "x = 1.0"),
        ("x = 3", "x = 4"),
        ("x = f(a, b)", "x = f(b, a)"),
        ("x = f(a, k=b)", "x = f(a)"),
        ("x = f('sum')", "x = f('product')"),
        ("x = F.relu(a)", "x = a"),
        ("x = a.detach()", "x = a"),
        ("x = nn.ReLU(inplace=True)", "x = nn.Identity()"),
        ("x = a if b else c", "x = c if b else a"),
        ("if a:\n    f()", "if not a:\n    f()"),
        ("with torch.no_grad():\n    f()", "if True:\n    f()"),
        ("with torch.no_grad(), other():\n    f()", "with other():\n    f()"),
        ("@torch.no_grad()\ndef f():\n    return 1", "def f():\n    return 1"),
        ("a.b = c", "pass"),
        ("f(a)", "pass"),
    ],
)
def test_this_becomes_that(before: str, after: str) -> None:
    found = []
    for _, _, change in mutations(ast.parse(before)):
        tree = ast.parse(before)
        change(tree)
        found.append(ast.unparse(ast.fix_missing_locations(tree)))
    assert after in found


@pytest.mark.parametrize(
    "source",
    ['"""Words."""', "x: Literal[3]", 'x = f"{1}"', 'd = {"quick": f(3)}', "QUICK = f(steps=80)", "raise E(3)"],
)
def test_this_stays_as_it_is(source: str) -> None:
    assert list(mutations(ast.parse(source))) == []
