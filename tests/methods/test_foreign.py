"""Code of others in this process: what it prints and what it sets stays with it."""

from __future__ import annotations

import contextlib
import gc
import io
import locale
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from kdad_bench import outside, process
from kdad_bench.cli import ending
from kdad_bench.cli.ending import first_interrupt
from kdad_bench.interrupts import Interrupted, Terminated
from kdad_bench.methods.foreign import SHARED, guarded, process_as_it_was
from kdad_bench.process import ENVIRONMENT, LATE, LOADED, SEARCH_PATH, Escaped, same

pytestmark = pytest.mark.usefixtures("precision_as_it_was")


def test_prints_go_to_stderr_and_whoever_closes_stdout_closes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded():
        exec("print('theirs')")
        sys.stdout.close()
    exec("print('ours')")
    with guarded():
        exec("print('again')")
    assert capsys.readouterr() == ("ours\n", "theirs\nagain\n")


def spoil(folder: Path) -> None:
    """Set much of what a process shares, and fail."""
    os.chdir(folder)
    del os.environ["KEPT"]
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    np.seterr(all="raise")
    torch.rand(3)
    raise ZeroDivisionError


def test_what_was_set_is_put_back_where_an_error_ends_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    before = {name: str(ask()) for name, (ask, _) in SHARED.items()}
    with pytest.raises(ZeroDivisionError), guarded():
        spoil(tmp_path)
    assert {name: str(ask()) for name, (ask, _) in SHARED.items()} == before


def set_flag(where: object, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(where, name, value)


def other_stderr() -> None:
    sys.stderr = io.StringIO()


def no_gradients() -> None:
    torch.set_grad_enabled(False)


CUDA, CUDNN, MKLDNN = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
# what somebody's code does -> the name of what it moves
DEEDS: tuple[tuple[str, Callable[[], object]], ...] = (
    ("numpy's random state", lambda: np.random.seed(5)),  # noqa: NPY002
    ("numpy's random state", lambda: np.random.rand()),  # noqa: NPY002
    ("Python's random state", lambda: random.seed(5)),
    ("numpy's errors", lambda: np.seterr(all="raise")),
    ("numpy's errors", lambda: np.seterrcall(lambda *_: None)),
    ("how Pillow reads pictures", set_flag(ImageFile, "LOAD_TRUNCATED_IMAGES", True)),
    ("how Pillow reads pictures", set_flag(Image, "MAX_IMAGE_PIXELS", None)),
    ("the current folder", lambda: os.chdir("/")),
    ("environment variables", lambda: os.environ.update(NEW="1")),
    ("which warnings are shown", lambda: warnings.simplefilter("ignore")),
    ("which warnings are shown", set_flag(warnings, "showwarning", print)),
    ("what is done at signals", lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)),
    ("what is done at signals", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})),
    ("the recursion limit", lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 7)),
    ("the collection of garbage", gc.disable),
    ("the collection of garbage", lambda: gc.set_threshold(1)),
    ("the permissions of new files", lambda: os.umask(0o777)),
    ("stdout and stderr", other_stderr),
    ("torch's random state", lambda: torch.manual_seed(5)),
    ("torch's default type", lambda: torch.set_default_dtype(torch.float64)),
    ("torch's default device", lambda: torch.set_default_device("meta")),
    ("torch's threads", lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    ("torch's denormals", lambda: torch.set_flush_denormal(True)),
    *(("torch's libraries", set_flag(CUDNN, name, not getattr(CUDNN, name))) for name in ("enabled", "benchmark")),
    ("torch's libraries", set_flag(CUDNN, "deterministic", not CUDNN.deterministic)),
    ("torch's libraries", set_flag(MKLDNN, "enabled", False)),
    ("torch's libraries", set_flag(CUDA.matmul, "allow_fp16_reduced_precision_reduction", False)),
    ("torch's libraries", lambda: CUDA.enable_math_sdp(False)),
    ("torch's autocast", lambda: torch.autocast("cpu", torch.bfloat16).__enter__()),
    ("torch's autocast", lambda: torch.set_autocast_dtype("cuda", torch.bfloat16)),
    ("torch's search for NaN", lambda: torch.autograd.set_detect_anomaly(True)),
    ("whether gradients are kept", no_gradients),
    ("whether algorithms are deterministic", lambda: torch.use_deterministic_algorithms(True, warn_only=True)),
)


@pytest.mark.parametrize(("name", "deed"), DEEDS, ids=[f"{name} {n}" for n, (name, _) in enumerate(DEEDS)])
def test_each_thing_that_is_set_inside_is_named_and_put_back(name: str, deed: Callable[[], object]) -> None:
    ask = SHARED[name][0]
    before = ask()
    with process_as_it_was() as moved:
        deed()
        assert not same(ask(), before)
    late = {ENVIRONMENT, *LATE} - {name}  # parts of torch set them, once, as they are imported
    assert [one for one in moved if one not in late] == [name]
    assert same(ask(), before)


def test_there_is_a_deed_for_all_that_is_shared() -> None:
    apart = {"the precision of products", "the locale", SEARCH_PATH}  # have tests of their own
    assert {name for name, _ in DEEDS} == set(SHARED) - apart


def test_a_folder_that_is_gone_keeps_nothing_else_from_being_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a method or a test that tidies up may leave it; what the block raised is what is raised."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    limit, streams = sys.getrecursionlimit(), (sys.stdout, sys.stderr)

    def spoils() -> None:
        os.chdir("/")
        (tmp_path / "gone").rmdir()
        os.environ["LEFT"] = "1"
        sys.setrecursionlimit(limit + 1000)
        sys.stdout = sys.stderr
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), process_as_it_was() as moved:
        spoils()
    assert {"the current folder", ENVIRONMENT, "the recursion limit", "stdout and stderr"} <= {*moved}
    assert "LEFT" not in os.environ
    assert (sys.getrecursionlimit(), (sys.stdout, sys.stderr)) == (limit, streams)


def test_what_cannot_be_put_back_is_said_and_the_rest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise PermissionError("no way back")

    name = "numpy's errors"  # others come behind it
    monkeypatch.setitem(SHARED, name, (SHARED[name][0], fails))
    limit, before = sys.getrecursionlimit(), np.geterr()

    def spoils() -> None:
        with process_as_it_was():
            np.seterr(all="raise")
            sys.setrecursionlimit(limit + 1000)

    with pytest.warns(UserWarning, match=r"numpy's errors \(PermissionError: no way back\)$"):
        spoils()
    assert sys.getrecursionlimit() == limit
    np.seterr(**before)


def test_a_place_of_modules_that_is_added_hides_none_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = [*sys.path]
    with process_as_it_was() as moved:
        sys.path.insert(0, "/mine")
        sys.path.remove(before[-1])
    assert moved == [SEARCH_PATH]
    assert sys.path == [*before, "/mine"]


def test_a_locale_is_put_back() -> None:
    before = locale.setlocale(locale.LC_ALL)
    names = ("C", "C.UTF-8", "POSIX")
    with process_as_it_was() as moved:
        for name in names:
            with contextlib.suppress(locale.Error):
                locale.setlocale(locale.LC_CTYPE, name)
            if locale.setlocale(locale.LC_ALL) != before:
                break
    assert moved == ["the locale"]
    assert locale.setlocale(locale.LC_ALL) == before


def test_an_alarm_that_a_job_sets_does_not_ring_in_the_next() -> None:
    rings, running = signal.getsignal(signal.SIGALRM), signal.setitimer(signal.ITIMER_REAL, 0)  # pytest may have one
    try:
        with process_as_it_was() as moved:
            signal.alarm(1000)
        assert moved == ["what is done at signals"]
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    finally:
        signal.signal(signal.SIGALRM, rings)
        signal.setitimer(signal.ITIMER_REAL, *running)


def stopped(ended: type[BaseException], second: Any) -> None:
    signal.signal(signal.SIGINT, second)
    np.seterr(all="raise")
    raise ended


@pytest.mark.parametrize("ended", [Interrupted, Terminated])
def test_what_the_first_signal_of_a_person_says_of_the_second_stays(ended: type[BaseException]) -> None:
    before, second = signal.getsignal(signal.SIGINT), signal.SIG_IGN
    try:
        with pytest.raises(ended), process_as_it_was():
            stopped(ended, second)
        assert signal.getsignal(signal.SIGINT) is second
        assert np.geterr()["over"] == "warn"
    finally:
        signal.signal(signal.SIGINT, before)


class Own(BaseException):
    """What somebody's code raises, past all that catch an Exception."""


@pytest.mark.parametrize("raised", [SystemExit(0), Own(0), KeyboardInterrupt(0)], ids=lambda one: type(one).__name__)
def test_what_code_raises_never_ends_the_process(raised: BaseException) -> None:
    before = signal.signal(signal.SIGINT, first_interrupt)  # as the command has it
    try:
        with pytest.raises(Escaped, match=rf"somebody's code raised {type(raised).__name__}: 0"), guarded():
            raise raised
    finally:
        signal.signal(signal.SIGINT, before)


def ends_a_fork(*code: Any, **named: Any) -> int:
    """The exit code of a process that is forked off here and ends by `os._exit`."""
    child = os.fork()
    if not child:
        try:
            os._exit(*code, **named)
        finally:
            ending.AT_ONCE(99)  # it was kept from ending
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_code_cannot_end_the_process_beneath_all_that_catches() -> None:
    before = os._exit, os.abort
    with guarded():
        with pytest.raises(SystemExit, match=r"^os\._exit\(3\)$"):
            os._exit(3)
        with pytest.raises(SystemExit, match=r"^os\._exit\(4\)$"):
            os._exit(status=4)
        with pytest.raises(SystemExit, match=r"^os\.abort\(\)$"):
            os.abort()
        with process.loading():  # as a package is imported in the middle of a job
            assert (os._exit, os.abort) != before
        assert ending.AT_ONCE is before[0]
        with pytest.raises(SystemExit):
            os._exit(0)
        assert [ends_a_fork(5), ends_a_fork(status=6)] == [5, 6]
    assert (os._exit, os.abort) == before
    with pytest.raises(Escaped, match=r"os\._exit\(0\)"), guarded():
        os._exit(0)
    assert (os._exit, os.abort) == before


@pytest.mark.parametrize("ended", [Interrupted, Terminated, GeneratorExit, KeyboardInterrupt])
def test_a_person_ends_the_process_whatever_code_runs(ended: type[BaseException]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python has it
    try:
        with pytest.raises(ended), guarded():
            raise ended
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_that_is_not_the_main_one_puts_back_what_it_can() -> None:
    def other() -> None:  # signals wait for each thread apart
        with process_as_it_was() as moved:
            np.seterr(all="raise")
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        found.extend(moved)
        found.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    found: list[Any] = []
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == ["numpy's errors", "what is done at signals", set()]


FILE = """
import gc, os, sys, warnings
import numpy as np
import torch

print("loaded")
np.seterr(all="raise")
torch.set_default_dtype(torch.float64)
warnings.simplefilter("ignore")
gc.disable()
sys.path.append("/mine")
os.environ["MINE"] = "1"
"""


def test_what_a_file_sets_as_it_is_imported_is_put_back_but_for_what_libraries_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "0")
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = [name for name in SHARED if name not in LOADED]
    before = {name: SHARED[name][0]() for name in names}
    outside.module_of(FILE.encode(), "5" * 64, "file.py")
    assert [name for name in names if not same(SHARED[name][0](), before[name])] == []
    assert (sys.path[-1], os.environ["MINE"]) == ("/mine", "1")
    assert capsys.readouterr() == ("", "loaded\n")
    del sys.modules[f"kdad_bench_outside_{'5' * 16}"]


BACKENDS: Any = torch.backends  # its stubs lack most of it
PLACES = (
    ("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"),
    ("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"),
)  # fmt: skip


def kept() -> dict[tuple[str, str], str]:
    """What torch itself goes by."""
    return {place: torch._C._get_fp32_precision_getter(*place) for place in PLACES}


def new(where: object, setting: str) -> Callable[[], None]:
    return lambda: setattr(where, "fp32_precision", setting)


def flag(where: object, value: bool) -> Callable[[], None]:
    return lambda: setattr(where, "allow_tf32", value)


WAYS: dict[str, Callable[[], object]] = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "products may be tf32": flag(BACKENDS.cuda.matmul, True),
    "convolutions may not": flag(BACKENDS.cudnn, False),
    "all tf32": new(BACKENDS, "tf32"),
    "all ieee": new(BACKENDS, "ieee"),
    "cuDNN ieee": new(BACKENDS.cudnn, "ieee"),
    "cuDNN tf32": new(BACKENDS.cudnn, "tf32"),
    "CUDA products tf32": new(BACKENDS.cuda.matmul, "tf32"),
    "CUDA convolutions ieee": new(BACKENDS.cudnn.conv, "ieee"),
    "oneDNN products bf16": new(BACKENDS.mkldnn.matmul, "bf16"),
    "oneDNN, by all": new(BACKENDS.mkldnn, "bf16"),
}
CONTRADICTING = ("all tf32", "CUDA products tf32", "oneDNN products bf16")  # of which the older ways know nothing


@pytest.mark.parametrize("inside", WAYS)
def test_a_precision_set_inside_is_put_back(inside: str) -> None:
    before = kept()
    with process_as_it_was() as moved:
        WAYS[inside]()
        changed = kept() != before
    assert kept() == before
    assert moved == (["the precision of products"] if changed else [])
    assert torch.get_float32_matmul_precision() == "highest"
    assert BACKENDS.cudnn.allow_tf32
    assert not BACKENDS.cuda.matmul.allow_tf32


@pytest.mark.parametrize("outside", CONTRADICTING)
@pytest.mark.parametrize("inside", WAYS)
def test_a_precision_that_torch_refuses_to_tell_fails_nothing(inside: str, outside: str) -> None:
    WAYS[outside]()
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    before = kept()
    with guarded():
        WAYS[inside]()
    assert kept() == before


def test_what_went_by_all_devices_goes_by_them_again() -> None:
    BACKENDS.fp32_precision = "tf32"
    with guarded():
        BACKENDS.cudnn.rnn.fp32_precision = "ieee"
        BACKENDS.cuda.matmul.fp32_precision = "ieee"
    assert BACKENDS.cuda.matmul.fp32_precision == "tf32"
    BACKENDS.fp32_precision = "none"
    assert BACKENDS.cuda.matmul.fp32_precision == "none"


def test_that_algorithms_only_warn_is_put_back() -> None:
    before = torch.get_deterministic_debug_mode()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        with process_as_it_was() as moved:
            torch.use_deterministic_algorithms(True)
        assert {*moved} - {ENVIRONMENT, *LATE} == {"whether algorithms are deterministic"}
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.set_deterministic_debug_mode(before)
