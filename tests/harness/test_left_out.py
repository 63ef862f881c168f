"""Methods that nobody named and that a run's settings, view or data refuse: they are left out, the others run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from kdad_bench import run
from kdad_bench.cli import cli
from kdad_bench.harness.choices import PRESETS, SelectionError
from kdad_bench.harness.left_out import planned, without_refused
from kdad_bench.harness.selection import Selection
from kdad_bench.harness.teachers import find
from kdad_bench.harness.view import View
from kdad_bench.leaderboard import store
from kdad_bench.methods import METHODS, entry
from kdad_bench.methods import pixel_mean as floor
from kdad_bench.methods.backbones.family import build
from tests.harness.planned import WEIGHTS, selection

ALL = tuple((name, "") for name in METHODS)


def everything(tree: Path, named: tuple[str, ...] = (), **changes: Any) -> Selection:
    """Every method, of which none but `named` was asked for by name."""
    return selection(tree, **{"methods": ALL, "named": frozenset(named), **changes})


def kept(found: Selection) -> set[str]:
    return {method for method, _ in found.methods}


@pytest.mark.parametrize(
    ("changes", "without", "said"),
    [
        ({}, (), ()),
        (
            {"overrides": {"image_size": 32}},
            ("efficientad",),
            ("left out: efficientad: image_size 32 is not in [64, 8192]",),
        ),
        (
            {"preset": "standard", "overrides": {"image_size": 256}},
            ("dinomaly",),
            ("left out: dinomaly: image_size 256 is not a multiple of 14; teacher dinov2_vits14_reg takes 252 or 266",),
        ),
        ({"preset": "paper", "overrides": {"image_size": 448}}, (), ()),
        (
            {"overrides": {"strides": (8, 16)}},
            ("spade", "rd4ad", "rdpp", "mkd", "ast", "dskd", "bmkd"),
            (
                "left out: spade: maps 3 is more than the 2 strides",
                "left out: rd4ad, rdpp, dskd, bmkd: strides 8 16: bottleneck and decoder take three taps, each at "
                "twice the stride before",
                "left out: mkd: scored 4: must be 1 to 2, the number of taps",
                "left out: ast: strides 8 16 are not one tap",
            ),
        ),
        (
            {"overrides": {"teacher": "dinov2_vits14_reg", "image_size": 224}},
            tuple(name for name in METHODS if name not in ("pixel_mean", "dinomaly")),
            (
                "left out: padim, spade, stfpm, rd4ad, rdpp, destseg, eca_mskdad, dskd, bmkd, fractalad: strides 4 8 "
                "16 of teacher dinov2_vits14_reg: must be among 14",
                "left out: patchcore, efficientad: strides 8 16 of teacher dinov2_vits14_reg: must be among 14",
                "left out: mkd: strides 4 8 16 32 of teacher dinov2_vits14_reg: must be among 14",
                "left out: stad: strides 32 of teacher dinov2_vits14_reg: must be among 14",
                "left out: ast: strides 16 of teacher dinov2_vits14_reg: must be among 14",
            ),
        ),
    ],
    ids=str,
)
def test_what_refuses_the_settings_is_left_out_with_the_reason(
    tiny_tree: Path, changes: dict[str, Any], without: tuple[str, ...], said: tuple[str, ...]
) -> None:
    found, lines = without_refused(everything(tiny_tree, **changes))
    assert kept(found) == set(METHODS) - set(without)
    assert lines == said


def test_a_method_that_was_named_or_has_settings_of_its_own_is_not_left_out(tiny_tree: Path) -> None:
    small = {"overrides": {"image_size": 32}}
    for chosen in (
        selection(tiny_tree, methods=ALL, **small),
        everything(tiny_tree, named=("efficientad",), **small),
    ):
        found, lines = without_refused(chosen)
        assert (kept(found), lines) == (set(METHODS), ())
        with pytest.raises(SelectionError, match=r"method 'efficientad': image_size 32 is not in \[64, 8192\]"):
            planned(found, WEIGHTS)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"image_size": 48}, "image_size 48 is not a multiple of 32"),
        ({"learning_rate": -1.0}, r"learning_rate -1.0 is not in \(0, inf\)"),
        ({"gamma": -1.0}, r"method 'destseg': gamma -1.0 is not in \[0, 64\]"),
        ({"steps": 0}, r"steps 0 is not in \[1, inf\)"),
        ({"precision": "fp8"}, "precision 'fp8' is not known"),
        ({"strides": 8}, "strides=8 does not fit"),
        ({"teacher": "pdn_small"}, "strides 4 8 16 of teacher pdn_small: must be among 4"),
        ({"padding": True, "image_size": 32}, "method 'efficientad': image_size 32 is not in"),
    ],
    ids=str,
)
def test_a_setting_that_all_who_have_it_refuse_is_wrong_itself(
    tiny_tree: Path, overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(SelectionError, match=said):
        without_refused(everything(tiny_tree, overrides=overrides))


def test_a_setting_that_no_method_has_is_refused_as_ever(tiny_tree: Path) -> None:
    found, lines = without_refused(everything(tiny_tree, overrides={"lerning_rate": 0.1, "image_size": 32}))
    assert len(lines) == 1
    with pytest.raises(SelectionError, match="'lerning_rate' is not a setting"):
        planned(found, WEIGHTS)


def test_windows_and_presets_that_a_method_does_not_know_leave_it_out(
    tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = replace(
        floor.PIXEL_MEAN, whole="it looks at where things lie", presets={"quick": entry("pixel_mean").presets["quick"]}
    )
    monkeypatch.setattr(floor, "PIXEL_MEAN", stubborn)
    found, lines = without_refused(everything(tiny_tree, view=View(tile=64)))
    assert kept(found) == set(METHODS) - {"pixel_mean"}
    assert lines == (
        "left out: pixel_mean: --tile 64: method 'pixel_mean' cannot see images in windows: it looks at where things "
        "lie; leave it or them out",
    )
    _, lines = without_refused(everything(tiny_tree, preset="standard", overrides={"image_size": 448}))
    assert lines == ("left out: pixel_mean: has no preset 'standard'; have: quick",)
    side = PRESETS["quick"].resolution
    with pytest.raises(SelectionError, match="larger than the images"):
        without_refused(everything(tiny_tree, view=View(tile=2 * side)))


def test_what_the_data_refuse_is_left_out_whole(tiny_tree: Path) -> None:
    """Six images in batches of five leave one alone, whose deepest maps of 32 px are one value."""
    lone: dict[str, Any] = {
        "methods": (("stfpm", ""), ("rd4ad", ""), ("dskd", "")),
        "overrides": {"image_size": 32, "batch_size": 5},
        "resolution": 32,
    }
    jobs, lines = planned(everything(tiny_tree, **lone), WEIGHTS)
    assert [job.method for job in jobs] == ["stfpm"] * 4
    (line,) = lines
    assert line.startswith("left out: rd4ad, dskd: on folder")
    assert "6 images in batches of 5 leave one alone" in line
    with pytest.raises(SelectionError, match="leave one alone"):
        planned(everything(tiny_tree, named=("rd4ad",), **lone), WEIGHTS)
    lone["methods"] = lone["methods"][1:]
    with pytest.raises(SelectionError, match="leave one alone"):
        planned(everything(tiny_tree, **lone), WEIGHTS)


@pytest.fixture
def only() -> Iterator[Callable[..., None]]:
    """`only(*names)`: as if there were no other methods. Afterwards they are there again, in their order."""
    every = dict(METHODS)

    def keep(*names: str) -> None:
        for name in set(METHODS) - set(names):
            del METHODS[name]

    yield keep
    METHODS.clear()
    METHODS.update(every)


def test_a_run_says_whom_it_leaves_out_and_ends_with_1(
    tiny_tree: Path, tmp_path: Path, only: Callable[..., None]
) -> None:
    only("pixel_mean", "efficientad")
    given = f"--seeds 1 --image-size 32 --resolution 32 --no-measure-speed --no-pictures --out {tmp_path}".split()
    given += ["-d", f"folder:{tiny_tree}"]
    line = "left out: efficientad: image_size 32 is not in [64, 8192]"
    done = CliRunner().invoke(cli, ["run", *given])
    assert done.exit_code == 1, done.output
    assert done.output.splitlines().count(line) == 2  # before the jobs and after them
    assert {row["method"] for row in store.read(tmp_path).rows()} == {"pixel_mean"}
    dry = CliRunner().invoke(cli, ["run", "--dry-run", *given])
    assert dry.exit_code == 1  # as the run itself
    assert line in dry.output.splitlines()
    named = CliRunner().invoke(cli, ["run", "-m", "pixel_mean", "-m", "efficientad", *given])
    assert named.exit_code == 2
    assert named.output.splitlines()[-1] == "kdad-bench: method 'efficientad': image_size 32 is not in [64, 8192]"
    own = CliRunner().invoke(cli, ["run", "--set", "efficientad.hard=0.5", *given])
    assert own.exit_code == 2
    with pytest.warns(UserWarning, match=r"left out: efficientad: image_size 32 is not in"):
        found = run(
            datasets=f"folder:{tiny_tree}", seeds=1, out=tmp_path, everything=True, image_size=32, resolution=32,
            measure_speed=False,
        )  # fmt: skip
    assert line in found.remarks


@pytest.fixture(scope="module")
def first_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-18's weights up to its third stage, random."""
    path = tmp_path_factory.mktemp("weights") / "trunk.pth"
    torch.save(build("resnet18", strides=(4, 8, 16)).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("setting", "refused"), [((8, 16), False), ((4, 8, 16), False), ((8, 16, 32), True), ((32,), True)], ids=str
)
def test_weights_that_lack_the_layers_of_the_taps_are_refused_before_anything_runs(
    tiny_tree: Path, first_layers: Path, setting: tuple[int, ...], refused: bool
) -> None:
    own = {"teacher": "resnet18", "strides": setting}
    chosen = selection(tiny_tree, methods=(("stfpm", ""),), overrides=own)
    found = {"resnet18": find("resnet18", str(first_layers))}
    if not refused:
        assert len(planned(chosen, found)[0]) == len(chosen.seeds) * len(chosen.categories)
        return
    taps = " ".join(map(str, setting))
    with pytest.raises(SelectionError, match=rf"method 'stfpm': taps at strides {taps}: .*trunk.pth: .* lacks 'layer4"):
        planned(chosen, found)


def test_run_all_leaves_out_whose_taps_the_weights_do_not_reach(tiny_tree: Path, first_layers: Path) -> None:
    methods = (("stfpm", ""), ("spade", ""), ("padim", ""))
    chosen = everything(tiny_tree, methods=methods, preset="paper", overrides={"teacher": "resnet18"})
    jobs, lines = planned(chosen, {"resnet18": find("resnet18", str(first_layers))})
    assert {job.method for job in jobs} == {"stfpm", "padim"}
    assert [line.partition(": taps")[0] for line in lines] == ["left out: spade"]
    assert all(word in lines[0] for word in ("4 8 16 32", "trunk.pth", "give such a file"))


def test_a_file_of_weights_that_was_replaced_is_looked_at_again(tiny_tree: Path, tmp_path: Path) -> None:
    chosen = selection(tiny_tree, methods=(("stfpm", ""),), overrides={"teacher": "resnet18", "strides": (8, 32)})
    path = tmp_path / "weights.pth"
    torch.save(build("resnet18", strides=(4, 8, 16)).state_dict(), path)
    with pytest.raises(SelectionError, match="lacks 'layer4"):
        planned(chosen, {"resnet18": find("resnet18", str(path))})
    torch.save(build("resnet18", strides=(4, 8, 16, 32)).state_dict(), path)
    assert planned(chosen, {"resnet18": find("resnet18", str(path))})[0]
