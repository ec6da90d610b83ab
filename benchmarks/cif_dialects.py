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

from crystalforge.crystal import Crystal, PackedCrystals
from crystalforge.crystal.reading.cif import parse_cif, split_blocks
from crystalforge.crystal.reading.consistency import check
from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.crystal.reading.text import decode

FIXTURES = Path(__file__).parents[1] / "tests" / "parity" / "tokenizer_structures.npz"
SYMPREC = 0.01
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
    return spglib.get_symmetry_dataset(_cell(crystal), symprec=SYMPREC) is not None


def _cell(crystal: Crystal) -> tuple[Any, Any, Any]:
    return crystal.lattice, crystal.frac, crystal.numbers


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


@dataclass
class _Described:
    """A crystal in one setting: cell parameters, one site of each orbit, operations, names of the setting."""

    parameters: list[float]
    numbers: np.ndarray
    sites: np.ndarray
    multiplicity: np.ndarray
    operations: list[str]
    kind: Any
    counts: dict[int, int]
    volume: float


def _describe(crystal: Crystal, random: np.random.Generator) -> _Described | None:
    plain = spglib.get_symmetry_dataset(_cell(crystal), symprec=SYMPREC)
    if plain is None:
        return None
    halls = [h for h in range(1, 531) if spglib.get_spacegroup_type(h).number == plain.number]
    hall = int(random.choice(halls))
    found = spglib.get_symmetry_dataset(_cell(crystal), symprec=SYMPREC, hall_number=hall)
    if found is None:
        return None
    table = spglib.get_symmetry_from_database(hall)
    left = list(range(len(found.std_types)))
    kept, sizes = [], []
    while left:
        atom = left[0]
        images = table["rotations"] @ found.std_positions[atom] + table["translations"]
        away = found.std_positions[left][:, None] - images[None]
        away -= np.rint(away)
        orbit = (np.linalg.norm(away @ found.std_lattice, axis=2) < 0.05).any(axis=1)
        kept.append(atom)
        sizes.append(int(orbit.sum()))
        left = [other for other, inside in zip(left, orbit, strict=True) if not inside]
    lengths = np.linalg.norm(found.std_lattice, axis=1)
    cosines = found.std_lattice @ found.std_lattice.T / np.outer(lengths, lengths)
    angles = np.degrees(np.arccos(np.clip([cosines[1, 2], cosines[0, 2], cosines[0, 1]], -1, 1)))
    numbers, counts = np.unique(found.std_types, return_counts=True)
    return _Described(
        [*lengths.tolist(), *angles.tolist()],
        found.std_types[kept],
        found.std_positions[kept],
        np.array(sizes),
        [_triplet(r, t) for r, t in zip(table["rotations"], table["translations"], strict=True)],
        spglib.get_spacegroup_type(hall),
        dict(zip(numbers.tolist(), counts.tolist(), strict=True)),
        float(abs(np.linalg.det(found.std_lattice))),
    )


def _triplet(rotation: np.ndarray, translation: np.ndarray) -> str:
    from fractions import Fraction

    words = []
    for row, shift in zip(rotation, translation, strict=True):
        word = "".join(("+" if k > 0 else "-") + axis for k, axis in zip(row, "xyz", strict=True) if k)
        part = Fraction(float(shift) % 1).limit_denominator(24)
        words.append((word + (f"+{part}" if part else "")).removeprefix("+"))
    return ",".join(words)


def _symbols() -> list[str]:
    from pymatgen.core.periodic_table import Element

    return ["", *(Element.from_Z(z).symbol for z in range(1, 119))]


def _by_dialect(crystal: Crystal, random: np.random.Generator) -> Case:
    described = _describe(crystal, random)
    if described is None:
        return _by_pymatgen(crystal, random)
    damage = ""
    if random.random() < 0.2:
        damage = str(random.choice(["formula", "number", "volume", "cell", "site left out", "site twice", "cut"]))
    lines, said = _dialect(described, random, damage)
    end = str(random.choice(["\n", "\n", "\r\n", "\r"]))
    text = end.join(lines) + end
    if damage == "cut":
        text = text[: int(len(text) * random.uniform(0.3, 0.97))]
    form = str(random.choice(["utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le"]))
    return Case(crystal, text.encode(form), f"dialect, {said}", damage)


def _dialect(d: _Described, random: np.random.Generator, damage: str) -> tuple[list[str], str]:
    """Lines of a CIF, and how it states its symmetry."""
    pick: Callable[..., Any] = lambda *choices: choices[int(random.integers(len(choices)))]  # noqa: E731
    modern, dotted = random.random() < 0.4, random.random() < 0.15
    capitals = pick(str, str, str.upper, str.title)

    def tag(name: str) -> str:
        if dotted:
            for category in ("_atom_site", "_cell", "_chemical_formula", "_space_group_symop", "_space_group"):
                if name.startswith(category + "_"):
                    name = category + "." + name[len(category) + 1 :]
                    break
        return capitals(name) if random.random() < 0.5 else name

    def quoted(text: str) -> list[str]:
        kind = pick("'", '"', ";") if " " in text or '"' in text else pick("", "'", '"')
        if kind == ";" or (kind and kind in text):
            return ["", f";{text}", ";"]
        return [kind + text + kind]

    def pair(name: str, text: str) -> list[str]:
        value = quoted(text)
        return [f"{tag(name)}{pick(' ', '   ', chr(9))}{value[0]}", *value[1:]]

    symbols = _symbols()
    setting = d.kind
    statement = pick("operations", "operations", "operations and symbol", "Hall symbol", "symbol", "all in P 1")
    expanded = statement == "all in P 1"
    digits = int(pick(5, 6, 8))
    number = setting.number if damage != "number" else setting.number % 230 + 1
    lines = [pick("# a comment with data_ and loop_ in it", "#", "# geschrieben von Müller")]
    lines += [pick("data_", "DATA_", "Data_") + pick("x", "I", "global-1", "a.b"), ""]
    if random.random() < 0.4:
        lines += [tag("_publ_section_title"), ";", "data_ of a crystal", "loop_", "_atom_site_fract_x 0.1", ";"]
    counts = dict(d.counts)
    if damage == "formula":
        counts[next(iter(counts))] += 1
    divisor = int(np.gcd.reduce(list(counts.values())))
    units = pick(1, divisor)
    formula = " ".join(f"{symbols[z]}{count // units}" for z, count in counts.items())
    told = damage in ("formula", "site left out") or random.random() < 0.6
    if told:
        lines += pair("_chemical_formula_sum", formula)
        lines += pair("_cell_formula_units_Z", str(units))
    parameters = list(d.parameters)
    if damage == "cell":
        parameters[0] *= 1.2
    for name, value in zip(
        ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"), parameters, strict=True
    ):
        text = f"{value:.{digits}f}" + pick("", "", "(3)")
        lines += pair(f"_cell_{name}", text)
    if damage in ("volume", "cell") or random.random() < 0.5:
        lines += pair("_cell_volume", f"{d.volume * (1.3 if damage == 'volume' else 1):.2f}")
    symbol = _symbol_of(setting)
    if expanded:
        lines += pair("_symmetry_space_group_name_H-M", pick("P 1", "P1"))
        lines += pair("_symmetry_Int_Tables_number", "1" if damage != "number" else "2")
        operations = ["x,y,z"] if random.random() < 0.5 else []
    else:
        if statement in ("operations and symbol", "symbol"):
            lines += pair("_space_group_name_H-M_alt" if modern else "_symmetry_space_group_name_H-M", symbol)
        if statement == "Hall symbol":
            lines += pair(
                "_space_group_name_Hall" if modern else "_symmetry_space_group_name_Hall", setting.hall_symbol
            )
        if damage == "number" or random.random() < 0.5:
            lines += pair("_space_group_IT_number" if modern else "_symmetry_Int_Tables_number", str(number))
        operations = d.operations if statement.startswith("operations") else []
    if operations:
        style = pick(str, str.upper, lambda text: text.replace(",", ", "), lambda text: text.replace(",", " , "))
        lines += [pick("loop_", "LOOP_", "Loop_")]
        numbered = random.random() < 0.5
        if numbered:
            lines.append(tag("_space_group_symop_id" if modern else "_symmetry_equiv_pos_site_id"))
        lines.append(tag("_space_group_symop_operation_xyz" if modern else "_symmetry_equiv_pos_as_xyz"))
        bare = random.random() < 0.15  # with spaces and without quotes: no CIF by the letter, but files like it exist
        for row, operation in enumerate(operations, start=1):
            text = style(operation)
            text = text if bare or (" " not in text and random.random() < 0.5) else f"'{text}'"
            lines.append((f"{row} " if numbered else "") + text)
    lines += _site_loop(d, random, damage, expanded=expanded, digits=digits, tag=tag, told=told)
    if random.random() < 0.3:
        lines += ["", "loop_", "_atom_site_aniso_label", "_atom_site_aniso_U_11", "X1 0.01", "", "#END"]
    return lines, statement


def _site_loop(
    d: _Described, random: np.random.Generator, damage: str, *, expanded: bool, digits: int, tag: Any, told: bool
) -> list[str]:
    symbols = _symbols()
    rows: list[tuple[int, np.ndarray, int]] = []
    for number, site, size in zip(d.numbers.tolist(), d.sites, d.multiplicity.tolist(), strict=True):
        points = _orbit(d, site) if expanded else site[None]
        rows += [(number, point, 1 if expanded else size) for point in points]
    if damage == "site left out":
        rows.pop(int(random.integers(len(rows))))
    if damage == "site twice":
        rows.append(rows[int(random.integers(len(rows)))])
    style = random.choice(["plain", "charged", "capitals", "isotope"])
    untyped = told and random.random() < 0.2  # the label alone, which the formula helps to understand
    columns: dict[str, list[str]] = {"_atom_site_label": []}
    seen: Counter[int] = Counter()
    for number, _, _ in rows:
        seen[number] += 1
        columns["_atom_site_label"].append(f"{symbols[number]}{seen[number]}")
    if not untyped:
        columns["_atom_site_type_symbol"] = [_type(symbols[number], str(style)) for number, _, _ in rows]
    for axis, name in enumerate("xyz"):
        shift = random.integers(-1, 2) if random.random() < 0.3 else 0
        columns[f"_atom_site_fract_{name}"] = [_number(point[axis] + shift, digits, random) for _, point, _ in rows]
    if random.random() < 0.5:
        columns["_atom_site_occupancy"] = [str(random.choice(["1", "1.0", "1.", "1.00000", "."])) for _ in rows]
    if random.random() < 0.4:
        columns["_atom_site_symmetry_multiplicity"] = [str(size) for _, _, size in rows]
    if random.random() < 0.3:
        columns["_atom_site_U_iso_or_equiv"] = ["0.0123(4)" if random.random() < 0.5 else "?" for _ in rows]
    if random.random() < 0.2:
        columns["_atom_site_calc_flag"] = [str(random.choice(["d", "calc", "."])) for _ in rows]
    names = list(columns)
    random.shuffle(names)
    lines = ["", str(random.choice(["loop_", "LOOP_"])), *(tag(name) for name in names)]
    for row in range(len(rows)):
        lines.append(" ".join(columns[name][row] for name in names))
    return lines


def _orbit(d: _Described, site: np.ndarray) -> np.ndarray:
    from crystalforge.crystal.build_tables import parse_triplet

    maps = np.array([parse_triplet(text) for text in d.operations], float)
    images = (maps[:, :, :3] @ site + maps[:, :, 3] / 24) % 1.0
    kept: list[np.ndarray] = []
    for image in images:
        away = [np.abs(image - other - np.rint(image - other)).max() for other in kept]
        if not away or min(away) > 1e-3:
            kept.append(image)
    return np.array(kept)


def _symbol_of(setting: Any) -> str:
    """The symbol with its axes, and with origin or rhombohedral axes behind a colon."""
    name = setting.international_full if 3 <= setting.number <= 15 else setting.international_short
    choice = f":{setting.choice}" if setting.choice in ("1", "2", "H", "R") else ""
    return name + choice


def _type(symbol: str, style: str) -> str:
    if style == "charged":
        return f"{symbol}1+"
    if style == "capitals":
        return symbol.upper() if symbol.upper() not in ("NO", "CN") else symbol
    if style == "isotope" and symbol == "H":
        return "D"
    return symbol


def _number(value: float, digits: int, random: np.random.Generator) -> str:
    text = f"{value:.{digits}f}"
    if random.random() < 0.2:
        text += "(2)"
    if text.startswith("0.") and random.random() < 0.1:
        text = text[1:]
    return text


def read(case: Case) -> Crystal:
    """The crystal of the first block, as a source reads it; raises Unusable."""
    text = decode(case.content)
    blocks = list(split_blocks(text))
    return parse_cif(blocks[0][1] if blocks else text)


def _group(crystal: Crystal, symprec: float) -> int:
    found = spglib.get_symmetry_dataset(_cell(crystal), symprec=symprec)
    return 0 if found is None else int(found.number)


def difference(one: Crystal, other: Crystal) -> str:
    """What makes two crystals different; '' for equal ones."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    groups = [[_group(crystal, symprec) for crystal in (one, other)] for symprec in TOLERANCES]
    cells = [spglib.find_primitive(_cell(crystal), symprec=SYMPREC * 2) for crystal in (one, other)]
    if any(cell is None for cell in cells):
        return "no symmetry"
    a, b = (Crystal.of(cell[0], cell[2], cell[1]) for cell in cells)
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
    # Beside this script; not imported above, so that tests can load the functions from anywhere.
    from _common import finish

    finish(result, packages=("gemmi", "pymatgen", "ase", "spglib"))


if __name__ == "__main__":
    main()
