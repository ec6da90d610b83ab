"""Materials Project 2020 corrections for a predicted PBE(+U) energy, in memory.

The rules are pymatgen's `MaterialsProject2020Compatibility` (Wang et al., Sci. Rep. 11, 15496 (2021)), called on an
entry that carries what a VASP run with the Materials Project's settings would have recorded: run type, Hubbard U values
and POTCAR symbols, read from pymatgen's own `MPRelaxSet`. A correction depends on the composition and on the kind of
oxide or sulphide alone, so each such combination is computed once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from crystalforge.crystal import Crystal

if TYPE_CHECKING:
    from pymatgen.core import Composition, Structure
    from pymatgen.entries.computed_entries import ComputedStructureEntry

OXYGEN, SULFUR = 8, 16

BOND_FACTOR = 1.05
"""By how much longer than a bond two oxygens may stand and still be a peroxide: the value that pymatgen's scheme uses.
"""


def mp2020_corrections(crystals: Sequence[Crystal]) -> Float64[np.ndarray, " B"]:
    """Corrections in eV/atom, to be added to PBE(+U) energies per atom; NaN where the structure cannot be analysed."""
    return np.array([_correction_of(crystal) for crystal in crystals], dtype=np.float64)


def corrected_entry(crystal: Crystal, energy: float, entry_id: str | None = None) -> ComputedStructureEntry:
    """A pymatgen entry of a predicted energy (eV per cell), with parameters and corrections applied.

    Raises CompatibilityError when the Materials Project's scheme does not cover the crystal.
    """
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    structure = crystal.to_structure()
    entry = ComputedStructureEntry(
        structure, energy, parameters=run_parameters(structure.composition), entry_id=entry_id
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entry.energy_adjustments = _scheme().get_adjustments(entry)
    return entry


def run_parameters(composition: Composition) -> dict[str, Any]:
    """What a run with `MPRelaxSet` records: run_type, is_hubbard, hubbards, potcar_symbols.

    U applies to transition metals where the most electronegative element is O or F.
    """
    settings = _input_set()
    elements = sorted(composition.elements, key=lambda element: element.X)
    rules = settings["INCAR"]["LDAUU"].get(elements[-1].symbol, {})
    u = {element.symbol: float(rules.get(element.symbol, 0)) for element in composition.elements}
    uses_u = any(value > 0 for value in u.values())
    return {
        "run_type": "GGA+U" if uses_u else "GGA",
        "is_hubbard": uses_u,
        "hubbards": u if uses_u else {},
        "potcar_symbols": [
            f"PBE {settings['POTCAR'].get(element.symbol, element.symbol)}" for element in composition.elements
        ],
    }


def _correction_of(crystal: Crystal) -> float:
    from pymatgen.analysis.structure_analyzer import oxide_type, sulfide_type

    kinds = set(crystal.numbers.tolist())
    oxide = sulfide = None
    if len(kinds) == 1:  # the elements are the scheme's zero
        return 0.0
    try:
        if kinds & {OXYGEN, SULFUR}:
            structure: Structure = crystal.to_structure()
            oxide = oxide_type(structure, BOND_FACTOR) if OXYGEN in kinds else None
            # "none" rather than None: sulphur that is no anion, as in a sulphate, must not be taken for unknown.
            sulfide = (sulfide_type(structure) or "none") if SULFUR in kinds else None
        counts = np.bincount(crystal.numbers)
        key = tuple((int(z), int(counts[z])) for z in np.flatnonzero(counts))
        return _cached_correction(key, oxide, sulfide) / len(crystal)
    except Exception:  # pymatgen's analyses raise many kinds on odd structures
        return float("nan")


@lru_cache(maxsize=100_000)
def _cached_correction(key: tuple[tuple[int, int], ...], oxide: str | None, sulfide: str | None) -> float:
    """Correction in eV for a composition and its kind of oxide and sulphide."""
    from pymatgen.core import Composition, Element
    from pymatgen.entries.computed_entries import ComputedEntry

    composition = Composition({Element.from_Z(z): amount for z, amount in key})
    data = {"oxide_type": oxide, "sulfide_type": sulfide}
    entry = ComputedEntry(composition, 0.0, parameters=run_parameters(composition), data=data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(sum(adjustment.value for adjustment in _scheme().get_adjustments(entry)))


@cache
def _scheme() -> Any:
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    # The symbols are those that the scheme would check against: nothing is left to check.
    return MaterialsProject2020Compatibility(check_potcar=False)


@cache
def _input_set() -> dict[str, Any]:
    from pymatgen.io.vasp.sets import MPRelaxSet

    return MPRelaxSet.CONFIG
