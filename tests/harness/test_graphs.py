"""Scores by CUDA graphs: the same as without, for any images and thread, and as before where nothing can be recorded.

What torch has of graphs is replaced by a recorder of operations on the CPU: like a graph it repeats them on the tensors
that they were made with, whatever the call would do now.
"""

from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from kdad_bench.harness import graphs, speed_key
from kdad_bench.harness.graphs import Graphed, Replay, graphed, plain
from kdad_bench.harness.speed import by_graphs
from kdad_bench.harness.speed_key import configuration
from kdad_bench.harness.view import View
from kdad_bench.harness.windows import Windowed
from kdad_bench.kernels import gaussian_blur, torch_path
from kdad_bench.methods import entry
from kdad_bench.methods.backbones import build
from kdad_bench.methods.protocol import Scores
from tests.harness.planned import jobs_of

CPU = torch.device("cpu")


class Recorder(TorchDispatchMode):
    """Stands in for a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Make every operation again, into the tensors that it gave."""
        for func, args, kwargs, out in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tensors_of(out), tensors_of(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors_of(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, value)
    return found


@contextmanager
def capture(recorder: Recorder, pool: object, **options: Any) -> Iterator[None]:
    with recorder:
        yield


MODE: list[Any] = [0]  # torch's debug mode, one for all threads


def waited() -> None:
    """As torch does where a thread waits for the GPU."""
    if MODE[0] == "error":
        raise RuntimeError(graphs.WAITED)
    if MODE[0] == "warn":
        warnings.warn(graphs.WAITED, UserWarning, stacklevel=2)


def others_turn(work: Callable[[], None]) -> None:
    """Another thread does `work` now; what it raises is raised here."""
    with ThreadPoolExecutor(1) as other:
        other.submit(work).result()


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CUDA's graphs be those above."""
    monkeypatch.setenv("KDAD_KERNELS", "torch")  # the compiled kernels are no operations of torch
    monkeypatch.delenv("KDAD_GRAPHS", raising=False)
    monkeypatch.setattr(graphs, "ON", {"cpu"})
    for name, stand_in in {
        "CUDAGraph": Recorder, "graph": capture, "graph_pool_handle": object, "synchronize": lambda device: None,
        "get_sync_debug_mode": lambda: MODE[0], "set_sync_debug_mode": lambda mode: MODE.__setitem__(0, mode),
        "current_stream": lambda device: SimpleNamespace(cuda_stream=0), "device": lambda device: torch.no_grad(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)


def stfpm() -> Any:
    settings = replace(entry("stfpm").presets["quick"], image_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = build(settings.teacher, strides=settings.strides)
        method = entry("stfpm").build(settings, teacher, CPU)
    method.folded_student.current()
    return method


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


class Plain:
    """A method of ours that keeps count of its calls; each `kind` breaks a recording in another way, or not at all."""

    __module__ = "kdad_bench.methods.plain"

    def __init__(self, kind: str = "") -> None:
        self.settings, self.module, self.kind, self.calls = SimpleNamespace(image_size=64), nn.Identity(), kind, 0

    def score(self, images: Tensor) -> Scores:
        self.calls += 1
        maps = images.mean(1)
        if self.kind == "asks":
            maps = maps * float(images.amax())
        if self.kind == "fails" and self.calls > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.kind == "blurs":
            maps = gaussian_blur(maps, 2.0)
        if self.kind == "waits":
            waited()
        if self.kind == "tells":
            warnings.warn("something else", UserWarning, stacklevel=2)
        if self.kind == "meets":
            others_turn(waited)
        if self.kind == "counts":
            maps = maps * self.calls
        return Scores(maps.amax((1, 2)), maps)

    networks = score
    fit = lambda self, normal, fitting: None  # noqa: E731


def equal(found: Scores, wanted: Scores) -> bool:
    return torch.equal(found.pixel, wanted.pixel) and torch.equal(found.image, wanted.image)


@pytest.mark.usefixtures("on_the_cpu")
def test_scores_are_those_of_the_method_and_stay() -> None:
    method = stfpm()
    fast = graphed(method, CPU)
    assert isinstance(fast, Graphed)
    with torch.no_grad():
        pairs = [(fast.score(images(n, k)), method.score(images(n, k))) for k in range(3) for n in (1, 2)]
    assert fast.recorded("score") == 2
    assert all(equal(found, wanted) for found, wanted in pairs)  # after all calls: none wrote over another's answer
    with torch.inference_mode():
        assert equal(fast.score(images(1, 7)), method.score(images(1, 7)))
    assert not fast.score(images(1)).pixel.requires_grad
    assert type(fast.networks(images(1))) is type(method.networks(images(1)))


@pytest.mark.usefixtures("on_the_cpu")
def test_a_recording_is_of_one_kind_of_call() -> None:
    method = Plain()
    fast = Graphed(method)  # type: ignore[arg-type]
    one = images(1)
    for given in (one, one, one, one.to(memory_format=torch.channels_last), one.double(), images(2)):
        fast.score(given)
    assert (method.calls, fast.recorded("score")) == (6, 1)  # once as it is, twice for the recording; thrice as it is
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast.score(one)
    assert method.calls == 7
    fast.fit(one)
    fast.score(one)
    assert (method.calls, fast.recorded("score")) == (8, 0)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("kind", ["asks", "counts"])
def test_what_cannot_be_recorded_goes_on_as_it_did(kind: str) -> None:
    method, other = Plain(kind), Plain(kind)
    fast = Graphed(method)  # type: ignore[arg-type]
    for k in range(5):
        found, other.calls = fast.score(images(1, k)), method.calls - 1
        assert equal(found, other.score(images(1, k)))
    assert fast.recorded("score") == 0


@pytest.mark.usefixtures("on_the_cpu")
def test_a_fault_of_the_method_is_its_own() -> None:
    fast = Graphed(Plain("fails"))  # type: ignore[arg-type]
    fast.score(images(1))
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        fast.score(images(1))


@pytest.mark.usefixtures("on_the_cpu")
def test_threads_share_a_recording() -> None:
    fast, wrong = Graphed(Plain()), list[int]()  # type: ignore[arg-type]

    def work(seed: int) -> None:
        given = images(1, seed)
        wanted = given.mean(1)
        wrong.extend(seed for _ in range(40) if not torch.equal(fast.score(given).pixel, wanted))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert (wrong, fast.recorded("score")) == ([], 1)


@pytest.mark.usefixtures("on_the_cpu")
def test_a_recording_serves_every_mode() -> None:
    fast = Graphed(Plain())  # type: ignore[arg-type]
    with torch.inference_mode():
        for _ in range(2):
            fast.score(images(1))
    found = fast.score(images(1, 3))
    assert fast.recorded("score") == 1
    assert torch.equal(found.pixel.add_(0), images(1, 3).mean(1))


@pytest.mark.usefixtures("on_the_cpu")
def test_as_many_recordings_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    fast = Graphed(Plain())  # type: ignore[arg-type]
    for count in (1, 1, 2, 2, 3, 3, 3):
        assert len(fast.score(images(count)).image) == count
    assert fast.recorded("score") == 2


def test_where_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    method: Any = Plain()
    assert graphed(method, "cpu") is method
    assert graphs.wanted("cuda:1")
    assert isinstance(graphed(method, "cuda:1"), Graphed)
    foreign: Any = type("Foreign", (Plain,), {"__module__": "somewhere"})()
    assert graphed(foreign, "cuda") is foreign
    monkeypatch.setenv("KDAD_GRAPHS", "off")
    assert graphed(method, "cuda") is method


def test_windows_are_recorded_and_not_their_stitching() -> None:
    method: Any = Plain()
    seen = graphed(Windowed(method, View(tile=32), 64), "cuda")
    assert isinstance(seen, Windowed)
    assert isinstance(seen.inner, Graphed)
    assert plain(seen) is method
    assert plain(method) is method


@pytest.mark.usefixtures("on_the_cpu")
def test_a_copy_makes_its_own_recordings() -> None:
    fast = Graphed(stfpm())
    for _ in range(2):
        fast.score(images(1))
    copy = pickle.loads(pickle.dumps(fast))
    assert copy.recorded("score") == 0
    assert equal(copy.score(images(1, 3)), fast.score(images(1, 3)))


@pytest.mark.usefixtures("on_the_cpu")
def test_a_recording_that_answers_otherwise_is_refused() -> None:
    with pytest.raises(RuntimeError, match="answer otherwise"):
        Replay(Plain("counts").score, images(1), None)


@pytest.mark.usefixtures("on_the_cpu")
def test_a_measurement_says_that_it_was_made_by_graphs() -> None:
    method: Any = Plain()
    seen: Any = graphed(Windowed(method, View(tile=32), 64), CPU)
    assert [by_graphs(one) for one in (method, seen)] == ["", ""]
    for call, said in {
        "networks": "; the networks alone by CUDA graphs",
        "score": "; scored by CUDA graphs, recorded for 1 batch sizes",
    }.items():
        for _ in range(2):
            getattr(seen.inner, call)(images(1))
        assert by_graphs(seen) == by_graphs(seen.inner) == said
    other: Any = Graphed(method)
    for _ in range(2):
        other.score(images(1))
    assert by_graphs(other) == "; scored by CUDA graphs, recorded for 1 batch sizes; the networks alone without"


def test_only_the_key_of_a_measurement_on_a_gpu_knows_of_graphs(
    tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(speed_key, "kernels_path", lambda *given: "triton")
    (job, *_) = jobs_of(tiny_tree, methods=(("pixel_mean", ""),))
    on_a_gpu = replace(job, device="cuda:0")
    assert "graphs" not in configuration(job)
    assert configuration(on_a_gpu)["graphs"] is True
    assert "graphs" not in str(on_a_gpu.identity)
    monkeypatch.setenv("KDAD_GRAPHS", "off")
    assert "graphs" not in configuration(on_a_gpu)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "recordings"), [("waits", 0), ("meets", 1), ("tells", 1)])
def test_only_a_thread_that_records_must_not_wait(kind: str, recordings: int) -> None:
    fast = Graphed(Plain(kind))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if kind == "tells" else "error")
        for k in range(3):
            assert torch.equal(fast.score(images(1, k)).pixel, images(1, k).mean(1))
    assert (fast.recorded("score"), MODE[0]) == (recordings, 0)


@pytest.mark.usefixtures("on_the_cpu")
def test_a_recording_is_launched_after_the_last_one_on_another_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(SimpleNamespace):
        def wait_stream(self, other: Stream) -> None:
            waits.append((self.cuda_stream, other.cuda_stream))

    here, waits = [Stream(cuda_stream=0)], list[tuple[int, int]]()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: here[0])
    monkeypatch.setattr(graphs, "_last", {})
    several = [Graphed(Plain()) for _ in range(2)]  # type: ignore[arg-type]
    for number in (0, 0, 1, 1, 1, 0):
        here[0] = Stream(cuda_stream=number)
        for fast in several:
            fast.score(images(1))
    assert waits == [(1, 0), (0, 1)]


@pytest.mark.usefixtures("on_the_cpu")
def test_a_recording_keeps_the_tables_that_it_reads() -> None:
    fast = Graphed(Plain("blurs"))  # type: ignore[arg-type]
    torch_path.blur_matrix.cache_clear()
    for _ in range(2):
        fast.score(images(1))
    (made,) = fast.kept.values()
    torch_path.blur_matrix.cache_clear()  # as if many others had been made since
    assert made is not None
    assert [tuple(one.shape) for one in made.tables if isinstance(one, Tensor)] == [(64, 64)]


@pytest.mark.usefixtures("on_the_cpu")
def test_recordings_give_way_to_a_call_that_needs_their_memory() -> None:
    class Large(Plain):
        def score(self, images: Tensor) -> Scores:
            if len(images) > 1 and any(fast.kept.values()):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().score(images)

    fast = Graphed(Large())  # type: ignore[arg-type]
    for count, kept in ((1, False), (1, True), (2, False), (1, False), (1, False)):
        assert len(fast.score(images(count)).image) == count
        assert any(fast.kept.values()) == kept
    assert fast.pool is None
    assert "recorded for 1 batch sizes" in by_graphs(fast)  # it was timed so


def test_an_infinite_number_hides_no_stale_one() -> None:
    wanted = torch.tensor([torch.inf, 1.0, 2.0])
    assert graphs.alike(wanted, wanted.clone())
    assert not graphs.alike(wanted, torch.tensor([torch.inf, 1.0, 3.0]))
