"""FractalAD's head: parameters for every teacher, golden logits, and the wiring in numpy-like steps of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdad_bench.methods.backbones import PYRAMIDS, facts_of
from kdad_bench.methods.fractalad.segmentation import FlowAlignment, SegmentationHead
from tests.methods.phased_weights import wave, with_fixed_weights

MODULES = ("laterals", "alignments", "smoothings", "classifier")
PARAMETERS = {  # teacher -> of each module; the official head's for the ResNets, its rule for the others
    "resnet18": (62_208, 6_918, 111_168, 148_225),
    "resnet34": (62_208, 6_918, 111_168, 148_225),
    "resnet50": (986_112, 27_654, 1_771_776, 2_362_369),
    "wide_resnet50_2": (986_112, 27_654, 1_771_776, 2_362_369),
    "vgg16": (181_760, 13_830, 443_520, 591_361),
    "efficientnet_lite0": (12_192, 2_598, 15_768, 21_025),
}
LOGITS = (  # the official head's, with these very weights, at rows and columns 4, 18, 32, 46, 60 of 64
    (0.81854, 0.80504, 0.80705, 0.80899, 0.85082),
    (0.81541, 0.80786, 0.81025, 0.8132, 0.85419),
    (0.81606, 0.80458, 0.79917, 0.79902, 0.84616),
    (0.81585, 0.80182, 0.79036, 0.7908, 0.84121),
    (0.86192, 0.87217, 0.88936, 0.89137, 0.89636),
)


@pytest.mark.parametrize("teacher", PYRAMIDS)
def test_every_module_has_the_official_number_of_parameters(teacher: str) -> None:
    head = SegmentationHead(tuple(facts_of(teacher).channels.values()))
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in head.named_children()}
    assert counts == dict(zip(MODULES, PARAMETERS[teacher], strict=True))


def test_a_width_of_ones_own_replaces_the_shallowest_taps() -> None:
    widths = [
        {m.out_channels for m in SegmentationHead((24, 40, 112), width).laterals.modules() if isinstance(m, nn.Conv2d)}
        for width in (None, 32)
    ]
    assert widths == [{24}, {32}]


def test_logits_of_fixed_weights_are_the_official_heads() -> None:
    channels = tuple(facts_of("resnet18").channels.values())
    head = with_fixed_weights(SegmentationHead(channels))
    features = [wave((1, c, 16 >> k, 16 >> k), k).abs() for k, c in enumerate(channels)]
    with torch.no_grad():
        logits = head(features, (64, 64))[0]
    torch.testing.assert_close(logits[4::14, 4::14], torch.tensor(LOGITS), atol=2e-5, rtol=0)
    assert logits.mean().item() == pytest.approx(0.817241, abs=1e-5)


def test_what_is_passed_down_is_smoothed() -> None:
    """The second alignment is handed the very map that the first smoothing made."""
    head = with_fixed_weights(SegmentationHead((4, 5, 6)))
    passed: list[torch.Tensor] = []
    for alignment in head.alignments:
        alignment.register_forward_hook(lambda _, given, __: passed.append(given[1]))
    smoothed: list[torch.Tensor] = []
    for smoothing in head.smoothings:
        smoothing.register_forward_hook(lambda _, __, made: smoothed.append(made))
    with torch.no_grad():
        head([torch.rand(1, c, n, n) for c, n in ((4, 8), (5, 4), (6, 2))], (32, 32))
    assert passed[1] is smoothed[0]


def test_a_flow_of_weight_zero_is_its_bias() -> None:
    alignment = FlowAlignment(2)
    nn.init.zeros_(alignment.flow.weight)
    assert alignment.flow.bias is not None
    coarse = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    alignment.flow.bias.data = torch.tensor([0.0, 0.0])
    still = alignment(torch.zeros(1, 2, 4, 4), coarse)
    alignment.flow.bias.data = torch.tensor([1.0, 0.0])  # reads one column to the right, 4/3 columns after scaling
    moved = alignment(torch.zeros(1, 2, 4, 4), coarse)
    assert not torch.allclose(still, moved, atol=1e-2)
    torch.testing.assert_close(alignment(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)), torch.zeros(1, 2, 4, 4))
