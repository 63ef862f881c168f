"""A fit that was stopped goes on as if it had never been: what that needs, and the file it is kept in."""

from __future__ import annotations

import hashlib
import time
import warnings

import torch
from torch import Tensor, nn

from kdad_bench.files import write_whole
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.training.settings import DistillationSettings


class CheckpointError(ValueError):
    """A mid-fit checkpoint is of another fit."""


def fingerprint_of(settings: DistillationSettings, normal: Tensor, fitting: Fitting) -> str:
    """What a checkpoint belongs to; only worth its time if there is one."""
    if fitting.checkpoint is None:
        return ""
    digest = hashlib.sha256(f"{settings!r} {tuple(normal.shape)} {normal.dtype}".encode())
    digest.update(normal.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Progress:
    """Everything a fit needs to go on as if it had never stopped, and the file it is kept in."""

    def __init__(
        self,
        student: nn.Module,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        fitting: Fitting,
        fingerprint: str,
        device: torch.device,
    ) -> None:
        self.student, self.optimiser, self.scaler = student, optimiser, scaler
        self.path, self.every, self.fingerprint = fitting.checkpoint, fitting.checkpoint_every_seconds, fingerprint
        self.device, self.saved_at = device, time.monotonic()
        self.best: dict[str, Tensor] | None = None
        self.best_value = float("inf")

    def resume(self) -> int:
        """Load the file if there is one; the number of steps done. A damaged one is dropped with a warning.

        Raises CheckpointError for the checkpoint of another fit.
        """
        if self.path is None or not self.path.exists():
            return 0
        try:
            kept = torch.load(self.path, map_location="cpu", weights_only=True)
            fingerprint = kept["fingerprint"]
        except Exception as error:  # torch.load raises many types on damaged files
            text = f"{self.path}: damaged checkpoint ({type(error).__name__}): the training starts from its beginning"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            self.path.unlink(missing_ok=True)
            return 0
        if fingerprint != self.fingerprint:
            raise CheckpointError(f"{self.path}: the checkpoint of another fit (settings or images differ); delete it")
        self.student.load_state_dict(kept["student"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.scaler.load_state_dict(kept["scaler"])
        self.best, self.best_value = kept["best"], kept["best_value"]
        torch.set_rng_state(kept["rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(kept["cuda_rng"], self.device)
        return int(kept["step"])

    def keep_if_better(self, value: float) -> None:
        """Remember the student's state if `value` is the least so far."""
        if value < self.best_value:
            self.best_value = value
            self.best = {key: tensor.detach().cpu().clone() for key, tensor in self.student.state_dict().items()}

    def save_when_due(self, step: int) -> None:
        """Write the file, whole or not at all, if the last time is long enough ago."""
        if self.path is None or time.monotonic() - self.saved_at < self.every:
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
        }
        write_whole(self.path, lambda temporary: torch.save(state, temporary))
        self.saved_at = time.monotonic()

    def finish(self) -> None:
        """Take the best state if states were compared; the file has served."""
        if self.best is not None:
            self.student.load_state_dict(self.best)
        if self.path is not None:
            self.path.unlink(missing_ok=True)
