"""Numbers of what lies in the memory of tensors: PyTorch counts no writes through `.data`, numpy or an address."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdad_bench.kernels import cpp_path


def readable(tensor: Tensor) -> bool:
    """Whether the bytes of `tensor` say what it holds and can be read at once: a plain one on the CPU."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_cpu and tensor.layout == torch.strided


def extent(tensor: Tensor) -> int:
    """The bytes from the first value of `tensor` to its last, with those between its rows."""
    if tensor.numel() == 0:
        return 0
    steps = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (sum(steps) + 1) * tensor.element_size()


def digests(starts: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """A number of the bytes at each address, so many as `sizes` says; 0 where there is no memory (address 0).

    Other bytes give another number: always where they are of one word, else save by a chance of 2^-64 (without the
    compiled library 2^-32). One reading, at the speed of the memory.
    """
    if cpp_path.missing() is not None:
        pairs = zip(starts, sizes, strict=True)
        return [zlib.crc32((ctypes.c_char * size).from_address(start)) if start else 0 for start, size in pairs]
    count = len(starts)
    found = (ctypes.c_uint64 * count)()
    cpp_path.library().kdad_digest(
        (ctypes.c_void_p * count)(*starts), (ctypes.c_int64 * count)(*sizes), count, found, torch.get_num_threads()
    )
    return list(found)
