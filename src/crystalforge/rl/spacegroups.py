"""The first choice of a crystal, its space group, as a part of what is learned.

The model writes a crystal once its space group is given; the groups are asked for as often as in training. As long as
that stays so, not all of the objective can be had: the optimum p_base exp(r/tau)/Z asks for each group Z_g/Z times as
often as the base does, Z_g = E_base[exp(r/tau) | g], and a policy that may not do so reaches at most
sum_g w_g tau ln Z_g. For `mp20` and the stability study's reward that is 85 % of what there is to gain (66,039
crystals of the base, tau 0.1: L* -0.179, bound -0.350, base -1.335).

What is best for a policy as it is, is known in closed form: with S_g = E[r - tau ln(p/p_base) | g] its own objective
within a group, sum_g q_g [S_g - tau ln(q_g/w_g)] is greatest for q_g = w_g exp(S_g/tau), normalised. S_g is taken from
the policy's crystals, older ones counting less, those of rare groups drawn towards the mean of all.

Deviation from the paper (arXiv 2504.02367), in which the groups are not learned; KL and objective count it.

Shapes: B crystals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from crystalforge.model.sampling.shares import log_ratio, tilted_shares

MEMORY = 0.8  # of what is known of a group's worth, at each batch
PRIOR = 20.0  # crystals of average worth added to each group's own


@dataclass
class SpacegroupShares:
    """In which shares space groups are asked for: the base's `weights`, tilted.

    tilt: ln(q_g/w_g) before normalisation. total, count: of the objective of each group's crystals.
    """

    weights: Float64[np.ndarray, " 230"]
    tilt: Float64[np.ndarray, " 230"] = field(default_factory=lambda: np.zeros(230))
    total: Float64[np.ndarray, " 230"] = field(default_factory=lambda: np.zeros(230))
    count: Float64[np.ndarray, " 230"] = field(default_factory=lambda: np.zeros(230))

    @staticmethod
    def of(weights: Float64[np.ndarray, " 230"], memory: dict[str, Any]) -> SpacegroupShares:
        """From what `memory` gave; nothing learned yet where that is empty."""
        return SpacegroupShares(weights, **{name: np.array(values) for name, values in memory.items()})

    def memory(self) -> dict[str, Any]:
        """For JSON; empty as long as nothing was learned."""
        if not self.count.any():
            return {}
        return {name: getattr(self, name).tolist() for name in ("tilt", "total", "count")}

    @property
    def shares(self) -> Float64[np.ndarray, " 230"]:
        """q_g, which add up to 1."""
        return tilted_shares(self.weights, self.tilt)

    def log_ratio(self, spacegroup: Int64[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
        """ln(q_g/w_g) of crystals' groups, nats."""
        return log_ratio(self.weights, self.shares, spacegroup)

    def worth(self, spacegroup: Int64[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
        """S_g of crystals' groups, in the reward's unit."""
        return self._worth()[spacegroup - 1]

    def see(self, spacegroup: Int64[np.ndarray, " B"], shaped: Float64[np.ndarray, " B"]) -> None:
        """Take a batch into account; shaped: r - tau ln(p/p_base), the groups' own ratio left out."""
        self.total *= MEMORY
        self.count *= MEMORY
        np.add.at(self.total, spacegroup - 1, shaped)
        np.add.at(self.count, spacegroup - 1, 1.0)

    def move(self, tau: float, rate: float) -> None:
        """Go the part `rate` of the way to the best shares for the policy as it is."""
        if rate and self.count.any():
            self.tilt += rate * ((self._worth() - self._mean) / tau - self.tilt)

    @property
    def _mean(self) -> float:
        return float(self.total.sum() / self.count.sum())

    def _worth(self) -> Float64[np.ndarray, " 230"]:
        return (self.total + PRIOR * self._mean) / (self.count + PRIOR)
