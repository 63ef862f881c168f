"""A fit that was stopped goes on as if it had never been: what that needs, and the file it is kept in."""

from __future__ import annotations

import contextlib
import hashlib
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdad_bench.files import write_whole
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.training.settings import DistillationSettings


class CheckpointError(ValueError):
    """A mid-fit checkpoint is of another fit."""


def fingerprint_of(settings: DistillationSettings, *parts: Tensor) -> str:
    """What a checkpoint belongs to; a hash of all images, so only asked for once there is a checkpoint."""
    digest = hashlib.sha256(f"{settings!r}".encode())
    for images in parts:
        digest.update(f" {tuple(images.shape)} {images.dtype}".encode())
        digest.update(images.detach().cpu().contiguous().numpy().data)  # as it lies: no second copy of all images
    return digest.hexdigest()


def refuse_changed_bytes(path: Path) -> None:
    """Raises ValueError where a part of the file has not its CRC-32: `torch.load` compares none."""
    with zipfile.ZipFile(path) as parts:
        changed = parts.testzip()
    if changed is not None:
        raise ValueError(f"{changed} has changed")


class Progress:
    """Everything a fit needs to go on as if it had never stopped, and the file it is kept in."""

    def __init__(
        self,
        student: nn.Module,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        fitting: Fitting,
        fingerprint: Callable[[], str],
        device: torch.device,
        began: float | None = None,
    ) -> None:
        """`began`: when the fit did, in seconds of `time.perf_counter`; None: now."""
        self.student, self.optimiser, self.scaler = student, optimiser, scaler
        self.path, self.every, self._fingerprint = fitting.checkpoint, fitting.checkpoint_every_seconds, fingerprint
        self.device, self.saved_at = device, time.monotonic()
        self.place, self.tell, self.may_keep = fitting.place, fitting.resumed, fitting.may_keep
        # moved, so that the time since then is the training's
        self.began = time.perf_counter() if began is None else began
        self.timed = True  # whether it is: not after a checkpoint that does not tell its own
        self.best: dict[str, Tensor] | None = None
        self.best_value = float("inf")

    @cached_property
    def fingerprint(self) -> str:
        """Of this fit."""
        return self._fingerprint()

    def resume(self) -> int:
        """Load the file if there is one; the number of steps done. One that is damaged, or was made elsewhere or with
        another number of threads, is dropped with a warning.

        Raises CheckpointError for the checkpoint of another fit.
        """
        if self.path is None or not self.path.is_file():
            return 0
        student = {key: tensor.clone() for key, tensor in self.student.state_dict().items()}
        chance, own = torch.get_rng_state(), self.fingerprint  # what fails in that says nothing against the file
        try:
            refuse_changed_bytes(self.path)
            kept = torch.load(self.path, map_location="cpu", weights_only=True)
            elsewhere = self._elsewhere(kept)
            if kept["fingerprint"] == own and not elsewhere:
                return self._take(kept)
        except Exception as error:  # torch raises many types on damaged files
            text = f"{self.path}: damaged checkpoint ({type(error).__name__}): the training starts from its beginning"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            self.student.load_state_dict(student)
            torch.set_rng_state(chance)
            self.path.unlink(missing_ok=True)
            return 0
        if kept["fingerprint"] == own:
            text = f"{self.path}: {elsewhere}: the training starts from its beginning"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            self.path.unlink(missing_ok=True)  # back there its log would be of two trainings
            return 0
        raise CheckpointError(f"{self.path}: the checkpoint of another fit (settings or images differ); delete it")

    def _elsewhere(self, kept: dict[str, Any]) -> str:
        """Why a checkpoint is not gone on from, as a row is of one place; "" where it may be. Old ones do not say."""
        place = kept.get("place", "")
        return f"begun with {place}, now {self.place}" if place and self.place and place != self.place else ""

    def _take(self, kept: dict[str, Any]) -> int:
        """Put all as `save_when_due` found it; the steps done. The optimiser checks first, so it goes last."""
        step, best, best_value, rng = int(kept["step"]), kept["best"], float(kept["best_value"]), kept["rng"]
        seconds = None if kept.get("seconds") is None else float(kept["seconds"])
        self.student.load_state_dict(kept["student"])
        self.scaler.load_state_dict(kept["scaler"])
        torch.set_rng_state(rng)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(kept["cuda_rng"], self.device)
        self.optimiser.load_state_dict(kept["optimiser"])
        self.best, self.best_value = best, best_value
        self._go_on_from(seconds)
        return step

    def _go_on_from(self, seconds: float | None) -> None:
        """Tell what the steps before took, less what was done again to get here; the clock runs on from there."""
        now = time.perf_counter()
        self.tell(None if seconds is None else seconds - (now - self.began))
        self.began, self.timed = now - (seconds or 0.0), seconds is not None

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done inside is no part of the training's time."""
        start = time.perf_counter()
        yield
        self.began += time.perf_counter() - start

    def keep_if_better(self, value: float) -> None:
        """Remember the student's state if `value` is the least so far."""
        if value < self.best_value:
            self.best_value = value
            self.best = {key: tensor.detach().cpu().clone() for key, tensor in self.student.state_dict().items()}

    def save_when_due(self, step: int) -> None:
        """Write the file, whole or not at all, if it may be and the last time is long enough ago; a full disk is a
        warning."""
        if self.path is None or not self.may_keep() or time.monotonic() - self.saved_at < self.every:
            return
        state = {
            "fingerprint": self.fingerprint,
            "step": step,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "best_value": self.best_value,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "place": self.place,
            "seconds": time.perf_counter() - self.began if self.timed else None,
        }
        try:
            write_whole(self.path, lambda temporary: torch.save(state, temporary))
        except (OSError, RuntimeError) as error:  # torch's writer keeps the reason to itself
            text = f"{self.path}: no checkpoint can be written ({str(error).partition(chr(10))[0]}); the job goes on"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        self.saved_at = time.monotonic()

    def finish(self) -> None:
        """Take the best state if states were compared; the file has served."""
        if self.best is not None:
            self.student.load_state_dict(self.best)
        with contextlib.suppress(OSError):  # a folder that is read-only by now
            if self.path is not None:
                self.path.unlink(missing_ok=True)
