"""Which element a site holds, from its type symbol or, where there is none, from its label.

A type symbol names an element in any case (`NA` is sodium), with a charge, a mass number or a site number. A label is
only a name that begins with an element: `CA1` can be calcium or the first carbon of a chain, `OH2` the oxygen of water
with or without its hydrogens. What a label leaves open, the file's formula decides; where it does not, the file is
refused. A molecule's name as type symbol is refused too: its hydrogens have no places.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache

from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.crystal.reading.symbols import HYDROGEN, elements

# Scattering factors that are named after a state of the atom (International Tables C, 6.1).
FACTORS = {"cval": 6, "siva": 14, "sival": 14}
WATER = {"OW": 8, "HW": 1}
# Words that begin like an element and are none, and groups of atoms of which only one has coordinates.
MOLECULES = frozenset(
    ("WAT", "OH", "HO", "NH", "CH", "NO", "CN", "CO", "CS", "HOH", "DUM", "BQ", "VAC", "ME", "LP", "CG", "CNT", "UNK")
)
NO_ATOMS = frozenset(("CG", "BQ", "DU", "DUM", "LP", "VAC", "CNT", "UNK", "ME"))  # centroids, ghosts, holes
HEAVIEST = 95  # two capitals that name a heavier element (CN, NO, CM) are a group or a centroid
TYPE = re.compile(r"(\d{0,3})([A-Za-z]+)(.*)")
TAIL = re.compile(r"[0-9.]*[+-]*[0-9.]*[+-]?(\([0-9IVX+-]*\))?[+-]?")
LETTERS = re.compile(r"[A-Za-z]+")


def atomic_numbers(symbols: Sequence[str | None], labels: Sequence[str], formula: Collection[int]) -> list[int]:
    """Atomic number of every site; formula: the elements that the file's formula names (empty if it has none).

    Raises Unusable (unknown-element) naming the site that is no element or could be two.
    """
    return [
        _of_type(symbol, label) if symbol is not None else _of_label(label, frozenset(formula))
        for symbol, label in zip(symbols, labels, strict=True)
    ]


@cache
def _of_type(symbol: str, label: str) -> int:
    match = TYPE.fullmatch(symbol.strip())
    if match and TAIL.fullmatch(match.group(3)):
        letters = match.group(2)
        known = elements().get(letters)
        if known is None:
            known = FACTORS.get(letters.lower(), elements().get(letters.capitalize(), 0))
            if known > HEAVIEST:
                known = 0
        if known:
            return known
    if LETTERS.match(symbol) and _leading(symbol).upper() in MOLECULES:
        raise Unusable(
            "unknown-element",
            f"site {label} is a group of atoms ({symbol}), and the file does not say where each of them is",
            symbol,
        )
    raise Unusable("unknown-element", f"site {label} has the type {symbol}, which is no element", symbol)


@cache
def _of_label(label: str, formula: frozenset[int]) -> int:
    candidates, sure = _candidates(label)
    if sure and len(candidates) == 1:
        return candidates[0]
    told = [number for number in candidates if number in formula]
    if len(told) == 1:
        return told[0]
    if not candidates:
        raise Unusable("unknown-element", f"the site {label} has no type symbol, and its label is no element", label)
    raise Unusable(
        "unknown-element",
        f"the site {label} has no type symbol, and its label does not tell which element it is",
        label,
    )


def _candidates(label: str) -> tuple[list[int], bool]:
    """Atomic numbers that a label may mean, and whether nothing else is possible."""
    match = re.match(r"\d{0,3}([A-Za-z]+)", label.strip())
    if match is None:
        return [], False
    letters, known = match.group(1), elements()
    if len(letters) <= 2 and letters in known and letters not in HYDROGEN and known[letters] <= HEAVIEST:
        return [known[letters]], True
    if letters.upper() in WATER:
        return [WATER[letters.upper()]], True
    two, one = letters[:2].capitalize(), letters[0].upper()
    possible = dict.fromkeys(known[symbol] for symbol in (two, one) if symbol in known)
    found = [number for number in possible if number <= HEAVIEST]
    if letters.upper() in NO_ATOMS and not letters.isupper():
        return [], False
    if letters.upper() == "WAT":
        return [8], False
    if letters[:1] in HYDROGEN:  # a T1 is more often a tetrahedral site than tritium
        return found if len(letters) == 1 else [number for number in found if number != 1], False
    if letters.upper() in MOLECULES:
        return found, False
    if len(letters) > 2 and letters[1].islower() and letters[2].isupper() and two in known:
        return [known[two]], True  # FeM, SiT: an element and the name of its site
    if letters[0].isupper() and letters[1:2].islower():
        return found, False  # Oa1: an oxygen site perhaps
    return found, len(found) == 1


def _leading(symbol: str) -> str:
    match = LETTERS.match(symbol)
    return match.group() if match else ""
