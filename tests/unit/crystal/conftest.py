"""Crystals of which the letters and the elements alone matter."""

from __future__ import annotations

import numpy as np

from crystalforge.crystal.tokens import Tokens


def crystals(*rows: tuple[int, str, list[int]]) -> Tokens:
    """Space group, letters and elements of each crystal."""
    wyckoff, element = np.zeros((len(rows), 4), np.int32), np.zeros((len(rows), 4), np.int32)
    for row, (_, letters, elements) in enumerate(rows):
        wyckoff[row, : len(letters)] = [ord(letter) - ord("a") + 1 for letter in letters]
        element[row, : len(elements)] = elements
    groups = np.array([group for group, _, _ in rows], np.int32)
    return Tokens(groups, wyckoff, element, np.zeros((len(rows), 4, 3)), np.ones((len(rows), 6)))
