"""Scores by CUDA graphs: what a call launches is recorded once for each shape of images, and then launched as one.

A small batch is computed sooner than Python has launched it: a ResNet-18 of teacher and student are some hundred
launches. A graph repeats the very kernels on the very numbers, so no score depends on it. It reads weights where they
lay when it was recorded; so only a method that has learnt, and learns no more, is wrapped. A call that waits for the
GPU, or that hands it numbers of the CPU, cannot be recorded: it goes on as it did. KDAD_GRAPHS=off turns it off.
"""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdad_bench.harness.windows import Windowed
from kdad_bench.kernels import torch_path
from kdad_bench.methods.protocol import Fitting, Method, Scores
from kdad_bench.process import FILTERING

SWITCH = "KDAD_GRAPHS"
ON = {"cuda"}
OURS = "kdad_bench."  # code of others may keep count of its calls
MOST = 16  # graphs of a method: each keeps what its call wrote
CLOSE = 1e-3  # of the largest value: kernels that add in any order differ by rounding, a stale number by more
WAITED = "called a synchronizing CUDA operation"  # as torch warns
_launching = threading.Lock()
_last: dict[torch.device, Any] = {}  # the stream of the last recording that was launched


def wanted(device: str | torch.device) -> bool:
    """Whether scores on `device` may come from graphs."""
    return torch.device(device).type in ON and os.environ.get(SWITCH) != "off"


def graphed(method: Method, device: str | torch.device) -> Method:
    """`method`, which has learnt, with its scores by CUDA graphs; as it is on a CPU, and where its code is not ours."""
    if not wanted(device):
        return method
    if isinstance(method, Windowed):
        return Windowed(graphed(method.inner, device), method.view, method.resolution)
    return Graphed(method) if type(method).__module__.startswith(OURS) else method


def plain(method: Any) -> Any:
    """The method itself, without windows and graphs around it."""
    while isinstance(method, Windowed | Graphed):
        method = method.inner
    return method


class Replay:
    """What `call` launches for `images`, recorded. Raises where it cannot be, RuntimeError as a rule."""

    def __init__(self, call: Callable[[Tensor], Any], images: Tensor, pool: Any) -> None:
        self.images = torch.empty_like(images).copy_(images)
        with no_waiting():
            expected = call(self.images)
        torch.cuda.synchronize(images.device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(images.device), torch.cuda.graph(self.graph, pool, capture_error_mode="thread_local"):
            self.answer = call(self.images)
        self.tables = gc.get_referents(torch_path.blur_matrix)  # read at each launch: its cache may forget them
        with in_turn(images.device):
            self.graph.replay()
        if not alike(expected, self.answer):
            raise RuntimeError("the recorded launches answer otherwise")

    def __call__(self, images: Tensor) -> Any:
        """The answer to `images`, of the shape that was recorded; the next call writes over it."""
        with in_turn(images.device):
            self.images.copy_(images)
            self.graph.replay()
        return self.answer


@contextmanager
def in_turn(device: torch.device) -> Iterator[None]:
    """Inside, what is launched waits for the last recording on another stream: they share memory to work in."""
    with _launching:
        stream = torch.cuda.current_stream(device)
        last = _last.get(device)
        if last is not None and last.cuda_stream != stream.cuda_stream:
            stream.wait_stream(last)
        _last[device] = stream
        yield


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raises RuntimeError if this thread waited for the GPU inside: found before a recording that it would break off.

    Torch is asked for warnings, not for errors: other threads, which may wait, would be given the errors too.
    """
    before, waits = torch.cuda.get_sync_debug_mode(), list[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = listening(waits, warnings.showwarning)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    if waits:  # torch does not find everything: a recording then breaks off
        raise RuntimeError(waits[0])


def listening(waits: list[str], show: Callable[..., None]) -> Callable[..., None]:
    """A `showwarning` that adds to `waits` where this thread waits, and leaves to `show` what is not about that."""
    mine = threading.get_ident()

    def heard(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        own = threading.get_ident() == mine
        if own and WAITED in str(message):
            waits.append(str(message))
        elif WAITED not in str(message) and not (own and issubclass(category, UserWarning)):
            show(message, category, *place, **more)

    return heard


def alike(expected: Any, found: Any) -> bool:
    """Whether two answers of one call are the same up to rounding: tensors, or tuples and lists of such."""
    if isinstance(expected, Tensor):
        bound = CLOSE * float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max()) if expected.numel() else 0.0
        return bool(torch.allclose(found, expected, rtol=CLOSE, atol=bound, equal_nan=True))
    return len(expected) == len(found) and all(map(alike, expected, found))


class Graphed:
    """A `Method` that has learnt, around one whose calls are recorded from the second of a shape on."""

    def __init__(self, inner: Method) -> None:
        self.inner = inner
        self.settings: Any = inner.settings
        self.module: nn.Module = inner.module
        self.kept: dict[Any, Replay | None] = {}  # call -> its recording, None where it cannot be recorded
        self.seen: set[Any] = set()
        self.made: list[str] = []  # the call of each recording, those of before that were given up too
        self.most = MOST
        self.pool: Any = None  # the memory of all recordings: what lies there between two calls is an answer
        self.lock = threading.Lock()  # the tensors of a recording are one for all threads

    def __reduce__(self) -> Any:
        return Graphed, (self.inner,)

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        """As the method; what was recorded is forgotten."""
        with self.lock:
            self.kept, self.seen, self.made, self.pool = {}, set(), [], None
        self.inner.fit(normal, fitting or Fitting())

    def score(self, images: Tensor) -> Scores:
        """As the method, whose scores these are: copies, which no later call changes."""
        with self.lock:
            replay = self.replay("score", images)
            if replay is not None:
                with repeating():
                    return Scores(*(value.clone() for value in replay(images)))
        scores: Scores = self.unrecorded("score", images)
        return scores

    def networks(self, images: Tensor) -> object:
        """As the method; the next call may write over what it returns."""
        with self.lock:
            replay = self.replay("networks", images)
            if replay is not None:
                with repeating():
                    answer: object = replay(images)
                    return answer
        return self.unrecorded("networks", images)

    def unrecorded(self, call: str, images: Tensor) -> Any:
        """The call as it is; once more, and no recording ever after, if the recordings took the memory for it."""
        try:
            return getattr(self.inner, call)(images)
        except torch.OutOfMemoryError:
            with self.lock:
                if not any(self.kept.values()):
                    raise
                self.kept, self.pool, self.most = {}, None, 0
        return getattr(self.inner, call)(images)

    def recorded(self, call: str) -> int:
        """How many recordings of `call` were made."""
        return self.made.count(call)

    def replay(self, call: str, images: Tensor) -> Replay | None:
        """What was recorded of `call` for such images; recorded now if they come for the second time."""
        if images.device.type not in ON:
            return None
        stream = torch.cuda.current_stream(images.device).cuda_stream
        key = (call, images.shape, images.stride(), images.dtype, images.device, stream, autocast_of(images))
        if key in self.kept:
            return self.kept[key]
        if key not in self.seen or len(self.kept) >= self.most:
            self.seen.add(key)
            return None
        made = self.kept[key] = self.record(getattr(self.inner, call), images)
        self.made += [] if made is None else [call]
        return made

    def record(self, call: Callable[[Tensor], Any], images: Tensor) -> Replay | None:
        """`call` recorded; None where that cannot be."""
        try:
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            with FILTERING, repeating():  # torch's debug mode is one for all threads, too
                return Replay(call, images, self.pool)
        except Exception:  # the call itself says what is wrong with it, if anything
            if not any(self.kept.values()):
                self.pool = None  # torch takes no pool again that its last recording left
            return None


@contextmanager
def repeating() -> Iterator[None]:
    """Ordinary tensors without gradients, whatever mode the caller is in: a recording serves all of them."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def autocast_of(images: Tensor) -> Any:
    """Under which autocast the caller is."""
    kind = images.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
