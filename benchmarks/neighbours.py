"""The exact nearest-neighbour search against what it is made of and what it replaces, in one run, turn by turn.

`python benchmarks/neighbours.py [--size N M C] [--rounds R] [--threads T] [--device cuda]`. Rounds go through all
candidates, so that other work on the machine hits all alike; ratios are of the medians. Peak memory is measured in a
process per candidate: the most that was resident during the call, less what was before it (Linux). With one thread the
seconds of CPU are the ones to go by on a machine that others use too.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kdad_bench.kernels import nearest, neighbours, path

Search = Callable[[Tensor, Tensor], object]
SIZES = ((4096, 2048, 448), (40_000, 4096, 1024))  # one image's patches; a category's coreset


def product(queries: Tensor, memory: Tensor) -> None:
    """The matrix product alone, into one tile: the floor of any search by products."""
    rows, columns = neighbours.ROWS, neighbours.COLUMNS
    tile = torch.empty(rows * columns, device=queries.device)
    for some in torch.split(queries, rows):
        for others in torch.split(memory, columns):
            out = tile[: len(some) * len(others)].view(len(some), len(others))
            torch.mm(some, others.T, out=out)


def whole_product(queries: Tensor, memory: Tensor) -> Tensor:
    """The matrix product alone, all of it."""
    return queries @ memory.T


def cdist(queries: Tensor, memory: Tensor) -> object:
    return torch.cdist(queries, memory).min(1)


def scikit_learn(queries: Tensor, memory: Tensor) -> object:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=1, algorithm="brute", n_jobs=torch.get_num_threads()).fit(memory.numpy())
    return search.kneighbors(queries.numpy())


CANDIDATES: dict[str, Search] = {
    "nearest": nearest,
    "product alone, by tiles": product,
    "product alone, whole": whole_product,
    "torch.cdist + min": cdist,
    "scikit-learn, brute": scikit_learn,
}


def data(size: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor]:
    """Features as a ReLU leaves them."""
    generator = torch.Generator().manual_seed(0)
    n, m, c = size
    return tuple(torch.randn(k, c, generator=generator).relu_().to(device) for k in (n, m))  # type: ignore[return-value]


def seconds(search: Search, queries: Tensor, memory: Tensor) -> tuple[float, float]:
    """(elapsed, of CPU)."""
    start, start_cpu = time.perf_counter(), time.process_time()
    search(queries, memory)
    if queries.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - start_cpu


def peak_mb(name: str, size: tuple[int, int, int], device: str) -> float:
    """Memory of one call beyond its inputs, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, "--size", *map(str, size), "--device", device]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak(name: str, size: tuple[int, int, int], device: str) -> None:
    queries, memory = data(size, device)
    CANDIDATES[name](queries[:2], memory[:70])  # loads what is loaded once
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        CANDIDATES[name](queries, memory)
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    CANDIDATES[name](queries, memory)
    print(resident("VmHWM") - before)


def resident(what: str) -> float:
    """MB of this process, from Linux's account: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) / 2**10


def compare(size: tuple[int, int, int], rounds: int, device: str) -> None:
    queries, memory = data(size, device)
    names = [name for name in CANDIDATES if device == "cpu" or name != "scikit-learn, brute"]
    squared, index = nearest(queries[:200], memory)
    wanted, places = neighbours.exhaustive(queries[:200], memory)
    if not torch.equal(index, places) or not torch.allclose(squared.double(), wanted, rtol=1e-6, atol=0):
        raise SystemExit("nearest is not exact")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names:
            took = seconds(CANDIDATES[name], queries, memory)
            if turn:  # the first round warms up
                times[name].append(took)
    medians = {name: [statistics.median(column) for column in zip(*took, strict=True)] for name, took in times.items()}
    where = f"{path(device)} path, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"\n{size[0]} x {size[1]} x {size[2]}, median of {rounds} rounds, {where}; exact: yes")
    print("ratios: this search's time over that of nearest; above 1, nearest is faster")
    print(f"| {'search':24} | {'s':>7} | {'ratio':>6} | {'CPU s':>7} | {'ratio':>6} | {'peak MB':>8} |")
    print(f"| {'-' * 24} | {'-' * 6}: | {'-' * 5}: | {'-' * 6}: | {'-' * 5}: | {'-' * 7}: |")
    for name, (elapsed, cpu) in medians.items():
        ratios = elapsed / medians["nearest"][0], cpu / medians["nearest"][1]
        held = peak_mb(name, size, device)
        print(f"| {name:24} | {elapsed:7.2f} | {ratios[0]:6.2f} | {cpu:7.2f} | {ratios[1]:6.2f} | {held:8.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, metavar=("N", "M", "C"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        print_peak(given.peak, tuple(given.size), given.device)
        return
    for size in [tuple(given.size)] if given.size else SIZES:
        compare(size, given.rounds, given.device)


if __name__ == "__main__":
    main()
