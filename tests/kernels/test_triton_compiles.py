"""Every Triton kernel, in the configurations that ship, compiles for GPUs that are not there, without spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

CODE = """
import dataclasses, json, sys
from kdad_bench.kernels import compile_check
archs, quick, wanted, left_out = (json.loads(given) for given in sys.argv[1:])
launches = [
    launch for launch in compile_check.shipped(quick)
    if not wanted or launch.kernel.__name__ in wanted
    if launch.kernel.__name__ not in left_out
]
print(json.dumps([dataclasses.asdict(compile_check.compiled(launch, arch)) for launch in launches for arch in archs]))
"""


# The launch configurations were chosen with Triton 3.9, where nothing spills. The assemblers in older wheels spill a
# register or two (8 bytes with 3.7.1) although registers are left; a real spill is of hundreds of bytes.
TRITON = tuple(int(part) for part in version("triton").split(".")[:2])
STACK_BYTES = 0 if TRITON >= (3, 9) else 16


FEATURES = ("maps", "gradient", "flat_sums", "flat_finish", "flat_gradient", "scale")
MAPS = ("fuse", "twofold")
RANKS = ("search", "sums", "finish")
SEARCHES = ("split", "least", "answer", "centre", "candidates", "closest", "first", "said", "pairs")
TOGETHER = ("centre", "split", "answer", "candidates", "closest", "first")


def reports(
    archs: list[int], quick: bool, wanted: tuple[str, ...] = (), left_out: tuple[str, ...] = ()
) -> list[dict[str, object]]:
    """The compile reports of the `wanted` kernels (none: of all but those left out), from a process of their own:
    Triton must not be in its interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    names = [[f"{name}_kernel" for name in kernels] for kernels in (wanted, left_out)]
    arguments = [sys.executable, "-c", CODE, *map(json.dumps, (archs, quick, *names))]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(found: list[dict[str, object]], archs: list[int], kernels: tuple[str, ...]) -> None:
    assert {(r["kernel"], r["arch"]) for r in found} == {(f"{k}_kernel", arch) for k in kernels for arch in archs}
    assert any(report["raises"] for report in found) == ("fuse" in kernels)
    for report in found:
        assert report["stack_bytes"] <= STACK_BYTES, report
        assert report["shared_bytes"] <= 232_448, report
        assert report["registers"] <= 255, report
        # an image's maximum and a search's state are what programs write together: without an atomic they race
        shared = report["raises"] or str(report["kernel"]).removesuffix("_kernel") in TOGETHER
        assert (report["atomics"] > 0) == shared, report  # type: ignore[operator]
        if report["kernel"] in ("fuse_kernel", "twofold_kernel"):
            assert report["warpgroup_products"] == 0, report
        features = report["kernel"] in ("maps_kernel", "gradient_kernel", "flat_sums_kernel", "flat_gradient_kernel")
        if features and not str(report["case"]).startswith("odd"):
            assert report["widest_load_bytes"] == 16, report
            # an upstream gradient with stride 0 is one value per pixel, read one by one
            narrow = 8 if "both gradients" in str(report["case"]) else 4
            assert report["loads"] - report["wide_loads"] <= narrow, report  # type: ignore[operator]


# every kernel in two tests, for two processes: what reads features, and whatever else there is
PARTS = ((FEATURES, (FEATURES, ())), ((*MAPS, *SEARCHES[:3], *RANKS), ((), FEATURES)))


@pytest.mark.parametrize(("kernels", "chosen"), PARTS, ids=["features", "maps and searches"])
def test_shipped_configurations_compile_for_sm_90_without_spills(
    kernels: tuple[str, ...], chosen: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    check(reports([90], True, *chosen), [90], kernels)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_configuration_compiles_for_three_generations_without_spills() -> None:
    check(reports([80, 90, 100], quick=False), [80, 90, 100], (*FEATURES, *MAPS, *SEARCHES, *RANKS))
