"""From a loss to a better model: what a training loop asks of the machinery beneath it.

Loops (pre-training, reinforcement) see the `Engine` protocol only, so that one process on a laptop and many under
torchrun run the same loop. A loop calls, per optimiser step: `backward` on the loss of each piece of the batch
(pieces' losses add up), then `step` once. `TorchEngine` is the oracle; the other one, DeepSpeed's
(`crystalforge.integrations.deepspeed`), must agree with it.

State is stored as if one process had made it (whole weights, whole moments, numbered alike by both engines), so
what N processes wrote M can read, with either engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalforge.model.network import CrystalFormer
from crystalforge.training.config import OptimizerConfig
from crystalforge.training.muon import Muon
from crystalforge.training.ranks import ALONE, Ranks


@runtime_checkable
class Engine(Protocol):
    """Optimises one model; see the module's docstring.

    A loop that runs under several ranks gives each rank its own rows of every batch, scales losses by the size of
    the whole batch, and lets the engine add gradients up over ranks. Each rank calls `backward` equally often, on
    losses that were computed by the same operations: an engine may talk to the others at every call, and ZeRO 2
    pairs gradients by the order in which they come.
    """

    ranks: Ranks  # the processes that train this model
    steps: int  # optimiser steps made so far

    @property
    def model(self) -> CrystalFormer:
        """The model being trained."""
        ...

    @property
    def learning_rate(self) -> float:
        """Rate of the next step: the schedule's, until a loop sets its own."""
        ...

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None: ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the loop computes its losses."""
        ...

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of `loss` to what has gathered since the last step."""
        ...

    def add_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Add gradients that the loop has taken itself, one for each of the model's parameters; None is zero."""
        ...

    def step(self) -> float:
        """Sum gradients over ranks, clip, update, clear the gradient; give its global norm before clipping.

        A gradient that is not finite changes nothing (the step still counts); a norm that is not finite tells.
        """
        ...

    def averaged_state(self) -> dict[str, Tensor]:
        """The model's weights to hand over: their moving average where one is kept, else the weights themselves."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue, whatever the number of ranks then: tensors and JSON values, nested.

        Every rank must ask for it: parts of it may lie with other ranks.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        ...


MakeEngine = Callable[[CrystalFormer, OptimizerConfig, Ranks], Engine]


def make_optimizer(model: CrystalFormer, config: OptimizerConfig) -> torch.optim.AdamW:
    """Adam(W) in one pass over memory; without decay AdamW is Adam. Two groups: matrices, which decay, and others.

    With Muon, the matrices that it moves come first, in groups by the number of matrices in a parameter.
    """
    by_parts: dict[int, list[nn.Parameter]] = {}
    if config.kind == "muon":
        for name, parts in model.matrices().items():
            by_parts.setdefault(parts, []).append(model.get_parameter(name))
    moved = {id(p) for group in by_parts.values() for p in group}
    rest = [p for p in model.parameters() if id(p) not in moved]
    groups: list[dict[str, Any]] = [
        {"params": group, "weight_decay": config.weight_decay, "parts": parts}
        for parts, group in sorted(by_parts.items())
    ]
    groups += [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon, "fused": True}
    if config.kind == "muon":
        return Muon(groups, momentum=config.momentum, steps=config.newton_steps, **adam)
    return torch.optim.AdamW(groups, **adam)


def optimizer_order(model: nn.Module) -> list[int]:
    """Number within `model.parameters()` of each parameter as Adam(W), and so an engine's state, numbers them."""
    shapes = [p.ndim for p in model.parameters()]
    return sorted(range(len(shapes)), key=lambda number: shapes[number] < 2)


class WeightAverage:
    """Moving average of a model's weights, the same on every rank.

    keep: share of the old average that a step retains; a young average has a shorter memory, since the first
    weights would linger in a long one.
    """

    def __init__(self, model: nn.Module, keep: float) -> None:
        self.model, self.keep = model, keep
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Move towards the present weights, `steps` optimiser steps having been made before."""
        keep = min(self.keep, (1 + steps) / (10 + steps))
        for name, value in self.model.state_dict().items():
            self.state[name].lerp_(value, 1 - keep)

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        self.state = {name: value.clone().to(self.state[name].device) for name, value in state.items()}


class CommonEngine:
    """What engines have in common, whoever makes the steps: model, rate, precision, what is handed over."""

    average: WeightAverage | None

    def __init__(self, model: CrystalFormer, config: OptimizerConfig, ranks: Ranks) -> None:
        self._model, self.config, self.ranks = model, config, ranks
        self.steps = 0
        self._rate: float | None = None
        self.parameters = list(model.parameters())
        self.device = self.parameters[0].device

    @property
    def model(self) -> CrystalFormer:
        """The model being trained."""
        return self._model

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        return self.config.rate(self.steps) if self._rate is None else self._rate

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._rate = rate

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in bfloat16 where so configured."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def averaged_state(self) -> dict[str, Tensor]:
        """The weights' moving average where one is kept, else the weights."""
        return self.average.state if self.average is not None else self._model.state_dict()


class TorchEngine(CommonEngine):
    """Plain PyTorch: fused Adam(W), global-norm clip, learning-rate schedule, weight average; alone or data-parallel.

    With several ranks, gradients are added up once a step in one flat buffer. PyTorch's DistributedDataParallel
    overlaps that with the backward pass, but counts passes and so forbids ranks to have unequal numbers of pieces;
    for five million parameters the sum is a small part of a step (`benchmarks/ddp.py`).

    >>> engine = TorchEngine(model, OptimizerConfig(learning_rate=1e-3))      # doctest: +SKIP
    >>> engine.backward(-log_prob(engine.model, batch).total.mean())           # doctest: +SKIP
    >>> norm = engine.step()                                                   # doctest: +SKIP
    """

    def __init__(self, model: CrystalFormer, config: OptimizerConfig, ranks: Ranks = ALONE) -> None:
        super().__init__(model, config, ranks)
        ranks.equalise(self.parameters)
        self.optimizer = make_optimizer(model, config)
        self.average = WeightAverage(model, config.ema_decay) if config.ema_decay else None

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of `loss`."""
        loss.backward()

    def add_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Add gradients taken elsewhere."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def step(self) -> float:
        """Sum gradients over ranks, clip, update, clear the gradient; give its global norm before clipping."""
        self._sum_gradients()
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip))
        if norm < float("inf"):  # false for NaN too: such a gradient would spoil every weight
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return norm

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
        return state | ({"average": self.average.state} if self.average is not None else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s value."""
        self.steps = int(state["steps"])
        self._model.load_state_dict(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        moments = {int(index): values for index, values in state["optimizer"].items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.average is not None:
            self.average.load(state["average"])

    def _sum_gradients(self) -> None:
        if self.ranks.world_size == 1:
            return
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = self.ranks.sum(torch.cat([gradient.reshape(-1) for gradient in own]))
        for parameter, gradient in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter)
