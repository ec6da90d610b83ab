"""A record on its way from a file to tokens, and what a source is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal, Tokens
from crystalforge.crystal.reading.cif import parse_cif
from crystalforge.crystal.reading.consistency import Stated, check, check_stated
from crystalforge.crystal.reading.reasons import Unusable


@dataclass(frozen=True, eq=False)
class Record:
    """One record as read, before anything is made of it.

    file, number: where it stands (number counts from 1); payload: CIF text, a crystal, ready tokens (B = 1), or
    why there is none; properties: eV/atom; split: as given by the source ('reference' for rows of no split); stated:
    what the record says of the crystal beside its atoms.
    """

    file: str
    number: int
    id: str
    payload: str | Crystal | Tokens | Unusable
    properties: Mapping[str, float] = field(default_factory=dict)
    split: str | None = None
    stated: Stated | None = None

    def crystal(self, *, apart: bool = False) -> Crystal:
        """The crystal that the record describes, checked against what it says of itself; raises Unusable.

        apart: the distances of its atoms are known to be right (`consistency.surely_apart`)."""
        if isinstance(self.payload, Unusable):
            raise self.payload
        if isinstance(self.payload, str):
            crystal = parse_cif(self.payload)  # which checks the distances
            if self.stated is not None:
                check_stated(crystal, self.stated)
            return crystal
        assert isinstance(self.payload, Crystal)
        check(self.payload, self.stated, apart=apart)
        return self.payload

    def update_hash(self, digest: Any) -> None:
        """Feed everything that decides what becomes of this record (its place among the files does not)."""
        digest.update(repr((self.id, sorted(self.properties.items()), self.split, self.stated)).encode())
        payload = self.payload
        if isinstance(payload, str):
            digest.update(payload.encode(errors="surrogatepass"))
        elif isinstance(payload, Unusable):
            digest.update(f"{payload.reason}:{payload}".encode())
        elif isinstance(payload, Crystal):
            for array in (payload.lattice, payload.numbers, payload.frac):
                digest.update(np.ascontiguousarray(array).tobytes())
        else:
            for array in (payload.spacegroup, payload.wyckoff, payload.element, payload.coords, payload.lattice):
                digest.update(np.ascontiguousarray(array).tobytes())


@runtime_checkable
class Source(Protocol):
    """A stream of records. Reading it twice gives the same records in the same order; memory stays flat."""

    def count(self) -> int:
        """How many records there are, as far as this can be told without parsing them (for progress)."""
        ...

    def records(self) -> Iterator[Record]:
        """All records; raises InputError for a missing file or column."""
        ...


def missing_columns(file: object, missing: list[str], present: list[str]) -> InputError:
    """The error for a table without the columns that its layout demands."""
    return InputError(
        f"column {', '.join(repr(name) for name in missing)} is missing; there are {', '.join(present) or 'none'}",
        source=file,
        remedy="correct the file, or choose the source kind that has this layout",
    )


def energies(row: Mapping[str, object]) -> dict[str, float]:
    """The known properties among a row's columns; empty cells and NaN are left out.

    Raises Unusable when a cell is no number.
    """
    found = {}
    for name in ("energy_per_atom", "formation_energy_per_atom", "e_above_hull"):
        value = row.get(name)
        if value is None or value == "":
            continue
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise Unusable("malformed-record", f"{name} is no number", value) from error
        if np.isfinite(number):
            found[name] = number
    return found
