"""Muon for the blocks' matrices beside AdamW for the rest, as one optimiser.

A matrix moves along the nearest orthogonal matrix to its momentum (K. Jordan et al., 2024), so every direction of it
learns at one pace. PyTorch's own `torch.optim.Muon` makes that matrix in bfloat16, one parameter after another; a
processor without bfloat16 units takes 0.4 s for one of 192 x 512, a whole model's worth of work. Here the
products are in the weights' own type, all matrices of one shape at once, with coefficients that are the best for each
step (Polar Express, arXiv 2505.16932). Query, key and value, or gate and value, which share one parameter,
are matrices of their own. Updates are scaled to AdamW's size (arXiv 2502.16982), so one learning rate serves both.

Shapes: N matrices of R rows and C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
MARGIN = 1.01  # rounding must not take a norm above 1, where the steps diverge
ADAM_SIZE = 0.2  # root mean square of AdamW's updates, which Muon's are scaled to


def orthogonal(matrices: Float[Tensor, "N R C"], steps: int) -> Float[Tensor, "N R C"]:
    """Nearly the nearest orthogonal matrix to each: its singular vectors, with singular values near 1.

    >>> u = orthogonal(torch.randn(1, 4, 8), 5)
    >>> bool(((torch.linalg.svdvals(u) - 1).abs() < 0.3).all())
    True
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) * MARGIN + 1e-7)
    for a, b, c in COEFFICIENTS[:steps]:
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.AdamW):
    """AdamW in whose groups with `parts` matrices are moved by Muon.

    parts: of a group, into how many matrices, one below the other, each of its parameters falls. momentum: of Muon.
    steps: Newton-Schulz steps. Other settings are AdamW's.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float, steps: int, **adam: Any) -> None:
        super().__init__(groups, **adam)
        self.momentum, self.newton_steps = momentum, steps

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of all groups; parameters without gradient stay."""
        assert closure is None, "losses are computed by the loop"
        groups = self.param_groups
        by_muon = [group for group in groups if group.get("parts")]
        self.param_groups = [group for group in groups if not group.get("parts")]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in by_muon:
            self._move(group)

    def _move(self, group: dict[str, Any]) -> None:
        moving: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)  # AdamW looks for one in whatever it loads
                state["momentum_buffer"] = torch.zeros_like(parameter)
            state["step"] += 1
            buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - self.momentum)
            ahead = parameter.grad.lerp(buffer, self.momentum)
            for part, value in zip(ahead.chunk(group["parts"]), parameter.chunk(group["parts"]), strict=True):
                moving.setdefault((part.shape[0], part.shape[1]), []).append((part, value))
        for (rows, columns), pairs in moving.items():
            updates = orthogonal(torch.stack([part for part, _ in pairs]), self.newton_steps)
            rate = group["lr"] * ADAM_SIZE * math.sqrt(max(rows, columns))
            for update, (_, value) in zip(updates, pairs, strict=True):
                value.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)
