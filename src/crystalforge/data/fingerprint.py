"""Which crystals are the same, and which split a crystal belongs to.

A fingerprint is 16 bytes: a hash of the reduced formula (8), and one of reduced formula, space group and the list of
(element, multiplicity) of the orbits (8). The list stands for the Wyckoff string: letters are not used, because
they depend on the choice of origin (a and b of rock salt swap) and equal structures must get equal fingerprints.
Crystals with the same fingerprint are compared by pymatgen's StructureMatcher with its default tolerances.

Shapes: B crystals, S site slots.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64, UInt8, UInt64

from crystalforge.crystal import Crystal, Tokens, wyckoff
from crystalforge.crystal.convert import to_crystals
from crystalforge.data.config import SPLITS, SplitConfig

ROUNDED = (1e-3, 1e-3, 1e-3)  # coordinates (fractional), lengths (Å), angles (rad): equal after rounding is equal
GROUPS_AT_ONCE = 64  # groups of one unit of work: about a second
GIVEN_PRECEDENCE = np.array([2, 1, 0])  # of train, val, test: what is in test stays there


def fingerprints(tokens: Tokens) -> UInt8[np.ndarray, "B 16"]:
    """The fingerprints of tokenised crystals; of rows without a site, one by space group."""
    multiplicity = wyckoff.multiplicity()
    rows = np.zeros((len(tokens), 16), np.uint8)
    for row in range(len(tokens)):
        group = int(tokens.spacegroup[row])
        sites = tokens.wyckoff[row] > 0
        elements = tokens.element[row][sites]
        counts = multiplicity[group - 1, tokens.wyckoff[row][sites]]
        formula = _formula(elements, counts)
        orbits = sorted(zip(elements.tolist(), counts.tolist(), strict=True))
        rows[row, :8] = np.frombuffer(_hash(formula), np.uint8)
        rows[row, 8:] = np.frombuffer(_hash(f"{formula}|{group}|{orbits}"), np.uint8)
    return rows


def orbit_codes(fingerprint: UInt8[np.ndarray, "B 16"]) -> UInt64[np.ndarray, " B"]:
    """The half that covers reduced formula, space group and orbits, as one number each."""
    return np.ascontiguousarray(fingerprint[:, 8:]).view(np.uint64).ravel()


def assign_splits(fingerprint: UInt8[np.ndarray, "B 16"], config: SplitConfig) -> Int8[np.ndarray, " B"]:
    """Index into SPLITS by a hash of (seed, reduced formula), in the configured shares on average."""
    formula = np.ascontiguousarray(fingerprint[:, :8]).view(np.uint64).ravel()
    unit = np.array([int.from_bytes(_hash(f"{config.seed}|{value}"), "little") for value in formula.tolist()])
    share: Float64[np.ndarray, " B"] = unit.astype(np.float64) / 2.0**64
    bounds = np.cumsum([config.train, config.val])
    code = np.searchsorted(bounds, share, side="right")
    assert len(SPLITS) == len(bounds) + 1
    return code.astype(np.int8)


def select(
    fetch: Callable[[Int64[np.ndarray, " n"]], Tokens],
    fingerprint: UInt8[np.ndarray, "B 16"],
    split: Int8[np.ndarray, " B"],
    *,
    deduplicate: bool,
    run: Callable[[Callable[..., Any], Iterator[tuple[Any, ...]]], Iterator[Any]] | None = None,
) -> Bool[np.ndarray, " B"]:
    """The rows to keep: one of each set of matching crystals of one fingerprint, and no match of it in another split.

    Crystals of different fingerprints are not compared here: mirror twins (a group and its mirror image) and copies so
    distorted that their symmetry differs stay, and `across_splits` finds those that a division keeps apart. Of matching
    rows the one in test stays rather than the one in val or train, then the earlier one. Without `deduplicate` only
    rows that match one of a split of higher precedence go. Rows of split -1 are not touched.
    `fetch` gives tokens of some rows; `run(function, tasks)` computes in order, somewhere else perhaps.
    """
    keep = np.ones(len(split), bool)
    groups = list(same_fingerprint(fingerprint, split))
    if not deduplicate:
        groups = [rows for rows in groups if len(set(split[rows].tolist())) > 1]
    batches = [groups[first : first + GROUPS_AT_ONCE] for first in range(0, len(groups), GROUPS_AT_ONCE)]
    tasks = ((_fetch_all(fetch, batch), [len(rows) for rows in batch]) for batch in batches)
    answers = run(matching, tasks) if run is not None else (matching(*task) for task in tasks)
    for batch, answer in zip(batches, answers, strict=True):
        for rows, first in zip(batch, answer, strict=True):
            better = rows[first]  # the first match in order of precedence
            keep[rows] = better == rows if deduplicate else split[better] == split[rows]
    return keep


def same_fingerprint(
    fingerprint: UInt8[np.ndarray, "B F"], split: Int8[np.ndarray, " B"]
) -> Iterator[Int64[np.ndarray, " n"]]:
    """Rows (two or more) with equal fingerprints, by precedence of their splits and then by position."""
    code = np.ascontiguousarray(fingerprint).view(f"V{fingerprint.shape[1]}").ravel()
    precedence = np.where(split >= 0, GIVEN_PRECEDENCE[np.maximum(split, 0)], 0)
    usable = np.flatnonzero(split >= 0)
    if not usable.size:
        return
    _, group = np.unique(code[usable], return_inverse=True)
    order = np.lexsort((usable, precedence[usable], group))
    bounds = np.flatnonzero(np.diff(group[order], prepend=-1, append=-1))
    for first, last in pairwise(bounds.tolist()):
        if last - first > 1:
            yield usable[order[first:last]].astype(np.int64)


def across_splits(
    fetch: Callable[[Int64[np.ndarray, " n"]], Tokens],
    fingerprint: UInt8[np.ndarray, "B 16"],
    split: Int8[np.ndarray, " B"],
    *,
    run: Callable[[Callable[..., Any], Iterator[tuple[Any, ...]]], Iterator[Any]] | None = None,
) -> Int64[np.ndarray, "L 2"]:
    """Pairs of rows that match although their fingerprints differ, and lie in different splits.

    Each row that has such a match of higher precedence (test, val, train) comes once, with the first one. Only rows of
    one reduced formula can match. Rows of split -1 are not looked at.
    """
    formula = np.ascontiguousarray(fingerprint[:, :8])
    groups = [rows for rows in same_fingerprint(formula, split) if len(set(split[rows].tolist())) > 1]
    groups = [rows for rows in groups if len(np.unique(fingerprint[rows], axis=0)) > 1]
    batches = [groups[first : first + GROUPS_AT_ONCE] for first in range(0, len(groups), GROUPS_AT_ONCE)]
    tasks = (
        (_fetch_all(fetch, batch), [split[rows] for rows in batch], [fingerprint[rows] for rows in batch])
        for batch in batches
    )
    answers = run(matching_across, tasks) if run is not None else (matching_across(*task) for task in tasks)
    found = [np.zeros((0, 2), np.int64)]
    for batch, answer in zip(batches, answers, strict=True):
        for rows, first in zip(batch, answer, strict=True):
            has = first >= 0
            found.append(np.stack([rows[has], rows[first[has]]], axis=1))
    return np.concatenate(found)


def matching_across(
    tokens: Tokens, splits: Sequence[np.ndarray], fingerprint: Sequence[np.ndarray]
) -> list[Int64[np.ndarray, " n"]]:
    """For groups of one formula that lie end to end, ordered by precedence: for each crystal the position in its group
    of the first match in another split and of another fingerprint, -1 where there is none."""
    matcher: Any = _matcher()
    found, start = [], 0
    for codes, marks in zip(splits, fingerprint, strict=True):
        crystals = to_crystals(tokens[start : start + len(codes)], primitive=True)
        start += len(codes)
        reduced: dict[int, Any] = {}

        def of(row: int, crystals: Any = crystals, reduced: dict[int, Any] = reduced) -> Any:
            if row not in reduced:
                reduced[row] = crystals[row].to_structure().get_reduced_structure()
            return reduced[row]

        answer = np.full(len(codes), -1)
        for row, crystal in enumerate(crystals):
            for other in range(row):
                partner = crystals[other]
                if (
                    crystal is None
                    or partner is None
                    or codes[other] == codes[row]
                    or len(partner) != len(crystal)
                    or (marks[other] == marks[row]).all()
                ):
                    continue
                if matcher.fit(of(other), of(row), skip_structure_reduction=True):
                    answer[row] = other
                    break
        found.append(answer.astype(np.int64))
    return found


def matching(tokens: Tokens, sizes: Sequence[int]) -> list[Int64[np.ndarray, " n"]]:
    """For groups of crystals that lie end to end: for each crystal the position in its group of the first match.

    A crystal is compared with those that no earlier one matched (as pymatgen's group_structures does).
    """
    found = []
    start = 0
    for size in sizes:
        found.append(_match_group(tokens[start : start + size]))
        start += size
    return found


def _match_group(tokens: Tokens) -> Int64[np.ndarray, " n"]:
    from pymatgen.core import Structure

    keys = [_rounded(tokens, row) for row in range(len(tokens))]
    if len(set(keys)) == 1:
        return np.zeros(len(tokens), np.int64)
    crystals = to_crystals(tokens, primitive=True)
    matcher: Any = _matcher()
    reduced: dict[int, Structure] = {}
    answer = np.arange(len(tokens))
    leaders: list[int] = []
    for row, crystal in enumerate(crystals):
        known = next((leader for leader in leaders if keys[leader] == keys[row]), None)
        if known is None and crystal is not None:
            reduced[row] = _reduced(crystal)
            known = next(
                (
                    leader
                    for leader in leaders
                    if leader in reduced and matcher.fit(reduced[leader], reduced[row], skip_structure_reduction=True)
                ),
                None,
            )
        if known is None:
            leaders.append(row)
        else:
            answer[row] = known
    return answer.astype(np.int64)


def _matcher() -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher()


def _reduced(crystal: Crystal) -> Any:
    """What the matcher does to each crystal before it compares two: primitive cell, Niggli reduction."""
    return crystal.to_structure().get_reduced_structure().get_primitive_structure()


def _rounded(tokens: Tokens, row: int) -> bytes:
    sites = tokens.wyckoff[row] > 0
    coordinate, length, angle = ROUNDED
    coords = np.round(tokens.coords[row][sites] / coordinate) % round(1 / coordinate)
    lattice = np.round(tokens.lattice[row] / np.array([length] * 3 + [angle] * 3))
    parts = (tokens.wyckoff[row][sites], tokens.element[row][sites], coords, lattice)
    return b"".join(part.astype(np.int64).tobytes() for part in parts)


def _fetch_all(fetch: Callable[[Int64[np.ndarray, " n"]], Tokens], groups: Sequence[np.ndarray]) -> Tokens:
    return fetch(np.concatenate(groups))


def _formula(elements: np.ndarray, counts: np.ndarray) -> str:
    """Reduced formula as sorted 'Z:count' pairs."""
    total: dict[int, int] = {}
    for element, count in zip(elements.tolist(), counts.tolist(), strict=True):
        total[element] = total.get(element, 0) + count
    divisor = math.gcd(*total.values())
    return ",".join(f"{element}:{total[element] // divisor}" for element in sorted(total))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
