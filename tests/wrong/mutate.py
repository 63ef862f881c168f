"""Small faults put into the methods and the GPU's kernels one at a time: the tests have to notice each.

    python -m tests.wrong.mutate                                  # the named ones: a minute or two
    python -m tests.wrong.mutate --kernels                        # only those of the kernels
    python -m tests.wrong.mutate --sample 150 --seed 0            # generated ones, drawn over all modules
    python -m tests.wrong.mutate --module stfpm --module reverse  # all that can be generated in these
    python -m tests.wrong.mutate --module rd4ad --list            # only say what they would be
    python -m tests.wrong.mutate --again LOG                      # the survivors of an earlier run, by its output

A fault is made in memory: a process of its own imports the module with the changed source and runs the tests of that
module. Nothing in the tree changes. Survivors are printed with their line; exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import ast
import importlib.machinery
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType

from tests.wrong.kernel_faults import KERNEL_FAULTS
from tests.wrong.mutants import EQUIVALENT, HARMLESS, TESTS, Change, mutations
from tests.wrong.named import NAMED, Named

ROOT = Path(__file__).parents[2]
ROOM = ROOT / "kdad_bench" / "methods"
EVERY = (*NAMED, *KERNEL_FAULTS)
SECONDS = 240  # of processor time for one mutant; longer counts as noticed, a loop without an end does too
PATIENCE = 10  # times as long by the clock, so that a busy machine makes no mutant look noticed
# over all methods or teachers: what they notice the tests of the changed module should have noticed before
BROAD = [
    f"tests/methods/test_distillation.py::test_{name}"
    for name in ("every_method_trains_compiled", "any_size_divisible_by_32_works", "every_teacher_family_works")
]
PRELOADED = [  # what takes longest to import
    *("torch", "torch._dynamo", "numpy", "scipy.ndimage", "scipy.stats", "safetensors.torch", "PIL.Image"),
    *("pytest", "hypothesis", "hypothesis.strategies", "hypothesis.internal.observability", "syrupy"),
]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed module."""

    module: str  # "reverse", "backbones.vgg": under kdad_bench.methods; "kernels.triton_path": under kdad_bench
    line: int
    text: str  # of that line
    what: str  # before -> after; #2 at its end if it is the second such of its line
    make: Callable[[], str]  # the source of the whole changed module
    tests: tuple[str, ...]  # that have to notice it

    @property
    def reason(self) -> str:
        """Why no test can notice it; "" for one that a test has to."""
        both = f"{self.what}  |  {self.text}"
        alike = next((reason for pattern, reason in HARMLESS.items() if re.search(pattern, both)), "")
        return EQUIVALENT.get((self.module, self.text, self.what), alike)


def modules() -> list[str]:
    """Every module under kdad_bench.methods that holds code."""
    found = [path for path in sorted(ROOM.rglob("*.py")) if "__pycache__" not in path.parts]
    names = [".".join(path.relative_to(ROOM).with_suffix("").parts) for path in found]
    return [name for name in names if not name.endswith("__init__")]


def full_name(module: str) -> str:
    return f"kdad_bench.{module}" if module.startswith("kernels.") else f"kdad_bench.methods.{module}"


def path_of(module: str) -> Path:
    return ROOT / Path(*full_name(module).split(".")).with_suffix(".py")


def generated(module: str) -> list[Mutant]:
    """All mutants of `module`, in the order of its lines."""
    source = path_of(module).read_text(encoding="utf-8")
    tree, lines, seen = ast.parse(source), source.splitlines(), Counter[tuple[int, str]]()
    made = []
    for line, what, change in mutations(tree):
        seen[line, what] += 1
        nth = f" #{seen[line, what]}" if seen[line, what] > 1 else ""
        text, make = lines[line - 1].strip(), partial(changed, tree, change)
        made.append(Mutant(module, line, text, what + nth, make, for_module(module)))
    return made


def changed(tree: ast.Module, change: Change) -> str:
    """The source of a copy of `tree` with `change`."""
    copy = deepcopy(tree)
    change(copy)
    return ast.unparse(ast.fix_missing_locations(copy))


def named(one: Named) -> Mutant:
    """The mutant that `one` describes; ValueError if its text is not there exactly once."""
    source = path_of(one.module).read_text(encoding="utf-8")
    if source.count(one.before) != 1:
        raise ValueError(f"{one.module}: {one.before!r} is there {source.count(one.before)} times")
    line = source[: source.index(one.before)].count("\n") + 1
    text = source.splitlines()[line - 1].strip()
    return Mutant(one.module, line, text, one.name, lambda: source.replace(one.before, one.after), one.tests)


class Changed(importlib.machinery.SourceFileLoader):
    """Loads a module from other source than its file's."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Finder:
    """Finds one module with changed source and leaves all others to the usual ways.

    The source lies in a file of its own, `place`: Triton reads its kernels from the file that their code names.
    """

    def __init__(self, name: str, source: str, place: Path) -> None:
        self.name, self.source, self.place = name, source, place
        place.write_text(source, encoding="utf-8")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None:
            spec.loader = Changed(fullname, str(self.place), self.source)
            if ".kernels." in fullname:
                spec.origin = str(self.place)  # for tests that read the source
        return spec


def run_tests(module: str, source: str | None, tests: Sequence[str], output: str, seconds: int) -> None:
    """In a process of its own: run `tests` with `module` changed; its exit code is pytest's."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.chdir(ROOT)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = f"{output}.hypothesis"
    sys.dont_write_bytecode = source is not None  # the run without a change leaves what the others need not compile
    if source is not None:
        sys.meta_path.insert(0, Finder(full_name(module), source, Path(f"{output}.py")))  # type: ignore[arg-type]
    known = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of the plugins that were imported before
    known += [f"--deselect={test}" for test in BROAD]
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *known, "--hypothesis-seed=0", *tests]
    code = int(pytest.main(options))
    sys.stdout.flush()  # to a file it is written in blocks, unless PYTHONUNBUFFERED says otherwise
    os._exit(code)


@contextmanager
def interpreting() -> Iterator[None]:
    """Within it a process that starts has Triton interpret: what is preloaded imports it before any test could ask."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        del os.environ["TRITON_INTERPRET"]
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def noticed(module: str, source: str | None, tests: Sequence[str], seconds: int = SECONDS) -> tuple[bool, str]:
    """(whether a test failed, or took longer than `seconds`, by which); with `source` None the tree as it is."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "output")
        process = context.Process(target=run_tests, args=(module, source, tests, output, seconds))
        with interpreting():
            process.start()
        process.join(PATIENCE * seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return True, "took too long"
        if process.exitcode not in (0, 1, 2):  # 2: a module that cannot be imported, found while collecting
            return True, f"died with exit code {process.exitcode}"
        lines = Path(output).read_text(encoding="utf-8", errors="replace").splitlines()
        failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        return process.exitcode != 0, (failures or lines[-1:] or [""])[0][:100]


def for_module(module: str) -> tuple[str, ...]:
    """The test files of `module`, quick ones first; those of the longest name that begins like it."""
    fitting = [name for name in TESTS if module == name or module.startswith(f"{name}.")]
    return TESTS[max(fitting, key=len)] if fitting else TESTS[""]


def chosen(arguments: argparse.Namespace) -> list[Mutant]:
    """The mutants that were asked for."""
    if arguments.again is not None:
        return survivors(arguments.again.read_text(encoding="utf-8"))
    if arguments.kernels:
        return [named(one) for one in KERNEL_FAULTS]
    if not arguments.module and arguments.sample is None:
        return [named(one) for one in EVERY]
    unknown = set(arguments.module) - set(modules())
    if unknown:
        raise SystemExit(f"no module {sorted(unknown)[0]!r}; have: {', '.join(modules())}")
    every = [mutant for module in arguments.module or modules() for mutant in generated(module)]
    if arguments.sample is None or arguments.sample >= len(every):
        return every
    drawn = random.Random(arguments.seed).sample(range(len(every)), arguments.sample)
    return [every[index] for index in sorted(drawn)]


def survivors(log: str) -> list[Mutant]:
    """The mutants that survived in an earlier run, by what it printed; lines of their files may have moved since."""
    found = re.findall(r"^survived +(\S+?):\d+: (.*?)  \|  (.*)  \[", log, re.MULTILINE)
    every = [mutant for module in sorted({module for module, _, _ in found}) for mutant in generated(module)]
    return [mutant for mutant in every if (mutant.module, mutant.what, mutant.text) in found]


def verdicts(mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str, str]]:
    """(mutant, "killed" | "survived" | "equivalent", by which test or why), one after the other."""
    for mutant in mutants:
        if mutant.reason:
            yield mutant, "equivalent", mutant.reason
            continue
        found, by = noticed(mutant.module, mutant.make(), mutant.tests)
        yield mutant, "killed" if found else "survived", by


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", default=[], help="under kdad_bench.methods; repeatable")
    parser.add_argument("--sample", type=int, help="how many of the generated ones")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--again", type=Path, metavar="LOG", help="what a run printed: its survivors")
    parser.add_argument("--kernels", action="store_true", help="the named ones of the GPU's kernels")
    parser.add_argument("--list", action="store_true", help="run nothing")
    arguments = parser.parse_args(given)
    mutants, start = chosen(arguments), time.monotonic()
    counts = {"killed": 0, "survived": 0, "equivalent": 0}
    if arguments.list:
        sys.stdout.writelines(f"{one.module}:{one.line}: {one.what}  |  {one.text}\n" for one in mutants)
        return 0
    every_test = sorted({test for mutant in mutants for test in mutant.tests})
    broken, by = noticed("", None, every_test, seconds=10 * SECONDS)
    if broken:
        raise SystemExit(f"the tests fail without any change: {by}")
    for mutant, verdict, by in verdicts(mutants):
        counts[verdict] += 1
        sys.stdout.write(f"{verdict:10} {mutant.module}:{mutant.line}: {mutant.what}  |  {mutant.text}  [{by}]\n")
        sys.stdout.flush()
    share = counts["killed"] / max(counts["killed"] + counts["survived"], 1)
    sys.stdout.write(f"{counts} {100 * share:.1f} % killed, {time.monotonic() - start:.0f} s\n")
    return 1 if counts["survived"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
