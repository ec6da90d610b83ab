"""How probable each space group is once something is demanded of a crystal: a composition, a chemical system, sites.

    p(g | demands) = p(g) P(demands | g) / sum over g'

p(g) are the training set's shares. P(demands | g) is the model's own: what it gives to all crystals of g that meet the
demands. The sampler draws from a law q(. | g) that meets them by construction, each choice from what can still be
finished; for a crystal x drawn from it E_q[p(x | g) / q(x | g)] = P(demands | g). The two differ in letters and
elements alone. So a pilot of draws in every group gives the probabilities: without bias, but from few draws, as those
that count (`Pilot.effective`) may be two of a thousand. As far as the pilot cannot be trusted, groups are drawn by
their shares instead (`Pilot.law`), so that none is lost.

Shapes: n draws of the pilot, all groups together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from crystalforge.common.errors import InputError
from crystalforge.common.seeds import derived
from crystalforge.model.constraints.automaton import feasible_spacegroups
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.sampler import sample

DRAWS = 256  # of a pilot, besides LEAST
LEAST = 2  # draws in each group that can meet the demands
DOUBT = 4.0  # effective draws at which pilot and shares count the same


@dataclass(frozen=True, eq=False)
class Pilot:
    """Draws that meet the demands, and what each says of its group.

    spacegroup: of each draw, ascending. log_weight: ln p / q of each. shares: p(g) of groups that can meet the demands.
    """

    spacegroup: Int64[np.ndarray, " n"]
    log_weight: Float64[np.ndarray, " n"]
    shares: Float64[np.ndarray, " 230"]

    @property
    def probability(self) -> Float64[np.ndarray, " 230"]:
        """p(g | demands); sums to 1."""
        found = np.bincount(self.spacegroup - 1, weights=self._worth(), minlength=230)
        return found / found.sum()

    @property
    def law(self) -> Float64[np.ndarray, " 230"]:
        """How often each group is to be drawn: the probability and the shares, mixed by what the pilot is worth."""
        trust = self.effective / (self.effective + DOUBT)
        return trust * self.probability + (1 - trust) * self.shares

    @property
    def effective(self) -> float:
        """Draws that would say as much if all weighed the same: (sum w)^2 / sum w^2 over all groups."""
        worth = self._worth()
        return float(worth.sum() ** 2 / (worth**2).sum())

    def _worth(self) -> Float64[np.ndarray, " n"]:
        """p(g) p / q of each draw over the draws of its group, up to one factor for all."""
        count = np.bincount(self.spacegroup - 1, minlength=230)
        weight = np.exp(self.log_weight - self.log_weight.max())
        return weight * (self.shares / np.maximum(count, 1))[self.spacegroup - 1]


def pilot(
    model: CrystalFormer,
    shares: Float64[np.ndarray, " 230"],
    constraints: Constraints,
    *,
    seed: int,
    draws: int = DRAWS,
    least: int = LEAST,
) -> Pilot:
    """Draw `least` crystals in each group that can meet the demands, and about `draws` more in proportion to `shares`.

    The random numbers are not those of the crystals that are drawn with `seed` afterwards. Raises InputError when no
    group of positive share can meet the demands.
    """
    possible = feasible_spacegroups(constraints, slots=model.config.max_sites)
    kept = np.where(np.isin(np.arange(1, 231), possible), shares, 0.0)
    if not kept.sum() > 0:
        raise InputError("no space group of the training set can meet the constraints", remedy="widen them")
    kept = kept / kept.sum()
    count = np.where(kept > 0, least + np.rint(draws * kept), 0).astype(np.int64)
    groups = np.repeat(np.arange(1, 231), count)
    drawn = sample(model, groups, seed=derived(seed, "space groups"), constraints=constraints)
    weight = sum(drawn.log_prob[name] - drawn.log_prob_drawn[name] for name in ("wyckoff", "element"))
    return Pilot(groups, np.asarray(weight, dtype=np.float64), kept)


def spacegroup_law(
    model: CrystalFormer, shares: Float64[np.ndarray, " 230"], constraints: Constraints | None, *, seed: int
) -> Float64[np.ndarray, " 230"]:
    """How often each group is to be drawn, see `Pilot.law`; `shares` where nothing is demanded."""
    if constraints is None:
        return shares
    return pilot(model, shares, constraints, seed=seed).law
