"""Symbols of the elements as files write them."""

from __future__ import annotations

from functools import cache

HYDROGEN = {"D": 1, "T": 1}


@cache
def elements() -> dict[str, int]:
    """{symbol: atomic number}, D and T among them."""
    from pymatgen.core.periodic_table import Element

    return {Element.from_Z(number).symbol: number for number in range(1, 119)} | HYDROGEN
