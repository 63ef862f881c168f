"""A fitted method -> one graph of PyTorch's own ops: uint8 images in, image scores and maps out.

What is traced is `score` itself, the path of every run: resizing, normalisation, networks, map and image score. A
method needs no code of its own for it; one whose `score` cannot be traced has no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from kdad_bench.harness.export_runtimes import ExportError, Graph
from kdad_bench.kernels.formulas import FORMULAS, constant, resized
from kdad_bench.methods.protocol import Method

EXAMPLES = 2  # images that are traced with; a batch of one would be taken for the only one there is
MOST_IMAGES = 4096  # of one call


def graph_of(method: Method, resolution: int) -> Graph:
    """The graph of `method`, on the CPU, for images [N, 3, R, R]; of one image where N cannot be left open.

    Raises ExportError where `score` cannot be traced.
    """

    def scores(images: Tensor) -> tuple[Tensor, Tensor]:
        found = method.score(images.to(torch.float32) / 255)
        return found.image, found.pixel

    why = ""
    for batch in (None, 1):
        images = torch.zeros(batch or EXAMPLES, 3, resolution, resolution, dtype=torch.uint8)
        try:
            scores(images)  # inference copies of networks are made now, and not while they are traced
            return Graph(program=program_of(scores, images, open_batch=batch is None), batch=batch, side=resolution)
        except Exception as error:  # what cannot be traced raises anything, from anywhere in PyTorch
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    raise ExportError(f"method '{type(method).__name__}' has no graph: its `score` cannot be traced ({why})")


def program_of(
    scores: Callable[[Tensor], tuple[Tensor, Tensor]], images: Tensor, *, open_batch: bool
) -> ExportedProgram:
    """The trace of `scores`, own ops and gradients resolved, as a program."""
    table = {**FORMULAS, **GRADIENTS}
    mode: Literal["symbolic", "fake"] = "symbolic" if open_batch else "fake"
    with torch.no_grad(), Portable():
        traced = make_fx(scores, decomposition_table=table, tracing_mode=mode, _allow_non_fake_inputs=True)(images)
    if open_batch:
        count = next(iter(traced.graph.nodes)).meta["val"].shape[0]
        if count.node.maybe_as_int() is not None:  # the trace now holds the number of the examples
            raise ValueError("it counts its images")
    shapes: Any = ({0: Dim("batch", min=1, max=MOST_IMAGES)},) if open_batch else None
    return export(traced, (images,), dynamic_shapes=shapes)


class Portable(TorchFunctionMode):
    """Replaces calls whose meaning differs between runtimes, or that they are slow at, by plainer ones of equal value.

    What depends on no image is computed now. Bilinear resizing becomes two matrix products: no runtime has to agree on
    corners, antialiasing or rounding. A linear layer over the channels of a picture becomes the 1x1 convolution it is.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """`func` of the same arguments, or what stands for it."""
        kwargs = kwargs or {}
        if func is F.interpolate:
            return interpolated(*args, **kwargs)
        if func is F.linear and args[0].dim() == 4:
            return convolved(*args, **kwargs)
        if all_known((args, kwargs)):
            return constant(lambda: func(*args, **kwargs))
        return func(*args, **kwargs)


def all_known(arguments: Any) -> bool:
    """Whether there are tensors among the arguments, and all of them hold values: none comes from the images."""
    leaves = tree_leaves(arguments)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    symbols = any(isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool) for leaf in leaves)
    return bool(tensors) and not symbols and all(type(one) in (Tensor, torch.nn.Parameter) for one in tensors)


def interpolated(
    images: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """F.interpolate; bilinear resizing to a known size by matrices."""
    if mode != "bilinear" or size is None:
        return F.interpolate(images, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    height, width = (size, size) if isinstance(size, int) else map(int, size)
    return resized(images, (height, width), bool(align_corners), antialias)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear over the last axis of x [N, H, W, C]."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


# ---- gradients of the input, for maps that are made of them: runtimes know the forward ops only


def convolution_backward(
    upstream: Tensor, x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, wanted: Any,
) -> tuple[Tensor | None, None, None]:  # fmt: skip
    """The gradient to x alone, by a convolution with turned weights, or by the transposed one where there are groups;
    NotImplemented leaves other requests as they are.

    OpenVINO (2026.4) answers a transposed convolution wrongly where it shares weights of as many inputs as outputs with
    a forward one: turned weights are others.
    """
    if transposed or wanted[1] or wanted[2]:
        return NotImplemented  # type: ignore[no-any-return]
    if groups == 1 and all(int(one) == 1 for one in dilation):
        return by_turned_weights(upstream, x, weight, stride, padding), None, None
    sides = zip(x.shape[2:], upstream.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    rest = [
        int(have) - ((int(out) - 1) * step - 2 * pad + spread * (int(kernel) - 1) + 1)
        for have, out, kernel, step, pad, spread in sides
    ]
    found = torch.ops.aten.convolution(upstream, weight, None, stride, padding, dilation, True, rest, groups)
    return found, None, None


def by_turned_weights(upstream: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any) -> Tensor:
    """The gradient to x of its convolution: that of `upstream`, zeros between its pixels, with the turned weights."""
    spread = upstream
    if any(int(step) > 1 for step in stride):
        count, channels, height, width = upstream.shape
        down, across = map(int, stride)
        spread = F.pad(upstream[:, :, :, None, :, None], (0, across - 1, 0, 0, 0, down - 1))
        spread = spread.reshape(count, channels, height * down, width * across)
    before = [int(kernel) - 1 - int(pad) for kernel, pad in zip(weight.shape[2:], padding, strict=True)]
    after = [
        int(want) - int(have) - first + int(kernel) - 1
        for want, have, first, kernel in zip(x.shape[2:], spread.shape[2:], before, weight.shape[2:], strict=True)
    ]
    framed = F.pad(spread, (before[1], after[1], before[0], after[0]))
    found: Tensor = torch.ops.aten.convolution(framed, turned(weight), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    return found


def turned(weight: Tensor) -> Tensor:
    """[O, I, h, w] -> [I, O, h, w], mirrored both ways."""
    return weight.flip(2, 3).transpose(0, 1).contiguous()


def max_pool_backward(
    upstream: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, indices: Tensor
) -> Tensor:
    """Each gradient goes to the pixel that was the largest."""
    flat = torch.zeros_like(x).flatten(2)
    return flat.scatter_add(2, indices.flatten(2), upstream.flatten(2)).view(x.shape)


_aten = torch.ops.aten
GRADIENTS: Mapping[Any, Callable[..., Any]] = {
    _aten.convolution_backward.default: convolution_backward,
    _aten.max_pool2d_with_indices_backward.default: max_pool_backward,
    _aten.threshold_backward.default: lambda upstream, x, threshold: torch.where(x <= threshold, 0.0, upstream),
    _aten.hardtanh_backward.default: lambda upstream, x, low, high: torch.where(
        (x <= low) | (x >= high), 0.0, upstream
    ),
}
