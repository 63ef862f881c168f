"""StableAdamW (Wortsman et al., NeurIPS 2023, arXiv 2304.13013) with AMSGrad, as Dinomaly's code has it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-8


class StableAdamW(torch.optim.Optimizer):
    """AdamW whose step is made smaller, per tensor, where the gradient is large for its second moment.

    With g the gradient, m and v its moments, u the largest v so far (AMSGrad), b1 and b2 the corrections of both, and
    d = sqrt(u / b2) + 1e-8: w <- (1 - lr decay) w - lr / max(1, rms(g / d)) (m / b1) / d. Before that the gradients of
    all tensors together are brought to the norm `clip` at most.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        betas: tuple[float, float],
        weight_decay: float,
        clip: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "clip": clip})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is evaluated, nothing returned
        """One step on the gradients that are there."""
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            nn.utils.clip_grad_norm_(learning, group["clip"])
            for parameter in learning:
                self.update(parameter, parameter.grad, group)

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """The step of one tensor."""
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state |= {name: torch.zeros_like(parameter) for name in ("mean", "square", "largest_square")}
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        torch.maximum(state["largest_square"], state["square"], out=state["largest_square"])
        scale = (state["largest_square"] / (1 - second ** state["step"])).sqrt_().add_(EPSILON)
        excess = (gradient / scale).square_().mean().sqrt_().clamp_min_(1.0)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        factor = group["lr"] / (1 - first ** state["step"]) / excess
        parameter.sub_(state["mean"].div(scale).mul_(factor))
