"""log p(crystal | space group), per factor: letters W, elements A, coordinates X, lattice L.

One code for pre-training, reinforcement and the sampler's tests; the laws are `distributions`'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from crystalforge.crystal.tokens import Tokens
from crystalforge.model.batch import TokenBatch
from crystalforge.model.distributions import (
    BOUNDS,
    Law,
    allowed_wyckoff,
    coord_log_density,
    element_log_probs,
    lattice_in_bounds,
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

    Pads cost nothing: pass `batch.truncated()`. In the exact law the batch must keep a pad slot after each crystal.
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
        lattice=lattice_log_density(heads.lattice.at(lattice_slot(batch, law)), batch.lattice, batch.spacegroup, law),
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


def _gather(values: Shaped[Tensor, "B S C"], choice: Int64[Tensor, "B S"]) -> Shaped[Tensor, "B S"]:
    return values.gather(-1, choice[..., None]).squeeze(-1)


def impossible(tokens: Tokens, *, max_sites: int, law: Law = "exact") -> list[str | None]:
    """For each crystal why the law gives it probability 0 whatever the weights, or None when it does not.

    Looks at the number of sites, letters, elements, coordinates and, in the exact law, the cell's bounds. Training
    data must be possible, or the loss is infinite. `max_sites`: slots of the model, one more than sites allowed.
    """
    batch = TokenBatch.from_tokens(tokens, dtype=torch.float64)
    allowed = [allowed_wyckoff(batch.spacegroup, None)[:, None]]
    groups = batch.spacegroup[:, None].expand(-1, batch.slots)
    if batch.slots > 1:
        allowed.append(allowed_wyckoff(groups[:, 1:], batch.wyckoff[:, :-1]))
    letters = _gather(torch.cat(allowed, dim=1), batch.wyckoff).all(dim=1)
    elements = ((batch.element > 0) == batch.is_site).all(dim=1)
    coords = batch.coords.isfinite().all(dim=2).all(dim=1)
    cell = batch.lattice.isfinite().all(dim=1)
    if law == "exact":
        cell &= lattice_in_bounds(batch.lattice, batch.spacegroup)
    reasons: list[str | None] = []
    for row, ok in enumerate((letters & elements & coords & cell & (batch.n_sites < max_sites)).tolist()):
        if ok:
            reasons.append(None)
        elif int(batch.n_sites[row]) >= max_sites:
            reasons.append(f"{int(batch.n_sites[row])} sites, the model takes {max_sites - 1} at most")
        elif not letters[row]:
            reasons.append("its Wyckoff letters cannot follow one another in its space group")
        elif not elements[row]:
            reasons.append("a site without element, or an element without site")
        elif not coords[row]:
            reasons.append("a coordinate is not a number")
        else:
            cell_text = ", ".join(f"{value:.3g}" for value in batch.lattice[row].tolist())
            reasons.append(f"the cell (scaled Å and radians) {cell_text} is outside {BOUNDS}")
    return reasons
