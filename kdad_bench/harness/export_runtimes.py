"""The runtimes that a graph can leave for: how it is written for each, and how it is run from its files."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from kdad_bench.harness.export_archive import harmless
from kdad_bench.harness.signal_stack import kept_signal_stack
from kdad_bench.methods.checkpoint import ModelError
from kdad_bench.process import FILTERING

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Answers: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]  # scores [N], maps [N, R, R]
Runner: TypeAlias = Callable[[NDArray[np.uint8]], Answers]  # images [N, 3, R, R]

INPUT, OUTPUTS = "images", ("score", "map")  # their names in the graphs
CPU = "CPUExecutionProvider"
# without the first, OpenVINO rounds to bfloat16 on processors that have it
OPENVINO = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
QUANTISED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")


class ExportError(ModelError):
    """A model cannot be exported, or an exported one cannot be used: one line that names it and the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """A program of PyTorch's own ops, and how many images it takes at a time."""

    program: ExportedProgram
    batch: int | None  # None: any number
    side: int  # of the images, px


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One way out."""

    files: tuple[str, ...]
    writers: tuple[str, ...]  # packages that write it
    runners: tuple[str, ...]  # packages that run it
    extra: str  # of this package, that brings both
    options: str  # what it has to be run with to give the certified answers


TARGETS = {
    "torch": Target(files=("graph.pt2",), writers=(), runners=(), extra="", options="none"),
    "onnx": Target(
        files=("graph.onnx",), writers=("onnx", "onnxscript"), runners=("onnxruntime",), extra="onnx", options=CPU
    ),
    "openvino": Target(
        files=("graph.xml", "graph.bin"),
        writers=("openvino",),
        runners=("openvino",),
        extra="openvino",
        options="CPU, INFERENCE_PRECISION_HINT f32",
    ),
}
INT8 = "nncf"  # the package that rounds a graph of OpenVINO


def missing(target: str, *, int8: bool = False, write: bool = True) -> str:
    """What to install before `target` can be written and run, in one line; "" where all is there."""
    one = TARGETS[target]
    wanted = [*(one.writers if write else ()), *one.runners, *([INT8] if int8 else ())]
    absent = [name for name in dict.fromkeys(wanted) if find_spec(name) is None]
    if not absent:
        return ""
    extra = "int8" if int8 else one.extra
    return f"{target} needs {', '.join(absent)}: pip install 'kdad-bench[{extra}]'"


def versions(target: str) -> dict[str, str]:
    """The packages that take part, and the options of the certified run."""
    one = TARGETS[target]
    packages = dict.fromkeys(("torch", *one.writers, *one.runners))
    return {**{name: metadata.version(name) for name in packages}, "options": one.options}


def write_graph(graph: Graph, target: str, folder: Path, calibration: Sequence[NDArray[np.uint8]] = ()) -> None:
    """Write the files of `target` into `folder`; 8-bit ones where there are images for their ranges, [1, 3, R, R] each.

    Raises whatever the converter raises.
    """
    with quietly(), kept_signal_stack():
        {"torch": write_torch, "onnx": write_onnx, "openvino": write_openvino}[target](graph, folder, calibration)


def write_torch(graph: Graph, folder: Path, calibration: Sequence[NDArray[np.uint8]]) -> None:
    """A program of torch.export."""
    torch.export.save(graph.program, folder / "graph.pt2")


def write_onnx(graph: Graph, folder: Path, calibration: Sequence[NDArray[np.uint8]]) -> None:
    """ONNX, by the exporter that takes programs."""
    found = torch.onnx.export(
        graph.program, dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS), verbose=False
    )
    assert found is not None
    found.save(folder / "graph.onnx", external_data=False)


def write_openvino(graph: Graph, folder: Path, calibration: Sequence[NDArray[np.uint8]]) -> None:
    """OpenVINO's intermediate representation, its names and shapes given, its weights not shortened."""
    import openvino

    model = openvino.convert_model(graph.program)
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    model.reshape({INPUT: openvino.PartialShape([graph.batch or -1, 3, graph.side, graph.side])})
    model.validate_nodes_and_infer_types()
    if calibration:
        model = rounded(model, calibration)
    openvino.save_model(model, folder / "graph.xml", compress_to_fp16=False)


def rounded(model: Any, calibration: Sequence[NDArray[np.uint8]]) -> Any:
    """The convolutions in 8 bits, everything else as it was: a map is made of differences, which 8 bits have not."""
    import nncf

    kinds = {one.get_type_name() for one in model.get_ops()}
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf.quantize(
        model,
        nncf.Dataset(list(calibration)),
        subset_size=len(calibration),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(types=sorted(kinds - set(QUANTISED)), validate=False),
    )


def opened_graph(target: str, folder: Path, batch: int | None) -> Runner:
    """What runs the graph in `folder` on the CPU, with as many threads as PyTorch has; `batch` images at a time.

    Any number of threads may open graphs, and call one: each gets the answers to its own images.
    Raises ExportError for a package that is missing or a file that would run code, and whatever the runtime raises.
    """
    lacking = missing(target, write=False)
    if lacking:
        raise ExportError(f"{folder}: {lacking}")
    with unwarned(), kept_signal_stack():
        runner = {"torch": open_torch, "onnx": open_onnx, "openvino": open_openvino}[target](folder)
    return runner if batch is None else lambda images: in_batches(runner, images, batch)


class NotHarmless(ExportError):
    """A file that is no graph of operators that compute alone; `why` is a few words."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: holds more than a graph, or is damaged ({why}); export it again")
        self.why = why


def open_torch(folder: Path) -> Runner:
    """A program of torch.export."""
    path = folder / "graph.pt2"
    try:
        program = harmless(path)
    except Exception as error:  # of zip, JSON and what is refused
        raise NotHarmless(path, " ".join(str(error).split())[:200]) from error
    module = torch.export.load(program).module()

    def run(images: NDArray[np.uint8]) -> Answers:
        with torch.inference_mode():
            score, heat = module(torch.from_numpy(np.require(images, requirements="W")))  # a cache is read-only
        return score.numpy(), heat.numpy()

    return run


def open_onnx(folder: Path) -> Runner:
    """A session of onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(folder / "graph.onnx", options, providers=[CPU])

    def run(images: NDArray[np.uint8]) -> Answers:
        score, heat = session.run(list(OUTPUTS), {INPUT: images})
        return score, heat

    return run


def open_openvino(folder: Path) -> Runner:
    """A compiled model of OpenVINO, in float32 where the graph is."""
    import openvino

    path = folder / "graph.xml"
    with path.open("rb") as file:
        if not file.read(64).lstrip().startswith((b"<?xml", b"<net")):  # any reader of another format would be tried
            raise NotHarmless(path, "it is no XML")
    options = {**OPENVINO, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().compile_model(path, "CPU", options)
    turn = threading.Lock()  # a compiled model has one place for images and answers, whoever calls

    def run(images: NDArray[np.uint8]) -> Answers:
        with turn:
            found = model({INPUT: images}, share_outputs=False)
        return found[OUTPUTS[0]], found[OUTPUTS[1]]

    return run


def in_batches(runner: Runner, images: NDArray[np.uint8], batch: int) -> Answers:
    """The answers to any number of images [N, 3, R, R], `batch` at a time."""
    parts = [runner(images[start : start + batch]) for start in range(0, len(images), batch)]
    return np.concatenate([score for score, _ in parts]), np.concatenate([heat for _, heat in parts])


@contextmanager
def quietly() -> Iterator[None]:
    """Converters warn of their own inner matters, log them and draw their progress: none of it here."""
    logger = logging.getLogger("torch.onnx")
    with unwarned(), redirect_stdout(io.StringIO()):  # nncf draws there
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def unwarned() -> Iterator[None]:
    """Inside, no warning is shown, and OpenVINO does not report its use to its makers; one thread at a time."""
    with FILTERING, warnings.catch_warnings():
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its importers have a stand-in
        warnings.simplefilter("ignore")
        yield
