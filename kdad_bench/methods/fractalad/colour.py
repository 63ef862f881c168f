"""Colour changes of FractalAD's patches and images, on levels: float32 [3, H, W] of whole numbers 0..255.

Every function answers whole levels again, by the arithmetic of 8-bit images in Pillow, which the official code uses
through torchvision: changed levels are cut to whole ones, a hue has 256 values. Tests hold this against Pillow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdad_bench.methods.draws import uniform

Levels = NDArray[np.float32]

GREY = np.array([19595, 38470, 7471], dtype=np.float32)  # ITU-R 601 luma in parts of 65,536


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
            image = blend(image, np.float32(0), factors[0])
        elif change == 1 and contrast:
            mean = np.float32(np.floor(np.mean(grey(image), dtype=np.float64) + 0.5))
            image = blend(image, mean, factors[1])
        elif change == 2 and saturation:
            image = blend(image, grey(image), factors[2])
        elif change == 3 and hue:
            image = turn_hue(image, turn)
    return image


def random_channel_scaling(image: Levels, rng: np.random.Generator) -> Levels:
    """A channel drawn twice, by chance the same one, each time scaled by U(0, 2); whole levels modulo 256.

    The overflow of 8-bit arithmetic is the official code's.
    """
    scaled = image.copy()
    for channel in (3 * rng.random(2)).astype(np.int64):
        scaled[channel] = np.floor(scaled[channel] * uniform(rng, 0.0, 2.0)) % 256
    return scaled


def turn_hue(image: Levels, turn: float) -> Levels:
    """The hue turned by `turn` (1 is the full circle), saturation and value kept; all three in 256 steps (HSV)."""
    value = image.max(axis=0)
    chroma = value - image.min(axis=0)
    hue = (hue_of(image, value, chroma) + int(turn * 255)) % 256
    saturation = whole_steps(chroma / np.maximum(value, 1)) * np.float32(1 / 255)
    sector = hue * np.float32(6 / 255)
    turned = np.empty_like(image)
    for channel, offset in enumerate((5, 3, 1)):
        k = sector + np.float32(offset)
        k -= 6 * np.floor(k * np.float32(1 / 6))  # modulo 6, several times faster than the operator
        turned[channel] = value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1)) + np.float32(0.5)
    return cut(turned)


def hue_of(image: Levels, value: Levels, chroma: Levels) -> Levels:
    """The hue [H, W] of `image` in whole steps 0..255; 0 where the chroma is."""
    below = (value - image) / np.maximum(chroma, 1)  # chroma is a whole number
    red, green, blue = below.astype(np.float64)
    sector = np.where(red == 0, blue - green, np.where(green == 0, 2 + red - blue, 4 + green - red))
    turns = sector.astype(np.float32).astype(np.float64) / 6  # single and double precision where Pillow has them
    return whole_steps((turns - np.floor(turns)).astype(np.float32))


def whole_steps(part: Levels) -> Levels:
    """255 times `part`, cut to whole numbers; the product is exact, as Pillow's is."""
    return np.floor(255 * part.astype(np.float64)).astype(np.float32)


def grey(image: Levels) -> Levels:
    """Luma [H, W] in whole levels; every number on the way is a whole one below 2^24, so float32 is exact."""
    luma: Levels = np.floor((GREY[0] * image[0] + GREY[1] * image[1] + GREY[2] * image[2] + 32768) / 65536)
    return luma


def blend(image: Levels, towards: Levels | np.float32, factor: float) -> Levels:
    """`towards` at factor 0, `image` at 1, beyond the image above 1; cut to whole levels in 0..255."""
    return cut(towards + np.float32(factor) * (image - towards))


def cut(image: Levels) -> Levels:
    """Down to whole levels, in 0..255."""
    levels: Levels = np.clip(np.floor(image), 0, 255)
    return levels
