"""FractalAD: Xia et al. 2023, "FractalAD: A simple industrial anomaly detection method using fractal anomaly
generation and backbone knowledge distillation", arXiv 2301.12739.

Anomalies are patches of the image itself, pasted through random fractals (`ifs`, `colour`, `objects`, `anomaly`); a
student is distilled on clean images and a head segments what the attention between teacher and student leaves
(`segmentation`, `detector`, `settings`). Differences from the authors' code: docs/methods/fractalad.md.
"""

from __future__ import annotations

from kdad_bench.methods.fractalad.detector import FRACTALAD, FractalAD
from kdad_bench.methods.fractalad.settings import FractalADSettings

__all__ = ["FRACTALAD", "FractalAD", "FractalADSettings"]
