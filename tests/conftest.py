"""What all tests share: a cache folder of their own, one thread, and a tiny data set in the MVTec AD layout."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # triton warns when it is unset
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the test workers share the cores: more threads only wait
settings.register_profile("busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # how long an example takes says how busy the machine is
SIDE = 64
# what pytest, torch and scikit-learn set for themselves
LIBRARIES = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")


def pytest_configure(config: pytest.Config) -> None:
    """Keep derived files out of the user's cache; workers inherit the folder, so that data are drawn once.

    Ctrl-C is heard again where a shell started the tests in the background: what they start would not hear it either.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "KDAD_CACHE" not in os.environ:
        os.environ["KDAD_CACHE"] = folder = tempfile.mkdtemp(prefix="kdad-cache-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(autouse=True)
def nothing_is_left_set() -> Iterator[None]:
    """A test that leaves to the next what it set fails; else the order of the tests decides which of them pass."""
    from kdad_bench.methods.foreign import process_as_it_was, set_environment
    from kdad_bench.process import ENVIRONMENT, FILTERS, SEARCH_PATH, SIGNALS

    random = [f"{whose} random state" for whose in ("torch's", "numpy's", "Python's")]
    # pytest has its own of these for each part of a test, and libraries that it imports set some for good
    others = [ENVIRONMENT, FILTERS, SEARCH_PATH, SIGNALS, "stdout and stderr", "the collection of garbage"]
    before = variables()
    with process_as_it_was(but=[*random, *others]) as moved:
        yield
    changed = sorted({name for name, _ in before.items() ^ variables().items()})
    if changed:
        set_environment({**{name: os.environ[name] for name in LIBRARIES if name in os.environ}, **before})
    assert not moved + changed, f"left changed: {', '.join(moved + changed)}"


@pytest.fixture(autouse=True)
def what_files_added_is_forgotten() -> Iterator[None]:
    """Methods and data sets of the files of one test are unknown to the next."""
    yield
    for name in ("kdad_bench.methods.outside", "kdad_bench.datasets.outside"):
        if outside := sys.modules.get(name):
            outside.ADDED.clear()


def variables() -> dict[str, str]:
    """The environment, but for what libraries keep there."""
    return {name: value for name, value in os.environ.items() if name not in LIBRARIES}


@pytest.fixture
def precision_as_it_was() -> Iterator[None]:
    """What torch rounds float32 products and convolutions to, put back in every way that it can be said."""
    import torch

    backends = ("generic", "all"), ("cuda", "all"), ("mkldnn", "all")
    operations = [(backend, what) for backend in ("cuda", "mkldnn") for what in ("matmul", "conv", "rnn")]
    before = {place: torch._C._get_fp32_precision_getter(*place) for place in (*backends, *operations)}
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for place, setting in before.items():
        torch._C._set_fp32_precision_setter(*place, setting)


def draw(rng: np.random.Generator, defect: bool) -> tuple[np.ndarray, np.ndarray]:
    """A grey noisy square and its mask; a defect is a bright blob."""
    image = rng.normal(120, 6, (SIDE, SIDE, 3))
    mask = np.zeros((SIDE, SIDE), bool)
    if defect:
        x, y = rng.integers(8, SIDE - 20, 2)
        mask[y : y + 12, x : x + 12] = True
        image[mask] += 90
    return image.clip(0, 255).astype(np.uint8), mask


def write_tree(root: Path, categories: tuple[str, ...] = ("bolt", "cloth"), train: int = 6, test: int = 3) -> Path:
    """A tree in the MVTec AD layout: `train` normals, `test` good and `test` defective images per category."""
    for number, category in enumerate(categories):
        rng = np.random.default_rng(number)
        folders = {"train/good": train, "test/good": test, "test/spot": test}
        for folder, count in folders.items():
            place = root / category / folder
            place.mkdir(parents=True)
            for index in range(count):
                image, mask = draw(rng, folder == "test/spot")
                Image.fromarray(image).save(place / f"{index:03}.png")
                if folder == "test/spot":
                    masks = root / category / "ground_truth" / "spot"
                    masks.mkdir(parents=True, exist_ok=True)
                    Image.fromarray((mask * 255).astype(np.uint8)).save(masks / f"{index:03}_mask.png")
    return root


@pytest.fixture(scope="session")
def tiny_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only tree of two categories."""
    return write_tree(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def workers_soon_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes do not import torch's compiler ahead of their jobs; one whose method has an optimiser does as it
    goes."""
    from kdad_bench.harness import executors

    monkeypatch.setattr(executors, "imported_late", lambda jobs: executors.LATE)


@pytest.fixture
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of speed in this process take a few calls on one thread: their figures decide no test."""
    from kdad_bench.harness import clock, cost, speed

    few = clock.Budget(5, 0.05, least=5)
    monkeypatch.setattr(cost, "budgets", lambda quick: (few, few))
    for name, value in (("QUICK_CURVE", few), ("CURVE_WARMUP", few), ("QUICK_BATCHES", (1, 2))):
        monkeypatch.setattr(cost, name, value)
    monkeypatch.setattr(speed, "allowance", SimpleNamespace(cores=lambda: 1))  # not the key's: workers have that, too
    monkeypatch.setattr(speed, "MOST_BUSY", 2.0)  # never repeated
