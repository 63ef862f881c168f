"""kdad-bench: the benchmark harness for knowledge-distillation image anomaly detection.

`import kdad_bench` loads nothing else: a name below is imported when it is first used. `__init__.pyi` has their types.
"""

from importlib import import_module

__version__ = "0.2.0"

# name -> the module that holds it; a module that holds itself is a room
_HOMES = {
    "Detector": "kdad_bench.api.detector",
    "Prediction": "kdad_bench.api.detector",
    "Results": "kdad_bench.api.results",
    "run": "kdad_bench.api.running",
    "datasets": "kdad_bench.datasets",
    "metrics": "kdad_bench.metrics",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """The public name `name`, imported now; AttributeError for another one."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kdad_bench' has no attribute {name!r}; have: {', '.join(__all__)}")
    home = import_module(_HOMES[name])
    return home if _HOMES[name] == f"{__name__}.{name}" else getattr(home, name)


def __dir__() -> list[str]:
    """What completion offers."""
    return sorted({*globals(), *_HOMES})
