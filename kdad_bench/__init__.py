"""kdad-bench: the benchmark harness for knowledge-distillation image anomaly detection."""

__version__ = "0.2.0"
