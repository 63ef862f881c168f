"""Signals are still handled where a library exchanged their stack."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from kdad_bench.harness.signal_stack import Stack, kept_signal_stack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stack_t is Linux's here")


def now() -> tuple[int | None, int, int]:
    found = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.start, found.flags, found.size


def test_the_stack_is_the_one_before() -> None:
    before = now()
    room = ctypes.create_string_buffer(1 << 16)
    with kept_signal_stack():
        other = Stack(ctypes.addressof(room), 0, len(room))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(other), None) == 0
        assert now() == (ctypes.addressof(room), 0, len(room))
    assert now() == before


TWO_MODELS = """
import faulthandler, os, signal, sys, time
faulthandler.enable()  # Python's own stack for signals
from pathlib import Path
from kdad_bench.harness.export_runtimes import opened_graph
import numpy, openvino
from openvino import opset13
folder = Path(sys.argv[1])
images = opset13.parameter([-1, 3, 8, 8], numpy.uint8, "images")
images.output(0).get_tensor().set_names({"images"})
maps = opset13.convert(images, "f32")
score = opset13.reduce_max(maps, numpy.array([1, 2, 3]), False)
maps.output(0).get_tensor().set_names({"map"})
score.output(0).get_tensor().set_names({"score"})
openvino.save_model(openvino.Model([score, maps], [images]), folder / "graph.xml", compress_to_fp16=False)
older, younger = opened_graph("openvino", folder, None), opened_graph("openvino", folder, None)
assert older(numpy.ones((2, 3, 8, 8), numpy.uint8))[0].tolist() == [1.0, 1.0]
del older
del younger
signal.signal(signal.SIGALRM, lambda number, frame: print("handled") or os._exit(0))
sys.stdout.reconfigure(line_buffering=True)
signal.setitimer(signal.ITIMER_REAL, 0.01)
time.sleep(10)
"""


def test_a_signal_after_two_models_of_openvino_is_handled(tmp_path: object) -> None:
    pytest.importorskip("openvino", reason="needs pip install 'kdad-bench[openvino]'")
    done = subprocess.run([sys.executable, "-c", TWO_MODELS, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
