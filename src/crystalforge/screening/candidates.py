"""A crystal on its way through the funnel, and the round that it came with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from crystalforge.crystal import Crystal
from crystalforge.evaluation.ranking.flags import Evidence, Flag, Level, flags_of, red
from crystalforge.evaluation.ranking.ranking import Standing
from crystalforge.screening.config import ScreenConfig
from crystalforge.screening.shaking import FALL
from crystalforge.thermo import HullStore


class Step(IntEnum):
    """What a round's jobs are at; later steps go before earlier ones."""

    DRAW = 0
    SCORE = 1
    RELAX = 2
    AFTER = 3
    SHAKE = 4
    AGAIN = 5
    OTHERS = 6
    DONE = 7


@dataclass(eq=False)
class Candidate:
    """One crystal on its way through the funnel. Energies in eV/atom by judge; None: no answer, or not asked.

    energy: the relaxer's, eV/atom. fall: eV/atom by which it fell when shaken, 0 where it came back; None: not shaken.
    held: it fell, and is offered as it was nonetheless.
    """

    index: int
    spacegroup: int
    log_prob: float
    generated: Crystal
    relaxed: Crystal | None = None
    converged: bool = False
    steps: int = 0
    energy: float = float("nan")
    fall: float | None = None
    held: bool = False
    before: dict[str, dict[str, float | None]] = field(default_factory=dict)
    after: dict[str, dict[str, float | None]] = field(default_factory=dict)
    property: float | None = None
    rmsd: float = float("inf")
    volume_change: float = 0.0
    flags: list[Flag] = field(default_factory=list)

    def rest(self, crystal: Crystal | None, energy: float | None, converged: bool, steps: int) -> None:
        """It has come to rest; `steps` more were made."""
        self.relaxed, self.converged, self.steps = crystal, converged, self.steps + steps
        self.energy = float("nan") if energy is None else energy

    def shaken(self, crystal: Crystal, energy: float | None, converged: bool, steps: int, *, held: bool) -> None:
        """Where it came to rest once more. The lower end is kept; with `held` the earlier one in any case."""
        fall = 0.0 if energy is None else self.energy - energy
        self.fall = fall if fall > FALL else 0.0
        self.held = held and self.fall > 0
        if self.fell():
            self.rest(crystal, energy, converged, steps)

    def fell(self) -> bool:
        """Whether it is another crystal since it was shaken."""
        return bool(self.fall) and not self.held

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
    step: Step = Step.DRAW
    open_jobs: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)


def relaxed_crystal(candidate: Candidate) -> Crystal:
    """The relaxed crystal of a candidate that has one."""
    assert candidate.relaxed is not None, "only relaxed crystals come so far"
    return candidate.relaxed


def flags_against(candidate: Candidate, config: ScreenConfig, hull: HullStore) -> list[Flag]:
    """What speaks against a candidate that all judges have seen. hull: the first judge's."""
    crystal = relaxed_crystal(candidate)
    return flags_of(
        Evidence(
            crystal,
            candidate.energies(config.judge_names),
            hull.around(crystal.numbers),
            rmsd=candidate.rmsd,
            volume_change=candidate.volume_change,
            converged=candidate.converged,
            fall=candidate.fall,
            held=candidate.held,
        )
    )
