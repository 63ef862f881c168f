"""How much of a GPU's memory a job may take beside others."""

from __future__ import annotations

CONTEXT_BYTES = 1 << 30  # of a GPU's memory that CUDA and its libraries take in each process, besides torch's tensors


def keep_to_share(device: str, share: float | None) -> None:
    """Have torch take no more of a GPU's memory in this process than `share` (0 to 1) leaves beside CUDA's own.

    What would need more is out of memory. Nothing without a share, or on a CPU.
    """
    if share is None or not device.startswith("cuda"):
        return
    import torch

    total = torch.cuda.get_device_properties(torch.device(device)).total_memory
    torch.cuda.set_per_process_memory_fraction(max(share / 2, share - CONTEXT_BYTES / total), torch.device(device))
