"""log p(crystal | space group), per factor: letters W, elements A, coordinates X, lattice L.

One code for pre-training, reinforcement and the sampler's tests; the laws are `distributions`'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crystalforge.model.batch import TokenBatch
from crystalforge.model.distributions import (
    Law,
    coord_log_density,
    element_log_probs,
    lattice_log_density,
    next_wyckoff_log_probs,
    scored_coords,
)
from crystalforge.model.network import CrystalFormer, Heads


@dataclass(frozen=True, eq=False)
class LogProb:
    """Log-probability of each crystal, in nats, by factor; sums over its sites, the stop token included."""

    wyckoff: Float[Tensor, " B"]
    element: Float[Tensor, " B"]
    coords: Float[Tensor, " B"]
    lattice: Float[Tensor, " B"]

    @property
    def total(self) -> Float[Tensor, " B"]:
        """log p(crystal | space group)."""
        return self.wyckoff + self.element + self.coords + self.lattice

    def factors(self) -> dict[str, Float[Tensor, " B"]]:
        """The four factors by name."""
        return {
            "wyckoff": self.wyckoff,
            "element": self.element,
            "coords": self.coords,
            "lattice": self.lattice,
        }


def log_prob(model: CrystalFormer, batch: TokenBatch, *, law: Law = "exact") -> LogProb:
    """Score `batch` under `model`. -inf where the law forbids a token (and only there).

    Pads cost nothing: pass `batch.truncated()`.
    """
    return log_prob_from_heads(model(batch), batch, law=law, max_sites=model.config.max_sites)


def log_prob_from_heads(heads: Heads, batch: TokenBatch, *, law: Law = "exact", max_sites: int) -> LogProb:
    """`log_prob` from the network's output. `max_sites`: slots of the model, the last of which must stay empty."""
    return LogProb(
        wyckoff=_wyckoff(heads, batch, law, max_sites),
        element=_gather(element_log_probs(heads.element, batch.wyckoff), batch.element).sum(dim=1),
        coords=torch.where(
            scored_coords(batch.spacegroup[:, None].expand_as(batch.wyckoff), batch.wyckoff, law),
            coord_log_density(heads.coords, batch.coords),
            0.0,
        ).sum(dim=(1, 2)),
        lattice=lattice_log_density(
            heads.lattice.at(lattice_slot(batch, law)), batch.lattice, batch.spacegroup, law
        ),
    )


def lattice_slot(batch: TokenBatch, law: Law) -> Tensor:
    """[B] The slot at which the lattice is read: the first pad.

    The reference counts elements rather than sites, and reads the last slot when none is a pad.
    """
    count = batch.n_sites if law == "exact" else (batch.element > 0).sum(dim=1)
    return count.clamp(max=batch.slots - 1)


def _wyckoff(heads: Heads, batch: TokenBatch, law: Law, max_sites: int) -> Float[Tensor, " B"]:
    first = next_wyckoff_log_probs(heads.wyckoff[:, 0], batch.spacegroup, None)
    slot = torch.arange(1, batch.slots, device=batch.device)
    last = (slot == max_sites - 1).expand(len(batch), -1) if law == "exact" else False
    rest = next_wyckoff_log_probs(
        heads.wyckoff[:, 1:],
        batch.spacegroup[:, None].expand(-1, batch.slots - 1),
        batch.wyckoff[:, :-1],
        last,
    )
    return _gather(torch.cat([first[:, None], rest], dim=1), batch.wyckoff).sum(dim=1)


def _gather(log_probs: Float[Tensor, "B S C"], choice: Tensor) -> Float[Tensor, "B S"]:
    return log_probs.gather(-1, choice[..., None]).squeeze(-1)
