"""DeepSpeed's ZeRO as an `Engine`: optimiser moments (stage 1) and gradients (stage 2) shared out among ranks.

It must agree with `crystalforge.training.engine.TorchEngine` (tests/parity/test_engines.py): the same fused Adam(W)
on the same two parameter groups, the same clipping, and sums of gradients where DeepSpeed takes means. How it is held
to that:
- The loop computes its loss outside DeepSpeed's module; the loss passes through an identity that DeepSpeed wraps, whose
  hooks start its work at the beginning of the backward pass.
- The loop, not a counter, says where a step ends, so a step may take any number of passes
  (`managed_gradient_accumulation` off; at stage 0, which has no such mode that tells the norm, by hand).
- bfloat16 means what it means to the oracle: matrix products under autocast, float32 weights, heads, gradients and
  moments. DeepSpeed's own bf16 mode would round the densities too.
- Checkpoints are not DeepSpeed's, which are bound to a number of ranks: whole moments are gathered from the partitions
  and put back into them, in the layout that `TorchEngine` reads and writes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crystalforge.common.errors import InputError, missing_extra
from crystalforge.model.network import CrystalFormer
from crystalforge.training.config import OptimizerConfig
from crystalforge.training.engine import CommonEngine, WeightAverage, make_optimizer
from crystalforge.training.ranks import ALONE, Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")
# Elements per message; larger than our models, so that a step's gradients go in one.
BUCKET = 50_000_000


class _Passage(nn.Module):
    """Owns the model's parameters in DeepSpeed's eyes, and hands a loss through."""

    def __init__(self, model: CrystalFormer) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Tensor) -> Tensor:
        return loss


class DeepSpeedEngine(CommonEngine):
    """See the module's docstring. The process group of `ranks` must be open where there are several.

    >>> engine = DeepSpeedEngine(model, OptimizerConfig(), zero_stage=2)      # doctest: +SKIP

    Raises InputError that names the command to install DeepSpeed where it is missing.
    """

    def __init__(
        self, model: CrystalFormer, config: OptimizerConfig, ranks: Ranks = ALONE, *, zero_stage: int = 1
    ) -> None:
        if config.kind != "adamw":
            raise InputError(
                f"DeepSpeed's engine makes AdamW's steps, not those of {config.kind!r}",
                source="optimizer.kind",
                remedy="set optimizer.kind to adamw, or engine.name to torch",
            )
        deepspeed = _prepared(ranks)
        super().__init__(model, config, ranks)
        self.stage = zero_stage
        optimizer = make_optimizer(model, config)
        self._ordered = [p for group in optimizer.param_groups for p in group["params"]]
        settings: dict[str, Any] = {
            "train_batch_size": ranks.world_size,  # batches are the loop's business; these must only be consistent
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.gradient_clip,
            "managed_gradient_accumulation": zero_stage == 0,
            "steps_per_print": 10**9,
            "zero_optimization": {
                "stage": zero_stage,
                "overlap_comm": False,
                "reduce_bucket_size": BUCKET,
                "allgather_bucket_size": BUCKET,
            },
        }
        # It puts the parameters into one buffer, hence after the groups were made from the same objects.
        self._deepspeed, *_ = deepspeed.initialize(
            model=_Passage(model), optimizer=optimizer, config=settings, dist_init_required=False
        )
        self.average = WeightAverage(model, config.ema_decay) if config.ema_decay else None

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of `loss`; at stage 2 it goes to the rank that keeps it at once."""
        if self.stage == 0:
            self._deepspeed.set_gradient_accumulation_boundary(False)
        # Times the number of ranks: DeepSpeed divides the sum by it.
        self._deepspeed.backward(self._deepspeed(loss * self.ranks.world_size), scale_wrt_gas=False)

    def add_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Add gradients taken elsewhere: those of a loss that is linear in the parameters."""
        pairs = zip(self.parameters, gradients, strict=True)
        parts = [(p * (torch.zeros_like(p) if g is None else g)).sum() for p, g in pairs]
        self.backward(torch.stack(parts).sum())

    def step(self) -> float:
        """Sum gradients over ranks, clip, update, clear the gradient; give its global norm before clipping."""
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = self.learning_rate
        norm = self._step_replicated() if self.stage == 0 else self._step_partitioned()
        if norm < float("inf") and self.average is not None:
            self.average.update(self.steps)
        self.steps += 1
        return norm

    def _step_replicated(self) -> float:
        engine = self._deepspeed
        engine.set_gradient_accumulation_boundary(True)
        engine.allreduce_gradients()
        norms = [p.grad.norm() for p in self.parameters if p.grad is not None]
        norm = float(torch.stack(norms).norm())
        if norm < float("inf"):
            engine.step()
        else:
            engine.zero_grad()
        return norm

    def _step_partitioned(self) -> float:
        self._deepspeed.step()  # leaves everything as it is when the norm is not finite
        return float(self._deepspeed.get_global_grad_norm())

    def state_dict(self) -> dict[str, Any]:
        """Model, optimiser moments gathered from all ranks, average and step count."""
        state: dict[str, Any] = {
            "steps": self.steps,
            "model": self._model.state_dict(),
            "optimizer": {str(index): moments for index, moments in enumerate(self._moments())},
        }
        return state | ({"average": self.average.state} if self.average is not None else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s value, whoever made it."""
        self.steps = int(state["steps"])
        self._model.load_state_dict(state["model"])
        if self.stage:
            self._deepspeed.optimizer.refresh_fp32_params()  # the partitions are copies
        moments = state["optimizer"]
        self._put_moments([moments[str(index)] for index in range(len(moments))])
        if self.average is not None:
            self.average.load(state["average"])

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """The optimiser that makes the updates: on whole parameters, or on this rank's flat partitions of them."""
        return self._deepspeed.optimizer.optimizer if self.stage else self._deepspeed.optimizer

    def _moments(self) -> list[dict[str, Tensor]]:
        """Whole moments of every parameter; none before the first step."""
        known = self._adam.state
        if not known:
            return []
        if self.stage == 0:
            return [{name: known[p][name] for name in ("step", *MOMENTS)} for p in self._ordered]
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_moments()
        step: Tensor = next(iter(known.values()))["step"]
        whole: list[dict[str, Tensor]] = []
        for parameter in self._ordered:
            moments = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
            whole.append({"step": step} | {name: value for name, value in moments.items() if value is not None})
        return whole

    def _put_moments(self, moments: list[dict[str, Tensor]]) -> None:
        adam = self._adam
        if not moments:
            adam.state.clear()
            return
        if self.stage == 0:
            for parameter, values in zip(self._ordered, moments, strict=True):
                adam.state[parameter] = {name: value.clone().to(parameter.device) for name, value in values.items()}
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        for partition in self._deepspeed.optimizer.single_partition_of_fp32_groups:
            held = adam.state[partition]
            held["step"] = moments[0]["step"].clone().to(partition.device)
            for name in MOMENTS:
                held[name] = torch.zeros_like(partition)
        self._link_moments()
        for parameter, values in zip(self._ordered, moments, strict=True):
            for name in MOMENTS:
                safe_set_full_optimizer_state(parameter, values[name].to(parameter.device), name)

    def _link_moments(self) -> None:
        """Tell DeepSpeed which piece of its flat moments belongs to which parameter.

        By itself it does so once, after the first group's first step, when the second group has no moments yet.
        """
        zero = self._deepspeed.optimizer
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _prepared(ranks: Ranks) -> Any:
    """The package, with a process group to stand on."""
    if not ranks.device.startswith("cuda"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # which a process without launcher lacks
    try:
        import deepspeed
    except ImportError as error:
        raise missing_extra("deepspeed", "training", error) from None
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    if not dist.is_initialized():
        assert ranks.world_size == 1, "open_ranks() comes first"
        backend = "nccl" if ranks.device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    deepspeed.utils.logger.setLevel(logging.WARNING)  # hundreds of lines of settings on every rank otherwise
    # A kernel for inference over shared memory, which training never calls, would be compiled for two minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, dist_init_required=False)
    return deepspeed
