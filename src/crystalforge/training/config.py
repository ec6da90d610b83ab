"""Settings of the optimiser and of pre-training. Defaults are the published model's unless a description says so."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["float32", "bfloat16"]


class EngineConfig(BaseModel):
    """The machinery beneath a training loop; decides speed and memory, not what is learned.

    A run may change it, and the number of processes, whenever it is taken up again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["torch", "deepspeed"] = Field(default="torch", description="who sums gradients and makes steps")
    zero_stage: Literal[0, 1, 2] = Field(
        default=1, description="deepspeed: share out nothing (0), the optimiser's moments (1), gradients too (2)"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")


class OptimizerConfig(BaseModel):
    """Adam with a clipped gradient and a schedule; what an `Engine` needs to make steps.

    >>> OptimizerConfig(learning_rate=1e-3, decay=0.01).rate(100)
    0.0005
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: the blocks' matrices by Muon, the rest by AdamW (not in the paper)"
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="decay of Adam's two moments")
    epsilon: float = Field(default=1e-8, gt=0, description="Adam's epsilon")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled weight decay of matrices (AdamW); 0: plain Adam"
    )
    gradient_clip: float = Field(default=1.0, gt=0, description="largest global norm of the gradient")
    decay: float = Field(default=0.0, ge=0, description="learning rate / (1 + decay x step)")
    warmup_steps: int = Field(default=0, ge=0, description="steps over which the rate rises from 0 (not in the paper)")
    cosine_steps: int | None = Field(
        default=None,
        ge=1,
        description="step at which a cosine brings the rate to a tenth of its peak (not in the paper)",
    )
    linear_steps: int | None = Field(
        default=None, ge=1, description="step at which the rate has fallen to 0 along a line (not in the paper)"
    )
    momentum: float = Field(default=0.95, ge=0, lt=1, description="of Muon")
    newton_steps: int = Field(default=5, ge=1, le=5, description="of Muon: how nearly its updates are orthogonal")
    precision: Precision = Field(
        default="float32", description="of matrix products in training; weights, heads and densities stay float32"
    )
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="keep a moving average of the weights; 0: none (as published)"
    )

    def rate(self, step: int) -> float:
        """Learning rate of step number `step`, counted from 0."""
        rate = self.learning_rate / (1.0 + self.decay * step)
        if self.warmup_steps:
            rate *= min(1.0, (step + 1) / self.warmup_steps)
        if self.cosine_steps is not None:
            progress = min(1.0, step / self.cosine_steps)
            rate *= 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))
        if self.linear_steps is not None:
            rate *= max(0.0, 1.0 - step / self.linear_steps)
        return rate


class PretrainConfig(BaseModel):
    """How to train the generator by maximum likelihood.

    Give `epochs` or `steps` for a reproducible run; `max_seconds` bounds it by the clock, and is then not.

    >>> PretrainConfig(epochs=None, steps=200, batch_size=64).steps
    200
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int | None = Field(default=10, ge=0, description="passes over the training split; null: unbounded")
    steps: int | None = Field(default=None, ge=0, description="optimiser steps; null: unbounded")
    max_seconds: float | None = Field(default=None, gt=0, description="stop after this long, earlier runs included")
    cooldown: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="with max_seconds: over this last part of the time the learning rate falls to 0 along a line, "
        "however many steps that allows; null: it does not",
    )
    batch_size: int = Field(
        default=100, ge=1, description="crystals per optimiser step; an epoch's last batch may be smaller"
    )
    piece_tokens: int = Field(
        default=16384,
        ge=1,
        description="tokens per forward and backward pass: bounds memory; does not change the result's law",
    )
    accumulation: int = Field(
        default=1,
        ge=1,
        description="at least so many forward and backward passes per optimiser step and process; bounds memory too",
    )
    start: str | None = Field(
        default=None, description="model to start from: a directory of weights, or a shipped model's name"
    )
    redescribe: bool = Field(
        default=False, description="each time a crystal comes, draw its sites' points anew among equivalent ones"
    )
    max_e_above_hull: float | None = Field(
        default=None,
        description="eV/atom; crystals of the training split that state a larger energy above the hull are passed "
        "over, those that state none are not; None: all are used",
    )
    bucket: bool = Field(default=True, description="put crystals of similar length into one batch")
    bucket_groups: int = Field(
        default=1, ge=1, description="of how many groups of similar length a batch is made; wants as many passes"
    )
    optimizer: OptimizerConfig = Field(
        default_factory=lambda: OptimizerConfig.model_validate({}), description="how steps are made"
    )
    engine: EngineConfig = Field(default=EngineConfig(), description="what makes the steps, and where")
    law: Literal["exact", "reference"] = Field(
        default="exact", description="what is maximised: the sampler's own law, or the published code's objective"
    )
    validate_every: int = Field(default=200, ge=1, description="steps between validations")
    patience: int | None = Field(
        default=None, ge=1, description="stop after this many validations without improvement; null: never"
    )
    log_every: int = Field(default=10, ge=1, description="steps between two lines of metrics.jsonl")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints")
    checkpoint_seconds: float = Field(default=60.0, gt=0, description="or this long, whichever comes first")
    keep_checkpoints: int = Field(default=2, ge=1, description="how many to keep")

    @model_validator(mode="after")
    def _bounded(self) -> PretrainConfig:
        if self.epochs is None and self.steps is None and self.max_seconds is None:
            raise ValueError("one of epochs, steps and max_seconds must bound the run")
        if self.cooldown is not None and self.max_seconds is None:
            raise ValueError("cooldown is a part of max_seconds, which is not given")
        return self
