"""The C++ functions where memory is short: an error of Python, not the end of the process; what their threads keep."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from kdad_bench.kernels import compiled, cpp_path

pytestmark = [
    pytest.mark.skipif(cpp_path.missing() is not None, reason="the C++ library was not built"),
    pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded and counted as Linux does"),
]

BEFORE = """
import resource, torch
from kdad_bench.kernels import cpp_layers, cpp_path, gaussian_blur
torch.set_num_threads(2)
def pages(column):
    return int(open("/proc/self/statm").read().split()[column]) * resource.getpagesize()
"""
# `call`, whose results are small beside the buffers that it works in, and the memory that it finds
SHORT = {
    "a blur": (
        "maps = torch.rand(1, 1000, 1000)",
        "cpp_path.fuse_blur_score([maps], (1000, 1000), 'sum', False, 500.0, 2000, 'scipy', None)",
        10,
    ),
    "maps of float16": (
        "taps = torch.ones(2, 8192, 32, 32, dtype=torch.float16)",
        "cpp_path.pixel_maps([taps], [[taps]], 'cosine', 1.0)",
        8,
    ),
    "the sums of a norm": (
        "x, row = torch.ones(64, 100_000), torch.ones(100_000)",
        "cpp_layers.norm_statistics([x], row, row, 1e-5, row.clone(), row.clone(), 0.1)",
        16,
    ),
    "a depthwise gradient": (
        "x = torch.ones(4096, 256, 3, 3).contiguous(memory_format=torch.channels_last)",
        "cpp_layers.depthwise_weight_gradient(x, x, 5, 1, 2, 2)",
        8,
    ),
    "a convolution": (
        "x = torch.ones(1, 512, 16, 16).contiguous(memory_format=torch.channels_last)\n"
        "weight = cpp_layers.winograd_weight(torch.ones(512, 512, 3, 3), turned=False)",
        "cpp_layers.winograd(x, weight, None, 512, 1)",
        3,
    ),
    "numbers of tensors": (
        "from kdad_bench.kernels.digest import digests\nbytes_ = torch.ones(1)\n"
        "starts, sizes = [bytes_.data_ptr()] * 100_000, [4] * 100_000",
        "digests(starts, sizes)",
        4,
    ),
}


def said(code: str) -> str:
    """What `code` prints in a process of its own, whose large blocks go back to the system when they are freed."""
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "131072",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "KDAD_KERNELS": "cpp",
    }
    ran = subprocess.run(
        [sys.executable, "-c", BEFORE + code], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("name", SHORT)
def test_short_memory_is_an_error(name: str) -> None:
    given, call, megabytes = SHORT[name]
    code = f"""
{given}
torch.ones(1 << 20).mul(2)  # the threads are there
unbounded = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages(0) + ({megabytes} << 20), unbounded[1]))
try:
    {call}
except MemoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, unbounded)
{call}
print("and then it went on")
"""
    lines = said(code).splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("no memory for ")
    assert lines[1] == "and then it went on"


def test_threads_keep_no_more_of_a_large_map_than_a_band_of_it() -> None:
    code = """
maps = torch.rand(1, 4000, 4000)
gaussian_blur(maps[:, :64, :64], 4.0)
before = pages(1)
gaussian_blur(maps, 4.0)
print((pages(1) - before) >> 20)
"""
    assert int(said(code)) < 40  # megabytes: of two threads; a map has 64


def test_every_function_that_takes_memory_tells_whether_it_had_it() -> None:
    """Those that take none, or tell it in another way, are known by name."""
    others = {
        "kdad_source", "kdad_use_gomp", "kdad_norm_finish", "kdad_depthwise_weight_gradient", "kdad_winograd_pays",
        "kdad_tabulate", "kdad_count", "kdad_add_up",
    }  # fmt: skip
    for name in compiled.SIGNATURES.keys() - others:
        function: Callable[..., Any] = getattr(compiled.library(), name)
        assert function.errcheck is compiled.done, name  # type: ignore[attr-defined]
