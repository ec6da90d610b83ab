"""What speaks against a candidate, as flags that a person can read and a ranking can use.

A red flag says that the crystal's energy is not to be believed; a warning, that somebody should look; a note, what to
keep in mind. No flag removes a crystal.

Shapes: n atoms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from crystalforge.crystal import Crystal
from crystalforge.crystal.geometry import shortest_bond
from crystalforge.evaluation.validity import composition_valid

if TYPE_CHECKING:
    from crystalforge.thermo.hull import Surroundings

BELOW_HULL = 0.1
"""eV/atom. Potentials miss formation energies by 0.02 to 0.05 eV/atom in the mean; a new crystal that lies farther
below the hull than this says more about the model, or about phases that the hull lacks, than about the crystal."""

APART = 0.15
"""eV/atom by which two judges' E_hull may differ before it is said: three times their usual error."""

SHORTEST_BOND = 0.7
"""As a part of the sum of covalent radii: one in a thousand of MP-20's crystals is below (see
`crystal.geometry`)."""

SHORT_BOND = 0.75
"""Six in a thousand of MP-20's crystals are below."""

VOLUME_CHANGE = 0.2
"""Part of the volume gained or lost by relaxing, beyond which the generated crystal was far from a minimum."""

MOVED = 0.5
"""Å of rms displacement by relaxing, likewise."""

HARDLY_SEEN = frozenset((2, 10, 18, 36, 54))
"""He, Ne, Ar, Kr, Xe: each in fewer than 20 of the Materials Project's 88,000 crystals of up to 20 atoms."""

SELDOM_SEEN = frozenset((61, 89, 91, 93, 94))
"""Pm, Ac, Pa, Np, Pu: each in fewer than 600 of them, most of them intermetallics made by substitution."""


class Level(IntEnum):
    """How much a flag weighs."""

    NOTE = 0
    WARNING = 1
    RED = 2


@dataclass(frozen=True)
class Flag:
    """name: for machines, such as `thin-hull`; text: a sentence for people."""

    name: str
    level: Level
    text: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one candidate; what is not known stays at its default and raises no flag.

    crystal: as it is offered, relaxed where it was. energies: E_hull in eV/atom by the judges' names, NaN where a
    judge has no answer. surroundings: the hull around it. rmsd: Å moved by relaxing, infinity where it has become
    another structure; volume_change: relative; converged: whether the relaxation ended by itself. fall: eV/atom by
    which it fell when it was shaken at rest; held: it is offered as it was before.
    """

    crystal: Crystal
    energies: Mapping[str, float] = field(default_factory=dict)
    surroundings: Surroundings | None = None
    rmsd: float | None = None
    volume_change: float | None = None
    converged: bool | None = None
    neutral: bool | None = None
    fall: float | None = None
    held: bool = False


def flags_of(evidence: Evidence) -> list[Flag]:
    """All flags, the gravest first."""
    found = [
        *_energies(evidence.energies),
        *_hull(evidence.surroundings, evidence.crystal),
        *_elements(evidence.crystal),
        *_bonds(evidence.crystal),
        *_relaxation(evidence),
        *_electrons(evidence),
    ]
    return sorted(found, key=lambda flag: -flag.level)


def red(flags: Iterable[Flag]) -> bool:
    """Whether one of them is red."""
    return any(flag.level is Level.RED for flag in flags)


def _energies(energies: Mapping[str, float]) -> Iterable[Flag]:
    known = {name: value for name, value in energies.items() if math.isfinite(value)}
    for name in [name for name in energies if name not in known]:
        yield Flag("no-answer", Level.WARNING, f"{name} has no answer for it.")
    low = {name: value for name, value in known.items() if value < -BELOW_HULL}
    if low:
        name = min(low, key=lambda key: low[key])
        yield Flag(
            "below-hull",
            Level.RED,
            f"{name} puts it {-low[name]:.2f} eV/atom below the hull: the model errs there, or the hull lacks phases.",
        )
    if len(known) > 1 and max(known.values()) - min(known.values()) > APART:
        first, last = min(known, key=lambda key: known[key]), max(known, key=lambda key: known[key])
        yield Flag(
            "judges-differ",
            Level.WARNING,
            f"{first} and {last} differ by {known[last] - known[first]:.2f} eV/atom.",
        )


def _hull(around: Surroundings | None, crystal: Crystal) -> Iterable[Flag]:
    if around is None or len(np.unique(crystal.numbers)) < 2:
        return
    if around.missing:
        yield Flag("no-hull", Level.RED, "An element has no reference phase: there is no hull.")
        return
    rivals = ", ".join(f"{amount:.0%} {formula}" for formula, amount in around.decomposition)
    if not around.n_compounds:
        yield Flag(
            "thin-hull",
            Level.RED,
            f"The hull knows no compound of these elements; it competes with the elements alone ({rivals}).",
        )
    elif not around.n_same_elements:
        entries = "1 compound" if around.n_compounds == 1 else f"{around.n_compounds} compounds"
        yield Flag(
            "thin-hull",
            Level.WARNING,
            f"The hull knows {entries} of these elements, none with all of them; it competes with {rivals}.",
        )
    else:
        yield Flag("hull", Level.NOTE, f"It competes with {rivals}; {around.n_compounds} compounds are known.")


def _elements(crystal: Crystal) -> Iterable[Flag]:
    kinds = set(crystal.numbers.tolist())
    for known, level, how in ((HARDLY_SEEN, Level.RED, "hardly"), (SELDOM_SEEN, Level.WARNING, "seldom")):
        if symbols := _symbols(sorted(kinds & known)):
            yield Flag("rare-element", level, f"The judges {how} saw {symbols} in training.")


def _bonds(crystal: Crystal) -> Iterable[Flag]:
    shortest = shortest_bond(crystal)
    if shortest < SHORT_BOND:
        level = Level.RED if shortest < SHORTEST_BOND else Level.WARNING
        text = f"Two atoms are closer than usual: {shortest:.0%} of the sum of their covalent radii."
        yield Flag("short-distance", level, text)


def _relaxation(evidence: Evidence) -> Iterable[Flag]:
    if evidence.converged is False:
        yield Flag("not-converged", Level.WARNING, "Its relaxation did not end within the steps allowed.")
    parts = []
    if evidence.volume_change is not None and abs(evidence.volume_change) > VOLUME_CHANGE:
        parts.append(f"its volume changed by {evidence.volume_change:+.0%}")
    if evidence.rmsd is not None and evidence.rmsd > MOVED:
        far = "it became another structure" if math.isinf(evidence.rmsd) else f"its atoms moved {evidence.rmsd:.1f} Å"
        parts.append(far)
    if parts:
        yield Flag("moved", Level.WARNING, f"On relaxing, {' and '.join(parts)}.")
    if evidence.fall and evidence.held:
        text = f"Its symmetry holds it on a saddle: shaken, it falls by {evidence.fall:.3f} eV/atom."
        yield Flag("saddle", Level.WARNING, text)
    elif evidence.fall:
        text = f"It first came to rest on a saddle; shaken, it fell by {evidence.fall:.3f} eV/atom."
        yield Flag("saddle", Level.NOTE, text)


def _electrons(evidence: Evidence) -> Iterable[Flag]:
    neutral = composition_valid(evidence.crystal) if evidence.neutral is None else evidence.neutral
    if not neutral:
        yield Flag("charge", Level.WARNING, "No usual oxidation states make it neutral.")
    from crystalforge.potentials.base import cell_to_judge

    if int(cell_to_judge(evidence.crystal).numbers.sum()) % 2:
        text = "Its primitive cell has an odd number of electrons: a metal, or magnetic."
        yield Flag("odd-electrons", Level.NOTE, text)


def _symbols(numbers: Sequence[int]) -> str:
    from pymatgen.core.periodic_table import Element

    return ", ".join(Element.from_Z(z).symbol for z in numbers)
