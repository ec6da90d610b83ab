"""From a loss to a better model: what a training loop asks of the machinery beneath it.

Loops (pre-training, reinforcement) see the `Engine` protocol only, so that one process on a laptop and many under
torchrun run the same loop. A loop calls, per optimiser step: `backward` on the loss of each piece of the batch
(pieces' losses add up), then `step` once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalforge.model.network import CrystalFormer
from crystalforge.training.config import OptimizerConfig


@runtime_checkable
class Engine(Protocol):
    """Optimises one model; see the module's docstring.

    A loop that runs under several ranks gives each rank its own rows of every batch, scales losses by the size of
    the whole batch, and lets the engine add gradients up over ranks.
    """

    rank: int  # this process among `world_size`
    world_size: int
    steps: int  # optimiser steps made so far

    @property
    def model(self) -> CrystalFormer:
        """The model being trained."""
        ...

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the loop computes its losses."""
        ...

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of `loss` to what has gathered since the last step."""
        ...

    def step(self) -> float:
        """Clip, update, clear the gradient; give its global norm before clipping.

        A gradient that is not finite changes nothing (the step still counts); its norm is returned as it is.
        """
        ...

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """`values` added up over all ranks, in place, for reporting."""
        ...

    def averaged_state(self) -> dict[str, Tensor]:
        """The model's weights to hand over: their moving average where one is kept, else the weights themselves."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue: nested dictionaries of tensors and JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        ...


class TorchEngine:
    """One process, plain PyTorch: fused Adam(W), global-norm clip, learning-rate schedule, weight average.

    >>> engine = TorchEngine(model, OptimizerConfig(learning_rate=1e-3))      # doctest: +SKIP
    >>> engine.backward(-log_prob(engine.model, batch).total.mean())           # doctest: +SKIP
    >>> norm = engine.step()                                                   # doctest: +SKIP
    """

    def __init__(self, model: CrystalFormer, config: OptimizerConfig) -> None:
        self._model, self.config = model, config
        self.rank, self.world_size, self.steps = 0, 1, 0
        self.parameters = list(model.parameters())
        self.device = self.parameters[0].device
        decayed = [p for p in self.parameters if p.ndim >= 2]
        others = [p for p in self.parameters if p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        # Without decay AdamW is Adam. The fused kernel makes one pass over memory.
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True
        )
        self.average = (
            {name: value.detach().clone() for name, value in model.state_dict().items()} if config.ema_decay else None
        )

    @property
    def model(self) -> CrystalFormer:
        """The model being trained."""
        return self._model

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        return self.config.rate(self.steps)

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in bfloat16 where so configured."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of `loss`."""
        loss.backward()

    def step(self) -> float:
        """Clip, update, clear the gradient; give its global norm before clipping."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip))
        if norm < float("inf"):  # false for NaN too: such a gradient would spoil every weight
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate
            self.optimizer.step()
            self._update_average()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return norm

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """One rank: as it is."""
        return values

    def averaged_state(self) -> dict[str, Tensor]:
        """The weights' moving average where one is kept, else the weights."""
        return self.average if self.average is not None else self._model.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Model, optimiser moments, average and step count."""
        state: dict[str, Any] = {
            "steps": self.steps,
            "model": self._model.state_dict(),
            "optimizer": {
                str(index): {key: value for key, value in moments.items() if isinstance(value, Tensor)}
                for index, moments in self.optimizer.state_dict()["state"].items()
            },
        }
        return state | ({"average": self.average} if self.average is not None else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        self.steps = int(state["steps"])
        self._model.load_state_dict(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        moments = {int(index): values for index, values in state["optimizer"].items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.average is not None:
            self.average = {name: value.clone().to(self.device) for name, value in state["average"].items()}

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        # A short memory at first: early weights would linger in a long one.
        keep = min(self.config.ema_decay, (1 + self.steps) / (10 + self.steps))
        for name, value in self._model.state_dict().items():
            self.average[name].lerp_(value, 1 - keep)
