"""Tables: parquet with arrays, and CSV files with a CIF in a column (Alex-20, MP-20)."""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.data.config import SPLITS
from crystalforge.data.sources.base import Record, Unusable, energies, missing_columns

if TYPE_CHECKING:
    import pyarrow.parquet

NEEDED = ("lattice", "atomic_numbers", "frac_coords")
ID_COLUMNS = ("id", "material_id", "mat_id")
ENERGIES = ("energy_per_atom", "formation_energy_per_atom", "e_above_hull")
BATCH = 2048  # parquet rows in memory at a time
CELL_BYTES = 1 << 24  # a CIF of 16 MiB is no crystal of 20 atoms; the csv module's own limit is 128 KiB
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
REFERENCE = "reference"


class ParquetRecords:
    """Parquet with lattice (9 floats, row vectors, Å), atomic_numbers and frac_coords (flattened).

    Optional: id (or material_id), energy_per_atom, formation_energy_per_atom, e_above_hull (eV/atom), and a split
    ('train', 'val', 'test'; 'reference' for rows of no split). With given splits, rows without one are left out.
    """

    def __init__(self, file: Path, split_column: str = "split") -> None:
        self.file, self._split_column = file, split_column
        present = self._open().schema_arrow.names
        missing = [name for name in NEEDED if name not in present]
        if missing:
            raise missing_columns(file, missing, present)
        self._id = next((name for name in ID_COLUMNS if name in present), None)
        self._columns = [
            name for name in (*NEEDED, self._id, *ENERGIES, split_column) if name is not None and name in present
        ]

    def count(self) -> int:
        """Rows of the file."""
        return int(self._open().metadata.num_rows)

    def records(self) -> Iterator[Record]:
        """One record per row, in order."""
        number = 0
        for batch in self._open().iter_batches(batch_size=BATCH, columns=self._columns):
            for row in batch.to_pylist():
                number += 1
                name = str(row[self._id]) if self._id is not None else f"{self.file.stem}-{number}"
                given = row.get(self._split_column)
                split = given if given == REFERENCE else SPLIT_NAMES.get(str(given).lower())
                payload, properties = _row_payload(row)
                yield Record(self.file.name, number, name, payload, properties, split)

    def _open(self) -> pyarrow.parquet.ParquetFile:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            return parquet.ParquetFile(self.file)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"is no parquet file ({error})", source=self.file) from error


def embedded() -> ParquetRecords:
    """The data set that ships with the package."""
    file = resources.files("crystalforge") / "data" / "prototypes.parquet"
    assert isinstance(file, Path), "crystalforge is installed as files, not inside an archive"
    if not file.is_file():
        raise InputError(
            "the embedded prototypes are not in this installation", source=file.name, remedy="reinstall the package"
        )
    return ParquetRecords(file)


def _row_payload(row: Mapping[str, Any]) -> tuple[Crystal | Unusable, dict[str, float]]:
    try:
        properties = energies(row)
        lattice = np.array(row["lattice"], dtype=np.float64).ravel()
        numbers = np.array(row["atomic_numbers"], dtype=np.float64).ravel()
        frac = np.array(row["frac_coords"], dtype=np.float64).ravel()
    except Unusable as error:
        return error, {}
    except (TypeError, ValueError) as error:
        return Unusable("malformed-record", f"lattice, numbers or coordinates are not numeric ({error})"), {}
    if lattice.size != 9 or not numbers.size or frac.size != 3 * numbers.size:
        sizes = f"{lattice.size} lattice, {numbers.size} atomic numbers, {frac.size} coordinate values"
        return Unusable("malformed-record", "expected 9 lattice values and 3 coordinates per atom", sizes), properties
    if not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
        return Unusable("malformed-record", "lattice or coordinates are not finite"), properties
    unknown = numbers[(numbers != np.round(numbers)) | (numbers < 1) | (numbers > 118)]
    if unknown.size:
        return Unusable("unknown-element", f"Z = {unknown[0]:g} is no element", f"{unknown[0]:g}"), properties
    return Crystal.of(lattice, numbers.astype(np.int32), frac), properties


class CsvRecords:
    """CSV files with a CIF in column `cif`: MP-20 (CDVAE's layout) and Alex-20 (CrystalFormer's).

    Alex-20's column may also hold the printed dictionary of a pymatgen structure; it is read as a literal, never
    evaluated. The file's name is the split.
    """

    def __init__(self, files: Mapping[str, Path], *, needed: tuple[str, ...] = ("cif",)) -> None:
        self._files, self._needed = dict(files), needed
        for file in self._files.values():
            with file.open(newline="", encoding="utf-8") as stream:
                present = next(csv.reader(stream), [])
            missing = [name for name in needed if name not in present]
            if missing:
                raise missing_columns(file, missing, present)

    def count(self) -> int:
        """Rows of all files; reading them takes a second per 100 MB."""
        return sum(1 for split in self._files for _ in self._rows(self._files[split]))

    def records(self) -> Iterator[Record]:
        """One record per row: train first, then val, test."""
        for split in SPLITS:
            if split in self._files:
                yield from self._read(self._files[split], split)

    def _read(self, file: Path, split: str) -> Iterator[Record]:
        for number, row in enumerate(self._rows(file), start=1):
            name = next((str(row[key]) for key in ID_COLUMNS if row.get(key)), f"{file.stem}-{number}")
            text = row.get("cif") or ""
            payload: str | Crystal | Unusable = text
            properties: dict[str, float] = {}
            try:
                properties = energies(row)
                if text.lstrip().startswith("{"):
                    payload = _printed_structure(text)
                elif not text.strip():
                    payload = Unusable("malformed-cif", "the cell `cif` is empty")
            except Unusable as error:
                payload = error
            yield Record(file.name, number, name, payload, properties, split)

    @staticmethod
    def _rows(file: Path) -> Iterator[dict[str, str]]:
        csv.field_size_limit(CELL_BYTES)
        number = 0
        with file.open(newline="", encoding="utf-8", errors="replace") as stream:
            try:
                for row in csv.DictReader(stream):
                    number += 1
                    yield row
            except csv.Error as error:
                raise InputError(
                    f"is no CSV file ({error})", source=file, record=number + 1, remedy="correct the file"
                ) from error


def _printed_structure(text: str) -> Crystal:
    """A pymatgen structure printed as a dictionary (repr or JSON)."""
    from pymatgen.core import Structure

    try:
        structure = Structure.from_dict(ast.literal_eval(text))
        return Crystal.from_structure(structure)
    except Exception as error:  # a literal of any shape arrives here
        raise Unusable("malformed-record", f"is no pymatgen structure ({error})", text[:80]) from error
