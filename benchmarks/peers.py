"""STFPM with ResNet-18 at 256 px here and in anomalib 2.7.0: the same weights, images, batches and steps, in turns.

    KDAD_DATA=FOLDER python benchmarks/peers.py --weights resnet18.pth --peer PEER/bin/python [--steps 40] [--rounds 3]

It installs nothing. PEER is an environment of its own, with the same version of torch as here:

    python -m venv PEER && PEER/bin/pip install anomalib==2.7.0 && PEER/bin/pip install --no-deps torchvision==0.28.0

where torchvision's compiled part does not fit torch, the operators `torchvision::nms` and `torchvision::qnms` that its
import asks for are declared before it. Both sides are processes that wait for each other; each round trains and
evaluates on both. Training: so many steps of 32 images from a fresh student, the teacher included. Evaluation: all
test images to scores and maps, and the area under the ROC curve of images and pixels. Reading and decoding files,
which both do beforehand, is not timed. Beside the seconds stands the share that the
bare convolutions of the same shapes, forward and backward as often as they are needed, would take of the whole: their
seconds in PyTorch, in the same rounds, by those of the whole here. Above 100 % the convolutions here take fewer
products.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BATCH = 32
LAYERS = ["layer1", "layer2", "layer3"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Work = Callable[[], object]


def batches(images: Tensor, steps: int) -> Iterator[Tensor]:
    """So many batches of `images` uint8 [N, 3, H, W], normalised, in seeded orders."""
    generator, order = torch.Generator().manual_seed(0), torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if not len(order):
            order = torch.randperm(len(images), generator=generator)
        yield normalised(images[order[:BATCH]])
        order = order[BATCH:]


def normalised(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] as the teacher was trained to see them."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


# ---- this package


def ours(folder: Path, weights: str, steps: int) -> dict[str, Work]:
    """What this side can be asked to do."""
    import kdad_bench
    from kdad_bench.metrics import image_metrics, pixel_metrics

    train, test, labels, masks = arrays(folder)
    settings = {"preset": "paper", "teacher": "resnet18", "weights": weights, "weight_decay": 1e-3, "steps": steps}
    state: dict[str, Any] = {}

    def learn() -> None:
        state["detector"] = kdad_bench.Detector("stfpm", resolution=256, hold_out=0, device="cpu", **settings)
        state["detector"].fit(torch.from_numpy(train))

    def judge() -> dict[str, Any]:
        found = state["detector"].predict(torch.from_numpy(test))
        return {**image_metrics(found.scores, labels), **pixel_metrics(found.maps, masks)}

    return {"train": learn, "evaluate": judge, **bare(len(train), len(test), steps)}


def bare(train: int, test: int, steps: int) -> dict[str, Work]:
    """The convolutions of ResNet-18 up to layer3 alone, in this package's order of memory.

    Training needs the student's forward and both gradients at every step, and the teacher's forward once for each image
    that it sees: its answers are kept. Evaluation needs both forwards of every image.
    """
    from kdad_bench.methods.backbones.resnet import ResNet

    shapes: list[tuple[nn.Conv2d, Tensor]] = []
    network = ResNet("resnet18", (4, 8, 16)).to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda layer, inputs, _: shapes.append((layer, inputs[0])))
    with torch.no_grad():
        network.taps(torch.rand(BATCH, 3, 256, 256).contiguous(memory_format=torch.channels_last))

    def forward(images: int) -> None:
        with torch.inference_mode():
            for start in range(0, images, BATCH):
                for layer, x in shapes:
                    nn.functional.conv2d(x[: images - start], layer.weight, None, layer.stride, layer.padding)

    def step() -> None:
        for number, (layer, x) in enumerate(shapes):
            x = x.detach().requires_grad_(number > 0)
            y = nn.functional.conv2d(x, layer.weight, None, layer.stride, layer.padding)
            torch.autograd.grad(y, [layer.weight, *([x] if number else [])], torch.ones_like(y))

    def learn() -> None:
        forward(min(train, steps * BATCH))
        for _ in range(steps):
            step()

    return {"bare train": learn, "bare evaluate": lambda: forward(2 * test)}


# ---- the peer


def theirs(folder: Path, weights: str, steps: int) -> dict[str, Work]:
    """What the other side can be asked to do; anomalib is only imported in its own environment."""
    declare_operators()
    import timm
    from torchmetrics.classification import BinaryAUROC

    create = timm.create_model
    timm.create_model = lambda *args, **kwargs: create(*args, **{**kwargs, "pretrained": False})  # nothing is fetched
    from anomalib.models.image.stfpm.loss import STFPMLoss
    from anomalib.models.image.stfpm.torch_model import STFPMModel

    train, test, labels, masks = arrays(folder)
    state: dict[str, Any] = {}

    def learn() -> None:
        torch.manual_seed(0)
        model = state["model"] = STFPMModel(layers=LAYERS, backbone="resnet18")
        take(model.teacher_model.feature_extractor, torch.load(weights, weights_only=True))
        loss_of = STFPMLoss()
        optimiser = torch.optim.SGD(model.student_model.parameters(), lr=0.4, momentum=0.9, weight_decay=1e-3)
        model.train()
        model.teacher_model.eval()
        for images in batches(torch.from_numpy(train), steps):
            loss = loss_of(*model(images))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def judge() -> dict[str, float]:
        model = state["model"].eval()
        with torch.inference_mode():
            parts = [model(normalised(chunk)) for chunk in torch.from_numpy(test).split(BATCH)]
            scores, maps = torch.cat([one.pred_score for one in parts]), torch.cat([one.anomaly_map for one in parts])
            image = BinaryAUROC()(scores.flatten(), torch.from_numpy(labels).long())
            pixel = BinaryAUROC()(maps.flatten(), torch.from_numpy(masks).flatten().long())
        return {"image_auroc": float(image), "pixel_auroc": float(pixel)}

    return {"train": learn, "evaluate": judge}


def declare_operators() -> None:
    """The two operators that torchvision's import asks for, where its compiled part cannot be loaded."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    KEPT.append(library)


KEPT: list[torch.library.Library] = []  # an operator goes with its library


def take(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load `weights`, with the names of torchvision's ResNet; raises ValueError where one of the network lacks."""
    lacking = network.load_state_dict(weights, strict=False).missing_keys
    lacking = [name for name in lacking if not name.endswith("num_batches_tracked")]
    if lacking:
        raise ValueError(f"no weights for {', '.join(lacking[:3])}")


# ---- both


def arrays(folder: Path) -> tuple[Any, Any, Any, Any]:
    """Training images, test images, labels, masks, as `main` has written them."""
    return tuple(np.load(folder / f"{name}.npy") for name in ("train", "test", "labels", "masks"))  # type: ignore[return-value]


def serve(side: str, folder: str, weights: str, steps: int, threads: int) -> None:
    """Do what each line of stdin names, and answer with a line of seconds and values."""
    torch.set_num_threads(threads)
    can = {"ours": ours, "theirs": theirs}[side](Path(folder), weights, steps)
    print(json.dumps({"ready": torch.__version__}), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        found = can[line.strip()]()
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({**took, "found": found}), flush=True)


class Side:
    """A process that waits for work."""

    def __init__(self, python: str, *arguments: object) -> None:
        command = [python, __file__, "--serve", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self.answer()["ready"]

    def answer(self) -> dict[str, Any]:
        """The next line in JSON; raises SystemExit where the process ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"{self.process.args}: ended with {self.process.wait()}")

    def do(self, what: str) -> dict[str, Any]:
        """Have `what` done."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer()


def write_arrays(folder: Path, category: str) -> str:
    """The images and masks of an MVTec AD category at 256 px; returns a line on them."""
    from kdad_bench.datasets import load_test, load_train
    from kdad_bench.harness.options import options_from
    from kdad_bench.harness.selection import categories_of

    chosen = {"datasets": ("mvtec_ad",), "categories": (category,), "data_root": Path(os.environ["KDAD_DATA"])}
    (found,) = categories_of(options_from(chosen))
    train, test = load_train(found, 256), load_test(found, 256)
    for name, values in (("train", train), ("test", test.images), ("labels", test.labels), ("masks", test.masks)):
        np.save(folder / f"{name}.npy", values)
    return f"{category}: {len(train)} training and {len(test.labels)} test images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="of ResNet-18, with torchvision's names")
    parser.add_argument("--peer", required=True, help="the python of an environment with anomalib")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdad-peers-") as folder:
        print(write_arrays(Path(folder), given.category), flush=True)
        rest = (folder, given.weights, given.steps, given.threads)
        sides = {"ours": Side(sys.executable, "ours", *rest), "theirs": Side(given.peer, "theirs", *rest)}
        versions = [side.version for side in sides.values()]
        if len(set(versions)) > 1:
            raise SystemExit(f"torch {versions[0]} here, {versions[1]} there: nothing to compare; install one in both")
        took: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for _ in range(given.rounds):
            for side, what in PLAN:
                took.setdefault((side, what), []).append(sides[side].do(what))
        print(f"{given.steps} steps of {BATCH}, {given.threads} threads, {given.rounds} rounds, medians; torch "
              f"{versions[0]}; load {os.getloadavg()[0]:.1f}\n")  # fmt: skip
        report(took)


PLAN = [
    (side, what)
    for what in ("train", "evaluate")
    for side, what in (("ours", what), ("theirs", what), ("ours", f"bare {what}"))
]


def report(took: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """A line for each kind of work, and what both sides found."""

    def median(side: str, what: str, of: str) -> float:
        return statistics.median(one[of] for one in took[side, what])

    print(
        "| | ours s | anomalib s | ratio | ours CPU s | anomalib CPU s | ratio | PyTorch's bare convolutions / ours |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for what in ("train", "evaluate"):
        cells = []
        for of in ("wall", "cpu"):
            mine, other = median("ours", what, of), median("theirs", what, of)
            cells += [f"{mine:.2f}", f"{other:.2f}", f"{other / mine:.2f}"]
        peak = median("ours", f"bare {what}", "cpu") / median("ours", what, "cpu")
        print(f"| {what} | {' | '.join(cells)} | {peak:.0%} |")
    for side in ("ours", "theirs"):
        found = took[side, "evaluate"][-1]["found"]
        print(f"\n{side}: image AUROC {found['image_auroc']:.4f}, pixel AUROC {found['pixel_auroc']:.4f}", end="")
    print()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    else:
        main()
