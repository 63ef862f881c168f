"""Deterministic algorithms: what torch and, on a GPU, cuBLAS need for them.

cuBLAS adds in one order only with a workspace of fixed size, which it reads from the environment as it starts. So the
variable is set before CUDA starts, in the process that plans a run: workers inherit it, and a job sets it where it runs
on another machine.
"""

from __future__ import annotations

import os

from kdad_bench.harness.choices import SelectionError

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
FIXED = (":4096:8", ":16:8")  # the two that cuBLAS documents, and torch knows; the first is the faster one


def prepare(device: str) -> None:
    """Set what deterministic algorithms on `device` ("cpu", "cuda:N") need of the environment.

    Raises SelectionError where that cannot be done any more, or where it says otherwise.
    """
    if not device.startswith("cuda"):
        return
    import torch

    said = os.environ.get(VARIABLE)
    if said in FIXED:
        return
    remedy = f"set {VARIABLE}={FIXED[0]} before Python starts, or leave --deterministic out"
    if said is not None:
        raise SelectionError(f"--deterministic: {VARIABLE}={said} lets cuBLAS add in any order; {remedy}")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise SelectionError(f"--deterministic: CUDA has started in this process without {VARIABLE}; {remedy}")
    os.environ[VARIABLE] = FIXED[0]


def choose_algorithms(deterministic: bool, device: str) -> None:
    """Have torch use deterministic algorithms only, or any, for what follows on `device`; as `prepare` raises."""
    import torch

    if deterministic:
        prepare(device)
    if deterministic or torch.are_deterministic_algorithms_enabled():  # the call imports torch's compiler, seconds long
        torch.use_deterministic_algorithms(deterministic)
