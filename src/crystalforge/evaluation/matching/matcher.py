"""Which crystals are the same: StructureMatcher's answer for every pair, without asking it for every pair.

`StructureMatcher.fit(a, b)` answers yes only if all of these hold, so a pair that fails one is never handed to it:

1. equal reduced composition (it compares the compositions first);
2. equal numbers of sites in the reduced primitive cells (no supercells are tried);
3. for each k, the k-th successive minimum of a's reduced lattice is at most (1 + ltol) times the k-th sorted length
   of b's, at equal volume: a mapping picks three independent lattice vectors of a with lengths within (1 + ltol) of
   b's, and no three independent vectors can be shorter than the successive minima.

Space group and Wyckoff letters are *not* among them: the tolerances let crystals of different symmetry match, so
they may order the work but never end it. Reduction to the primitive Niggli cell depends on one crystal alone; it is
done once per crystal rather than once per pair.

`fit` is not symmetric in the last percent of cases. As in pymatgen's `group_structures`, the earlier crystal is its
first argument; against a reference store the reference is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from crystalforge.crystal import Crystal
from crystalforge.evaluation.protocols import MatcherSettings
from crystalforge.evaluation.validity import reduced_composition, structure_valid

if TYPE_CHECKING:
    from pymatgen.core import Structure

LENGTH_SLACK = 1e-3  # relative; far above the tolerance of the Niggli reduction (1e-5), so that rejection 3 is safe


@dataclass(frozen=True, eq=False)
class Reduced:
    """A crystal as the matcher compares it.

    minima: sorted lengths of the reduced cell at one Å^3 per cell. minimal: whether they are proven to be the
    successive minima of the lattice; if not, rejection 3 is left out. token: identifies the crystal bit by bit.
    """

    structure: Structure
    composition: tuple[tuple[int, int], ...]
    minima: Float64[np.ndarray, " 3"]
    minimal: bool
    token: bytes


class Matcher:
    """StructureMatcher with given settings, its reductions and answers remembered.

    >>> salt = Crystal.of([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]], [11, 17], [[0, 0, 0], [.5, .5, .5]])
    >>> matcher = Matcher(MatcherSettings())
    >>> a, b = matcher.reduce(salt), matcher.reduce(Crystal.of(salt.lattice * 1.1, salt.numbers, salt.frac))
    >>> matcher.fit(a, b)
    True
    """

    def __init__(self, settings: MatcherSettings) -> None:
        from pymatgen.analysis.structure_matcher import StructureMatcher

        self.settings = settings
        self._matcher: Any = StructureMatcher(**settings.model_dump())
        self._answers: dict[tuple[bytes, bytes], bool] = {}
        self.fits = 0  # pairs that StructureMatcher was really asked about

    def reduce(self, crystal: Crystal | None) -> Reduced | None:
        """The reduced form; None for what cannot be compared (see `structure_valid`) and hence matches nothing."""
        if crystal is None or not structure_valid(crystal)[0]:
            return None
        try:
            structure = self._matcher._get_reduced_structure(crystal.to_structure(), self.settings.primitive_cell, True)
        except (ValueError, np.linalg.LinAlgError, IndexError):  # cells beyond what pymatgen's reduction can do
            return None
        matrix = np.asarray(structure.lattice.matrix, dtype=np.float64)
        matrix = matrix / abs(np.linalg.det(matrix)) ** (1 / 3)
        if not self.settings.scale:
            matrix = np.asarray(structure.lattice.matrix, dtype=np.float64)
        token = hashlib.blake2b(
            b"".join(np.ascontiguousarray(a).tobytes() for a in (crystal.lattice, crystal.numbers, crystal.frac)),
            digest_size=16,
        ).digest()
        return Reduced(
            structure,
            reduced_composition(crystal),
            np.sort(np.linalg.norm(matrix, axis=1)),
            _is_minkowski_reduced(matrix),
            token,
        )

    def may_fit(self, first: Reduced, second: Reduced) -> bool:
        """False only if `fit` is certain to be False."""
        if len(first.structure) != len(second.structure) or first.composition != second.composition:
            return False
        bound = (1 + self.settings.ltol) * (1 + LENGTH_SLACK)
        return not first.minimal or bool((first.minima <= bound * second.minima).all())

    def fit(self, first: Reduced, second: Reduced) -> bool:
        """Exactly `StructureMatcher(**settings).fit(first, second)`."""
        if not self.may_fit(first, second):
            return False
        pair = (first.token, second.token)
        if pair not in self._answers:
            self.fits += 1
            self._answers[pair] = bool(
                self._matcher.fit(first.structure, second.structure, skip_structure_reduction=True)
            )
        return self._answers[pair]

    def rms(self, first: Reduced, second: Reduced) -> float:
        """Least rms displacement in units of (volume per atom)^(1/3); infinity without a match."""
        if not self.may_fit(first, second):
            return float("inf")
        found = self._matcher.get_rms_dist(first.structure, second.structure)
        return float("inf") if found is None else float(found[0])

    def greedy(self, crystals: Sequence[Reduced | None]) -> list[int]:
        """Group number of each crystal: that of the earliest group whose first member it fits, else a new one.

        -1 for None. Numbers count up from 0 in order of first appearance.
        """
        groups: list[int] = []
        heads: list[Reduced] = []
        for crystal in crystals:
            if crystal is None:
                groups.append(-1)
                continue
            found = next((k for k, head in enumerate(heads) if self.fit(head, crystal)), len(heads))
            if found == len(heads):
                heads.append(crystal)
            groups.append(found)
        return groups

    def forget(self) -> None:
        """Drop the remembered answers: bounds memory between compositions, which never meet."""
        self._answers.clear()


def _is_minkowski_reduced(matrix: Float64[np.ndarray, "3 3"]) -> bool:
    """Whether the sorted rows are Minkowski-reduced, so that their lengths are the successive minima (dimension 3).

    In three dimensions it suffices that no combination with coefficients -1, 0, 1 of the shorter vectors, added to
    the next one, shortens it (Nguyen & Stehlé 2009). Equality up to rounding counts as reduced.
    """
    a, b, c = matrix[np.argsort(np.linalg.norm(matrix, axis=1), kind="stable")]
    slack = 1 + 1e-6  # rounding of the reduction; LENGTH_SLACK is 1000 times wider

    def shortest(vector: np.ndarray, others: Iterable[np.ndarray]) -> bool:
        length = np.linalg.norm(vector)
        return all(length <= slack * np.linalg.norm(vector + other) for other in others)

    signs = (-1, 0, 1)
    return shortest(b, (s * a for s in signs)) and shortest(c, (s * a + t * b for s in signs for t in signs))
