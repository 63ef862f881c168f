"""Weights: found, fetched, verified, and refused with a remedy when something is wrong with them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from kdad_bench.methods.backbones import FACTS, build, names, weights
from kdad_bench.methods.backbones.efficientnet_lite import norm
from kdad_bench.methods.backbones.undrawn import Undrawn
from kdad_bench.methods.backbones.weights import WeightsError, download, find_weights, load_teacher
from tests.server import running, serve

BODY = b"weights that someone published" * 1000


class Server(BaseHTTPRequestHandler):
    """Serves BODY whole, or promises it and hangs up half way."""

    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY if self.path == "/whole" else BODY[: len(BODY) // 2])

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between attempts."""
    monkeypatch.setattr(weights, "PAUSE_SECONDS", 0.001)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> str:
    """ResNet-18's checkpoint is BODY, so that its hash is right."""
    prefix = hashlib.sha256(BODY).hexdigest()[:8]
    facts = names.BackboneFacts(
        name="resnet18",
        title="ResNet-18",
        channels=FACTS["resnet18"].channels,
        weights_file=f"resnet18-{prefix}.pth",
        weights_from="torchvision",
    )
    monkeypatch.setattr(names, "FACTS", {**FACTS, "resnet18": facts})
    return facts.weights_file


def test_a_file_larger_than_any_checkpoint_is_not_fetched(
    tmp_path: Path, server: str, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights.MOST_BYTES == 4 << 30
    assert weights.ATTEMPTS == 4
    monkeypatch.setattr(weights, "MOST_BYTES", len(BODY) - 1)
    with pytest.raises(WeightsError):
        download("resnet18", tmp_path, url=f"{server}/whole")
    assert list(tmp_path.rglob("*.pth")) == []
    monkeypatch.setattr(weights, "MOST_BYTES", len(BODY))
    assert download("resnet18", tmp_path, url=f"{server}/whole").read_bytes() == BODY


def test_a_download_with_the_right_hash_takes_its_place(tmp_path: Path, server: str, published: str) -> None:
    path = download("resnet18", tmp_path / "new", url=f"{server}/whole")
    assert path == tmp_path / "new" / published
    assert path.read_bytes() == BODY
    assert [item.name for item in path.parent.iterdir()] == [published]


def test_a_download_with_a_wrong_hash_leaves_nothing(tmp_path: Path, server: str) -> None:
    found = hashlib.sha256(BODY).hexdigest()[:8]
    with pytest.raises(WeightsError, match=f"sha256 begins {found}, not f37072fd.*--weights"):
        download("resnet18", tmp_path, url=f"{server}/whole")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_connection_leaves_nothing(tmp_path: Path, server: str, published: str) -> None:
    with pytest.raises(WeightsError, match=f"after {len(BODY) // 2} of {len(BODY)} bytes"):
        download("resnet18", tmp_path, url=f"{server}/half")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*waiting for another process")
def test_several_downloads_at_once_ask_the_server_once(tmp_path: Path, published: str) -> None:
    with running() as http:
        http.answer = lambda handler, number: (time.sleep(0.2), serve(handler, BODY))[1]
        paths: list[Path] = []
        together = [
            threading.Thread(target=lambda: paths.append(download("resnet18", tmp_path, url=http.url)))
            for _ in range(4)
        ]
        for thread in together:
            thread.start()
        for thread in together:
            thread.join()
        assert paths == [tmp_path / published] * 4
        assert len(http.ranges) == 1
    assert os.listdir(tmp_path) == [published]


def test_a_wrong_file_that_lies_there_is_fetched_again(tmp_path: Path, server: str, published: str) -> None:
    (tmp_path / published).write_bytes(b"half")
    assert download("resnet18", tmp_path, url=f"{server}/whole").read_bytes() == BODY


def test_a_killed_download_is_gone_on_with(tmp_path: Path, published: str) -> None:
    work = tmp_path / f".{published}.fetch"
    work.mkdir()
    with running() as http:
        http.answer = lambda handler, number: serve(handler, BODY)
        (work / "lock").write_text("")
        (work / "weights.part").write_bytes(BODY[:1000])
        (work / "weights.part.json").write_text(json.dumps({"url": http.url, "total": len(BODY), "version": '"one"'}))
        (work / ".weights.part.json.0123.tmp").write_text("{")
        assert download("resnet18", tmp_path, url=http.url).read_bytes() == BODY
        assert http.ranges == ["bytes=1000-"]
    assert os.listdir(tmp_path) == [published]


def test_an_untrusted_certificate_ends_at_once_with_the_remedy(
    tmp_path: Path, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setattr(weights, "PAUSE_SECONDS", 60)
    with running() as http:
        http.secure(tmp_path)
        with pytest.raises(WeightsError, match=r"is not trusted.*SSL_CERT_FILE.*; put resnet18.*--weights"):
            download("resnet18", tmp_path / "new", url=http.url)
    assert list((tmp_path / "new").iterdir()) == []


def test_weights_folders_that_cannot_be_written_are_one_line(tmp_path: Path, server: str, published: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=r"file/new: cannot be written \(Not a directory\); put resnet18"):
        download("resnet18", tmp_path / "file" / "new", url=f"{server}/whole")


def test_weights_come_over_the_web_only(tmp_path: Path, published: str) -> None:
    (tmp_path / "w.pth").write_bytes(BODY)
    with pytest.raises(WeightsError, match="not an address that can be fetched"):
        download("resnet18", tmp_path / "new", url=(tmp_path / "w.pth").as_uri())


def test_a_refused_download_says_where_to_put_the_file(tmp_path: Path, server: str) -> None:
    for url in (f"{server}/missing", "http://127.0.0.1:9/closed"):
        with pytest.raises(WeightsError, match=r"resnet18-f37072fd\.pth into .*efficientnet_lite0"):
            download("resnet18", tmp_path, url=url)


def test_torch_hubs_cache_is_looked_up_where_torch_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert find_weights("resnet18") is None
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").write_bytes(BODY)
    assert find_weights("resnet18") == folder / "resnet18-f37072fd.pth"
    with pytest.raises(WeightsError, match="not a plain state_dict"):
        load_teacher("resnet18")


def test_every_published_checkpoint_has_a_hash_in_its_name_or_beside_it() -> None:
    for facts in FACTS.values():
        if facts.weights_from == "file":
            assert (facts.sha256_prefix, facts.url) == ("", None)
            continue
        assert len(facts.sha256_prefix) == (64 if facts.weights_from == "dinov2" else 8)
        assert int(facts.sha256_prefix, 16) > 0
    assert FACTS["resnet18"].url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert FACTS["efficientnet_lite0"].url is None
    folder = "https://dl.fbaipublicfiles.com/dinov2"
    assert FACTS["dinov2_vits14"].url == f"{folder}/dinov2_vits14/dinov2_vits14_pretrain.pth"
    assert FACTS["dinov2_vitb14_reg"].url == f"{folder}/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth"


def test_a_local_file_needs_no_classification_layers_and_may_have_them(tmp_path: Path) -> None:
    trunk = build("resnet18", strides=(4, 8, 16, 32)).state_dict()
    torch.save(trunk | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}, tmp_path / "w.pth")
    for strides in ((4, 8, 16, 32), (4, 8, 16)):
        teacher, info = load_teacher("resnet18", strides=strides, source=tmp_path / "w.pth")
        assert torch.equal(teacher.state_dict()["layer3.1.bn2.weight"], trunk["layer3.1.bn2.weight"])
        assert info.source == "w.pth"
        assert info.sha256 == hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
        assert not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_vgg_trunk_without_fully_connected_layers_loads_strictly(tmp_path: Path) -> None:
    trunk = build("vgg16", strides=(32,)).state_dict()
    torch.save(trunk, tmp_path / "vgg.pth")
    teacher, _ = load_teacher("vgg16", strides=(4, 8, 16, 32), source=tmp_path / "vgg.pth")
    assert teacher.strides == (4, 8, 16, 32)
    assert teacher.state_dict().keys() == trunk.keys()
    assert all(torch.equal(value, trunk[key]) for key, value in teacher.state_dict().items())


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    trunk = build("resnet18", strides=(4, 8, 16, 32)).state_dict()
    path = tmp_path / "w.pth"
    torch.save(trunk, path)
    with pytest.raises(WeightsError, match=r"w\.pth: not weights of resnet34: lacks 'layer1\.2"):
        load_teacher("resnet34", source=path)
    torch.save(trunk | {"layer5.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"has 'layer5\.weight'; leave those out if it is resnet"):
        load_teacher("resnet18", source=path)
    torch.save(trunk | {"layer5.weight": torch.zeros(1), "layer5.bias": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"resnet\d+: has 'layer5\.weight', '[\w.]+'; leave those out"):
        load_teacher("resnet18", source=path)
    torch.save({f"model.net.{key}": value for key, value in trunk.items()}, path)
    many = r".* \(and \d+ more\)"
    words = rf"lacks 'conv1\.weight', {many}, and has 'model\.net\.conv1\.weight', {many}; take 'model\.net\.' off"
    with pytest.raises(WeightsError, match=words):
        load_teacher("resnet18", source=path)
    torch.save({"a": torch.zeros(1)}, path)
    words = r"and has 'a'; its names must be those of resnet18-f37072fd\.pth, 'conv1\.weight' say: give such a file"
    with pytest.raises(WeightsError, match=words):
        load_teacher("resnet18", source=path)
    torch.save(trunk | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(
        WeightsError, match=r"shape \(64, 3, 3, 3\), not \(64, 3, 7, 7\); give those of resnet18 itself"
    ):
        load_teacher("resnet18", source=path)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18-f37072fd.pth",
        "RESNET18-F37072FD.PTH",
        "resnet18-f37072fdffffffff.pth",
        f"mine-{'0' * 64}.pt",
        "resnet18-57934424.pth",  # digits only, and no day
        "resnet18-20241301.pth",  # there is no thirteenth month
    ],
)
def test_a_file_that_is_not_what_its_name_promises_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save(build("resnet18", strides=(4, 8, 16, 32)).state_dict(), path)
    with pytest.raises(
        WeightsError, match=r"sha256 begins [0-9a-f]{8}.*, not .* as its name says: .*rename it"
    ) as error:
        load_teacher("resnet18", source=path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["w.pth", "resnet18.pth", "resnet18-20240131.pth", "resnet18-f37072.pth", "a-deadbee.pth"]
)
def test_a_name_that_promises_nothing_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    torch.save(build("resnet18", strides=(4, 8, 16, 32)).state_dict(), tmp_path / name)
    assert load_teacher("resnet18", source=tmp_path / name)[1].source == name


def test_a_file_that_is_what_its_name_promises_is_taken(tmp_path: Path) -> None:
    torch.save(build("resnet18", strides=(4, 8, 16, 32)).state_dict(), tmp_path / "w.pth")
    for digits in (8, 64):
        sha256 = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
        path = (tmp_path / "w.pth").rename(tmp_path / f"resnet18-{sha256[:digits]}.pth")
        assert load_teacher("resnet18", source=path)[1].sha256 == sha256
        path.rename(tmp_path / "w.pth")


def test_another_file_under_the_published_name_in_torch_hubs_cache_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(build("resnet18", strides=(4, 8, 16, 32)).state_dict(), folder / "resnet18-f37072fd.pth")
    with pytest.raises(WeightsError, match="not f37072fd as its name says: not the published file; delete it"):
        load_teacher("resnet18")


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        load_teacher("resnet18", source=tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(WeightsError, match="not a plain state_dict"):
        load_teacher("resnet18", source=tmp_path / "text.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds list"):
        load_teacher("resnet18", source=tmp_path / "list.pth")


TRUNK = {key: value.detach() for key, value in build("resnet18", strides=(4,)).state_dict().items()}
NO_WEIGHTS = {
    "a checkpoint of a training": ({"epoch": 3, "state_dict": TRUNK}, "'epoch' is of type int"),
    "tensors by number": (TRUNK | {7: torch.zeros(1)}, "7 is of type int"),
    "not finite": (
        TRUNK | {"bn1.weight": torch.full((64,), torch.nan)},
        "'bn1.weight' holds values that are not finite",
    ),
    "quantised by hand": (TRUNK | {"conv1.weight": TRUNK["conv1.weight"].to(torch.int8)}, "holds int8, not floats"),
    "complex": (TRUNK | {"bn1.weight": torch.ones(64, dtype=torch.complex64)}, "holds complex64, not floats"),
    "sparse": (TRUNK | {"bn1.weight": torch.ones(64).to_sparse()}, "'bn1.weight' is no plain tensor"),
    "without values": (TRUNK | {"bn1.weight": torch.ones(64, device="meta")}, "'bn1.weight' is no plain tensor"),
    "nested": (
        TRUNK | {"bn1.weight": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)},
        "'bn1.weight' is no plain tensor",
    ),
    "beyond float32": (
        TRUNK | {"bn1.running_var": torch.full((64,), 1e300, dtype=torch.float64)},
        "'bn1.running_var' holds values that are not finite as float32",
    ),
    "a type without arithmetic": (
        TRUNK | {"bn1.weight": torch.empty(64, dtype=torch.float4_e2m1fn_x2)},
        "'bn1.weight' holds float4_e2m1fn_x2, of which torch makes no float32",
    ),
    "a variance below 0": (TRUNK | {"bn1.running_var": torch.full((64,), -1e-6)}, "holds variances below 0"),
    "a whole network": (torch.nn.Linear(2, 2), "more than tensors, whose code is not run"),
}


def refusal(tmp_path: Path, content: object) -> str:
    """What is said of a file `w.pth` with this content where it is given as a ResNet-18's weights."""
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        load_teacher("resnet18", strides=(4,), source=tmp_path / "w.pth")
    return str(caught.value)


@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_what_is_no_file_of_weights_is_one_line_with_the_remedy(tmp_path: Path, case: str) -> None:
    content, words = NO_WEIGHTS[case]
    said = refusal(tmp_path, content)
    assert said.isprintable()
    assert said.startswith(f"{tmp_path / 'w.pth'}: not ")
    assert words in said
    assert said.endswith("; give a file of torch.save(network.state_dict(), FILE)")


BLIND = {
    "zeros": ({key: value * 0 for key, value in TRUNK.items()}, "its tap at stride 4 is the same for every image"),
    "a first layer of zeros": (
        TRUNK | {"conv1.weight": TRUNK["conv1.weight"] * 0},
        "its tap at stride 4 is the same for every image",
    ),
    "beyond float32 within": (
        TRUNK
        | {"conv1.weight": TRUNK["conv1.weight"] * 1e38, "layer1.0.conv1.weight": torch.full((64, 64, 3, 3), 1e9)},
        "its tap at stride 4 is not finite",
    ),
}


@pytest.mark.parametrize("case", BLIND)
def test_weights_of_a_network_that_says_the_same_of_every_image_are_refused(tmp_path: Path, case: str) -> None:
    """Every student agrees with such a teacher: a row of chance that looks like one of a method."""
    content, words = BLIND[case]
    assert refusal(tmp_path, content) == (
        f"{tmp_path / 'w.pth'}: not weights of a resnet18 that sees anything: {words}; give trained ones"
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_of_no_tensors_is_an_error_and_no_warning_beside_it(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": Path}, protocol))
    with pytest.raises(WeightsError, match="or one of more than tensors, whose code is not run"):
        load_teacher("resnet18", source=tmp_path / "w.pth")


def test_weights_of_a_narrower_type_are_taken(tmp_path: Path) -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        torch.save(TRUNK | {"bn1.weight": torch.full((64,), 1.5, dtype=kind)}, tmp_path / "w.pth")
        assert load_teacher("resnet18", strides=(4,), source=tmp_path / "w.pth")[0].state_dict()["bn1.weight"][0] == 1.5


def test_loading_draws_nothing_and_costs_no_compiler(tmp_path: Path) -> None:
    """Random weights that a file replaces were drawn, and the names of the others asked for so that torch's compiler
    was loaded: five seconds of a process, before its first job."""
    network = build("resnet18")
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    before = torch.get_rng_state()
    teacher, _ = load_teacher("resnet18", source=tmp_path / "mine.pth")
    assert torch.equal(torch.get_rng_state(), before)
    wanted = network.state_dict()
    assert teacher.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in teacher.state_dict().items())
    code = (
        "import sys; from kdad_bench.methods.backbones.weights import load_teacher; "
        f"load_teacher('resnet18', source={str(tmp_path / 'mine.pth')!r}); print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("name", sorted(FACTS))
def test_what_is_undrawn_has_all_names_and_shapes(name: str) -> None:
    with torch.device("meta"), Undrawn():
        undrawn = build(name, strides=tuple(FACTS[name].channels))
    drawn = build(name, strides=tuple(FACTS[name].channels))
    shapes = {key: value.shape for key, value in drawn.state_dict().items()}
    assert {key: value.shape for key, value in undrawn.state_dict().items()} == shapes
    norms = {key for key, value in drawn.state_dict().items() if value.is_floating_point() and bool((value == 1).all())}
    with Undrawn():
        there = build(name, strides=tuple(FACTS[name].channels)).state_dict()
    assert all(bool((there[key] == 1).all()) for key in norms)  # what is constant is set as ever


def test_weights_of_half_precision_are_taken(tmp_path: Path) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in TRUNK.items()}
    torch.save(half, tmp_path / "w.pth")
    teacher, _ = load_teacher("resnet18", strides=(4,), source=tmp_path / "w.pth")
    assert teacher.state_dict()["conv1.weight"].dtype == torch.float32


def test_random_weights_have_to_be_asked_for_and_are_always_the_same() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, info = load_teacher("resnet18", source="random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    second, again = load_teacher("resnet18", source="random")
    assert info == again
    assert info.source == "random"
    assert load_teacher("resnet18", strides=(8,), source="random")[0].strides == (8,)
    assert torch.equal(first.state_dict()["conv1.weight"], second.state_dict()["conv1.weight"])


def test_lite0_comes_with_the_wheel_and_its_hash_is_that_of_its_name() -> None:
    path = find_weights("efficientnet_lite0")
    assert path is not None
    teacher, info = load_teacher("efficientnet_lite0", strides=(4, 8, 16, 32))
    assert info.sha256.startswith("57934424")
    published = torch.load(path, weights_only=True)
    assert all(torch.equal(value, published[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize(("photograph", "names_of_it"), [("china.jpg", (698, 442)), ("flower.jpg", (985,))])
def test_lite0_with_its_published_head_recognises_photographs(photograph: str, names_of_it: tuple[int, ...]) -> None:
    """ImageNet's 698 and 442 are palace and bell cote, 985 is daisy.

    A layer in the wrong place, a wrong padding or a wrong normalisation would flatten the answer.
    """
    images = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    path = find_weights("efficientnet_lite0")
    assert path is not None
    published = torch.load(path, weights_only=True)
    teacher, _ = load_teacher("efficientnet_lite0", strides=(32,))
    head_norm = norm(1280).eval().requires_grad_(False)
    head_norm.load_state_dict({key: published[f"_bn1.{key}"] for key in head_norm.state_dict()})
    pixels = torch.tensor(images.load_sample_image(photograph)).permute(2, 0, 1)[None] / 255  # [1, 3, 427, 640]
    image = F.interpolate(pixels, (224, 336), mode="bilinear", antialias=True)[..., 56:280]
    features = F.relu6(head_norm(F.conv2d(teacher(image)[0], published["_conv_head.weight"]))).mean((2, 3))
    logits = F.linear(features, published["_fc.weight"], published["_fc.bias"])[0]
    best = logits.topk(len(names_of_it)).indices
    assert tuple(best.tolist()) == names_of_it
    assert float(logits.softmax(0).max()) > 0.15  # of 1000 classes


@pytest.mark.parametrize("name", names.BACKBONES)
def test_weights_of_every_teacher_are_looked_at(tmp_path: Path, name: str) -> None:
    """A ViT has several taps of one stride, and more of no stride: its published weights ended in an error."""
    strides = {"dinov2": (14,), "pdn": (4,)}.get(name.split("_")[0], (4, 8))
    network = build(name, strides=strides)
    torch.manual_seed(0)
    whole = {
        key: torch.rand_like(value) * 0.05 if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    torch.save(whole, tmp_path / "w.pth")
    taken, _ = load_teacher(name, strides=strides, source=tmp_path / "w.pth")
    assert taken.strides == strides
    torch.save({key: value * 0 for key, value in whole.items()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"its tap .* is (the same for every image|not finite)"):
        load_teacher(name, strides=strides, source=tmp_path / "w.pth")
