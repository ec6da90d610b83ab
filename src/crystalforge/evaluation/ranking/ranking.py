"""The order in which candidates are offered.

A generator that is rewarded for a low energy finds where the judge errs, so the lowest energy is the least credible
one. Here a crystal gains nothing by lying below the hull farther than judges err, one judge alone convinces nobody,
and what carries a red flag stands below all that carry none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ERROR = 0.03
"""eV/atom: mean error of a universal potential's formation energy on near-equilibrium crystals. Two crystals below
the hull by this or more are equally good as far as anybody can tell."""


@dataclass(frozen=True)
class Standing:
    """What the rank of one candidate depends on.

    energies: E_hull in eV/atom by each judge, NaN where it has no answer. red: whether a red flag is on it; warnings:
    how many others are. fulfils: whether it meets a wish for a property.
    """

    energies: tuple[float, ...]
    red: bool = False
    warnings: int = 0
    fulfils: bool = True

    def agreement(self, limit: float) -> float:
        """Share of the judges that put it at or below `limit`; one without an answer does not."""
        return sum(energy <= limit for energy in self.energies) / max(len(self.energies), 1)

    @property
    def worst(self) -> float:
        """The largest E_hull, but never less than the judges can tell; infinity where no judge has an answer."""
        known = [energy for energy in self.energies if math.isfinite(energy)]
        return max(-ERROR, *known) if known else math.inf

    @property
    def spread(self) -> float:
        """By how much the judges differ; nothing counts below -ERROR."""
        known = [max(-ERROR, energy) for energy in self.energies if math.isfinite(energy)]
        return max(known) - min(known) if known else math.inf


def best_first(candidates: Sequence[Standing], limit: float) -> list[int]:
    """Positions of the candidates, best first; equal ones keep their order.

    Without a red flag before with one; then those that fulfil the wish; then by how many judges agree that E_hull is at
    most `limit`; then by the larger E_hull, where nothing is gained below -ERROR; then by warnings; then by how well
    the judges agree.

    >>> best_first([Standing((-0.8, 0.0), red=True), Standing((0.02, 0.05)), Standing((-0.2, 0.3))], limit=0.1)
    [1, 2, 0]
    """

    def key(position: int) -> tuple[float, ...]:
        one = candidates[position]
        return (
            float(one.red),
            float(not one.fulfils),
            -one.agreement(limit),
            one.worst,
            float(one.warnings),
            one.spread,
        )

    return sorted(range(len(candidates)), key=key)
