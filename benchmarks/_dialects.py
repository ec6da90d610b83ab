"""A crystal as CIF in one of the ways in which programs write it, chosen at random: setting, statement of the symmetry,
names, capitals, quotes, columns, digits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import spglib

from crystalforge.crystal import Crystal

SYMPREC = 0.01


def cell(crystal: Crystal) -> tuple[Any, Any, Any]:
    """The crystal as spglib takes it."""
    return crystal.lattice, crystal.frac, crystal.numbers


@dataclass
class Described:
    """A crystal in one setting: cell parameters, one site of each orbit, operations, names of the setting."""

    parameters: list[float]
    numbers: np.ndarray
    sites: np.ndarray
    multiplicity: np.ndarray
    operations: list[str]
    kind: Any
    counts: dict[int, int]
    volume: float


def describe(crystal: Crystal, random: np.random.Generator) -> Described | None:
    """The crystal in one of the settings of its group; None where spglib finds none."""
    plain = spglib.get_symmetry_dataset(cell(crystal), symprec=SYMPREC)
    if plain is None:
        return None
    halls = [h for h in range(1, 531) if (kind := spglib.get_spacegroup_type(h)) and kind.number == plain.number]
    hall = int(random.choice(halls))
    found = spglib.get_symmetry_dataset(cell(crystal), symprec=SYMPREC, hall_number=hall)
    if found is None:
        return None
    table: Any = spglib.get_symmetry_from_database(hall)
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
    return Described(
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


def dialect(d: Described, random: np.random.Generator, damage: str) -> tuple[list[str], str]:
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
    d: Described, random: np.random.Generator, damage: str, *, expanded: bool, digits: int, tag: Any, told: bool
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


def _orbit(d: Described, site: np.ndarray) -> np.ndarray:
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
