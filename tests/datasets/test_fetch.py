"""A data set is fetched whole or not at all, whoever dies, lies or fetches beside."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdad_bench import datasets
from kdad_bench.datasets import fetch as fetching
from kdad_bench.datasets.category import DatasetError
from tests.conftest import write_tree
from tests.server import Server, running, serve


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as made:
        yield made


def packed(tree: Path, target: Path, prefix: str = "") -> tuple[Path, str]:
    """A tar.xz of a tree and its SHA-256."""
    with tarfile.open(target, "w:xz", preset=0) as archive:
        for path in sorted(tree.iterdir()):
            archive.add(path, arcname=f"{prefix}{path.name}")
    return target, hashlib.sha256(target.read_bytes()).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> tuple[fetching.Source, bytes]:
    """A published data set of one small category."""
    tree = write_tree(tmp_path / "tree", ("bottle",), train=2, test=1)
    path, digest = packed(tree, tmp_path / "published.tar.xz")
    return (
        fetching.Source(
            name="mvtec_ad", title="MVTec AD", url="", algorithm="sha256", digest=digest, page="https://example.org",
            licence="none", download_bytes=1, unpacked_bytes=1,
        ),
        path.read_bytes(),
    )  # fmt: skip


def test_fetch_downloads_checks_unpacks_and_places(
    server: Server, tmp_path: Path, source: tuple[fetching.Source, bytes]
) -> None:
    server.answer = lambda handler, number: serve(handler, source[1], send=500 if number == 1 else None)
    phases: set[str] = set()
    place = fetching.fetch(
        source[0], tmp_path / "out", url=server.url, pause_seconds=0.001, progress=lambda phase, *_: phases.add(phase)
    )
    assert phases == {"download", "checksum", "unpack"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mvtec_ad"]
    assert len(datasets.categories("mvtec_ad", tmp_path / "out")[0].train) == 2
    assert fetching.existing(source[0], tmp_path / "out") == place


def test_a_wrong_hash_unpacks_nothing_and_is_not_taken_up_again(
    server: Server, tmp_path: Path, source: tuple[fetching.Source, bytes]
) -> None:
    wrong = source[1][:-1] + bytes([source[1][-1] ^ 1])
    server.answer = lambda handler, number: serve(handler, wrong)
    with pytest.raises(DatasetError, match="not the published archive") as error:
        fetching.fetch(source[0], tmp_path / "out", url=server.url)
    assert source[0].digest in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []
    server.answer = lambda handler, number: serve(handler, source[1])
    assert fetching.fetch(source[0], tmp_path / "out", url=server.url).is_dir()


def test_a_local_archive_and_a_wrapped_mirror_are_accepted(
    tmp_path: Path, source: tuple[fetching.Source, bytes]
) -> None:
    path, digest = packed(tmp_path / "tree", tmp_path / "mirror.tar.xz", prefix="mvtec/")
    with pytest.raises(DatasetError, match="not the published archive"):
        fetching.fetch(source[0], tmp_path / "out", archive=path)
    assert path.is_file()  # the user's own file is left alone
    place = fetching.fetch(source[0], tmp_path / "out", archive=path, sha256=digest)
    assert (place / "bottle" / "train" / "good").is_dir()
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mvtec_ad"]
    assert fetching.fetch(source[0], tmp_path / "out", archive=path, sha256=digest) == place  # there already
    (tmp_path / "else" / "mvtec_ad").mkdir(parents=True)
    with pytest.raises(DatasetError, match="something lies there"):
        fetching.fetch(source[0], tmp_path / "else", archive=path, sha256=digest)


def test_an_archive_of_something_else_places_nothing(tmp_path: Path, source: tuple[fetching.Source, bytes]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "readme.txt").write_text("nothing here")
    path, digest = packed(other, tmp_path / "other.tar.xz")
    with pytest.raises(DatasetError, match="no category of MVTec AD"):
        fetching.fetch(source[0], tmp_path / "out", archive=path, sha256=digest)
    assert list((tmp_path / "out").iterdir()) == []


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_asks_for_the_licence_and_counts_what_is_there(tmp_path: Path) -> None:
    from kdad_bench.cli import cli

    run = CliRunner()
    asked = run.invoke(cli, ["data", "fetch", "mvtec_ad", "--out", str(tmp_path)])
    assert asked.exit_code == 2
    assert "CC BY-NC-SA 4.0" in asked.output
    assert "--accept-license" in asked.output
    assert list(tmp_path.iterdir()) == []
    write_tree(tmp_path / "mvtec_ad", ("bottle",), train=2, test=1)
    there = run.invoke(cli, ["data", "fetch", "mvtec_ad", "--out", str(tmp_path)])
    assert there.exit_code == 1
    assert "already there" in there.output
    assert "train 2 and not 209" in there.output
    missing = run.invoke(
        cli,
        [
            "data",
            "fetch",
            "mvtec_3d_ad",
            "--out",
            str(tmp_path),
            "--accept-license",
            "--archive",
            str(tmp_path / "none"),
        ],
    )
    assert missing.exit_code == 2
    assert "no such archive" in missing.output


def test_the_published_sources_are_complete() -> None:
    for name, source in fetching.SOURCES.items():
        assert source.name == name
        assert len(source.digest) == {"sha256": 64, "md5": 32}[source.algorithm]
        assert source.url.startswith("https://")
        assert source.page.startswith("https://www.mvtec.com/")
