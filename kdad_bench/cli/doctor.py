"""`kdad-bench doctor`: what this machine has and lacks, and what to do about it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import rich_click as click
from rich.markup import escape
from rich.table import Table

from kdad_bench.cli.parameters import LocalPath, Place
from kdad_bench.cli.tables import show
from kdad_bench.leaderboard.text import counted, printable


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    state: str  # ok | note | missing
    text: str


MARKS = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "missing": "[red]missing[/red]"}


@click.command()
@click.option("--data-root", type=LocalPath(), envvar="KDAD_DATA", show_envvar=True, help="Folder with data sets.")
@click.option("--out", type=Place(), default="results", show_default=True, help="Results folder.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def doctor(data_root: Path | None, out: str, as_json: bool) -> None:
    """Report what is found: torch, triton, CUDA, kernels, data, weights, writable folders.

    Exit code 1 if something that `kdad-bench run --all` needs is missing.
    """
    found = [*software(), *kernels_found(), *installed_found(), *data_found(data_root), *weights_found(), *folders(out)]
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in found], indent=2))
    else:
        table = Table("", "what", "found", box=None, pad_edge=False)
        for finding in found:
            table.add_row(MARKS[finding.state], escape(printable(finding.what)), escape(printable(finding.text)))
        show(table)
    if any(finding.state == "missing" for finding in found):
        raise SystemExit(1)


def cores_in_words() -> str:
    """How many cores the machine has and, where affinity or a quota leave fewer, how many of them this process."""
    from kdad_bench.allowance import cores

    whole, mine = os.cpu_count() or 1, cores()
    return f"{whole} cores" if mine >= whole else f"{whole} cores, {mine} of them for this process"


def software() -> Iterator[Finding]:
    """Python packages and devices."""
    import platform

    import torch

    from kdad_bench import __version__
    from kdad_bench.harness.environment import cpu_model, package_version, total_memory_bytes

    yield Finding("kdad-bench", "ok", f"{__version__}, Python {platform.python_version()}")
    memory = total_memory_bytes() / 2**30
    yield Finding("machine", "ok", f"{cpu_model()}, {cores_in_words()}, {memory:.0f} GiB memory")
    yield Finding("torch", "ok", f"{torch.__version__}, {counted(torch.get_num_threads(), 'thread')}")
    triton = package_version("triton")
    yield Finding("triton", "ok" if triton else "note", triton or "not installed: only needed on CUDA")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            text = (
                f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
            )
            yield Finding(f"cuda:{index}", "ok", text)
    else:
        yield Finding(
            "CUDA",
            "note",
            "no device: everything runs on the CPU, preset standard (real images) or quick (drawn ones) is the default",
        )
    for name, purpose in (
        ("ray", "--executor ray"),
        ("s3fs", "results on s3://"),
        ("tensorboard", "--tensorboard"),
    ):
        version = package_version(name)
        yield Finding(name, "ok" if version else "note", version or f"not installed (optional, for {purpose})")


def kernels_found() -> Iterator[Finding]:
    """Which implementation of the kernels serves each device."""
    import torch

    from kdad_bench import kernels
    from kdad_bench.kernels import cpp_path, dispatch

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        try:
            path = str(kernels.path(device))
            why = cpp_path.missing() if device == "cpu" and path == "torch" and dispatch.forced() is None else None
            yield Finding(f"kernels on {device}", "note" if why else "ok", f"{path}: {why}" if why else path)
        except ValueError as error:
            yield Finding(f"kernels on {device}", "missing", str(error))
    if dispatch.has_triton():
        yield Finding("Triton launches", "ok", dispatch.launching())


def installed_found() -> Iterator[Finding]:
    """Methods and data sets of other installed packages; one that cannot be used keeps nothing else from running."""
    from kdad_bench import datasets, methods

    for what, room in (("method", methods), ("data set", datasets)):
        for name, point in room.outside.installed().items():
            try:
                room.known(name)
                yield Finding(f"{what} {name}", "ok", f"installed, {point.value}")
            except ValueError as error:
                yield Finding(f"{what} {name}", "note", str(error))


def data_found(root: Path | None) -> Iterator[Finding]:
    """Data sets under the data root, and the embedded one."""
    from kdad_bench import datasets

    root = root.expanduser() if root is not None else None
    if root is None:
        yield Finding("data", "note", "no KDAD_DATA and no --data-root: `run --all` takes the embedded synthetic data")
    elif not root.is_dir():
        yield Finding("data", "missing", f"{root} is not a folder: set KDAD_DATA to the folder that holds data sets")
    embedded = next(iter(datasets.entries(lambda one: one.drawn)))  # one of them shows that drawing works
    try:
        there = datasets.find(root) if root and root.is_dir() else []
    except datasets.DatasetError as error:
        yield Finding("data", "missing", str(error))
        there = []
    for name in [*there, embedded]:
        try:
            found = datasets.categories(name, root)
        except datasets.DatasetError as error:
            yield Finding(name, "missing", str(error))
            continue
        images = sum(len(one.train) + len(one.test) for one in found)
        yield Finding(name, "ok", f"{counted(len(found), 'category')}, {counted(images, 'image')}")


def weights_found() -> Iterator[Finding]:
    """Teacher weights on this machine."""
    from kdad_bench.methods.backbones.names import FACTS
    from kdad_bench.methods.backbones.weights import find_weights

    for name, facts in FACTS.items():
        path = find_weights(name)
        if path is None:
            remedy = "give" if facts.weights_from == "file" else "downloaded at first use, or give"
            yield Finding(f"teacher {name}", "note", f"weights not here: {remedy} --weights FILE")
        else:
            yield Finding(f"teacher {name}", "ok", path.name)


def folders(out: str) -> Iterator[Finding]:
    """Whether results and cache can be written."""
    from kdad_bench.files import CacheError, cache_folder

    if "://" in out:
        yield Finding("results folder", "note", f"{out}: a URL, which only a run looks at")
    else:
        yield writable("results folder", Path(out))
    try:
        yield writable("cache folder", cache_folder())
    except CacheError as error:
        yield Finding("cache folder", "missing", str(error))


def writable(what: str, folder: Path) -> Finding:
    """Whether `folder`, or the nearest one above it that is there, can be written."""
    place = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            return Finding(what, "ok", str(folder))
    except OSError as error:
        return Finding(what, "missing", f"{folder}: cannot be written ({error.strerror}); choose another folder")
