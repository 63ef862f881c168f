"""What every network answers from fixed weights, as it was when its layers were checked one by one.

The numbers are in tests/golden/networks.json; `python -m tests.methods.test_golden_networks` writes them anew, which
only a change of an architecture justifies.
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

from kdad_bench.methods.backbones import FACTS, PYRAMIDS, Attention, Backbone, Cbam, Eca, build
from kdad_bench.methods.distillation import Student
from kdad_bench.methods.dual_student import BMKD, DSKD, DeepestTap, DualStudents, ResidualFusion
from kdad_bench.methods.efficientad import EFFICIENTAD
from kdad_bench.methods.efficientad.networks import Networks
from kdad_bench.methods.patch_network import PatchNetwork
from kdad_bench.methods.rdpp import ProjectedStudent
from kdad_bench.methods.reverse import Bottleneck, Decoder, Fusion
from tests.methods.fixed_weights import filled, summary, tensor_of

PATH = Path(__file__).parents[1] / "golden" / "networks.json"
SIDE = 64
TOLERANCE = 1e-3  # float32 sums in another order, through up to fifty layers
Answer = tuple[Tensor, ...]


def images() -> Tensor:
    return tensor_of(1, 3, SIDE, SIDE, name="images")


def described(name: str) -> Backbone:
    """A teacher of which only names and widths are read."""
    with torch.device("meta"):
        return build(name)


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
        settings = replace(EFFICIENTAD.presets["paper"], image_size=SIDE, width=4, features=6, autoencoder=8, **changes)
        found: Answer = filled(lambda: Networks(settings))(images())
        return found

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
