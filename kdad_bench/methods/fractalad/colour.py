"""Colour changes of FractalAD's patches and images, on levels: float32 [3, H, W] of whole numbers 0..255.

Every function answers whole levels again, as an 8-bit image would: a rounding error of a machine cannot reach a pixel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdad_bench.methods.fractalad.ifs import uniform

Levels = NDArray[np.float32]

GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601 luma, as Pillow's "L"


def random_jitter(
    image: Levels,
    rng: np.random.Generator,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Levels:
    """ColorJitter: the changes of non-zero strength in random order, factors U(max(0, 1 - s), 1 + s), hue U(-s, s)."""
    factors = [uniform(rng, max(0.0, 1 - s), 1 + s) for s in (brightness, contrast, saturation)]
    turn = uniform(rng, -hue, hue)
    for change in np.argsort(rng.random(4)):
        if change == 0 and brightness:
            image = rounded(image * np.float32(factors[0]))
        elif change == 1 and contrast:
            mean = np.float32(np.floor(np.mean(grey(image), dtype=np.float64) + 0.5))
            image = blend(image, mean, factors[1])
        elif change == 2 and saturation:
            image = blend(image, grey(image), factors[2])
        elif change == 3 and hue:
            image = turn_hue(image, turn)
    return image


def random_channel_scaling(image: Levels, rng: np.random.Generator) -> Levels:
    """Two of the three channels scaled by U(0, 2), whole levels modulo 256: the overflow of 8-bit arithmetic."""
    scaled = image.copy()
    for channel in np.argsort(rng.random(3))[:2]:
        scaled[channel] = np.floor(image[channel] * np.float32(uniform(rng, 0.0, 2.0))) % 256
    return scaled


def turn_hue(image: Levels, turn: float) -> Levels:
    """The hue turned by `turn` (1 is the full circle), saturation and value kept (HSV)."""
    value = image.max(axis=0)
    chroma = value - image.min(axis=0)
    red, green, blue = image
    safe = np.maximum(chroma, 1)  # chroma is a whole number; where it is 0 there is no hue to turn
    sector = np.where(
        value == red, (green - blue) / safe, np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    sector = sector + np.float32(6 * turn)
    turned = np.empty_like(image)
    for channel, offset in enumerate((5, 3, 1)):
        k = sector + np.float32(offset)
        k -= 6 * np.floor(k * np.float32(1 / 6))  # modulo 6, several times faster than the operator
        turned[channel] = value - chroma * np.clip(np.minimum(k, 4 - k), 0, 1)
    return rounded(turned)


def grey(image: Levels) -> Levels:
    """Luma [H, W] in whole levels."""
    return rounded(GREY[0] * image[0] + GREY[1] * image[1] + GREY[2] * image[2])


def blend(image: Levels, towards: Levels | np.float32, factor: float) -> Levels:
    """`towards` at factor 0, `image` at 1, beyond the image above 1."""
    return rounded(towards + np.float32(factor) * (image - towards))


def rounded(image: Levels) -> Levels:
    """To the nearest whole level in 0..255."""
    levels: Levels = np.clip(np.floor(image + np.float32(0.5)), 0, 255)
    return levels
