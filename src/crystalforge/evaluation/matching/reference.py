"""The crystals that are already known: what a sample is compared with to call it novel, and its nearest relative.

Works from tokens, which every store has: composition and prototype of all rows are hashed once (16 bytes a row),
and only the crystals that share a sample's composition are ever built.

Shapes: R reference rows, k selected rows, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt64

from crystalforge.common.files import sha256_json
from crystalforge.crystal import ATOM_TYPES, Crystal, PackedCrystals, Tokens
from crystalforge.crystal.convert import to_crystals
from crystalforge.crystal.keys import composition_key, composition_keys, counts_of, element_counts, prototype_keys
from crystalforge.data.fingerprint import fingerprints, orbit_codes
from crystalforge.evaluation.validity import reduced_composition

if TYPE_CHECKING:
    from crystalforge.data.store import TokenStore

CHUNK = 16_384  # rows hashed or compared at a time: bounds memory at some 20 MB whatever the size of the store
Kind = Literal["match", "polymorph", "isostructural", "similar"]


@dataclass(frozen=True)
class Nearest:
    """The closest known crystal and in which sense it is close, the strongest that exists.

    kind: `match` (StructureMatcher says it is the same; distance: rms displacement in units of (V/N)^(1/3)),
    `polymorph` (same reduced composition; 0), `isostructural` (same space group, Wyckoff letters and their sharing
    among elements) or `similar` (anything else); for the last two the distance is the earth mover's distance between
    compositions along Pettifor's scale (mean steps an atom has to move), after ElMD (Hargreaves et al. 2020).
    """

    row: int
    kind: Kind
    distance: float


class Reference:
    """A searchable set of known crystals.

    Rows are numbered 0..R-1. `prototypes` is None for a reference given as crystals rather than tokens. Further
    crystals may be known by their fingerprints alone, see `remembering`; they have no row.
    """

    def __init__(
        self,
        *,
        keys: UInt64[np.ndarray, " R"],
        prototypes: UInt64[np.ndarray, " R"] | None,
        fetch_counts: Callable[[Int64[np.ndarray, " k"]], Int32[np.ndarray, "k 119"]],
        fetch_crystals: Callable[[Int64[np.ndarray, " k"]], list[Crystal | None]],
        fetch_ids: Callable[[Int64[np.ndarray, " k"]], list[str]],
        digest: str,
    ) -> None:
        self.keys, self.digest = keys, digest
        self._remembered: UInt64[np.ndarray, " F"] | None = None
        self.counts, self.crystals, self.ids = fetch_counts, fetch_crystals, fetch_ids
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        self._prototypes = prototypes
        if prototypes is not None:
            self._by_prototype = np.argsort(prototypes, kind="stable")
            self._sorted_prototypes = prototypes[self._by_prototype]

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def from_store(cls, store: TokenStore, splits: Sequence[str] = ("train",)) -> Reference:
        """The rows of some splits of a token store; reads it in chunks."""
        rows = np.sort(np.concatenate([store.split(name) for name in splits]).astype(np.int64))
        return cls._from_tokens(
            len(rows),
            lambda index: store.tokens(rows[index]),
            lambda index: store.ids(rows[index]),
            str(store.manifest.get("data_hash", "")) or sha256_json(store.manifest),
        )

    @classmethod
    def from_tokens(cls, tokens: Tokens, ids: Sequence[str]) -> Reference:
        """Tokens in memory, with a name for each."""
        assert len(tokens) == len(ids)
        names = list(ids)
        digest = sha256_json([names, tokens.spacegroup.tolist(), tokens.lattice.tolist(), tokens.coords.tolist()])
        return cls._from_tokens(
            len(tokens), lambda index: tokens[index], lambda index: [names[i] for i in index], digest
        )

    @classmethod
    def from_crystals(cls, crystals: Sequence[Crystal], ids: Sequence[str]) -> Reference:
        """Crystals in memory, with a name for each; `isostructural` relatives are not found among them."""
        assert len(crystals) == len(ids)
        known, names = list(crystals), list(ids)
        packed = PackedCrystals.pack(known)

        def counts(index: Int64[np.ndarray, " k"]) -> Int32[np.ndarray, "k 119"]:
            rows = [np.bincount(known[i].numbers, minlength=ATOM_TYPES)[:ATOM_TYPES] for i in index]
            return np.array(rows, dtype=np.int32).reshape(-1, ATOM_TYPES)

        return cls(
            keys=np.array([composition_key(reduced_composition(c)) for c in known], dtype=np.uint64),
            prototypes=None,
            fetch_counts=counts,
            fetch_crystals=lambda index: [known[i] for i in index],
            fetch_ids=lambda index: [names[i] for i in index],
            digest=sha256_json([names, packed.lattice.tolist(), packed.frac.tolist(), packed.numbers.tolist()]),
        )

    @classmethod
    def _from_tokens(
        cls, size: int, fetch: Callable[[np.ndarray], Tokens], ids: Callable[[np.ndarray], list[str]], digest: str
    ) -> Reference:
        keys, prototypes = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
        for first in range(0, size, CHUNK):
            rows = np.arange(first, min(first + CHUNK, size))
            tokens = fetch(rows)
            keys[rows] = composition_keys(element_counts(tokens))
            prototypes[rows] = prototype_keys(tokens)
        return cls(
            keys=keys,
            prototypes=prototypes,
            fetch_counts=lambda index: element_counts(fetch(index)),
            fetch_crystals=lambda index: to_crystals(fetch(index), primitive=True),
            fetch_ids=ids,
            digest=digest,
        )

    def remembering(self, fingerprint: UInt64[np.ndarray, " F"]) -> Reference:
        """This reference, which then also knows the crystals with these fingerprints (`orbit_codes`, the half that
        covers formula, space group and orbits): a training set whose structures are not at hand.
        """
        other = copy(self)
        other._remembered = np.unique(fingerprint)
        other.digest = sha256_json([self.digest, other._remembered.tolist()])
        return other

    def remembers(self, tokens: Tokens) -> Bool[np.ndarray, " B"]:
        """Which crystals are known by their fingerprint. Free coordinates may differ: a little too strict, as a
        matcher would call some of them new."""
        if self._remembered is None:
            return np.zeros(len(tokens), dtype=bool)
        return np.isin(orbit_codes(fingerprints(tokens)), self._remembered) & (tokens.n_sites > 0)

    def rows_of(self, key: int) -> Int64[np.ndarray, " k"]:
        """Rows whose reduced composition has this key, ascending."""
        return _find(self._sorted, self._order, key)

    def nearest_by_chemistry(self, composition: tuple[tuple[int, int], ...], prototype: int | None) -> Nearest | None:
        """The nearest known crystal that is not a match; None when it can only be `similar` or R = 0.

        `similar` ones are looked up together, see `similar`.
        """
        same = self.rows_of(composition_key(composition))
        if len(same):
            return Nearest(int(same[0]), "polymorph", 0.0)
        if prototype is None or self._prototypes is None:
            return None
        rows = _find(self._sorted_prototypes, self._by_prototype, prototype)
        if not len(rows):
            return None
        distance = _moves(_query(composition)[None], _cumulative(self.counts(rows)))[0]
        best = int(distance.argmin())
        return Nearest(int(rows[best]), "isostructural", float(distance[best]))

    def similar(self, compositions: Sequence[tuple[tuple[int, int], ...]]) -> list[Nearest]:
        """For each composition the known crystal of the nearest one; scans the reference once, in chunks."""
        assert len(self), "nothing is similar to anything in an empty reference"
        queries = np.stack([_query(c) for c in compositions]) if compositions else np.zeros((0, ATOM_TYPES))
        best = np.full(len(queries), math.inf)
        rows = np.zeros(len(queries), dtype=np.int64)
        for first in range(0, len(self), CHUNK):
            index = np.arange(first, min(first + CHUNK, len(self)))
            known, origin = np.unique(_cumulative(self.counts(index)), axis=0, return_index=True)
            for query in range(len(queries)):
                distance = _moves(queries[query : query + 1].astype(np.float32), known)[0]
                least = int(distance.argmin())
                if distance[least] < best[query]:
                    best[query], rows[query] = float(distance[least]), int(index[origin[least]])
        return [Nearest(int(row), "similar", float(d)) for row, d in zip(rows, best, strict=True)]


def _find(ordered: UInt64[np.ndarray, " R"], order: Int64[np.ndarray, " R"], key: int) -> Int64[np.ndarray, " k"]:
    first = np.searchsorted(ordered, np.uint64(key), side="left")
    last = np.searchsorted(ordered, np.uint64(key), side="right")
    return np.sort(order[first:last])


@cache
def _pettifor() -> Int64[np.ndarray, " 119"]:
    """Elements in the order of Pettifor's Mendeleev numbers, 0 first."""
    from pymatgen.core.periodic_table import Element

    # The scale ends with lawrencium; heavier elements follow by atomic number.
    rank = [Element.from_Z(z).mendeleev_no if z <= 103 else 1000 + z for z in range(1, ATOM_TYPES)]
    return np.array([0, *(np.argsort(rank, kind="stable") + 1)], dtype=np.int64)


def _cumulative(counts: Int32[np.ndarray, "k 119"]) -> Float32[np.ndarray, "k 119"]:
    """Cumulative atom fractions along Pettifor's scale: their L1 distance is the earth mover's distance."""
    fractions = counts[:, _pettifor()] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.cumsum(fractions, axis=1).astype(np.float32)


def _query(composition: tuple[tuple[int, int], ...]) -> Float32[np.ndarray, " 119"]:
    return _cumulative(counts_of(composition))[0]


def _moves(queries: Float32[np.ndarray, "Q 119"], known: Float32[np.ndarray, "k 119"]) -> Float32[np.ndarray, "Q k"]:
    return np.stack([np.abs(known - query).sum(axis=1) for query in queries])
