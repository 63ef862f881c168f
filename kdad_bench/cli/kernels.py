"""`kdad-bench kernels`: what the kernels compile to, and how fast they are here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import rich_click as click

from kdad_bench.cli import COUNT
from kdad_bench.cli.parameters import LocalPath
from kdad_bench.files import refuse_what_is_no_file, write_text_whole, write_whole
from kdad_bench.text import reason_of

ARCHS = ("75", "80", "86", "89", "90", "100", "120")


@click.group()
def kernels() -> None:
    """Inspect and benchmark the kernels."""


@kernels.command()
@click.option(
    "--arch",
    "archs",
    type=click.Choice(ARCHS),
    multiple=True,
    default=("80", "90", "100"),
    show_default=True,
    help="Compute capability.",
)
@click.option("--quick", is_flag=True, help="Only some pairs of dtype and layout.")
def inspect(archs: tuple[str, ...], quick: bool) -> None:
    """Compile every Triton kernel in every shipped configuration, GPU or not;
    exit 1 if one spills or does not compile.
    """
    from kdad_bench.cli import BadInput

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise BadInput("TRITON_INTERPRET=1 makes Triton interpret its kernels; unset it to compile them")
    from kdad_bench.kernels import dispatch

    if not dispatch.has_triton():
        raise BadInput("Triton is not installed, so there is nothing to compile; pip install triton (Linux, x86-64)")
    from kdad_bench.kernels import compile_check

    failures = 0
    head = f"{'kernel':20} {'case':44} {'arch':>6} {'regs':>4} {'stack':>5} {'shared':>6}"
    click.echo(f"{head} {'16-byte loads':>13} {'warps':>5}")
    for launch in compile_check.shipped(quick):
        for arch in map(int, archs):
            try:
                found = compile_check.compiled(launch, arch)
            except Exception as error:  # whatever the compiler throws is a finding
                failures += 1
                why = reason_of(error, last=True)
                click.echo(f"{launch.kernel.__name__:20} {launch.case:44} sm_{arch:<3} {why}")
                continue
            bad = found.stack_bytes > 0 or found.shared_bytes > compile_check.SHARED_LIMIT
            failures += bad
            loads = f"{found.wide_loads}/{found.loads}"
            click.echo(
                f"{found.kernel:20} {found.case:44} sm_{arch:<3} {found.registers:4} {found.stack_bytes:5} "
                f"{found.shared_bytes:6} {loads:>13} {found.warps:5}{'  <- spills' if bad else ''}"
            )
    click.echo(f"{failures} failed" if failures else "all compile, none spills")
    sys.exit(1 if failures else 0)


@kernels.command()
@click.option("--check", is_flag=True, help="First compare every result with the oracle in float64.")
@click.option("--quick", is_flag=True, help="Three ops on one batch.")
@click.option("--device", default=None, help="cpu or cuda; the GPU if there is one.")
@click.option("--op", "ops", multiple=True, help="Only ops whose name contains this.")
@click.option("--batch", "batches", type=COUNT, multiple=True, help="Only these batch sizes.")
@click.option(
    "--layout", "layouts", type=click.Choice(["nchw", "channels_last"]), multiple=True, help="Only these layouts."
)
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=True,
    show_default=True,
    help="Also time torch.compile of the eager forms.",
)
@click.option("--cpu-time", is_flag=True, help="One thread and its CPU time: for a machine that other work shares.")
@click.option("--out", type=LocalPath(file_okay=False), help="Folder for kernels.parquet and kernels.md.")
def bench(
    check: bool,
    quick: bool,
    device: str | None,
    ops: tuple[str, ...],
    batches: tuple[int, ...],
    layouts: tuple[str, ...],
    compiled: bool,
    cpu_time: bool,
    out: Path | None,
) -> None:
    """Time every op against eager PyTorch, torch.compile and the memory bandwidth of this machine."""
    import torch

    from kdad_bench.cli import BadInput
    from kdad_bench.kernels import benchmark, benchmark_ops, dispatch

    try:
        place = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError as error:
        raise BadInput(f"--device {device!r}: not a device; use cpu or cuda") from error
    if place.type not in ("cpu", "cuda"):
        raise BadInput(f"--device {device}: no kernels are for it; use cpu or cuda")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch sees no GPU; use --device cpu")
    if place.type == "cuda" and place.index is not None:
        if place.index >= torch.cuda.device_count():
            raise BadInput(f"--device {device}: torch sees {torch.cuda.device_count()} GPUs, from cuda:0 on")
        torch.cuda.set_device(place)  # events, streams and graphs are the current device's
    try:
        dispatch.path(place)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if cpu_time:
        if place.type != "cpu":
            raise BadInput("--cpu-time measures the CPU; add --device cpu")
        torch.set_num_threads(1)
        benchmark.SHARED_MACHINE = True
    chosen = [
        case
        for case in benchmark.cases(place, quick=quick)
        if (not ops or any(o in case.op for o in ops))
        and (not batches or case.batch in batches)
        and (not layouts or case.layout in layouts)
    ]
    if not chosen:
        raise BadInput(f"no case matches; ops: {', '.join(benchmark_ops.OPS)}")
    files = () if out is None else (out / "kernels.md", out / "kernels.parquet")
    try:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            refuse_what_is_no_file(file)
    except OSError as error:
        raise BadInput(f"{error.filename or out}: cannot be written ({error.strerror}); choose --out") from error
    timings: list[benchmark.Timing] = []
    failures = []

    def left_out(line: str) -> None:
        click.echo(line, err=True)

    for number, case in enumerate(chosen, 1):
        click.echo(
            f"{number}/{len(chosen)} {case.op}, {case.shape}, N={case.batch}, {case.dtype}, {case.layout}", err=True
        )
        try:
            timings += benchmark.measure(case, place, check=check, compiled=compiled, told=left_out)
        except ArithmeticError as error:
            failures.append(str(error))
    where = benchmark.environment(place)
    text = "\n".join([", ".join(f"{k} {v}" for k, v in where.items()), "", benchmark.table(timings) if timings else ""])
    click.echo(text)
    if files:
        write_text_whole(files[0], text + "\n")
        write_parquet(files[1], timings, where)
    if check:
        click.echo(f"\nchecked against float64: {len(chosen) - len(failures)} of {len(chosen)} cases agree")
    for failure in failures:
        click.echo(failure, err=True)
    sys.exit(1 if failures else 0)


def write_parquet(file: Path, timings: list[Any], where: dict[str, str]) -> None:
    """One row per case and implementation, no file of none; the environment is the file's metadata."""
    import dataclasses

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for timing in timings:
        row = dataclasses.asdict(timing)
        rows.append({**row.pop("case"), **row, "gb_per_s": timing.gb_per_s})
    if rows:
        found = pa.Table.from_pylist(rows).replace_schema_metadata(where)
        write_whole(file, lambda temporary: pq.write_table(found, temporary))
    else:
        file.unlink(missing_ok=True)  # that of a run before
