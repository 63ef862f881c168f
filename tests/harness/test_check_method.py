"""`check-method` passes an honest method and rejects one with a single fault, with the reason."""

from __future__ import annotations

import signal
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from kdad_bench.cli import cli
from kdad_bench.harness.check_method import RULES, Bench, Verdict, check, verdict_of
from kdad_bench.interrupts import Interrupted, Terminated
from kdad_bench.methods import METHODS, outside

PLAIN = (Path(__file__).parent / "plain_method.py.txt").read_text()


def judged(text: str, tmp_path: Path) -> dict[str, Verdict]:
    path = tmp_path / "plain.py"
    path.write_text(text)
    name = outside.add_file(path, "", METHODS)
    return {verdict.rule: verdict for verdict in check(name)}


def test_an_honest_method_keeps_every_rule(tmp_path: Path) -> None:
    found = judged(PLAIN, tmp_path)
    assert list(found) == list(RULES)
    assert {rule: one.reason for rule, one in found.items() if not one.kept} == {}
    assert [rule for rule, one in found.items() if one.remark] == ["learns what it trains", "the teacher stays frozen"]


OWN = "    strides: tuple[int, ...] = (8,)\n"
QUICK = "PlainSettings(image_size=64)"
TYPING = "from typing import ClassVar\nimport torch\n"
# what settings allow -> (a line of theirs, the quick preset, what of it rules are checked with)
NARROW_SETTINGS = {
    "no small images": ("RANGES: ClassVar = {**Settings.RANGES, 'image_size': Range(128, 8192)}",
                        "PlainSettings(image_size=128)", (128, 4, 4)),
    "patches of 14": ("", "PlainSettings(teacher='dinov2_vits14', strides=(14,), image_size=126)", (70, 4, 4)),
    "a warm-up": ("CONFLICTS: ClassVar = {'steps': lambda own: 'too few' if (own.steps or 9) < 9 else ''}",
                  "PlainSettings(image_size=128, steps=60)", (64, 60, 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", NARROW_SETTINGS)
def test_a_method_is_shrunk_as_far_as_its_settings_allow(case: str, tmp_path: Path) -> None:
    line, quick, wanted = NARROW_SETTINGS[case]
    text = PLAIN.replace(OWN, f"{OWN}    {line}\n").replace(QUICK, quick)
    text = text.replace("Scores, Settings", "Range, Scores, Settings").replace("import torch\n", TYPING, 1)
    path = tmp_path / "plain.py"
    path.write_text(text)
    name = outside.add_file(path, "", METHODS)
    own = Bench(name).settings
    assert (own.image_size, own.steps, own.batch_size) == wanted
    rule = "answers: shapes, float32, finite"
    assert verdict_of(rule, RULES[rule], name).reason == ""


WEIGHT = '        self.module.register_buffer("weight", torch.zeros(1))\n'
NETWORKS = "        return images\n"
SCORE = "        pixel = (images - self.module.mean).abs().mean(1) * self.module.weight\n"
FIT = "        fitting = fitting or Fitting()\n"
RETURN = "        return Scores(pixel.flatten(1).amax(1), pixel)\n"
# fault -> (line of the method, what stands there instead, rule that must reject it, words of the reason)
MUTANTS = {
    "learns from scored images": (
        SCORE,
        SCORE + "        self.seen.append(images.mean())\n",
        "sees the given normals only",
        "it scored before",
    ),
    "reads image files": (FIT, FIT + "        np.load({file!r})\n", "sees the given normals only", "opens images.npy"),
    "reads raw pixels": (
        FIT,
        FIT + "        np.fromfile({file!r} + '.raw', np.uint8)\n",
        "sees the given normals only",
        "opens images.npy.raw",
    ),
    "reads any file of the data sets": (
        FIT,
        FIT + "        open({file!r} + '.txt').close()\n",
        "sees the given normals only",
        "opens images.npy.txt",
    ),
    "asks another machine": (
        FIT,
        FIT + "        import socket; asking = socket.socket(); asking.connect_ex(('127.0.0.1', 9)); asking.close()\n",
        "sees the given normals only",
        "it asks 127.0.0.1 over the network",
    ),
    "looks for a machine by its name": (
        FIT,
        FIT + "        import socket; socket.getaddrinfo('localhost', 80)\n",
        "sees the given normals only",
        "it asks localhost over the network",
    ),
    "normalises over the batch": (
        SCORE,
        SCORE + "        pixel = (pixel - pixel.min()) / (pixel.max() - pixel.min())\n",
        "judges each image alone",
        "depends on the other images of the batch",
    ),
    "stretches image scores over large batches": (
        RETURN,
        "        image = pixel.flatten(1).amax(1)\n"
        "        return Scores((image - image.min()) / image.max() if len(image) > 6 else image, pixel)\n",
        "judges each image alone",
        "the image score differs",
    ),
    "judges an image by its place in the batch": (
        RETURN,
        "        image = pixel.flatten(1).amax(1)\n"
        "        return Scores(torch.cat([image[:12], 2 * image[12:]]), pixel)\n",
        "judges each image alone",
        "the image score differs",
    ),
    "cuts its gradients off": (
        WEIGHT,
        WEIGHT + "        self.module.student = nn.Linear(2, 2)\n",
        "learns what it trains",
        "none of its 2 trainable parameters changes",
    ),
    "starts a program": (
        SCORE,
        SCORE + "        import subprocess; subprocess.run(['cat', {file!r}], capture_output=True)\n",
        "sees the given normals only",
        "it starts the program cat",
    ),
    "starts a shell": (
        SCORE,
        SCORE + "        import os; os.system('true ' + {file!r})\n",
        "sees the given normals only",
        "it starts the program true",
    ),
    "splits itself": (
        SCORE,
        SCORE + "        import os; os.fork() or os._exit(0)\n",
        "sees the given normals only",
        "it starts a process of its own",
    ),
    "changes its state": (
        SCORE,
        SCORE + "        self.module.mean = 0.9 * self.module.mean + 0.1 * images.mean((0, 2, 3))[:, None, None]\n",
        "scoring changes nothing",
        "scoring changed the state: mean",
    ),
    "keeps what it scored outside of its state": (
        SCORE,
        SCORE + "        self.seen.append(pixel.mean())\n        pixel = pixel + sum(self.seen)\n",
        "scoring changes nothing",
        "depend on what was scored before",
    ),
    "hides what it learnt": (
        "        self.module.mean = normal.mean((0, 2, 3))[:, None, None].clone()\n",
        "        self.module.__dict__['_buffers'].pop('mean')\n        self.module.__dict__['mean'] = "
        "normal.mean((0, 2, 3))[:, None, None].clone()\n",
        "reloads from its state",
        "",
    ),
    "resumes from the start": (
        "            start, value = torch.load(fitting.checkpoint)\n",
        "            start, value = 1, torch.load(fitting.checkpoint)[1]\n",
        "resumes where it stopped",
        "a resumed training ends otherwise",
    ),
    "takes the folder of its checkpoint for granted": (
        "                fitting.checkpoint.parent.mkdir(parents=True, exist_ok=True)\n",
        "",
        "resumes where it stopped",
        "it raises RuntimeError",
    ),
    "ignores its seed": (
        "torch.rand(1, generator=random)",
        "torch.rand(1)",
        "leaves the process alone",
        "building or fitting moves torch's random state",
    ),
    "draws from the system": (
        "torch.rand(1, generator=random)",
        "float(np.random.default_rng().random())",
        "the seed decides everything",
        "the same seed gives another state",
    ),
    "trains its teacher": (
        FIT,
        FIT + "        next(self.teacher.parameters()).data.add_(1)\n",
        "the teacher stays frozen",
        "the teacher changed",
    ),
    "changes the normals": (FIT, FIT + "        normal.mul_(0.5)\n", "leaves the images alone", "`fit` changes"),
    "changes the tested images": (SCORE, "        images.mul_(0.5)\n" + SCORE, "leaves the images alone", "`score`"),
    "lets gradients reach its teacher": (
        FIT,
        FIT + "        weight = next(self.teacher.parameters()).requires_grad_()\n        weight.sum().backward()\n",
        "the teacher stays frozen",
        "gradients reach the teacher: ",
    ),
    "keeps a file": (
        SCORE,
        SCORE + "        np.savez({file!r} + 'z', images)\n",
        "sees the given normals only",
        "it leaves images.npyz.npz behind",
    ),
    "keeps a file by PyTorch": (
        SCORE,
        SCORE + "        torch.save(images, {file!r} + '.pt')\n",
        "sees the given normals only",
        "it leaves images.npy.pt behind",
    ),
    "sets the random state as it scores": (
        SCORE,
        "        torch.manual_seed(0)\n" + SCORE,
        "leaves the process alone",
        "scoring moves torch's random state",
    ),
    "draws from numpy's generator": (
        FIT,
        FIT + "        np.random.rand()\n",
        "leaves the process alone",
        "building or fitting moves numpy's random state",
    ),
    "sets the default type": (
        FIT,
        FIT + "        torch.set_default_dtype(torch.float64)\n",
        "leaves the process alone",
        "torch's default type",
    ),
    "sets a variable of the environment": (
        FIT,
        FIT + "        import os; os.environ['MINE'] = str(len(os.environ))\n",
        "leaves the process alone",
        "environment variables",
    ),
    "ends the process": (FIT, FIT + "        raise SystemExit(0)\n", "answers", "it raises SystemExit"),
    "scores every image alike": (
        SCORE,
        SCORE + "        return Scores(torch.ones(len(images)), pixel)\n",
        "answers",
        "its image scores are constant",
    ),
    "answers in float64": (SCORE, SCORE + "        pixel = pixel.double()\n", "answers", "float64"),
    "answers in another size": (SCORE, SCORE + "        pixel = pixel[:, ::2]\n", "answers", "not float32"),
    "answers with arrays": (
        SCORE,
        SCORE + "        return Scores(pixel.flatten(1).amax(1).numpy(), pixel)\n",
        "answers",
        "not a torch.Tensor",
    ),
    "answers with a pair": (
        SCORE,
        SCORE + "        return pixel.flatten(1).amax(1), pixel\n",
        "answers",
        "gives tuple, not Scores",
    ),
    "answers with NaN": (SCORE, SCORE + "        pixel = pixel / 0 - pixel / 0\n", "answers", "not finite"),
    "has no networks": ("    def networks(", "    def others(", "its networks run", "has no attribute 'networks'"),
    "has networks that do not run": (
        NETWORKS,
        "        raise RuntimeError('no networks')\n",
        "its networks run",
        "RuntimeError: no networks",
    ),
    "has networks of one size": (
        NETWORKS,
        "        return images.reshape(1, 3, 64, 64)\n",
        "its networks run",
        "RuntimeError: shape",
    ),
    "learns from what its networks see": (
        NETWORKS,
        "        self.module.weight += 1\n        return images\n",
        "its networks run",
        "changed the state",
    ),
    "says nothing": (SCORE, SCORE + "        pixel = pixel * 0\n", "answers", "its maps are constant"),
    "raises": (
        FIT,
        FIT + "        raise RuntimeError('out of luck')\n",
        "answers",
        "it raises RuntimeError: out of luck",
    ),
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_method_with_one_fault_is_rejected_with_the_reason(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDAD_DATA", str(tmp_path))
    line, instead, rule, words = MUTANTS[fault]
    assert PLAIN.count(line) == 1
    text = PLAIN.replace(line, instead).replace("import torch\n", "import numpy as np\nimport torch\n", 1)
    if fault == "learns from scored images":
        text = text.replace(
            "normal.mean((0, 2, 3))[:, None, None].clone()", "normal.mean((0, 2, 3))[:, None, None] + sum(self.seen)"
        )
    if "teacher" in fault:
        text = text.replace("needs_teacher=False", "needs_teacher=True")
    np.save(tmp_path / "images.npy", np.zeros(3))
    for suffix in (".raw", ".txt"):
        (tmp_path / f"images.npy{suffix}").write_bytes(bytes(3))
    found = judged(text.replace("{file!r}", repr(str(tmp_path / "images.npy"))), tmp_path)
    (verdict,) = (one for name, one in found.items() if name.startswith(rule))
    assert not verdict.kept
    assert words in verdict.reason


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts of bytes that were read are Linux's")
def test_a_file_that_a_library_in_c_reads_is_seen_as_the_bytes_it_has(tmp_path: Path) -> None:
    """A results file has the labels and scores of test images, and no event of Python's tells that it is read."""
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"scores": np.random.default_rng(0).random(4000)}), table)
    reads = SCORE + f"        pq.ParquetFile(pa.OSFile({str(table)!r})).read()\n"
    text = PLAIN.replace(SCORE, reads).replace(
        "import torch\n", "import pyarrow as pa\nimport pyarrow.parquet as pq\nimport torch\n", 1
    )
    verdict = judged(text, tmp_path)["sees the given normals only"]
    assert "bytes of files by a library in C" in verdict.reason


def test_a_text_that_python_reads_is_no_file_of_images(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("7" * 50_000)
    text = PLAIN.replace(
        FIT, FIT + f"        with open({str(tmp_path / 'own.txt')!r}) as own:\n            own.read()\n"
    )
    assert judged(text, tmp_path)["sees the given normals only"].reason == ""


def test_answers_that_are_not_finite_accuse_no_other_rule(tmp_path: Path) -> None:
    found = judged(PLAIN.replace(SCORE, SCORE + "        pixel = pixel / 0 - pixel / 0\n"), tmp_path)
    assert [rule for rule, one in found.items() if not one.kept] == ["answers: shapes, float32, finite"]
    assert found["judges each image alone"].remark == "its answers cannot be compared: they are not finite"


def test_answers_that_are_finite_no_more_break_the_rule_that_made_them_so(tmp_path: Path) -> None:
    """What a saved model does not hold is lost: the method that is read again answers with NaN."""
    lost = PLAIN.replace(FIT, FIT + "        self.scale = 1.0\n").replace(
        SCORE, SCORE + "        pixel = pixel * getattr(self, 'scale', float('nan'))\n"
    )
    found = judged(lost, tmp_path)
    broken = [one.reason for one in found.values() if not one.kept]
    assert any("what was finite is not any more" in reason for reason in broken), found
    assert found["answers: shapes, float32, finite"].kept


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (PLAIN, 0, "plain: keeps every rule"),
        (PLAIN.replace(SCORE, SCORE + "        pixel = pixel * 0\n"), 1, "BROKEN  answers"),
    ],
)
def test_the_command_says_a_verdict_and_its_exit_code_tells(text: str, code: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(text)
    result = CliRunner().invoke(cli, ["check-method", str(tmp_path / "plain.py"), "--timeout", "1e300"])
    assert result.exit_code == code, result.output
    assert words in result.stdout


UNFINISHED = {
    "kills the process as it is imported": (
        "import os\nos.kill(os.getpid(), 9)\n",
        "its code ends the whole process while it is imported (signal SIGKILL)",
    ),
    "kills the process": (
        PLAIN.replace(FIT, FIT + "        import os; os.kill(os.getpid(), 9)\n"),
        "is checked (signal SIGKILL)",
    ),
    "hangs": (
        PLAIN.replace(FIT, FIT + "        import time; time.sleep(1000)\n"),
        "nothing comes back while the rule 'answers: shapes, float32, finite' is checked, for --timeout 3 s",
    ),
}


@pytest.mark.parametrize("fault", UNFINISHED)
def test_a_method_that_ends_its_process_or_never_returns_is_one_line_and_exit_code_2(
    fault: str, tmp_path: Path
) -> None:
    text, words = UNFINISHED[fault]
    path = tmp_path / "plain.py"
    path.write_text(text)
    result = CliRunner().invoke(cli, ["check-method", str(path), "--timeout", "3" if fault == "hangs" else "200"])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"kdad-bench: {path}: ")
    assert words in line


@pytest.mark.parametrize(
    "ends", ["raise KeyboardInterrupt('mine')", "raise type('Own', (BaseException,), {})('mine')", "os._exit('mine')"]
)
def test_whatever_a_method_raises_is_a_verdict_where_no_person_ends_it(ends: str, tmp_path: Path) -> None:
    text = PLAIN.replace(FIT, FIT + f"        import os; {ends}\n")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a process of its own
    try:
        found = judged(text, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "mine" in found["answers: shapes, float32, finite"].reason


@pytest.mark.parametrize("ended", [Interrupted, Terminated, KeyboardInterrupt])
def test_a_signal_of_a_person_ends_the_check(ended: type[BaseException], tmp_path: Path) -> None:
    def judge(_: Bench) -> str:
        raise ended

    path = tmp_path / "plain.py"
    path.write_text(PLAIN)
    name = outside.add_file(path, "", METHODS)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(ended):
            verdict_of("rule", judge, name)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_file_that_is_no_method_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("1 / 0\n")
    result = CliRunner().invoke(cli, ["check-method", str(tmp_path / "plain.py")])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "ZeroDivisionError" in result.stderr


def test_where_no_process_can_be_made_it_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: SpawnProcess) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(SpawnProcess, "start", start)
    (tmp_path / "plain.py").write_text(PLAIN)
    result = CliRunner().invoke(cli, ["check-method", str(tmp_path / "plain.py")])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.endswith("no process can be started for it (Resource temporarily unavailable); try later")
