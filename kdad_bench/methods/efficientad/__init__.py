"""EfficientAD: Batzner, Heckler, König, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level
Latencies", WACV 2024, arXiv 2303.14535.

A student of a few convolutions regresses the features of a patch description network (PDN) on normal images, and, with
as many outputs again, those of an autoencoder, which knows the image as a whole. No official code is known: layers and
algorithms are the paper's tables as public codes write them out. Where the PDN's published weights are not given, it is
distilled here from another teacher, on the normal images and on drawn ones; drawn images also stand for ImageNet in the
student's penalty.
"""

from kdad_bench.methods.efficientad.detector import EFFICIENTAD

__all__ = ["EFFICIENTAD"]
