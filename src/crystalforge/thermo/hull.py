"""Reference phases indexed by chemical system, and the distance of a crystal to their convex hull.

On disk a store is a directory of plain arrays, memory-mapped, so that several reward processes share one
copy:

    manifest.json        format, scale, counts, source and the digest of the content
    system_mask.npy      [K, 2] uint64: bit Z-1 set for each element of the system, ascending
    system_start.npy     [K + 1] int64: entries of system k are start[k]:start[k+1]
    fractions.npy        atomic fractions, for system k an array [entries, elements], laid end to end
    energy.npy           [E] eV/atom

Only the cheapest phase of each composition is kept.

Shapes: K systems, E entries, B queries.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt64

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_directory, recover_directory, write_json
from crystalforge.thermo.entries import Amounts, Entries, read_entries
from crystalforge.thermo.facets import SystemHull

FORMAT = 1

SAME_COMPOSITION = 8
"""Decimals in which two compositions must agree to be one: 1e-8 separates all formulas below 10,000 atoms."""

LARGEST_FORMULA = 200
"""Atoms up to which whole numbers are looked for when a phase is named."""


@dataclass(frozen=True, eq=False)
class HullAnswer:
    """Distances to the hull, one row per query.

    e_above_hull: eV/atom, negative below the hull, NaN where the hull does not exist; hull_energy: eV/atom of
    the hull itself; n_compounds: how many compounds (not elements) the chemical system has; missing: True
    where an element of the query has no pure reference phase.
    """

    e_above_hull: Float64[np.ndarray, " B"]
    hull_energy: Float64[np.ndarray, " B"]
    n_compounds: Int32[np.ndarray, " B"]
    missing: np.ndarray


@dataclass(frozen=True)
class Surroundings:
    """What a hull knows around a composition.

    n_compounds: compounds of its elements, or of some of them; n_same_elements: those that hold all of them;
    decomposition: the phases that a crystal of this composition competes with, as (formula, share of the atoms), the
    largest share first; missing: whether an element has no pure reference phase, so that there is no hull.
    """

    n_compounds: int
    n_same_elements: int
    decomposition: tuple[tuple[str, float], ...]
    missing: bool = False


class HullStore:
    """All reference phases, with the hulls of recently asked chemical systems kept in memory.

    >>> store = HullStore.open("embedded")                                            # doctest: +SKIP
    >>> store.e_above_hull([11, 17], -3.3)                                            # doctest: +SKIP
    0.08...
    """

    def __init__(
        self,
        mask: UInt64[np.ndarray, "K 2"],
        start: Int64[np.ndarray, " K1"],
        fractions: Float64[np.ndarray, " C"],
        energy: Float64[np.ndarray, " E"],
        manifest: dict[str, Any],
        *,
        cache_size: int = 4096,
    ) -> None:
        self._mask, self._start, self._fractions, self._energy = mask, start, fractions, energy
        widths = np.bitwise_count(mask).sum(axis=1).astype(np.int64)
        self._fraction_start = np.append(0, np.cumsum(widths * np.diff(start)))
        self.manifest = manifest
        self._cache: OrderedDict[tuple[int, ...], SystemHull | None] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    @classmethod
    def open(cls, path: str | Path, *, scale: str | None = None, cache_size: int = 4096) -> HullStore:
        """Open a store, or build one in memory from a file of entries or from "embedded".

        Raises InputError naming the file when it is missing, damaged or of another format.
        """
        if str(path) == "embedded" or not Path(path).is_dir():
            recover_directory(Path(path))
        if str(path) == "embedded" or not Path(path).is_dir():
            return cls.from_entries(read_entries(path, scale=scale), source=Path(path).name, cache_size=cache_size)
        path = Path(path)
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            names = ("system_mask", "system_start", "fractions", "energy")
            mask, start, fractions, energy = (
                np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"is not a hull store ({error})", source=path, remedy="build it again from its entries"
            ) from error
        if manifest.get("format") != FORMAT:
            raise InputError(
                f"has format {manifest.get('format')}, this version reads {FORMAT}",
                source=path,
                remedy="build it again from its entries",
            )
        if scale is not None and scale != manifest["scale"]:
            raise InputError(f"holds energies on the scale {manifest['scale']!r}, not {scale!r}", source=path)
        store = cls(mask, start, fractions, energy, manifest, cache_size=cache_size)
        if store._content_digest() != manifest["digest"]:
            raise InputError(
                "its arrays do not have the digest of its manifest",
                source=path,
                remedy="build it again from its entries",
            )
        return store

    @classmethod
    def from_entries(cls, entries: Entries, *, source: str = "", cache_size: int = 4096) -> HullStore:
        """Index entries; the energies keep the scale of the entries."""
        if not len(entries):
            raise InputError("no entries with an energy", source=source or None)
        wrong = entries.elements[(entries.elements < 1) | (entries.elements > 118)]
        if len(wrong):
            raise InputError(f"atomic number {wrong[0]} is not in the periodic table", source=source or None)
        systems: dict[tuple[int, ...], dict[tuple[float, ...], tuple[float, tuple[float, ...]]]] = {}
        for first, count, energy in zip(entries.starts, entries.n_elements, entries.energy, strict=True):
            part = slice(int(first), int(first + count))
            system = tuple(entries.elements[part].tolist())
            exact = tuple(entries.fractions[part].tolist())
            rounded = tuple(entries.fractions[part].round(SAME_COMPOSITION).tolist())
            phases = systems.setdefault(system, {})
            # The exact fractions come along, so that the order of the entries decides nothing.
            phases[rounded] = min((float(energy), exact), phases.get(rounded, (np.inf, ())))
        keys = sorted(systems, key=_bits)
        chosen = [[systems[key][row] for row in sorted(systems[key])] for key in keys]
        blocks = [np.array([fractions for _, fractions in rows]) for rows in chosen]
        energies = [np.array([energy for energy, _ in rows]) for rows in chosen]
        mask = np.array([_words(key) for key in keys], dtype=np.uint64)
        start = np.append(0, np.cumsum([len(block) for block in blocks])).astype(np.int64)
        manifest = {
            "format": FORMAT,
            "scale": entries.scale,
            "source": source,
            "entries_read": len(entries),
            "entries": int(start[-1]),
            "systems": len(keys),
            "skipped": entries.skipped,
        }
        flat = np.concatenate([block.ravel() for block in blocks])
        store = cls(mask, start, flat, np.concatenate(energies), manifest, cache_size=cache_size)
        manifest["digest"] = store._content_digest()
        return store

    def save(self, path: Path) -> None:
        """Write the store as a directory, atomically."""
        arrays = {
            "system_mask": self._mask,
            "system_start": self._start,
            "fractions": self._fractions,
            "energy": self._energy,
        }
        with atomic_directory(path) as temporary:
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", np.asarray(array))
            write_json(temporary / "manifest.json", self.manifest)

    @property
    def digest(self) -> str:
        """SHA-256 of the content: equal digests give equal distances."""
        return self.manifest["digest"]

    @property
    def scale(self) -> str:
        """What the energies are measured against, see `potentials.base.Scale`."""
        return self.manifest["scale"]

    def __len__(self) -> int:
        return len(self._energy)

    def system(self, elements: Sequence[int]) -> SystemHull | None:
        """The hull of a chemical system, None when one of its elements has no pure reference phase."""
        key = tuple(sorted({int(z) for z in elements}))
        with self._lock:
            if key in self._cache:
                self.hits += 1
                self._cache.move_to_end(key)
                return self._cache[key]
            self.misses += 1
        hull = self._build(key)
        with self._lock:
            self._cache[key] = hull
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return hull

    def e_above_hull(self, numbers: Sequence[int] | np.ndarray | Amounts, energy: float) -> float:
        """Distance to the hull in eV/atom (negative below it) of one crystal with `energy` eV/atom.

        numbers: the atomic numbers of its atoms, or {atomic number: amount}. NaN when an element has no
        reference.
        """
        return float(self.e_above_hull_many([numbers], np.array([energy], dtype=np.float64)).e_above_hull[0])

    def e_above_hull_many(
        self,
        compositions: Sequence[Sequence[int] | np.ndarray | Amounts],
        energy: Float64[np.ndarray, " B"],
    ) -> HullAnswer:
        """Distances to the hull of many crystals with `energy` eV/atom; see `e_above_hull`."""
        count = len(compositions)
        hull_energy = np.full(count, np.nan)
        n_compounds = np.zeros(count, dtype=np.int32)
        groups: dict[tuple[int, ...], tuple[list[int], list[np.ndarray]]] = {}
        for row, composition in enumerate(compositions):
            elements, amounts = _fractions_of(composition)
            rows, vectors = groups.setdefault(elements, ([], []))
            rows.append(row)
            vectors.append(amounts)
        for elements, (rows, vectors) in groups.items():
            hull = self.system(elements) if elements else None
            if hull is not None:
                hull_energy[rows] = hull.energy(np.stack(vectors))
                n_compounds[rows] = hull.n_compounds
        return HullAnswer(energy - hull_energy, hull_energy, n_compounds, np.isnan(hull_energy))

    def around(self, numbers: Sequence[int] | np.ndarray | Amounts) -> Surroundings:
        """What the hull knows around one composition, the competing phases by name.

        >>> HullStore.open("embedded").around([11, 17]).decomposition[0]                  # doctest: +SKIP
        ('NaCl', 1.0)
        """
        elements, amounts = _fractions_of(numbers)
        hull = self.system(elements) if elements else None
        if hull is None:
            return Surroundings(0, 0, (), missing=True)
        phases = [(formula_of(elements, row), share) for row, share in hull.decomposition(amounts)]
        phases.sort(key=lambda phase: -phase[1])
        return Surroundings(hull.n_compounds, hull.n_full, tuple(phases))

    def _build(self, key: tuple[int, ...]) -> SystemHull | None:
        if any(not 1 <= z <= 118 for z in key):
            return None
        outside = ~np.array(_words(key), dtype=np.uint64)
        inside = np.flatnonzero(((self._mask & outside) == 0).all(axis=1))
        column = {z: place for place, z in enumerate(key)}
        parts, energies, pure = [], [], set()
        for system in inside.tolist():
            members = _members(self._mask[system])
            pure.update(members if len(members) == 1 else ())
            rows = slice(int(self._start[system]), int(self._start[system + 1]))
            block = np.zeros((rows.stop - rows.start, len(key)))
            first, last = self._fraction_start[system : system + 2]
            block[:, [column[z] for z in members]] = self._fractions[first:last].reshape(-1, len(members))
            parts.append(block)
            energies.append(self._energy[rows])
        if len(pure) < len(key):
            return None
        return SystemHull(np.concatenate(parts), np.concatenate(energies))

    def _content_digest(self) -> str:
        total = hashlib.sha256(f"{FORMAT}|{self.manifest['scale']}".encode())
        for array in (self._mask, self._start, self._fractions, self._energy):
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()


def formula_of(elements: Sequence[int], fractions: Float64[np.ndarray, " d"]) -> str:
    """Formula with the smallest whole numbers, such as `Li2S`; numbers beyond 200 atoms are given as fractions."""
    from pymatgen.core import Composition, Element

    for total in range(1, LARGEST_FORMULA + 1):
        counts = fractions * total
        if np.abs(counts - np.rint(counts)).max() < 1e-6 * total:
            fractions = np.rint(counts)
            break
    parts = {Element.from_Z(z): float(n) for z, n in zip(elements, fractions, strict=True) if n > 1e-9}
    return Composition(parts).reduced_formula


def _bits(elements: Sequence[int]) -> int:
    return sum(1 << (z - 1) for z in elements)


def _words(elements: Sequence[int]) -> tuple[int, int]:
    bits = _bits(elements)
    return bits & 0xFFFFFFFFFFFFFFFF, bits >> 64


def _members(mask: np.ndarray) -> list[int]:
    bits = int(mask[0]) | int(mask[1]) << 64
    return [z for z in range(1, 119) if bits >> (z - 1) & 1]


def _fractions_of(
    composition: Sequence[int] | np.ndarray | Amounts,
) -> tuple[tuple[int, ...], np.ndarray]:
    """(elements ascending, their atomic fractions)."""
    if isinstance(composition, Mapping):
        counts = {int(z): float(amount) for z, amount in composition.items() if amount > 0}
    else:
        counts = {}
        for z in composition.tolist() if isinstance(composition, np.ndarray) else composition:
            counts[int(z)] = counts.get(int(z), 0.0) + 1.0
    elements = tuple(sorted(counts))
    amounts = np.array([counts[z] for z in elements])
    return elements, amounts / amounts.sum() if len(elements) else amounts
