"""What every method has to satisfy, checked on small drawn images: a verdict and a reason for each rule."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdad_bench import children, streams
from kdad_bench.harness.choices import SelectionError, method_choice
from kdad_bench.harness.cost import networks_on
from kdad_bench.harness.executors import HELD, READY, death, die_with, interrupts_held
from kdad_bench.harness.opened import A_FEW_BYTES, bytes_read, opened_files
from kdad_bench.harness.scoring import SCORE_BATCH, checked, finite, score_all
from kdad_bench.interrupts import by_a_person
from kdad_bench.methods import entry
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.backbones.weights import load_teacher
from kdad_bench.methods.checkpoint import load, save
from kdad_bench.methods.foreign import guarded, process_as_it_was
from kdad_bench.methods.protocol import Fitting, Method, Scores
from kdad_bench.outside import text_of
from kdad_bench.process import LATE

CPU = torch.device("cpu")
SIDE = 64  # px, of the images and of what the networks see
# setting -> what the quick preset is shrunk to, the first that it allows; 70 px are five patches of a ViT
SMALL: Mapping[str, tuple[int, ...]] = {"image_size": (SIDE, 70), "steps": (4,), "batch_size": (4,)}
TOLERANCE = 2e-4  # of the largest value: convolutions of other batch sizes add in another order
BATCHES = (2, 7, SCORE_BATCH - 1, SCORE_BATCH)  # a run scores in batches of any size up to the last
MOST_SECONDS = 1e6  # given to a rule: what is longer is endless, as operating systems count waiting in ms of 31 bits


class Broken(Exception):
    """A rule is broken; the message says how."""


class NothingToCompare(Exception):
    """Scores that are not finite, which another rule accuses."""


class HalfWay(Exception):
    """What stops a training half way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One rule: kept, broken, or none that applies to the method."""

    rule: str
    reason: str = ""  # why it is broken
    remark: str = ""  # why it does not apply

    @property
    def kept(self) -> bool:
        """Whether nothing speaks against the method."""
        return not self.reason


def normals(count: int, seed: int) -> Tensor:
    """Stripes with noise, [N, 3, SIDE, SIDE] float32 in [0, 1]."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    phase = torch.rand(count, 1, 1, 1, generator=random) * 6
    noise = 0.02 * torch.randn(count, 3, SIDE, SIDE, generator=random)
    return (torch.sin((x + 0.35 * y) * 0.4 + phase) * 0.18 + 0.5 + noise).clamp(0, 1)


def defective(count: int, seed: int) -> Tensor:
    """`normals` with a bright square each."""
    images = normals(count, seed)
    images[:, :, 20:36, 24:40] = 0.95
    return images


class Bench:
    """Builds the method small, on the processor, as often as the checks need it."""

    def __init__(self, name: str) -> None:
        self.name, self.entry = name, entry(name)
        self.settings = shrunk(self.entry.presets["quick"])

    def teacher(self) -> Backbone | None:
        """A fresh teacher with random weights: nothing is downloaded, and a check may find it spoilt."""
        if not self.entry.needs_teacher:
            return None
        return load_teacher(self.settings.teacher, strides=self.settings.strides, source="random")[0]

    def build(self, teacher: Backbone | None = None) -> Method:
        """An untrained method."""
        return self.entry.build(self.settings, teacher or self.teacher(), CPU)

    def fitted(self, fitting: Fitting | None = None) -> Method:
        """A method that has learnt from the same few images each time."""
        method = self.build()
        method.fit(normals(8, seed=3), fitting or Fitting())
        return method

    def scores(self, method: Method, images: Tensor) -> Scores:
        """What the method says, by the path that a run takes."""
        return score_all(method, images, self.name)


def shrunk(settings: Any) -> Any:
    """`settings` with `SMALL`; what they refuse of it, one after the other, stays their own."""
    there = {field.name for field in fields(settings)}
    small = {key: values for key, values in SMALL.items() if key in there}
    with suppress(ValueError):
        return replace(settings, **{key: values[0] for key, values in small.items()})
    for key, values in small.items():
        for value in values:
            with suppress(ValueError):
                settings = replace(settings, **{key: value})
                break
    return settings


def state_of(method: Method) -> dict[str, Tensor]:
    """A copy of everything learnt."""
    if not isinstance(method.module, nn.Module):
        raise Broken(f"`module` is of type {type(method.module).__name__}, not torch.nn.Module")
    return {name: value.clone() for name, value in method.module.state_dict().items()}


def same_state(before: Mapping[str, Tensor], after: Mapping[str, Tensor], what: str) -> None:
    """Raises Broken unless all tensors are equal, bit for bit."""
    changed = sorted(before.keys() ^ after.keys()) or [
        name for name in before if not torch.equal(before[name], after[name])
    ]
    if changed:
        raise Broken(f"{what}: {', '.join(changed[:3])}")


def same_scores(first: Scores, second: Scores, what: str, tolerance: float = 0.0) -> None:
    """Raises Broken unless scores and maps are equal, up to `tolerance` of their largest value, and NothingToCompare
    where the first are not finite: another rule says that."""
    if not bool(finite(first).all()):
        raise NothingToCompare
    if not bool(finite(second).all()):
        raise Broken(f"{what}: what was finite is not any more")
    for part, one, other in zip(("image score", "map"), first, second, strict=True):
        apart = float((one - other).abs().max())
        if not apart <= tolerance * float(one.abs().max()):
            raise Broken(f"{what}: the {part} differs by {apart:.3g}")


# ---- the rules


def answers(bench: Bench) -> str:
    """Scores [N] and maps [N, H, W], float32, finite, of images of other sizes and of a single one too."""
    method = bench.fitted()
    for count, height, width in ((3, SIDE, SIDE), (1, SIDE, SIDE), (2, 96, 128)):
        images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(7))
        with torch.inference_mode():
            found = checked(method.score(images), images, bench.name)
        if not bool(finite(found).all()):
            raise Broken("its scores or maps are not finite")
    found = bench.scores(method, torch.cat([normals(2, seed=4), defective(2, seed=5)]))
    for part, values in (("maps", found.pixel), ("image scores", found.image)):
        if float(values.max()) == float(values.min()):
            raise Broken(f"its {part} are constant")
    return ""


def sees_normals_only(bench: Bench) -> str:
    """What it learns follows from the images given to `fit`: not from those it scored before, nor from files."""
    with opened_files() as opened:
        method = bench.fitted()
        bench.scores(method, defective(2, seed=5))
    if opened.read:
        raise Broken(f"it opens {Path(opened.read[0]).name}: a method sees the images that it is given, and no file")
    if opened.started:
        raise Broken(f"it starts {opened.started[0]}: what another process reads is not seen; compute it here")
    if opened.asked:
        raise Broken(f"it asks {opened.asked[0]} over the network: a method learns from the images that it is given")
    if past := read_past_python(bench):
        raise Broken(f"it reads {past} bytes of files by a library in C: a method sees the images given to it, no file")
    left = [path for path in opened.written if Path(path).exists()]
    if left:
        raise Broken(f"it leaves {Path(left[0]).name} behind: what it learns belongs into `module`, and into no file")
    curious = bench.build()
    bench.scores(curious, defective(8, seed=5))
    curious.fit(normals(8, seed=3), Fitting())
    same_state(state_of(method), state_of(curious), "it learns from images that it scored before `fit`")
    first, second = (bench.scores(one, defective(3, seed=6)) for one in (method, curious))
    same_scores(first, second, "it learns from images that it scored before `fit`")
    return ""


def read_past_python(bench: Bench) -> int:
    """Bytes that fitting and scoring read from files that Python did not open, once all is imported."""
    method = bench.build()
    with opened_files() as opened:
        before = bytes_read()
        method.fit(normals(8, seed=3), Fitting())
        bench.scores(method, defective(2, seed=5))
        count = bytes_read() - before
    return count if count > A_FEW_BYTES + sum(opened.most) else 0


def leaves_images_alone(bench: Bench) -> str:
    """The images that it is given are as they were after `fit` and `score`."""
    method, given, tested = bench.build(), normals(8, seed=3), defective(3, seed=5)
    method.fit(given, Fitting())
    with torch.inference_mode():
        method.score(tested)
    for images, fresh, what in ((given, normals(8, seed=3), "fit"), (tested, defective(3, seed=5), "score")):
        if not torch.equal(images, fresh):
            raise Broken(f"`{what}` changes the images that it is given")
    return ""


def each_image_alone(bench: Bench) -> str:
    """An image's answer is the same alone and among others, as many as a run scores at once and in any order."""
    half = SCORE_BATCH // 2
    method, images = bench.fitted(), torch.cat([normals(half, seed=8), defective(SCORE_BATCH - half, seed=9)])
    with torch.inference_mode():
        single = joined([method.score(images[index : index + 1]) for index in range(len(images))])
        turned = method.score(images.flip(0))
        several = [method.score(images[-count:]) for count in BATCHES]  # of defective images alone where they are few
    for found in (Scores(turned.image.flip(0), turned.pixel.flip(0)), *several):
        own = Scores(single.image[-len(found.image) :], single.pixel[-len(found.image) :])
        same_scores(found, own, "an answer depends on the other images of the batch", TOLERANCE)
    return ""


def joined(parts: list[Scores]) -> Scores:
    """The scores of several batches as those of one."""
    return Scores(torch.cat([one.image for one in parts]), torch.cat([one.pixel for one in parts]))


def learns(bench: Bench) -> str:
    """A fit that logs steps moves what it trains: with gradients cut off, the scores are an untrained network's."""
    steps: list[int] = []
    method = bench.build()
    before = state_of(method)
    method.fit(normals(8, seed=3), Fitting(log=lambda step, terms: steps.append(step), log_every=1))
    after = state_of(method)
    trained = {name for name, value in method.module.named_parameters() if value.requires_grad} & before.keys()
    if not steps or not trained:
        return "it logs no steps of a training" if not steps else "it has no parameters to train"
    if all(torch.equal(before[name], after[name]) for name in trained):
        raise Broken(f"none of its {len(trained)} trainable parameters changes in `fit`: no gradient reaches them")
    return ""


def scoring_changes_nothing(bench: Bench) -> str:
    """Neither the state nor what it says of the same images later."""
    method, images = bench.fitted(), defective(3, seed=10)
    before = state_of(method)
    first = bench.scores(method, images)
    bench.scores(method, torch.cat([normals(4, seed=11), defective(4, seed=12)]))
    same_state(before, state_of(method), "scoring changed the state")
    same_scores(first, bench.scores(method, images), "answers depend on what was scored before")
    return ""


def reloads(bench: Bench) -> str:
    """`module` holds everything learnt: a method built anew that gets its state answers alike."""
    method, images = bench.fitted(), defective(3, seed=13)
    with tempfile.TemporaryDirectory() as folder:
        save(bench.name, method, Path(folder))
        again = load(Path(folder))[1]
    same_scores(bench.scores(method, images), bench.scores(again, images), "a reloaded method answers otherwise")
    return ""


def networks_run(bench: Bench) -> str:
    """`networks` takes what a run gives it to count operations and to time them, and changes nothing."""
    method, images = bench.fitted(), normals(2, seed=16)
    before, first = state_of(method), bench.scores(method, images)
    with torch.inference_mode():
        for one in (images[:1], images, nn.functional.interpolate(images, (96, 96))):
            networks_on(method, one)()
    same_state(before, state_of(method), "`networks` changed the state")
    same_scores(first, bench.scores(method, images), "answers depend on whether `networks` ran before")
    return ""


def resumes(bench: Bench) -> str:
    """A training that was stopped half way and goes on from its checkpoint ends in the same state."""
    steps: list[int] = []
    whole = bench.fitted(Fitting(log=lambda step, terms: steps.append(step), log_every=1))
    if not steps:
        return "it logs no steps of a training"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "not yet there" / "checkpoint.pt"

        def stop(step: int, terms: Mapping[str, float]) -> None:
            if step > 2:
                raise HalfWay

        try:
            bench.fitted(Fitting(log=stop, log_every=1, checkpoint=place, checkpoint_every_seconds=0))
        except HalfWay:
            if not any(one.is_file() for one in Path(folder).rglob("*")):
                return "it keeps no checkpoints: an interrupted training starts anew"
            same_state(
                state_of(whole), state_of(bench.fitted(Fitting(checkpoint=place))), "a resumed training ends otherwise"
            )
            return ""
    return "its training is too short to be interrupted"


def teacher_is_frozen(bench: Bench) -> str:
    """The teacher's weights, and the buffers of its norms, are the same bits after `fit` and `score`."""
    teacher = bench.teacher()
    if teacher is None:
        return "it has no teacher"
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    method = bench.build(teacher)
    method.fit(normals(8, seed=3), Fitting())
    bench.scores(method, defective(3, seed=5))
    same_state(before, teacher.state_dict(), "the teacher changed")
    reached = [name for name, value in teacher.named_parameters() if value.grad is not None]
    if reached:
        raise Broken(f"gradients reach the teacher: {', '.join(reached[:3])}")
    return ""


def seed_decides(bench: Bench) -> str:
    """Two methods of one seed are the same bits, whatever the random state of the process."""
    torch.manual_seed(1)
    first = bench.fitted()
    torch.manual_seed(2)
    second = bench.fitted()
    same_state(state_of(first), state_of(second), "the same seed gives another state")
    images = defective(3, seed=14)
    same_scores(bench.scores(first, images), bench.scores(second, images), "the same seed gives other answers")
    return ""


def process_stays(bench: Bench) -> str:
    """Other jobs run in the same process: neither its random states nor its settings move."""
    with process_as_it_was(but=LATE) as moved:
        method = bench.fitted()
    refuse_moved("building or fitting", moved)
    with process_as_it_was(but=LATE) as moved:
        bench.scores(method, defective(3, seed=15))
    refuse_moved("scoring", moved)
    return ""


def refuse_moved(what: str, moved: list[str]) -> None:
    """Raises Broken where something of the process was moved."""
    if moved:
        raise Broken(f"{what} moves {', '.join(moved)}; draw from a generator of your own, set nothing for others")


RULES: Mapping[str, Callable[[Bench], str]] = {
    "answers: shapes, float32, finite": answers,
    "sees the given normals only": sees_normals_only,
    "leaves the images alone": leaves_images_alone,
    "judges each image alone": each_image_alone,
    "learns what it trains": learns,
    "scoring changes nothing": scoring_changes_nothing,
    "its networks run": networks_run,
    "reloads from its state": reloads,
    "resumes where it stopped": resumes,
    "the teacher stays frozen": teacher_is_frozen,
    "the seed decides everything": seed_decides,
    "leaves the process alone": process_stays,
}


def check(name: str) -> Iterator[Verdict]:
    """The verdict on each rule, as it comes; `name` is that of a known method."""
    for rule, judge in RULES.items():
        with guarded():
            verdict = verdict_of(rule, judge, name)
        yield verdict


def verdict_of(rule: str, judge: Callable[[Bench], str], name: str) -> Verdict:
    """What one rule says of a method."""
    try:
        return Verdict(rule=rule, remark=judge(Bench(name)))
    except Broken as error:
        return Verdict(rule=rule, reason=str(error))
    except NothingToCompare:
        return Verdict(rule=rule, remark="its answers cannot be compared: they are not finite")
    except BaseException as error:  # a method's own code raises anything
        if by_a_person(error):
            raise
        said = " ".join(text_of(error).split())[:300]
        return Verdict(rule=rule, reason=f"it raises {type(error).__name__}: {said}")


class Unfinished(ValueError):
    """The rules could not be gone through: one line that says what the method's code did instead, and what to do."""


def check_apart(method: str, seconds: float) -> Generator[str | Verdict, None, None]:
    """The name of a method, then the verdict on each rule as it comes, of a process of its own: what the method's code
    does to its process ends nothing here.

    `method` is FILE[:ENTRY] or a name, `seconds` are given to each rule. Raises SelectionError for what is no method,
    and Unfinished where its process cannot be started or ends, or a rule does not end.
    """
    streams.hold()
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(theirs, method, os.getpid()), daemon=True)
    try:
        with interrupts_held(), children.spawning():  # a starting process would answer Ctrl-C with a traceback
            process.start()
    except OSError as error:
        ours.close()
        raise Unfinished(
            f"{method}: no process can be started for it ({error.strerror or error}); try later"
        ) from error
    finally:
        theirs.close()
    try:
        for step in ("it starts", "it is imported", *(f"the rule '{rule}' is checked" for rule in RULES)):
            endless = step == "it starts" or seconds > MOST_SECONDS  # the start is no matter of the method's
            if not ours.poll(None if endless else seconds):
                raise Unfinished(
                    f"{method}: nothing comes back while {step}, for --timeout {seconds:g} s: it hangs, or needs longer"
                )
            try:
                said = ours.recv()
            except (EOFError, OSError) as error:
                process.join(timeout=5)
                how = death(process.exitcode)
                raise Unfinished(
                    f"{method}: its code ends the whole process while {step} ({how}); raise an error instead"
                ) from error
            if isinstance(said, SelectionError):
                raise said
            if said != READY:
                yield said
    finally:
        process.kill()
        process.join()
        ours.close()


def answer(pipe: Connection, method: str, parent: int) -> None:
    """The life of the process of `check_apart`: what it has to say goes through `pipe`."""
    children.spawned()
    sys.stderr = streams.lasting(sys.stderr, streams.STDERR)
    for number in HELD:  # Ctrl-C is the parent's to handle
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=die_with, args=(parent,), daemon=True).start()
    pipe.send(READY)
    try:
        name, variant = method_choice(method)
        if variant:
            raise SelectionError(f"{method}: variants are not checked apart; leave ':{variant}' out")
    except SelectionError as error:
        pipe.send(error)
        return
    pipe.send(name)
    for verdict in check(name):
        pipe.send(verdict)
