"""Crystals written as CIF in many dialects and read back: right, refused, or wrong (which must not happen).

    python benchmarks/cif_dialects.py [--cases 2000] [--seed 0] [--show]

Crystals: the fixtures of tests/parity (random ones of 229 space groups, and real ones) and the embedded data set, some
with other elements. Writers: pymatgen's CifWriter with and without symmetry, ASE's, and one of ours that varies what
programs vary: one of the 530 settings of spglib's table, what is said of the symmetry (operations, Hall symbol,
Hermann-Mauguin symbol, number, or all atoms listed in P 1), names of the old and the new dictionary, capitals, quotes
and text fields, labels and type symbols, digits and uncertainties, order of columns, encodings and line ends. One case
in five is damaged: another formula, number, volume, cell, or a site left out or given twice.

A case is right when composition, number of atoms and volume of the primitive cell and the space group are those of the
crystal that was written and pymatgen's StructureMatcher (without scaling, tolerances 0.02) finds the two equal. Prints
one JSON object.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import spglib
from _common import finish
from _dialects import SYMPREC, cell, describe, dialect

from crystalforge.crystal import Crystal, PackedCrystals
from crystalforge.crystal.reading.cif import parse_cif, split_blocks
from crystalforge.crystal.reading.consistency import check
from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.crystal.reading.text import decode

FIXTURES = Path(__file__).parents[1] / "tests" / "parity" / "tokenizer_structures.npz"
TOLERANCES = (0.02, 0.005)  # Å, at one of which the groups must agree
MOST_ATOMS = 60


@dataclass(frozen=True)
class Case:
    """What was written, by whom, and whether it was damaged ('' if not)."""

    crystal: Crystal
    content: bytes
    writer: str
    damage: str = ""


def crystals(embedded: int = 300) -> list[Crystal]:
    """The crystals that cases are made of: those whose atoms keep their distances."""
    with np.load(FIXTURES) as archive:
        packed = PackedCrystals(
            archive["lattice"], archive["n_atoms"], archive["numbers"].astype(np.int32), archive["frac"]
        )
    found = [crystal for crystal in packed if crystal is not None]
    if embedded:
        from crystalforge.data.sources.tables import embedded as prototypes

        records = list(prototypes().records())
        for row in np.linspace(0, len(records) - 1, embedded).astype(int):
            payload = records[row].payload
            if isinstance(payload, Crystal):
                found.append(payload)
    return [crystal for crystal in found if len(crystal) <= MOST_ATOMS and _sound(crystal)]


def _sound(crystal: Crystal) -> bool:
    try:
        check(crystal)
    except Unusable:
        return False
    return spglib.get_symmetry_dataset(cell(crystal), symprec=SYMPREC) is not None


def make_case(pool: list[Crystal], random: np.random.Generator) -> Case:
    """One case: a crystal, a writer, its choices."""
    crystal = pool[int(random.integers(len(pool)))]
    if random.random() < 0.5:
        crystal = _other_elements(crystal, random)
    writer: Callable[[Crystal, np.random.Generator], Case] = {
        0: _by_pymatgen, 1: _by_ase,
    }.get(int(random.integers(6)), _by_dialect)  # fmt: skip
    return writer(crystal, random)


def _other_elements(crystal: Crystal, random: np.random.Generator) -> Crystal:
    """The same arrangement of other elements, with a cell in which they have room."""
    kinds = np.unique(crystal.numbers)
    others = random.choice(np.arange(1, 95), size=len(kinds), replace=False)
    numbers = others[np.searchsorted(kinds, crystal.numbers)]
    for factor in (1.0, 1.15, 1.4, 1.8):
        found = Crystal.of(crystal.lattice * factor, numbers, crystal.frac)
        if _sound(found):
            return found
    return crystal


def _by_pymatgen(crystal: Crystal, random: np.random.Generator) -> Case:
    from pymatgen.io.cif import CifWriter

    structure = crystal.to_structure()
    if random.random() < 0.3:
        structure.add_oxidation_state_by_element({element.symbol: 1 for element in structure.composition.elements})
    symmetric = random.random() < 0.6
    text = str(CifWriter(structure, symprec=SYMPREC if symmetric else None, significant_figures=8))
    return Case(crystal, text.encode(), "pymatgen, symmetry" if symmetric else "pymatgen, P 1")


def _by_ase(crystal: Crystal, random: np.random.Generator) -> Case:
    from ase import Atoms
    from ase.io import write

    atoms = Atoms(numbers=crystal.numbers, cell=crystal.lattice, scaled_positions=crystal.frac, pbc=True)
    stream = BytesIO()
    write(stream, atoms, format="cif", wrap=bool(random.random() < 0.5))
    return Case(crystal, stream.getvalue(), "ase")


def _by_dialect(crystal: Crystal, random: np.random.Generator) -> Case:
    described = describe(crystal, random)
    if described is None:
        return _by_pymatgen(crystal, random)
    damage = ""
    if random.random() < 0.2:
        damage = str(random.choice(["formula", "number", "volume", "cell", "site left out", "site twice", "cut"]))
    lines, said = dialect(described, random, damage)
    end = str(random.choice(["\n", "\n", "\r\n", "\r"]))
    text = end.join(lines) + end
    if damage == "cut":
        text = text[: int(len(text) * random.uniform(0.3, 0.97))]
    form = str(random.choice(["utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le"]))
    return Case(crystal, text.encode(form), f"dialect, {said}", damage)


def read(case: Case) -> Crystal:
    """The crystal of the first block, as a source reads it; raises Unusable."""
    text = decode(case.content)
    blocks = list(split_blocks(text))
    return parse_cif(blocks[0][1] if blocks else text)


def _group(crystal: Crystal, symprec: float) -> int:
    found = spglib.get_symmetry_dataset(cell(crystal), symprec=symprec)
    return 0 if found is None else int(found.number)


def difference(one: Crystal, other: Crystal) -> str:
    """What makes two crystals different; '' for equal ones."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    groups = [[_group(crystal, symprec) for crystal in (one, other)] for symprec in TOLERANCES]
    cells: list[Any] = [spglib.find_primitive(cell(crystal), symprec=SYMPREC * 2) for crystal in (one, other)]
    if any(found is None for found in cells):
        return "no symmetry"
    a, b = (Crystal.of(found[0], found[2], found[1]) for found in cells)
    if Counter(a.numbers.tolist()) != Counter(b.numbers.tolist()):
        return f"composition {a.formula} became {b.formula}"
    if abs(a.volume / b.volume - 1) > 1e-3:
        return f"volume {a.volume:.3f} became {b.volume:.3f}"
    # An atom may lie as far from a special position as one tolerance allows; its last digit then decides.
    if all(before != after for before, after in groups):
        return f"group {groups[0][0]} became {groups[0][1]}"
    matcher = StructureMatcher(ltol=0.02, stol=0.02, angle_tol=1, primitive_cell=False, scale=False)
    return "" if matcher.fit(a.to_structure(), b.to_structure()) else "the matcher finds them different"


def run(cases: int, seed: int, *, embedded: int = 300) -> list[tuple[Case, str, str]]:
    """(case, outcome, detail) of each; outcomes: right, refused, wrong."""
    pool = crystals(embedded)
    found = []
    for number in range(cases):
        case = make_case(pool, np.random.default_rng([seed, number]))
        try:
            wrong = difference(case.crystal, read(case))
            found.append((case, "wrong" if wrong else "right", wrong))
        except Unusable as error:
            found.append((case, "refused", f"{error.reason}: {error}"))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every case that was refused whole, or read wrongly")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    begun = time.perf_counter()
    found = run(options.cases, options.seed)
    if options.show:
        for case, outcome, detail in found:
            if outcome == "wrong" or (outcome == "refused" and not case.damage):
                print(f"{outcome}: {case.writer}, damage {case.damage or 'none'}: {detail}")
                print(decode(case.content)[:3000])
    whole: dict[str, Counter[str]] = {}
    damaged: dict[str, Counter[str]] = {}
    for case, outcome, _ in found:
        where = damaged if case.damage else whole
        where.setdefault(case.damage or case.writer, Counter())[outcome] += 1
    reasons = Counter(detail.partition(":")[0] for case, outcome, detail in found if outcome == "refused")
    result = {
        "benchmark": "cif_dialects",
        "cases": len(found),
        "wrong": sum(outcome == "wrong" for _, outcome, _ in found),
        "whole_files": {name: dict(counts) for name, counts in sorted(whole.items())},
        "damaged_files": {name: dict(counts) for name, counts in sorted(damaged.items())},
        "refused_for": dict(reasons.most_common()),
        "seed": options.seed,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    finish(result, packages=("gemmi", "pymatgen", "ase", "spglib"))


if __name__ == "__main__":
    main()
