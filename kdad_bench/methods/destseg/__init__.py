"""DeSTSeg: Zhang et al., "DeSTSeg: Segmentation Guided Denoising Student-Teacher for Anomaly Detection", CVPR 2023,
arXiv 2211.11317.

A student, encoder and decoder, sees images with synthetic anomalies and learns the teacher's features of the clean
ones; then it is frozen, and a head learns to find the anomalies in the products of both networks' features. The paper
pastes photographs of textures (DTD); here textures are drawn. One augmentation for every category.
"""

from kdad_bench.methods.destseg.detector import DESTSEG

__all__ = ["DESTSEG"]
