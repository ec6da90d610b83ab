"""Reference phases from the files that people have, as flat columns.

Understood: computed entries (`convex_hull_pbe*.json.bz2` of Alexandria, any pymatgen list of entries), a
pymatgen PatchedPhaseDiagram or PhaseDiagram as JSON, parquet with a formula or atomic numbers and an energy,
and the prototypes that ship with this package.

Shapes: E entries, C composition items of all of them.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64

from crystalforge.common.errors import InputError

ENERGY_COLUMNS = {
    "corrected_energy_per_atom": "mp2020",
    "energy_per_atom": "mp2020",
    "formation_energy_per_atom": "formation",
}
"""Parquet columns that hold an energy, in the order of preference, and the scale that each has unless another is named.
Beside corrected energies the plain ones are uncorrected: they are taken for a scale without corrections."""

UNCORRECTED = frozenset(("pbe", "raw", "uncorrected"))

ION = re.compile(r"([A-Z][a-z]?)(?:[0-9.]*[+-])?")
CHARGED = re.compile(r"([A-Z][a-z]?)[0-9.]*[+-]([0-9.]*)\s*")

OPENERS: dict[str, Any] = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}


Amounts = Mapping[int, float | int]
"""{atomic number: amount} of a composition."""


@dataclass(frozen=True, eq=False)
class Entries:
    """Phases laid end to end.

    n_elements: how many elements each has; elements: their atomic numbers, ascending; fractions: atomic
    fractions; energy: eV/atom on `scale`.
    """

    n_elements: Int32[np.ndarray, " E"]
    elements: Int32[np.ndarray, " C"]
    fractions: Float64[np.ndarray, " C"]
    energy: Float64[np.ndarray, " E"]
    ids: list[str]
    scale: str = "mp2020"
    skipped: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        compositions: Iterable[Amounts],
        energy: Sequence[float | int | None] | np.ndarray,
        ids: Sequence[str] | None = None,
        *,
        scale: str = "mp2020",
    ) -> Entries:
        """From {atomic number: amount} and energies per atom; rows without a finite energy are skipped,
        counted.
        """
        counts, elements, fractions, kept_energy, kept_ids = [], [], [], [], []
        skipped = 0
        for row, (composition, value) in enumerate(zip(compositions, energy, strict=True)):
            amounts = {z: amount for z, amount in sorted(composition.items()) if amount > 0}
            if value is None or not np.isfinite(value) or not amounts:
                skipped += 1
                continue
            total = sum(amounts.values())
            counts.append(len(amounts))
            elements.extend(amounts)
            fractions.extend(amount / total for amount in amounts.values())
            kept_energy.append(float(value))
            kept_ids.append(str(ids[row]) if ids is not None else str(row))
        return cls(
            np.array(counts, dtype=np.int32),
            np.array(elements, dtype=np.int32),
            np.array(fractions, dtype=np.float64),
            np.array(kept_energy, dtype=np.float64),
            kept_ids,
            scale,
            {"without energy or composition": skipped} if skipped else {},
        )

    @property
    def starts(self) -> Int64[np.ndarray, " E"]:
        """Where each entry's composition begins."""
        return np.cumsum(self.n_elements, dtype=np.int64) - self.n_elements

    def __len__(self) -> int:
        return len(self.energy)


def read_entries(path: str | Path, *, scale: str | None = None) -> Entries:
    """Read reference phases from a file, or the embedded prototypes when `path` is "embedded".

    scale: overrides what the file's kind implies (`formation` for a formation-energy column, else `mp2020`). Rows
    without energy or composition are skipped and counted. Raises InputError naming the file, the record and what was
    expected in it.
    """
    if str(path) == "embedded":
        from importlib import resources

        source = resources.files("crystalforge") / "data" / "prototypes.parquet"
        if not source.is_file():
            raise InputError(
                "the embedded prototypes are not in this installation",
                source="crystalforge/data/prototypes.parquet",
                remedy="reinstall the package, or give the path of a hull",
            )
        with resources.as_file(source) as file:
            return _from_parquet(file, scale)
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", source=path, remedy="give a parquet, json, json.gz or json.bz2 of entries")
    if path.suffix == ".parquet":
        return _from_parquet(path, scale)
    if ".json" in path.suffixes:
        return _from_json(path, scale)
    raise InputError(
        f"cannot tell what {path.suffix!r} is",
        source=path,
        remedy="give a parquet, json, json.gz or json.bz2 of entries",
    )


def parse_formula(formula: str) -> dict[int, float]:
    """{atomic number: amount} of a formula; raises InputError when it is none."""
    from pymatgen.core import Composition

    text = formula.strip()
    try:
        if "+" in text or "-" in text:
            return _charged(text)
        # By symbol once more: pymatgen takes unknown symbols for dummy species.
        return _by_number(Composition(text).as_dict())
    except (ValueError, KeyError) as error:
        raise InputError(f"{formula!r} is not a formula ({error})") from error


def _charged(formula: str) -> dict[int, float]:
    """A formula of ions, as pymatgen writes it: symbol, charge, amount (`Fe3+2 O2-3` is Fe2O3)."""
    if CHARGED.sub("", formula).strip():
        raise ValueError("a part of it is no ion such as Na+, Fe3+ or O2-2 (two of O2-)")
    found: dict[str, float] = {}
    for symbol, amount in CHARGED.findall(formula):
        found[symbol] = found.get(symbol, 0.0) + (float(amount) if amount else 1.0)
    return _by_number(found)


def _by_number(amounts: Mapping[str, float | int]) -> dict[int, float]:
    """{atomic number: amount} of {symbol or ion: amount}; ValueError for what is no element."""
    from pymatgen.core import Element

    found: dict[int, float] = {}
    for name, amount in amounts.items():
        match = ION.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is no element")
        z = Element(match.group(1)).Z
        found[z] = found.get(z, 0.0) + float(amount)
    return found


def _from_parquet(path: Path, scale: str | None) -> Entries:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        names = set(file.schema_arrow.names)
        energy = _energy_column(names, scale)
        composition = next((name for name in ("atomic_numbers", "formula") if name in names), None)
        if energy is None or composition is None:
            raise InputError(
                f"has the columns {', '.join(sorted(names))}",
                source=path,
                remedy=f"give atomic_numbers or formula, and one of {', '.join(ENERGY_COLUMNS)}",
            )
        identity = next((name for name in ("id", "material_id") if name in names), None)
        table = file.read(columns=[composition, energy] + ([identity] if identity else []))
        energies = table[energy].cast(pa.float64()).to_numpy()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"is no readable parquet file of energies ({error})", source=path) from error
    cache: dict[Any, dict[int, float]] = {}
    rows = []
    for number, cell in enumerate(table[composition].to_pylist(), start=1):
        key = tuple(cell) if isinstance(cell, list) else cell
        try:
            if key not in cache:
                cache[key] = _composition_of(key)
        except (InputError, TypeError, ValueError) as error:
            problem = error.problem if isinstance(error, InputError) else f"{cell!r} is no composition ({error})"
            raise InputError(problem, source=path, record=number, remedy="correct the row or leave it out") from error
        rows.append(cache[key])
    return Entries.of(
        rows,
        energies,
        [str(name) for name in table[identity].to_pylist()] if identity else None,
        scale=scale or ENERGY_COLUMNS[energy],
    )


def _energy_column(names: set[str], scale: str | None) -> str | None:
    """The column to read: the corrected energies belong to the corrected scale, others to the scale that is named."""
    order = list(ENERGY_COLUMNS)
    if scale in UNCORRECTED:
        order.remove("energy_per_atom")
        order.insert(0, "energy_per_atom")
    elif scale == "formation":
        order.reverse()
    return next((name for name in order if name in names), None)


def _composition_of(cell: Any) -> dict[int, float]:
    """{atomic number: amount} of a formula or of atomic numbers; empty for a cell without one."""
    if cell is None or cell == "":
        return {}
    if isinstance(cell, str):
        return parse_formula(cell)
    wrong = [z for z in cell if z is None or not 1 <= z <= 118 or z != int(z)]
    if wrong:
        raise ValueError(f"{wrong[0]} is no atomic number")
    return _count(cell)


def _count(numbers: Sequence[float | int]) -> dict[int, float]:
    counts: dict[int, float] = {}
    for z in numbers:
        counts[int(z)] = counts.get(int(z), 0.0) + 1.0
    return counts


def _from_json(path: Path, scale: str | None) -> Entries:
    opener = OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8-sig") as stream:
            content = json.load(stream)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"is not readable JSON ({error})", source=path) from error
    entries = list(_entry_dicts(content))
    if not entries:
        raise InputError(
            "holds no computed entries",
            source=path,
            remedy="expected a list, {'entries': [...]}, or a phase diagram's all_entries/computed_data",
        )
    compositions, energies, ids = [], [], []
    for number, entry in enumerate(entries):
        try:
            composition, energy, identity = _read_entry(entry, number)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"is not a computed entry ({type(error).__name__}: {getattr(error, 'problem', error)})",
                source=path,
                record=number,
                remedy="correct the entry or leave it out",
            ) from error
        compositions.append(composition)
        energies.append(energy)
        ids.append(identity)
    return Entries.of(compositions, energies, ids, scale=scale or "mp2020")


def _entry_dicts(content: Any) -> Iterable[dict[str, Any]]:
    """The entries of a list, of {'entries': ...}, or of a (patched) phase diagram, corrected energies and
    all.
    """
    if isinstance(content, list):
        for item in content:
            if isinstance(item, dict):
                yield item
        return
    if not isinstance(content, dict):
        return
    for key in ("entries", "all_entries"):
        if isinstance(content.get(key), list):
            yield from _entry_dicts(content[key])
            return
    computed = content.get("computed_data")
    if isinstance(computed, dict):
        yield from _entry_dicts(computed.get("all_entries", []))


def _read_entry(entry: dict[str, Any], number: int) -> tuple[dict[int, float], float | None, str]:
    """(composition, corrected energy per atom, id) of one serialised ComputedEntry, PDEntry or structure entry.

    Elements may carry charges; without a composition or an energy the entry has none.
    """
    composition = entry.get("composition")
    if isinstance(composition, str):
        amounts = parse_formula(composition) if composition.strip() else {}
    elif isinstance(composition, dict):
        amounts = _by_number({symbol: value for symbol, value in composition.items() if not symbol.startswith("@")})
    else:
        amounts = {}
        for site in entry["structure"]["sites"]:
            for species in site["species"]:
                for z, amount in _by_number({species["element"]: species["occu"]}).items():
                    amounts[z] = amounts.get(z, 0.0) + amount
    identity = str(entry.get("entry_id") or (entry.get("data") or {}).get("mat_id") or number)
    if entry["energy"] is None or sum(amounts.values()) <= 0:
        return amounts, None, identity
    # `energy` of a serialised entry is uncorrected; the corrections stand beside it.
    energy = float(entry["energy"])
    if entry.get("correction") is not None:
        energy += float(entry["correction"])
    else:
        energy += sum(float(item["value"]) for item in entry.get("energy_adjustments") or [])
    return amounts, energy / sum(amounts.values()), identity
