"""One step of maximum likelihood, and the likelihood of a split: what is summed, over what, and in which pieces.

A batch's rows are dealt out to the ranks; each cuts its share into pieces that fit in memory. Losses are scaled by
the size of the whole batch, so neither the number of ranks nor that of pieces changes more than rounding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import zip_longest

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crystalforge.crystal.descriptions import redescribed
from crystalforge.data.store import TokenStore
from crystalforge.model.batch import TokenBatch
from crystalforge.model.distributions import Law
from crystalforge.model.likelihood import log_prob
from crystalforge.model.network import TOKENS_PER_SITE, CrystalFormer
from crystalforge.training.config import PretrainConfig
from crystalforge.training.engine import Engine
from crystalforge.training.ranks import ALONE, Ranks

FACTORS = ("wyckoff", "element", "coords", "lattice")


def train_step(
    engine: Engine, store: TokenStore, rows: Int64[np.ndarray, " b"], config: PretrainConfig, seed: int
) -> dict[str, float]:
    """One optimiser step on `rows`; gives the batch's mean loss, in all and per factor, and the gradient's norm.

    The loss is the mean over the batch, however it is cut into pieces and shared among ranks.
    """
    ranks = engine.ranks
    # Dropout: the same whether or not the run was resumed, another on each rank.
    torch.manual_seed(derived_seed(seed, engine.steps, ranks.rank))
    engine.model.train()
    shares = [
        cut(store, rows[rank :: ranks.world_size], config.piece_tokens, config.accumulation)
        for rank in range(ranks.world_size)
    ]
    random = np.random.default_rng(derived_seed(seed, engine.steps, ranks.rank)) if config.redescribe else None
    sums = torch.zeros(len(FACTORS), dtype=torch.float64)
    # Every rank makes as many passes as the one with most pieces, see `Engine`: a crystal without weight fills up.
    for part, *_ in zip_longest(shares[ranks.rank], *shares):
        own = part is not None
        with engine.autocast():
            batch = piece(store, part if own else rows[:1], random).to(_device(engine.model))
            scores = log_prob(engine.model, batch, law=config.law)
        loss = -scores.total.sum() / len(rows)
        engine.backward(loss if own else 0.0 * loss)
        if own:
            sums += _sums(scores.factors())
    return _means(ranks.sum(sums), len(rows), "train") | {"gradient_norm": engine.step()}


def cut(
    store: TokenStore, rows: Int64[np.ndarray, " b"], piece_tokens: int, accumulation: int = 1
) -> list[Int64[np.ndarray, " _"]]:
    """`rows` in pieces of at most `piece_tokens` tokens (pads included) and a share of 1/`accumulation` of the rows.

    A piece holds one crystal at least. Crystals of similar length go together, since a piece is as long as its longest.
    """
    sites = store.column("n_sites")[rows]
    rows = rows[np.argsort(sites, kind="stable")]
    slots = int(np.max(sites, initial=0)) + 1
    size = max(1, min(piece_tokens // (TOKENS_PER_SITE * slots), -(-len(rows) // accumulation)))
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def pieces(store: TokenStore, rows: Int64[np.ndarray, " b"], piece_tokens: int) -> Iterator[TokenBatch]:
    """The batch of `rows` in pieces of at most `piece_tokens` tokens each (one crystal at least), cut to length."""
    return (piece(store, part) for part in cut(store, rows, piece_tokens))


def piece(store: TokenStore, rows: Int64[np.ndarray, " b"], random: np.random.Generator | None = None) -> TokenBatch:
    """Rows of the store as one batch, cut to the longest crystal; with `random` in other words (`redescribed`)."""
    tokens = store.tokens(rows, slots=int(store.column("n_sites")[rows].max()) + 1)
    return TokenBatch.from_tokens(tokens if random is None else redescribed(tokens, random))


@torch.no_grad()
def evaluate(
    model: CrystalFormer,
    store: TokenStore,
    rows: Int64[np.ndarray, " n"],
    *,
    law: Law = "exact",
    piece_tokens: int = 16384,
    split: str = "val",
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Mean negative log-likelihood of `rows` in nats per crystal, in all and per factor, without dropout.

    Several ranks share the work, and all get the result.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(len(FACTORS), dtype=torch.float64)
    order = rows[np.argsort(store.column("n_sites")[rows], kind="stable")][ranks.rank :: ranks.world_size]
    for first in range(0, len(order), 1000):
        for part in pieces(store, order[first : first + 1000], piece_tokens):
            sums += _sums(log_prob(model, part.to(_device(model)), law=law).factors())
    model.train(was_training)
    return _means(ranks.sum(sums), len(rows), split)


class Window:
    """Means of what happened since the last report."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._values: list[dict[str, float]] = []
        self._samples, self._began = 0, time.monotonic()

    def add(self, values: dict[str, float], samples: int) -> None:
        """Take note of one step on `samples` crystals."""
        self._values.append(values)
        self._samples += samples

    def note(self) -> str:
        """The newest loss, for the progress line."""
        return f"NLL {self._values[-1]['train/nll']:.2f}"

    def drain(self) -> dict[str, float]:
        """Mean of each metric over the steps since the last call, and samples per second."""
        means = {key: float(np.mean([value[key] for value in self._values])) for key in self._values[0]}
        means["samples_per_s"] = self._samples / max(time.monotonic() - self._began, 1e-9)
        self._restart()
        return means


class swapped:
    """While it is open, the engine's model has the weights that would be handed over."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        self._own = {name: value.clone() for name, value in self._engine.model.state_dict().items()}
        self._engine.model.load_state_dict(self._engine.averaged_state())

    def __exit__(self, *error: object) -> None:
        self._engine.model.load_state_dict(self._own)


def derived_seed(seed: int, step: int, rank: int = 0) -> int:
    """An independent 63-bit seed for each (seed, step, rank); step -1 is the initialisation."""
    return int(np.random.SeedSequence((seed, step + 1, rank)).generate_state(1, np.uint64)[0] >> 1)


def _sums(factors: dict[str, Float[Tensor, " B"]]) -> Float[Tensor, " F"]:
    return torch.stack([factors[name].detach().double().sum() for name in FACTORS]).cpu()


def _means(sums: Float[Tensor, " F"], count: int, split: str) -> dict[str, float]:
    nll = dict(zip(FACTORS, (-sums / count).tolist(), strict=True))
    return {f"{split}/nll": float(sum(nll.values()))} | {f"{split}/nll_{name}": value for name, value in nll.items()}


def _device(model: CrystalFormer) -> torch.device:
    return next(model.parameters()).device
