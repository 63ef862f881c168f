"""What `import kdad_bench` gives: little at first, and every public name when it is asked for."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import kdad_bench

STUB = Path(kdad_bench.__file__).with_suffix(".pyi")
LOADED = """
import importlib, json, sys
before = set(sys.modules)
import kdad_bench
dir(kdad_bench), kdad_bench.__version__
print(json.dumps(sorted(set(sys.modules) - before)))
kdad_bench.datasets.load, kdad_bench.metrics.pixel_metrics
print(json.dumps([name for name in ("torch", "triton", "scipy", "matplotlib", "pyarrow") if name in sys.modules]))
"""


def test_the_import_loads_one_module_and_the_rooms_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == ["kdad_bench"]
    assert second == []


def test_every_public_name_is_there_and_has_its_type_in_the_stub() -> None:
    typed = {
        alias.asname for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    assert {*typed, "__version__"} == set(kdad_bench.__all__)
    for name in kdad_bench.__all__:
        assert getattr(kdad_bench, name)
        assert name in dir(kdad_bench)


def test_another_name_is_an_error_that_lists_them() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'Detektor'; have: .*Detector"):
        kdad_bench.Detektor  # type: ignore[attr-defined] # noqa: B018
