"""DINOv2's vision transformers (Oquab et al. 2023, arXiv 2304.07193; registers: Darcet et al. 2024), with its keys.

Only what Dinomaly reads of them is built: patches of 14 px, and the blocks up to the tenth of twelve. A network has one
stride and several taps there. Position embeddings are interpolated to the image as DINOv2 does for networks without
registers, and Dinomaly's code for all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.methods.backbones.backbone import Backbone
from kdad_bench.methods.backbones.names import facts_of

# name -> (width, heads, registers); twelve blocks
LAYOUTS: dict[str, tuple[int, int, int]] = {
    "dinov2_vits14": (384, 6, 0),
    "dinov2_vitb14": (768, 12, 0),
    "dinov2_vits14_reg": (384, 6, 4),
    "dinov2_vitb14_reg": (768, 12, 4),
}
PATCH = 14  # px
GRID = 37  # patches of the 518 px that the position embeddings were learnt at, per side
OFFSET = 0.1  # patches by which the interpolation is finer than the image; DINOv2's remedy for rounding
TAPPED = range(2, 10)  # Dinomaly: the third to the tenth block
EXPANSION = 4  # of the perceptrons
EPSILON = 1e-6  # of the norms


class SelfAttention(nn.Module):
    """Multi-head softmax attention; another kind of attention is another `mix`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T, C] -> [N, T, C]."""
        count, length, width = tokens.shape
        queries, keys, values = self.qkv(tokens).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = self.mix(queries, keys, values)
        answer: Tensor = self.proj(mixed.transpose(1, 2).reshape(count, length, width))
        return answer

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[N, heads, T, C / heads] of each."""
        return F.scaled_dot_product_attention(queries, keys, values)


class Perceptron(nn.Module):
    """Two layers with an exact GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.fc2 = nn.Linear(EXPANSION * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        answer: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return answer


class LayerScale(nn.Module):
    """A learnt factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class Block(nn.Module):
    """x + scale(attention(norm(x))), then the same with the perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = SelfAttention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Perceptron(width)
        self.ls2 = LayerScale(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        answer: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return answer


class PatchEmbedding(nn.Module):
    """A linear map of each patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.proj(images)
        return patches


class Vit(Backbone):
    """Taps: the patch tokens of each of the TAPPED blocks as maps, then, as one row, the class and register tokens.

    The last tap [N, C, 1, 1 + registers] is the mean over the TAPPED blocks.
    """

    def __init__(self, name: str, strides: tuple[int, ...]) -> None:
        super().__init__(facts_of(name), strides)
        width, heads, registers = LAYOUTS[name]
        self.channels = (width,) * (len(TAPPED) + 1)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + GRID**2, width))
        self.register_tokens = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        self.patch_embed = PatchEmbedding(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(TAPPED[-1] + 1))
        self.initialise()

    def initialise(self) -> None:
        """Normal weights of deviation 0.02, biases at zero, norms and scales at identity."""
        for parameter in (self.cls_token, self.pos_embed, self.register_tokens):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # all have one

    def taps(self, normalised: Tensor) -> tuple[Tensor, ...]:
        """Raises ValueError for images whose sides are no multiples of 14 px."""
        height, width = (side // PATCH for side in normalised.shape[2:])
        if (height * PATCH, width * PATCH) != normalised.shape[2:]:
            raise ValueError(f"images of {tuple(normalised.shape[2:])} px: {self.name} takes multiples of {PATCH} px")
        tokens = self.tokens(normalised)
        first = tokens.shape[1] - height * width  # class and registers come before the patches
        maps, others = [], []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in TAPPED:
                found = tokens.transpose(1, 2)  # [N, C, T]
                maps.append(found[:, :, first:].unflatten(2, (height, width)))
                others.append(found[:, :, None, :first])
        return (*maps, torch.stack(others).mean(0))

    def tokens(self, normalised: Tensor) -> Tensor:
        """Class, registers, patches [N, T, C] with their positions; registers have none."""
        patches = self.patch_embed(normalised)
        class_position, positions = self.positions(*patches.shape[2:])
        count = len(normalised)
        first = (self.cls_token + class_position).expand(count, -1, -1)
        registers = [] if self.register_tokens is None else [self.register_tokens.expand(count, -1, -1)]
        return torch.cat([first, *registers, (patches + positions).flatten(2).transpose(1, 2)], 1)

    def positions(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Position embeddings: of the class [1, 1, C], of a grid of patches [1, C, height, width]."""
        learnt = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, GRID, GRID)
        if (height, width) != (GRID, GRID):
            factors = (height + OFFSET) / GRID, (width + OFFSET) / GRID
            learnt = F.interpolate(learnt, scale_factor=factors, mode="bicubic")
        return self.pos_embed[:, :1], learnt
