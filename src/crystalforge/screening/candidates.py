"""A crystal on its way through the funnel, and the round that it came with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from crystalforge.crystal import Crystal
from crystalforge.evaluation.ranking.flags import Flag, Level, red
from crystalforge.evaluation.ranking.ranking import Standing
from crystalforge.screening.config import ScreenConfig

DRAW, SCORE, RELAX, AFTER, OTHERS = range(5)  # later steps of a round go before earlier ones


@dataclass(eq=False)
class Candidate:
    """One crystal on its way through the funnel. Energies in eV/atom by judge; None: no answer, or not asked."""

    index: int
    spacegroup: int
    log_prob: float
    generated: Crystal
    relaxed: Crystal | None = None
    converged: bool = False
    steps: int = 0
    before: dict[str, dict[str, float | None]] = field(default_factory=dict)
    after: dict[str, dict[str, float | None]] = field(default_factory=dict)
    property: float | None = None
    rmsd: float = float("inf")
    volume_change: float = 0.0
    flags: list[Flag] = field(default_factory=list)

    def energies(self, names: Sequence[str]) -> dict[str, float]:
        """E_hull after relaxing, NaN where a judge has no answer."""
        found = {name: self.after.get(name, {}).get("e_above_hull") for name in names}
        return {name: float("nan") if value is None else value for name, value in found.items()}

    def standing(self, config: ScreenConfig) -> Standing:
        """What its rank depends on."""
        warnings = sum(flag.level is Level.WARNING for flag in self.flags)
        energies = tuple(self.energies(config.judge_names).values())
        return Standing(energies, red(self.flags), warnings, self.has_property(config))

    def has_property(self, config: ScreenConfig) -> bool:
        """Whether it has the property that was wished for; true where none was."""
        return config.wish is None or (self.property is not None and self.property >= config.wish.at_least)

    def fulfils(self, config: ScreenConfig) -> bool:
        """Whether it is what was asked for: all judges agree, no red flag, the property."""
        standing = self.standing(config)
        return not standing.red and standing.fulfils and standing.agreement(config.limit) == 1.0


@dataclass(eq=False)
class Round:
    """A round's crystals and how far it has come."""

    number: int
    drawn: dict[str, Any] | None = None
    survivors: list[Candidate] = field(default_factory=list)
    step: int = DRAW
    open_jobs: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)


def relaxed_crystal(candidate: Candidate) -> Crystal:
    """The relaxed crystal of a candidate that has one."""
    assert candidate.relaxed is not None, "only relaxed crystals come so far"
    return candidate.relaxed
