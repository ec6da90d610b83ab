"""The policy's log-probabilities, cut into pieces that fit in memory, and one improvement of its weights.

The same pieces serve the log-probabilities at sampling and every later pass, with the same kernels and the same
precision: the first ratio p/p_old is therefore exactly 1, and any deviation is a defect.

On a CPU the pieces run side by side, one single-threaded piece per core: products of this size gain little from
more threads and lose much when another process wants the core. Gradients are summed in the order of the pieces, so
the number of cores changes no bit. Several ranks share the pieces of each minibatch; every rank knows the ratios of
all, so that whatever follows from them is the same everywhere.

Shapes: B samples of the batch, b rows of one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from crystalforge.model.batch import TokenBatch
from crystalforge.model.likelihood import LogProb, log_prob
from crystalforge.model.network import CrystalFormer
from crystalforge.rl.losses import ratio
from crystalforge.training.engine import Engine
from crystalforge.training.ranks import ALONE, Ranks

T = TypeVar("T")
TOKENS_PER_SITE = 5
Rows = Int64[np.ndarray, " _"]
Plan = list[list[Rows]]  # minibatches, each a list of pieces

# row numbers of a piece and its log-probabilities -> one loss per row
Loss = Callable[[Int64[Tensor, " b"], Float[Tensor, " b"]], Float[Tensor, " b"]]


def make_plan(
    n_sites: Int32[np.ndarray, " B"],
    rows: Int64[np.ndarray, " n"],
    *,
    piece_tokens: int,
    minibatches: int = 1,
    unit: int = 1,
    rng: np.random.Generator | None = None,
) -> Plan:
    """Cut `rows` into minibatches at random (`rng` is needed for more than one) and those into pieces of like length.

    A piece holds at most about `piece_tokens` tokens, pads included. `unit` consecutive rows (a pair) stay together.
    """
    units = rows.reshape(-1, unit)
    if minibatches > 1:
        assert rng is not None
        units = units[rng.permutation(len(units))]
    plan = []
    for part in np.array_split(units, min(minibatches, max(len(units), 1))):
        longest = n_sites[part].max(axis=1, initial=0)
        ordered = part[np.argsort(longest, kind="stable")]
        plan.append([piece.reshape(-1) for piece in _pieces(ordered, np.sort(longest), piece_tokens)])
    return plan


def _pieces(units: np.ndarray, longest: np.ndarray, piece_tokens: int) -> list[np.ndarray]:
    """Consecutive units, as many per piece as fit; at least one."""
    pieces, start = [], 0
    for end in range(1, len(units) + 1):
        full = end == len(units)
        if not full:
            width = TOKENS_PER_SITE * (int(longest[end]) + 1)
            full = (end + 1 - start) * units.shape[1] * width > piece_tokens
        if full:
            pieces.append(units[start:end])
            start = end
    return pieces[::-1]  # the longest first, so that no core waits for it at the end


@contextmanager
def one_thread() -> Iterator[int]:
    """One thread per operation within; gives the number that was set before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _side_by_side(device: torch.device) -> Iterator[Callable[..., Any]]:
    """A `map` over pieces: on a CPU over as many threads as torch was given, elsewhere one after the other."""
    if device.type != "cpu":
        yield map
        return
    with one_thread() as threads:
        if threads == 1:
            yield map
            return
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map


def measure(
    model: CrystalFormer, batch: TokenBatch, plan: Plan, *, as_in_update: bool = True, ranks: Ranks = ALONE
) -> LogProb:
    """Log-probabilities of all rows of the plan, detached; rows outside it are NaN.

    `as_in_update` runs the kernels that record a graph, as the update will (they may round differently); pass
    False for a model that is not updated. Several ranks share the work, and all get the result.
    """
    parts = {name: torch.full((len(batch),), torch.nan, device=batch.device) for name in _FACTORS}
    pieces = _all_pieces(plan)

    def factors(rows: Rows) -> dict[str, Tensor]:
        with torch.set_grad_enabled(as_in_update):
            piece = log_prob(model, batch[torch.from_numpy(rows).to(batch.device)].truncated())
        return {name: values.detach() for name, values in piece.factors().items()}

    with _side_by_side(batch.device) as each:
        own = list(each(factors, pieces[ranks.rank :: ranks.world_size]))
    for rows, piece in zip(pieces, _of_all(ranks, own, len(pieces)), strict=True):
        for name, values in piece.items():
            parts[name] = parts[name].to(values.dtype)
            parts[name][rows] = values.to(batch.device)
    return LogProb(**parts)


def _of_all(ranks: Ranks, own: list[T], count: int) -> list[T]:
    """Everybody's results, in the order of the pieces, which were dealt out one by one."""
    found = ranks.gather(own)
    return [found[number % ranks.world_size][number // ranks.world_size] for number in range(count)]


_FACTORS = ("wyckoff", "element", "coords", "lattice")


def _all_pieces(plan: Plan) -> list[Rows]:
    return [rows for minibatch in plan for rows in minibatch]


@dataclass(frozen=True)
class UpdateHealth:
    """What one batch's optimiser steps looked like.

    first_ratio_error: max |p/p_old - 1| before the first optimiser step; 0 by construction.
    approx_kl: mean of (rho - 1) - ln rho at the last pass, an estimate of KL(p_old || p) in nats.
    clip_fraction: share of ratios outside the trust interval, over all optimiser steps. gradient_norm: mean, before
    clipping. skipped_steps: optimiser steps not taken because their gradient was not finite.
    """

    loss: float
    first_ratio_error: float
    approx_kl: float
    clip_fraction: float
    largest_ratio: float
    gradient_norm: float
    optimizer_steps: int
    skipped_steps: int
    stopped_early: bool


def improve(
    engine: Engine,
    batch: TokenBatch,
    plan: Plan,
    log_prob_old: Float[Tensor, " B"],
    loss: Loss,
    *,
    passes: int,
    clip: float,
    kl_stop: float | None = None,
    fade: float = 1.0,
) -> UpdateHealth:
    """Make `passes` passes over the plan, one optimiser step of the engine per minibatch.

    The gradient of a minibatch is the sum over its pieces of sum(loss)/rows, so cutting it differently changes
    rounding only. The engine's rate falls linearly to `fade` times itself. With `kl_stop`, a step whose minibatch has
    already drifted further is not taken and ends the work.
    """
    policy, ranks = engine.model, engine.ranks
    policy.eval()  # dropout off: the ratio compares one deterministic network with itself
    losses: list[float] = []
    norms: list[float] = []
    kls: list[float] = []
    outside: list[float] = []
    first_error, largest, stopped, skipped = 0.0, 1.0, False, 0
    parameters = list(policy.parameters())
    rate, strides, stride = engine.learning_rate, max(passes * len(plan), 1), 0

    def piece(rows: Rows, count: int) -> tuple[float, Tensor, tuple[Tensor | None, ...]]:
        """Loss, ratios and gradients of one piece."""
        index = torch.from_numpy(rows).to(batch.device)
        now = log_prob(policy, batch[index].truncated()).total
        value = loss(index, now).sum() / count
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        return float(value.detach()), ratio(now.detach(), log_prob_old[index]).double(), gradients

    for _ in range(passes):
        for minibatch in plan:
            count = sum(len(rows) for rows in minibatch)
            if count == 0:
                continue
            sums: list[Tensor | None] = [None] * len(parameters)
            own: list[tuple[float, Tensor]] = []
            mine = minibatch[ranks.rank :: ranks.world_size]
            with _side_by_side(batch.device) as each:
                for value, rho, gradients in each(partial(piece, count=count), mine):
                    own.append((value, rho))
                    sums = [_plus(*pair) for pair in zip(sums, gradients, strict=True)]
            pieces = _of_all(ranks, own, len(minibatch))
            total = sum(value for value, _ in pieces)
            rho = torch.cat([rho.to(batch.device) for _, rho in pieces])
            kl = float((rho - 1 - rho.log()).mean())
            if not losses:
                first_error = float((rho - 1).abs().max())
            kls.append(kl)
            outside.append(float(((rho - 1).abs() > clip).double().mean()))
            largest = max(largest, float(rho.max()))
            if kl_stop is not None and kl > kl_stop:
                stopped = True
                break
            engine.learning_rate = rate * (1 - (1 - fade) * stride / max(strides - 1, 1))
            stride += 1
            engine.add_gradients(sums)
            norm = engine.step()
            if not np.isfinite(norm):  # one absurd crystal must neither spoil the weights nor end the run
                skipped += 1
                continue
            losses.append(total)
            norms.append(norm)
        if stopped:
            break
    return UpdateHealth(
        loss=_mean(losses),
        first_ratio_error=first_error,
        approx_kl=_mean(kls[-len(plan) :]),
        clip_fraction=_mean(outside),
        largest_ratio=largest,
        gradient_norm=_mean(norms),
        optimizer_steps=len(norms),
        skipped_steps=skipped,
        stopped_early=stopped,
    )


def _plus(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Sum of two gradients, in place of the first; None is zero."""
    if total is None or more is None:
        return more if total is None else total
    return total.add_(more)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
