"""Which of the files that `--weights` gives is for which teacher."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
import torch

from kdad_bench.harness import teachers
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.options import options_from
from kdad_bench.harness.run import built
from kdad_bench.harness.teachers import find, from_elsewhere, sha256_of, weights_for
from kdad_bench.methods.backbones import FACTS, weights
from kdad_bench.methods.stfpm import StfpmSettings
from tests.harness.planned import selection

METHODS = (("stfpm", ""), ("dinomaly", ""))  # the paper's teachers: resnet18, dinov2_vitb14_reg
VIT = "dinov2_vitb14_reg"


@pytest.fixture
def files(tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The tree of images, a folder with a file for each of two teachers, and what this machine has of its own."""

    def load(name: str, *, strides: tuple[int, ...], source: Path) -> None:
        if Path(source).read_text() != name:
            raise weights.WeightsError(f"{source}: not weights of {name}")

    for name in ("resnet18", VIT, "own"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(weights, "load_teacher", load)
    monkeypatch.setattr(weights, "find_weights", lambda name: tmp_path / "own")
    monkeypatch.setattr(weights, "refuse_unpublished", lambda name, path, sha256: None)
    return tiny_tree, tmp_path


def sources(
    files: tuple[Path, Path], *given: str, config: dict[str, str] | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """(teacher -> the file that it got, the lines that are said)."""
    tree, folder = files
    said = {"all_weights": tuple(one.replace("@", f"{folder}/") for one in given), "weights": config or {}}
    options = options_from({**said, "preset": "paper"})
    found = weights_for(selection(tree, methods=METHODS, preset="paper"), options)
    return {name: one.source for name, one in found.items()}, from_elsewhere(found, options)


@pytest.mark.parametrize(
    ("given", "resnet", "vit"),
    [
        ((), "own", "own"),
        (("@resnet18",), "resnet18", "own"),
        ((f"@{VIT}",), "own", VIT),
        (("@resnet18", f"@{VIT}"), "resnet18", VIT),
        (("resnet18=@resnet18",), "resnet18", "own"),
        (("resnet18=@resnet18", f"@{VIT}"), "resnet18", VIT),
        (("random",), "random", "random"),
        (("resnet18=random",), "random", "own"),
        ((f"@{VIT}", "random"), "random", VIT),
    ],
)
def test_a_file_is_for_the_teachers_that_it_fits(
    files: tuple[Path, Path], given: tuple[str, ...], resnet: str, vit: str
) -> None:
    found, said = sources(files, *given)
    assert found == {"resnet18": resnet, VIT: vit}
    others = [name for name, source in found.items() if given and source == "own"]
    assert said == tuple(f"{name}: no file of --weights fits it; taking own" for name in others)


def test_the_files_of_the_command_line_come_before_those_of_the_config(files: tuple[Path, Path]) -> None:
    config = {"resnet18": "random", VIT: "random"}
    assert sources(files, "@resnet18", config=config)[0] == {"resnet18": "resnet18", VIT: "random"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("@own", "own: not weights of resnet18"),
        ("@nothing", "nothing: no such file"),
        ("resnet18=@own", "own: not weights of resnet18"),
        (f"resnet18=@{VIT}", f"{VIT}: not weights of resnet18"),
        ("resnet81=@own", r"unknown teacher 'resnet81' \(did you mean 'resnet18'"),
        ("/nowhere/lr=1/w.pth", "/nowhere/lr=1/w.pth: no such file"),
    ],
)
def test_a_file_that_fits_nobody_is_refused(files: tuple[Path, Path], given: str, words: str) -> None:
    with pytest.raises(SelectionError, match=words):
        sources(files, given)


def test_a_file_of_the_config_has_to_be_there_also_where_no_method_needs_it(files: tuple[Path, Path]) -> None:
    _, folder = files
    for path, words in (("nothing", "no such file"), (".", "is no file")):
        with pytest.raises(SelectionError, match=f"{words}; give a checkpoint of vgg16"):
            sources(files, config={"vgg16": f"{folder}/{path}"})
        with pytest.raises(SelectionError, match=f"{words}; give a checkpoint of vgg16"):
            sources(files, f"vgg16=@{path}")


def test_a_file_where_nobody_needs_one_is_refused(files: tuple[Path, Path]) -> None:
    tree, folder = files
    without = selection(tree, methods=(("pixel_mean", ""),))
    with pytest.raises(SelectionError, match="own: no teacher of this run needs a file"):
        weights_for(without, options_from({"all_weights": str(folder / "own")}))
    assert weights_for(without, options_from({"all_weights": "random"})) == {}


def test_the_hash_of_weights_is_that_of_the_file_that_lies_there_now(tmp_path: Path) -> None:
    """A process that runs twice, from Python say, may find other weights under the same name."""
    path = tmp_path / "w.pth"
    found = set()
    for number, content in enumerate((b"one", b"two", b"longer")):
        path.write_bytes(content)
        os.utime(path, ns=(number, number))
        assert sha256_of(path) == hashlib.sha256(content).hexdigest()
        found.add(sha256_of(path))
    (tmp_path / "other").write_bytes(b"sixsix")
    os.utime(tmp_path / "other", ns=(2, 2))  # as old and as long, in its place
    os.replace(tmp_path / "other", path)
    assert sha256_of(path) not in found


@pytest.mark.parametrize("name", ["resnet18", VIT])
@pytest.mark.parametrize(
    ("state", "words"),
    [("damaged", "not the published file; delete it and try again"), ("closed", "cannot be read (Permission denied)")],
)
def test_a_bad_file_on_this_machine_is_a_problem_at_the_plan(
    name: str, state: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was planned with, so that each of a hundred jobs failed by itself; a closed one was a bug to be reported."""
    path = tmp_path / FACTS[name].weights_file
    path.write_bytes(b"half of it")
    monkeypatch.setattr(weights, "find_weights", lambda name: path)
    if state == "closed":

        def closed(path: Path) -> str:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        monkeypatch.setattr(teachers, "sha256_of", closed)
    found = find(name, None)
    assert str(path) in found.problem
    assert words in found.problem
    assert "\n" not in found.problem
    with pytest.raises(weights.WeightsError, match=r"not the published file|Permission denied"):
        built("stfpm", StfpmSettings(teacher="resnet18"), found, torch.device("cpu"))
