"""Launches from plans: only where Triton is as it was read, and with the arguments that it would hand on itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton

from kdad_bench.cli.doctor import kernels_found
from kdad_bench.kernels import benchmark, triton_launch

META = torch.device("meta")


class Launcher36:
    """What hands a launch to the driver in Triton 3.6."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, gridX: int, gridY: int, gridZ: int, stream: int, function: int, *args: Any) -> None:
        self.seen.append((gridX, gridY, gridZ, stream, function, *args))


class Launcher39(Launcher36):
    """The same in Triton 3.9."""

    def __call__(  # type: ignore[override]
        self, gridX: int, gridY: int, gridZ: int, stream: int, function: int, kernel_metadata: Any,
        launch_metadata: Any, launch_enter_hook: Any, launch_exit_hook: Any, *args: Any,
    ) -> None:  # fmt: skip
        self.seen.append(
            (gridX, gridY, gridZ, stream, function, kernel_metadata, launch_metadata, launch_enter_hook,
             launch_exit_hook, *args)
        )  # fmt: skip


class Swapped(Launcher36):
    """A launcher of a version that nobody read."""

    def __call__(self, stream: int, gridX: int, *args: Any) -> None:  # type: ignore[override]
        raise AssertionError("launched by a launcher that was not read")


class Compiled:
    """Stands in for a compiled kernel of either version."""

    def __init__(self, launcher: Launcher36) -> None:
        self.run = launcher

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        def runner(*args: Any, stream: Any = None) -> None:
            self.run(*grid, 7 if stream is None else stream, 8, (4, 1, 0), None, "enter", "exit", *args)

        return runner


class Jit:
    """Stands in for a kernel of Triton's: binds its arguments by name, compiles one anew at every launch by name."""

    arg_names = ("tensors", "factor", "size", "LAST", "FIRST")

    def __init__(self, launcher: type[Launcher36]) -> None:
        self.launcher, self.made = launcher, list[Compiled]()
        self.pre_run_hooks: list[Any] = []
        self.device_caches = defaultdict(lambda: ({}, {}, "target", "backend", self.bind))

    def bind(self, tensors: Any, factor: Any, size: Any, LAST: Any, FIRST: Any, **options: Any) -> Any:
        given = {"tensors": tensors, "factor": factor, "size": size, "LAST": LAST, "FIRST": FIRST}
        return given, ["specialised"], options

    def __getitem__(self, grid: tuple[int]) -> Callable[..., Compiled]:
        def run(*positional: Any, **named: Any) -> Compiled:
            self.made.append(Compiled(self.launcher()))
            arguments = self.bind(*positional, **named)[0].values()
            self.made[-1].run(*grid, 1, 1, 7, 8, (4, 1, 0), None, "enter", "exit", *arguments)
            return self.made[-1]

        return run


@pytest.fixture(autouse=True)
def _read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Triton that was read, whichever is installed, and stand-ins for what it compiles."""
    monkeypatch.setattr(triton, "__version__", "3.9.0")
    monkeypatch.setattr(triton_launch, "CompiledKernel", Compiled)
    monkeypatch.setattr(triton_launch, "current_device", lambda: 0)
    monkeypatch.setattr(triton_launch, "_doubts", [])
    monkeypatch.delenv(triton_launch.SWITCH, raising=False)
    triton_launch.refusal.cache_clear()
    yield
    triton_launch.refusal.cache_clear()


def plan() -> triton_launch.Plan:
    return triton_launch.Plan.of(5, (9,), {"FIRST": 1, "num_warps": 4, "LAST": (2, 3)})


def launched(jit: Jit, times: int = 3, made: triton_launch.Plan | None = None) -> list[list[tuple[Any, ...]]]:
    """What each compiled kernel was launched with, after some launches alike."""
    made = made or plan()
    whole = torch.zeros(64)
    for _ in range(times):
        triton_launch.launch(jit, made, (whole, whole[4:8]), 2.0)
    return [compiled.run.seen for compiled in jit.made]


@pytest.mark.parametrize("launcher", [Launcher36, Launcher39])
def test_from_the_second_time_on_what_is_compiled_gets_what_triton_would_give_it(launcher: type[Launcher36]) -> None:
    (seen,) = launched(Jit(launcher))
    first, *later = seen
    assert len(later) == 2
    for again in later:
        assert again[:-5] == first[:-5] == (5, 1, 1, 7, 8, (4, 1, 0), None, "enter", "exit")
        assert again[-4:] == first[-4:] == (2.0, 9, (2, 3), 1)  # constants in the order of the kernel's arguments
        assert [x.data_ptr() for x in again[-5]] == [x.data_ptr() for x in first[-5]]
    assert triton_launch.way() == "from plans"


def test_what_is_compiled_is_launched_again_for_tensors_alike_only() -> None:
    jit, made = Jit(Launcher39), plan()
    launched(jit, 2, made)
    whole = torch.zeros(64)
    others: list[tuple[Any, Any]] = [
        ((whole, whole[1:5]), 1.0),  # not aligned
        ((whole[1:5], whole), 1.0),
        ((whole, whole.bfloat16()), 1.0),
        ((whole, whole.half()), 1.0),
        ((whole, whole[4:8]), 1),  # an integer is compiled in
        ((whole, whole[4:8]), True),
        ((torch.zeros(64, device=META), whole), 1.0),
    ]
    for number, (some, factor) in enumerate(others, 2):
        for _ in range(2):
            triton_launch.launch(jit, made, some, factor)
        assert len(jit.made) == number, some
    assert all(len(one.run.seen) == 2 for one in jit.made)
    triton_launch.launch(jit, triton_launch.Plan.of(0, (), {}), (whole,))
    assert len(jit.made) == 1 + len(others)


def reordered(jit: Jit) -> None:
    jit.bind = lambda *given, FIRST, LAST, **options: (  # type: ignore[method-assign]
        {"tensors": given[0], "factor": given[1], "size": given[2], "FIRST": FIRST, "LAST": LAST}, [], options
    )  # fmt: skip


def shortened(jit: Jit) -> None:
    jit.bind = lambda *given, **named: (dict(enumerate(given)), [], {})  # type: ignore[method-assign]


def unbound(jit: Jit) -> None:
    jit.device_caches.clear()
    jit.device_caches.default_factory = None


def hooked(jit: Jit) -> None:
    jit.pre_run_hooks.append(print)


def unhookable(jit: Jit) -> None:
    del jit.pre_run_hooks


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (reordered, "orders the arguments in another way"),
        (shortened, "orders the arguments in another way"),
        (unbound, "KeyError: 0"),
        (hooked, "somebody hooked into the launch"),
        (unhookable, "AttributeError"),
    ],
)
def test_a_kernel_that_is_not_as_it_was_read_is_launched_by_triton(change: Callable[[Jit], None], said: str) -> None:
    jit = Jit(Launcher39)
    change(jit)
    assert [len(seen) for seen in launched(jit)] == [1, 1, 1]
    assert said in triton_launch.way()


def test_a_launcher_that_was_not_read_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    jit, made = Jit(Launcher39), plan()
    monkeypatch.setattr(Compiled, "run", Swapped(), raising=False)
    monkeypatch.setattr(Compiled, "__init__", lambda self, launcher: None)
    monkeypatch.setattr(Jit, "__getitem__", lambda self, grid: lambda *a, **n: self.made.append(Compiled(Swapped())))
    whole = torch.zeros(4)
    triton_launch.keep(jit, made, "key", (whole, 1.0), Compiled(Swapped()))
    assert not made.ready
    assert "the launcher takes stream, gridX, args" in triton_launch.way()


def test_a_runner_that_was_not_read_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "__getitem__", lambda self, grid: lambda stream, *args: None)
    assert [len(seen) for seen in launched(Jit(Launcher39))] == [1, 1, 1]
    assert "[grid] is not as it was read" in triton_launch.way()


def test_a_kernel_that_does_not_take_its_arguments_is_launched_by_triton_at_once() -> None:
    class Later(Launcher39):
        def __call__(self, gridX: int, gridY: int, gridZ: int, stream: int, function: int, *args: Any) -> None:  # type: ignore[override]
            if self.seen:
                raise TypeError("takes no tuple")
            super().__call__(gridX, gridY, gridZ, stream, function, *args)

    assert [len(seen) for seen in launched(Jit(Later))] == [1, 1, 1]
    assert triton_launch.way() == "by Triton's own launch: TypeError: takes no tuple"


@pytest.mark.parametrize("version", ["3.5.1", "3.7.1", "3.10.0", "4.0.0", "4.9.0+git"])
def test_a_triton_that_was_not_read_launches_itself(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", version)
    assert [len(seen) for seen in launched(Jit(Launcher39))] == [1, 1, 1]
    assert f"Triton {version} was not read" in triton_launch.way()


@pytest.mark.parametrize("version", ["3.6.0", "3.9.0", "3.9.1+git1"])
def test_a_triton_that_was_read_is_launched_from_plans(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", version)
    assert [len(seen) for seen in launched(Jit(Launcher36))] == [3]


@pytest.mark.parametrize("part", triton_launch.LIKE)
def test_a_triton_with_another_part_launches_itself(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, _ = triton_launch.LIKE[part]
    for other in ("(self, grid, metadata, *more)", ""):
        monkeypatch.setitem(triton_launch.LIKE, part, (owner, name, other))
        triton_launch.refusal.cache_clear()
        assert triton_launch.refusal() == f"Triton's {part} is not as it was read"
    monkeypatch.setitem(triton_launch.LIKE, part, (object(), "missing", "(self)"))
    triton_launch.refusal.cache_clear()
    assert [len(seen) for seen in launched(Jit(Launcher39))] == [1, 1, 1]


@pytest.mark.parametrize(("value", "planned"), [("planned", True), ("", True), ("official", False), ("oficial", False)])
def test_the_environment_turns_it_off_and_doctor_tells(
    value: str, planned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_TRITON_LAUNCH", value)
    assert len(launched(Jit(Launcher39))) == (1 if planned else 3)
    (found,) = (one for one in kernels_found() if one.what == "Triton launches")
    assert found.text == ("from plans" if planned else f"by Triton's own launch: KDAD_TRITON_LAUNCH={value}")
    assert benchmark.environment(torch.device("cpu"))["launches"] == found.text
