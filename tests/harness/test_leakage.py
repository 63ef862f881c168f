"""Nothing of the test set reaches a method: garbage in its place changes no bit of what is learnt."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdad_bench import datasets
from kdad_bench.datasets.decoding import read_rgb
from kdad_bench.harness.job import Job, TeacherWeights
from kdad_bench.harness.material import normals
from kdad_bench.harness.output import Work
from kdad_bench.harness.plan import plan
from kdad_bench.harness.run import build, run
from kdad_bench.harness.scoring import as_images
from kdad_bench.harness.selection import Selection
from kdad_bench.methods import METHODS
from tests.conftest import write_tree
from tests.harness.planned import QUICKER

RANDOM = TeacherWeights(teacher="efficientnet_lite0", source="random", sha256="random")


def job_of(tree: Path, method: str, hold_out: float = 0.0) -> Job:
    """A tiny job: two steps at 64 px."""
    selection = Selection(
        methods=((method, ""),),
        categories=tuple(datasets.categories(f"folder:{tree}", None)),
        seeds=(0,),
        preset="quick",
        device="cpu",
        resolution=64,
        overrides={"steps": 2, "image_size": 64, "batch_size": 2},
        method_overrides=QUICKER,
        hold_out=hold_out,
    )
    (job,) = plan(selection, {"efficientnet_lite0": RANDOM})
    return job


def learnt(job: Job) -> dict[str, Tensor]:
    """The state of the job's method after its training, by the path that `run` takes."""
    device = torch.device("cpu")
    normal, held_out = (as_images(pixels, device) for pixels in normals(job))
    method = build(job, device, held_out)
    method.fit(normal)
    return {name: value.clone() for name, value in method.module.state_dict().items()}


def undecodable(png: bytes) -> bytes:
    """With the beginning and the end of a whole file, which are looked at before a training, and garbage between."""
    begins, ends = png.index(b"IDAT") + 4, len(png) - 24
    return png[:begins] + bytes(255 - value for value in png[begins:ends]) + png[ends:]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a tree, the same with every test image and mask damaged inside: no pixel can be decoded)."""
    honest = write_tree(tmp_path_factory.mktemp("leak") / "honest", categories=("bolt",), train=4)
    spoilt = honest.parent / "spoilt"
    shutil.copytree(honest, spoilt)
    for folder in ("test", "ground_truth"):
        for path in (spoilt / "bolt" / folder).rglob("*.png"):
            path.write_bytes(undecodable(path.read_bytes()))
    return honest, spoilt


def test_the_garbage_is_none_that_anybody_could_have_read(trees: tuple[Path, Path]) -> None:
    for path in (trees[1] / "bolt" / "test").rglob("*.png"):
        with pytest.raises(datasets.DatasetError):
            read_rgb(path, 64)


@pytest.mark.parametrize("method", list(METHODS))
def test_test_files_replaced_by_garbage_give_a_bit_identical_model(method: str, trees: tuple[Path, Path]) -> None:
    honest, spoilt = (learnt(job_of(tree, method)) for tree in trees)
    assert honest.keys() == spoilt.keys()
    assert [name for name in honest if not torch.equal(honest[name], spoilt[name])] == []


def test_a_model_does_change_with_its_training_images(trees: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_tree(tmp_path / "other", categories=("cloth", "bolt"), train=4)
    shutil.rmtree(other / "cloth")
    a, b = learnt(job_of(trees[0], "pixel_mean")), learnt(job_of(other, "pixel_mean"))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_held_out_normals_are_not_learnt_from(trees: tuple[Path, Path]) -> None:
    job = job_of(trees[0], "pixel_mean", hold_out=0.5)
    fit, held_out = normals(job)
    assert (len(fit), len(held_out)) == (2, 2)
    everything, _ = normals(replace(job, hold_out=0.0))
    as_bytes = {image.tobytes() for image in fit} | {image.tobytes() for image in held_out}
    assert as_bytes == {image.tobytes() for image in everything}


def test_run_decodes_no_test_image_before_the_training_has_ended(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events: list[str] = []
    honest_load = datasets.load_test
    monkeypatch.setattr(datasets, "load_test", lambda *given: (events.append("test images"), honest_load(*given))[1])
    job = job_of(trees[0], "pixel_mean")
    from kdad_bench.methods.pixel_mean import PixelMean

    honest_fit = PixelMean.fit

    def fit(self: PixelMean, *given: object) -> None:
        honest_fit(self, *given)  # type: ignore[arg-type]
        events.append("trained")

    monkeypatch.setattr(PixelMean, "fit", fit)
    run(job, Work(out=str(tmp_path), pictures=False), lambda step, terms: None)
    assert events == ["trained", "test images"]
