"""What a launch has to know of a tensor: everything but where it lies."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """Shape, strides and bytes per value of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    itemsize: int


def layout(t: Tensor) -> Layout:
    """The layout of `t`."""
    return Layout(t.shape, t.stride(), t.element_size())


def least_pixels(t: Layout) -> int:
    """Pixels that fill a 32-byte sector of a feature map in NCHW; any number will do when channels are contiguous."""
    if t.stride[1] == 1 and t.shape[1] > 1:
        return 1
    return 32 // t.itemsize


def loads_wide(t: Layout) -> bool:
    """Whether Triton may assume that every row starts at a multiple of 16 values, so that loads are vectors."""
    return all(stride == 1 or stride % 16 == 0 for stride in t.stride)


def is_flat(t: Layout) -> bool:
    """Whether pixel p of a sample lies at p times one stride."""
    h, w = t.shape[2], t.shape[3]
    return h == 1 or w == 1 or t.stride[2] == t.stride[3] * w


def strides(t: Layout) -> tuple[int, int, int, int]:
    """Strides of n, c, h and w; with one column the stride of a pixel is that of a row."""
    n, c, h, w = t.stride
    return n, c, h, h if t.shape[3] == 1 else w


def is_wide(t: Layout) -> bool:
    """Whether offsets inside one sample leave int32."""
    return sum((size - 1) * stride for size, stride in zip(t.shape[1:], t.stride[1:], strict=True)) >= 2**31 - 2**20
