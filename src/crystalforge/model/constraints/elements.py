"""Element symbols as a user writes them, and the named sets that a wish may exclude."""

from __future__ import annotations

import difflib
import re
from functools import cache, reduce
from math import gcd

from crystalforge.common.errors import InputError

# By atomic number; 0 is the pad.
_TABLE = """
-  H  He Li Be B  C  N  O  F  Ne Na Mg Al Si P  S  Cl Ar K  Ca Sc Ti V  Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y  Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I  Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta
W  Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U  Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds
Rg Cn Nh Fl Mc Lv Ts Og
"""
SYMBOLS = tuple(_TABLE.split())

SETS: dict[str, tuple[str, ...]] = {
    # No isotope that lasts: Tc, Pm and everything from polonium on. Bismuth's half-life is 2e19 years: it stays.
    "radioactive": ("Tc", "Pm", *SYMBOLS[84:]),
    # Elements whose common compounds are acutely or chronically poisonous, or restricted by RoHS/REACH as a metal.
    "toxic": ("Be", "As", "Cd", "Hg", "Tl", "Pb"),
    "noble_gases": ("He", "Ne", "Ar", "Kr", "Xe", "Rn", "Og"),
    "lanthanides": tuple(SYMBOLS[57:72]),
    "actinides": tuple(SYMBOLS[89:104]),
    # Less than about 5 ppb of the upper continental crust (Rudnick and Gao, Treatise on Geochemistry 3 (2003) 1).
    "rare": ("Ru", "Rh", "Pd", "Te", "Re", "Os", "Ir", "Pt", "Au"),
}


@cache
def _numbers() -> dict[str, int]:
    return {symbol: number for number, symbol in enumerate(SYMBOLS) if number}


def atomic_number(symbol: str) -> int:
    """Atomic number of a symbol; InputError naming the nearest symbol for anything else.

    >>> atomic_number("Ti")
    22
    """
    number = _numbers().get(symbol)
    if number is None:
        near = difflib.get_close_matches(symbol.capitalize(), _numbers(), n=1, cutoff=0.4)
        raise InputError(
            f"there is no element {symbol!r}",
            remedy=f"perhaps {near[0]!r}" if near else "use a symbol such as 'Ti'",
        )
    return number


def excluded_set(name: str) -> tuple[str, ...]:
    """Symbols of a named set; InputError naming the nearest set for anything else."""
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, n=1, cutoff=0.4)
        hint = f"perhaps {near[0]!r}" if near else f"known: {', '.join(SETS)}"
        raise InputError(f"there is no named set of elements {name!r}", remedy=hint)
    return SETS[name]


def parse_formula(formula: str) -> dict[str, int]:
    """Counts of a formula without brackets, divided by their common factor.

    >>> parse_formula("Ti2O4")
    {'Ti': 1, 'O': 2}
    """
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", formula.replace(" ", ""))
    if not parts or "".join(symbol + count for symbol, count in parts) != formula.replace(" ", ""):
        raise InputError(
            f"cannot read the formula {formula!r}", remedy="write it as symbols and counts, such as CaTiO3"
        )
    counts: dict[str, int] = {}
    for symbol, count in parts:
        atomic_number(symbol)
        counts[symbol] = counts.get(symbol, 0) + (int(count) if count else 1)
    return reduced(counts)


def reduced(counts: dict[str, int]) -> dict[str, int]:
    """Counts divided by their common factor; InputError unless all are positive."""
    if not counts or min(counts.values()) < 1:
        raise InputError(f"a composition needs positive counts, not {counts}")
    factor = reduce(gcd, counts.values())
    return {symbol: count // factor for symbol, count in counts.items()}
