"""What every network answers from fixed weights, as it was when its layers were checked one by one.

The numbers are in tests/golden/networks.json; `python -m tests.methods.test_golden_networks` writes them anew, which
only a change of an architecture justifies. From the same weights the public codes answered the same to 5e-7 for the
PDNs and the autoencoder (nelson1425/EfficientAD @fcab514), DeSTSeg (apple/ml-destseg @f6ea31f with timm 0.6.12), AST
(marco-rudolph/AST @8c243ad) and Dinomaly on ViTs (guojiajeremy/Dinomaly @c5c76d0).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdad_bench.methods.ast import AST, AstSettings, ConvolutionalStudent, Coupling, Flow, encoded_places
from kdad_bench.methods.backbones import FACTS, PYRAMIDS, Attention, Backbone, Cbam, Eca, build
from kdad_bench.methods.backbones.pdn import layers, through
from kdad_bench.methods.backbones.vit import LAYOUTS
from kdad_bench.methods.destseg import DESTSEG
from kdad_bench.methods.destseg.networks import DenoisingStudent, SegmentationHead
from kdad_bench.methods.dinomaly import DinomalySettings, Restorer
from kdad_bench.methods.distillation import Student
from kdad_bench.methods.dual_student import BMKD, DSKD, DeepestTap, DualStudents, ResidualFusion
from kdad_bench.methods.efficientad import EFFICIENTAD
from kdad_bench.methods.efficientad.networks import Autoencoder, Networks
from kdad_bench.methods.patch_network import PatchNetwork
from kdad_bench.methods.rdpp import ProjectedStudent
from kdad_bench.methods.reverse import Bottleneck, Decoder, Fusion
from tests.methods.fixed_weights import CHIRP, filled, summary, tensor_of

PATH = Path(__file__).parents[1] / "golden" / "networks.json"
SIDE = 64
TOLERANCE = 1e-3  # float32 sums in another order, through up to fifty layers
Answer = tuple[Tensor, ...]


def images() -> Tensor:
    return tensor_of(1, 3, SIDE, SIDE, name="images")


def described(name: str, *strides: int) -> Backbone:
    """A teacher of which only names and widths are read."""
    with torch.device("meta"):
        return build(name, strides=strides or (4, 8, 16))


def taps_of(teacher: Backbone, times: int = 1) -> Answer:
    """Inputs shaped as the teacher's taps, negative values among them."""
    sizes = zip(teacher.channels, teacher.strides, strict=True)
    return tuple(
        2 * tensor_of(1, times * channels, SIDE // stride, SIDE // stride, name=f"tap {stride}") - 0.5
        for channels, stride in sizes
    )


def backbone(name: str, attention: Attention | None = None, *, norms: bool = False) -> Callable[[], Answer]:
    def answer() -> Answer:
        network = filled(lambda: build(name, strides=(4, 8, 16, 32), attention=attention, batch_norm=norms))
        found: Answer = network(images())
        return found

    return answer


def between(kind: Callable[..., nn.Module], teacher: str, fed: int = 1) -> Callable[[], Answer]:
    """What a module that takes all taps makes of them."""

    def answer() -> Answer:
        found = described(teacher)
        return (filled(lambda: kind(found, fed))(taps_of(found, fed)),)

    return answer


def decoder(teacher: str, *, signed: bool) -> Callable[[], Answer]:
    def answer() -> Answer:
        width = FACTS[teacher].channels[32]
        network = filled(lambda: Decoder(described(teacher), signed=signed))
        answers: Answer = network(2 * tensor_of(1, width, SIDE // 32, SIDE // 32, name="code") - 0.5)
        return answers

    return answer


def student(teacher: str, *, standardised: bool) -> Callable[[], Answer]:
    def answer() -> Answer:
        found: Answer = filled(lambda: Student(described(teacher), standardised=standardised))(images())
        return found

    return answer


def projected(teacher: str, *, signed: bool) -> Callable[[], Answer]:
    """RD++'s student: restored taps, then the projections of the taps."""

    def answer() -> Answer:
        found = described(teacher)
        outputs = filled(lambda: ProjectedStudent(found, signed=signed))(taps_of(found))
        return *outputs.restored, *outputs.projected

    return answer


def patches(side: int, grid: int) -> Callable[[], Answer]:
    """STAD's descriptors of patches of `side` px."""

    def answer() -> Answer:
        network = filled(lambda: PatchNetwork(side, 8, 12))
        assert isinstance(network, PatchNetwork)
        return (network.of_images(2 * images() - 1, grid),)

    return answer


def efficientad(**changes: Any) -> Callable[[], Answer]:
    """Teacher, student, autoencoder and imitation of EfficientAD's networks."""

    def answer() -> Answer:
        narrow = {"image_size": SIDE, "width": 4, "features": 6, "autoencoder": 8}
        distilled = {"teacher": "resnet18", "strides": (8, 16)}  # the published networks are wider
        settings = replace(EFFICIENTAD.presets["paper"], **narrow, **distilled, **changes)
        found: Answer = filled(lambda: Networks(settings))(images())
        return found

    return answer


def scattered(make: Callable[[], nn.Module]) -> nn.Module:
    """`filled` with weights that keep a signal alive through a deep network without norms."""
    return filled(make, CHIRP)


def scattered_values(*shape: int, name: str) -> Tensor:
    """An input of that shape, in [0, 1]."""
    return tensor_of(*shape, name=name, table=CHIRP)


def view() -> Tensor:
    return scattered_values(1, 3, SIDE, SIDE, name="images")


def descriptor(size: str) -> Callable[[], Answer]:
    """The whole PDN of a published file, without padding."""

    def answer() -> Answer:
        network = scattered(lambda: nn.Sequential(*layers(size, 128, 384, padding=False)))
        assert isinstance(network, nn.Sequential)
        return (through(network, 4 * view()[..., :40, :44] - 2),)

    return answer


def autoencoder() -> Answer:
    """EfficientAD's, of an image of 256 px."""
    network = scattered(lambda: Autoencoder(EFFICIENTAD.presets["paper"]))  # type: ignore[arg-type]
    return (network(4 * scattered_values(1, 3, 256, 256, name="a large image") - 2),)


def denoising_student() -> Answer:
    found: Answer = filled(lambda: DenoisingStudent(described("resnet18"), signed=False))(images())
    return found


def segmentation_head() -> Answer:
    width = DESTSEG.presets["paper"].width  # type: ignore[attr-defined]
    products = scattered_values(1, 448, 20, 20, name="products") - 0.5
    network = scattered(lambda: SegmentationHead(448, width))
    assert isinstance(network, SegmentationHead)
    return network.body(products), network(products)


def placed_features(settings: AstSettings) -> tuple[Tensor, Tensor]:
    """Features of a photograph and of depth on a small grid, and its places."""
    features = 4 * scattered_values(1, 368, 5, 6, name="features") - 2
    return features, encoded_places(settings.places, 5, 6)[None]


def flow() -> Answer:
    """AST's, with orders of the channels that are no generator's; the log-determinant is the second answer."""
    settings: Any = AST.presets["paper"]
    network = scattered(lambda: Flow(368, settings))
    for k, coupling in enumerate(network.couplings):  # type: ignore[arg-type]
        assert isinstance(coupling, Coupling)
        coupling.order = (37 * torch.arange(368) + k) % 368
        for subnet in (coupling.by_second, coupling.by_first):
            subnet.factor.fill_(0.7)
    found: Answer = network(*placed_features(settings))
    return found


def distant_student() -> Answer:
    """AST's, with fewer channels inside."""
    settings: Any = replace(AST.presets["paper"], student_width=48)
    network = scattered(lambda: ConvolutionalStudent(368, settings))
    return (network(torch.cat(placed_features(settings), 1)),)


def tokens_of(teacher: str) -> Answer:
    """Inputs shaped as a ViT's eight maps and its row of class and registers."""
    width, _, registers = LAYOUTS[teacher]
    maps = (2 * scattered_values(1, width, 3, 4, name=f"block {index}") - 1 for index in range(8))
    return *maps, 2 * scattered_values(1, width, 1, 1 + registers, name="registers") - 1


def restorer(teacher: str) -> Callable[[], Answer]:
    """Dinomaly's bottleneck and decoder on the taps of a ViT, or of a pyramid in their place."""

    def answer() -> Answer:
        found = described(teacher, *((14,) if teacher in LAYOUTS else ()))
        network = scattered(lambda: Restorer(found, DinomalySettings(teacher=teacher, image_size=448)))
        answers: Answer = network(tokens_of(teacher) if teacher in LAYOUTS else taps_of(found))
        return answers

    return answer


def dual(settings: Any, **changes: Any) -> Callable[[], Answer]:
    def answer() -> Answer:
        teacher = described("resnet18")
        network = filled(lambda: DualStudents(teacher, replace(settings, **changes)))
        seen, restored = network(images(), taps_of(teacher))
        return *seen, *restored

    return answer


PAPER_DSKD, PAPER_BMKD = DSKD.presets["paper"], BMKD.presets["paper"]
NETWORKS: Mapping[str, Callable[[], Answer]] = {
    **{f"backbone {name}": backbone(name) for name in PYRAMIDS},
    "vgg16 with norms": backbone("vgg16", norms=True),
    "resnet18 with ECA in every block": backbone("resnet18", Attention(Eca)),
    "resnet18 with ECA in each stage's last block": backbone("resnet18", Attention(Eca, every_block=False)),
    "resnet50 with CBAM": backbone("resnet50", Attention(Cbam)),
    "vgg16 with ECA": backbone("vgg16", Attention(Eca), norms=True),
    "lite0 with ECA": backbone("efficientnet_lite0", Attention(Eca)),
    "student of resnet18, standardised": student("resnet18", standardised=True),
    "student of lite0, standardised": student("efficientnet_lite0", standardised=True),
    **{
        f"fusion of {name}": between(Fusion, name)
        for name in ("resnet18", "wide_resnet50_2", "vgg16", "efficientnet_lite0")
    },
    **{
        f"bottleneck of {name}": between(Bottleneck, name)
        for name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "vgg16", "efficientnet_lite0")
    },
    **{
        f"decoder of {name}": decoder(name, signed=name == "efficientnet_lite0")
        for name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "vgg16", "efficientnet_lite0")
    },
    "decoder of resnet18, signed": decoder("resnet18", signed=True),
    "bottleneck fed by two": between(Bottleneck, "resnet18", 2),
    "residual fusion": between(ResidualFusion, "resnet18"),
    "residual fusion fed by two": between(ResidualFusion, "resnet18", 2),
    "deepest tap": between(DeepestTap, "resnet18"),
    "deepest tap fed by two": between(DeepestTap, "resnet18", 2),
    "RD++ on resnet18": projected("resnet18", signed=False),
    "RD++ on lite0": projected("efficientnet_lite0", signed=True),
    "STAD, 17 px": patches(17, 1),
    "STAD, 33 px": patches(33, 2),
    "STAD, 65 px": patches(65, 4),
    "EfficientAD": efficientad(),
    "EfficientAD, medium, padded": efficientad(network="medium", padding=True),
    "PDN, small": descriptor("small"),
    "PDN, medium": descriptor("medium"),
    "EfficientAD's autoencoder": autoencoder,
    "DeSTSeg's student": denoising_student,
    "DeSTSeg's head": segmentation_head,
    "AST's flow": flow,
    "AST's student": distant_student,
    "Dinomaly on a ViT with registers": restorer("dinov2_vits14_reg"),
    "Dinomaly on a ViT": restorer("dinov2_vits14"),
    "Dinomaly on resnet18": restorer("resnet18"),
    "DSKD": dual(PAPER_DSKD),
    "DSKD fed by the teacher": dual(PAPER_DSKD, fed_by="teacher"),
    "DSKD fed by both": dual(PAPER_DSKD, fed_by="both"),
    "DSKD, deepest tap": dual(PAPER_DSKD, fusion="deepest"),
    "BMKD": dual(PAPER_BMKD),
    "BMKD with CBAM": dual(PAPER_BMKD, attention="cbam"),
}


@torch.no_grad()
def answers_of(name: str) -> list[list[float]]:
    return [summary(tensor) for tensor in NETWORKS[name]()]


@pytest.fixture(scope="module")
def golden() -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = json.loads(PATH.read_text(encoding="utf-8"))
    assert found.keys() == NETWORKS.keys()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_answers_as_it_did(name: str, golden: dict[str, list[list[float]]]) -> None:
    found = answers_of(name)
    assert len(found) == len(golden[name])
    for ours, theirs in zip(found, golden[name], strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE * theirs[1])


def test_the_answers_are_neither_constant_nor_huge(golden: dict[str, list[list[float]]]) -> None:
    """Numbers that vanish, explode or do not vary would pin nothing."""
    for name, answers in golden.items():
        assert any(abs(weighted) > 1e-4 * root for _, root, weighted in answers), name
        for mean, root, _ in answers:
            assert 1e-3 < root < 1e4, name
            assert root > 1.0001 * abs(mean), name


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(answers_of(name))}" for name in NETWORKS]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
