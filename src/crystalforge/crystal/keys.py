"""Keys by which crystals are called alike: one for the reduced composition, one for the prototype.

A key is a hash of 64 bits. Equal things have equal keys; that any two of ten million different ones share a key has a
chance of three in a million. Where a key names a bucket, the matcher tells apart what shares one by chance; where keys
are counted, such a pair counts as a repetition.

Shapes: B crystals.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, UInt64

from crystalforge.crystal.tokens import ATOM_TYPES, Tokens
from crystalforge.crystal.wyckoff import multiplicity


def element_counts(tokens: Tokens) -> Int32[np.ndarray, "B 119"]:
    """Atoms of each element in the conventional cell."""
    weight = np.where(tokens.is_site, multiplicity()[tokens.spacegroup[:, None] - 1, tokens.wyckoff], 0)
    counts = np.zeros((len(tokens), ATOM_TYPES), dtype=np.int32)
    row = np.broadcast_to(np.arange(len(tokens))[:, None], weight.shape)
    np.add.at(counts, (row, tokens.element), weight.astype(np.int32))
    counts[:, 0] = 0
    return counts


def counts_of(composition: tuple[tuple[int, int], ...]) -> Int32[np.ndarray, "1 119"]:
    """One composition, as pairs (atomic number, count), in the form of `element_counts`."""
    counts = np.zeros((1, ATOM_TYPES), dtype=np.int32)
    for z, count in composition:
        counts[0, z] = count
    return counts


def composition_keys(counts: Int32[np.ndarray, "B 119"]) -> UInt64[np.ndarray, " B"]:
    """64-bit hashes of reduced compositions; equal compositions have equal keys."""
    divisor = np.maximum(np.gcd.reduce(counts, axis=1), 1)
    reduced = counts // divisor[:, None]
    element = np.arange(ATOM_TYPES, dtype=np.uint64) << np.uint64(32)
    mixed = np.where(reduced > 0, _mix(element[None, :] + reduced.astype(np.uint64)), np.uint64(0))
    return mixed.sum(axis=1, dtype=np.uint64)


def composition_key(composition: tuple[tuple[int, int], ...]) -> int:
    """The key of one reduced composition, as pairs (atomic number, count)."""
    return int(composition_keys(counts_of(composition))[0])


def prototype_keys(tokens: Tokens) -> UInt64[np.ndarray, " B"]:
    """64-bit hashes of (space group, for each element the letters it sits on), blind to which element it is.

    >>> salts = Tokens(np.array([225, 225]), np.array([[1, 2], [1, 2]]), np.array([[11, 17], [17, 11]]),
    ...                np.zeros((2, 2, 3)), np.ones((2, 6)))
    >>> len(set(prototype_keys(salts).tolist()))
    1
    """
    per_element = np.zeros((len(tokens), ATOM_TYPES), dtype=np.uint64)
    letters = np.where(tokens.is_site, _mix(tokens.wyckoff.astype(np.uint64)), np.uint64(0))
    row = np.broadcast_to(np.arange(len(tokens))[:, None], letters.shape)
    np.add.at(per_element, (row, tokens.element), letters)
    per_element[:, 0] = 0
    mixed = np.where(per_element > 0, _mix(per_element), np.uint64(0)).sum(axis=1, dtype=np.uint64)
    return _mix(mixed + tokens.spacegroup.astype(np.uint64))


def _mix(value: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): spreads every input bit over the output."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
