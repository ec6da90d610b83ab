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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64

from crystalforge.common.errors import InputError

ENERGY_COLUMNS = ("energy_per_atom", "corrected_energy_per_atom", "formation_energy_per_atom")
"""Parquet columns that hold an energy, in the order of preference; the last one has the scale `formation`."""

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

    scale: overrides what the file's kind implies (`formation` for a formation-energy column, else `mp2020`).
    Raises InputError naming the file and what was expected in it.
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
    from pymatgen.core import Composition, Element

    try:
        # By symbol once more: pymatgen takes unknown symbols for dummy species.
        return {Element(symbol).Z: float(amount) for symbol, amount in Composition(formula).as_dict().items()}
    except ValueError as error:
        raise InputError(f"{formula!r} is not a formula ({error})") from error


def _from_parquet(path: Path, scale: str | None) -> Entries:
    import pyarrow.parquet as parquet

    file = parquet.ParquetFile(path)
    names = set(file.schema_arrow.names)
    energy = next((name for name in ENERGY_COLUMNS if name in names), None)
    composition = next((name for name in ("atomic_numbers", "formula") if name in names), None)
    if energy is None or composition is None:
        raise InputError(
            f"has the columns {', '.join(sorted(names))}",
            source=path,
            remedy=f"give atomic_numbers or formula, and one of {', '.join(ENERGY_COLUMNS)}",
        )
    identity = next((name for name in ("id", "material_id") if name in names), None)
    table = file.read(columns=[composition, energy] + ([identity] if identity else []))
    column = table[composition].to_pylist()
    if composition == "formula":
        cache: dict[str, dict[int, float]] = {}
        rows = [cache[text] if text in cache else cache.setdefault(text, parse_formula(text)) for text in column]
    else:
        rows = [_count(numbers) for numbers in column]
    implied = "formation" if energy == "formation_energy_per_atom" else "mp2020"
    return Entries.of(
        rows,
        table[energy].to_numpy(),
        table[identity].to_pylist() if identity else None,
        scale=scale or implied,
    )


def _count(numbers: Sequence[int]) -> dict[int, float]:
    counts: dict[int, float] = {}
    for z in numbers:
        counts[int(z)] = counts.get(int(z), 0.0) + 1.0
    return counts


def _from_json(path: Path, scale: str | None) -> Entries:
    opener = OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
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
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"is not a computed entry ({type(error).__name__}: {error})", source=path, record=number
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


def _read_entry(entry: dict[str, Any], number: int) -> tuple[dict[int, float], float, str]:
    """(composition, corrected energy per atom, id) of one serialised ComputedEntry, PDEntry or structure
    entry.
    """
    from pymatgen.core import Element

    composition = entry.get("composition")
    if isinstance(composition, str):
        amounts = parse_formula(composition)
    elif isinstance(composition, dict):
        amounts = {
            Element(symbol).Z: float(amount) for symbol, amount in composition.items() if not symbol.startswith("@")
        }
    else:
        amounts = {}
        for site in entry["structure"]["sites"]:
            for species in site["species"]:
                z = Element(species["element"]).Z
                amounts[z] = amounts.get(z, 0.0) + float(species["occu"])
    # `energy` of a serialised entry is uncorrected; the corrections stand beside it.
    energy = float(entry["energy"])
    if entry.get("correction") is not None:
        energy += float(entry["correction"])
    else:
        energy += sum(float(item["value"]) for item in entry.get("energy_adjustments") or [])
    identity = entry.get("entry_id") or (entry.get("data") or {}).get("mat_id") or number
    return amounts, energy / sum(amounts.values()), str(identity)
