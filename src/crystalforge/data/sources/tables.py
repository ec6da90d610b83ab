"""Tables: parquet with arrays, and CSV files with a CIF in a column (Alex-20, MP-20)."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.crystal.reading.consistency import Stated, read_formula
from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.crystal.reading.structures import crystal_of, structure_of
from crystalforge.crystal.reading.text import encoding_of
from crystalforge.data.config import SPLITS
from crystalforge.data.sources.base import Record, energies, missing_columns

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

NEEDED = ("lattice", "atomic_numbers", "frac_coords")
ID_COLUMNS = ("id", "material_id", "mat_id")
ENERGIES = ("energy_per_atom", "formation_energy_per_atom", "e_above_hull")
BATCH = 2048  # parquet rows in memory at a time
CELL_BYTES = 1 << 24  # a CIF of 16 MiB is no crystal of 20 atoms; the csv module's own limit is 128 KiB
REFERENCE = "reference"
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    REFERENCE: REFERENCE,
}
FORMULA_COLUMNS = ("pretty_formula", "formula", "reduced_formula", "formula_pretty", "composition")
NO_VALUE = frozenset(("", "none", "null", "nan", "na", "n/a", "-"))


class ParquetRecords:
    """Parquet with lattice (9 floats, row vectors, Å), atomic_numbers and frac_coords (flattened).

    Optional: id (or material_id), energy_per_atom, formation_energy_per_atom, e_above_hull (eV/atom), and a split
    ('train', 'val', 'test' or `training`, `valid`, ...; 'reference' for rows of no split). With given splits, rows
    without one are left out, and another name is an error. A formula is compared with the atoms.
    """

    def __init__(self, file: Path, split_column: str = "split", *, splits: bool = True) -> None:
        self.file, self._split_column, self._splits = file, split_column, splits
        present = self._open().schema_arrow.names
        missing = [name for name in NEEDED if name not in present]
        if missing:
            raise missing_columns(file, missing, present)
        self._id = next((name for name in ID_COLUMNS if name in present), None)
        self._formula = next((name for name in FORMULA_COLUMNS if name in present), None)
        wanted = (*NEEDED, self._id, *ENERGIES, split_column, self._formula)
        self._columns = [name for name in wanted if name is not None and name in present]
        if splits and split_column in present:
            self._check_splits()

    def count(self) -> int:
        """Rows of the file."""
        return int(self._open().metadata.num_rows)

    def records(self) -> Iterator[Record]:
        """One record per row, in order."""
        number = 0
        for batch in self._batches(self._columns):
            for row in batch.to_pylist():
                number += 1
                name = str(row[self._id]) if self._id is not None else f"{self.file.stem}-{number}"
                split = split_name(row.get(self._split_column))
                payload, properties = _row_payload(row)
                stated = _formula_of(row.get(self._formula)) if self._formula is not None else None
                yield Record(self.file.name, number, name, payload, properties, split, stated)

    def _batches(self, columns: list[str]) -> Iterator[pyarrow.RecordBatch]:
        import pyarrow as pa

        try:
            yield from self._open().iter_batches(batch_size=BATCH, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"is damaged ({error})", source=self.file, remedy="write or download the file again"
            ) from error

    def _check_splits(self) -> None:
        """InputError when the split column holds a name that is not understood."""
        odd: Counter[str] = Counter()
        for batch in self._batches([self._split_column]):
            for value, count in Counter(batch.column(0).to_pylist()).items():
                if split_name(value) is None and not _is_missing(value):
                    odd[str(value)] += count
        if odd:
            shown = ", ".join(f"{name!r} ({count} rows)" for name, count in list(odd.items())[:8])
            raise InputError(
                f"column {self._split_column!r} names splits that are not known: {shown}",
                source=self.file,
                remedy=f"write {', '.join(SPLITS)} (or {REFERENCE}), or set data.split.mode=formula to split anew",
            )

    def _open(self) -> pyarrow.parquet.ParquetFile:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            return parquet.ParquetFile(self.file)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"is no parquet file ({error})", source=self.file) from error


def split_name(given: object) -> str | None:
    """The split that a table's cell names; None where it names none that is known.

    >>> split_name("Training"), split_name("dev")
    ('train', None)
    """
    return SPLIT_NAMES.get(str(given).strip().lower()) if isinstance(given, str) else None


def _is_missing(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in NO_VALUE)


def _formula_of(cell: object) -> Stated | None:
    """The statement of a row's formula, whose ratios must be those of the atoms; None where it is not understood."""
    if not isinstance(cell, str) or (formula := read_formula(cell)) is None:
        return None
    return Stated(formula=formula, text=cell.strip())


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
    properties: dict[str, float] = {}
    try:
        properties = energies(row)
        return crystal_of(row), properties
    except Unusable as error:
        return error, properties


class CsvRecords:
    """CSV files with a CIF in column `cif`: MP-20 (CDVAE's layout) and Alex-20 (CrystalFormer's).

    The column may also hold a pymatgen structure as JSON, or its printed dictionary, which is read as a literal and
    never evaluated. The file's name is the split. A formula column is compared with the atoms. A file that ends inside
    a record (a download cut short) loses that record, as a reject.
    """

    def __init__(self, files: Mapping[str, Path], *, needed: tuple[str, ...] = ("cif",)) -> None:
        self._files = dict(files)
        self._encodings = {split: encoding_of(file) for split, file in self._files.items()}
        for split, file in self._files.items():
            present = next(self._cells(split), [])
            missing = [name for name in needed if name not in present]
            if missing:
                raise missing_columns(file, missing, present)

    def count(self) -> int:
        """Rows of all files; reading them takes a second per 100 MB. Raises InputError for a file that is no CSV."""
        return sum(1 for split in self._files for _ in self._rows(split))

    def records(self) -> Iterator[Record]:
        """One record per row: train first, then val, test."""
        for split in SPLITS:
            if split in self._files:
                yield from self._read(self._files[split], split)

    def _read(self, file: Path, split: str) -> Iterator[Record]:
        for number, row in enumerate(self._rows(split), start=1):
            if isinstance(row, Unusable):
                yield Record(file.name, number, f"{file.stem}-{number}", row, {}, split)
                continue
            name = next((str(row[key]) for key in ID_COLUMNS if row.get(key)), f"{file.stem}-{number}")
            text = row.get("cif") or ""
            payload: str | Crystal | Unusable = text
            properties: dict[str, float] = {}
            try:
                properties = energies(row)
                if text.lstrip().startswith("{"):
                    payload = structure_of(_dictionary(text))
                elif not text.strip():
                    payload = Unusable("malformed-cif", "the cell `cif` is empty")
            except Unusable as error:
                payload = error
            stated = next((found for key in FORMULA_COLUMNS if (found := _formula_of(row.get(key)))), None)
            yield Record(file.name, number, name, payload, properties, split, stated)

    def _rows(self, split: str) -> Iterator[dict[str, str] | Unusable]:
        """Rows by column; Unusable for one that has too few or too many cells."""
        cells = self._cells(split)
        header = next(cells, [])
        for row in cells:
            if len(row) == len(header):
                yield dict(zip(header, row, strict=True))
            elif row == [CUT]:
                yield Unusable("malformed-record", "the file ends inside this record", f"{self._files[split].name}")
            else:
                message = f"the row has {len(row)} cells, the header {len(header)}"
                yield Unusable("malformed-record", message, ",".join(row)[:80])

    def _cells(self, split: str) -> Iterator[list[str]]:
        """Rows as cells, blank lines left out; `[CUT]` for a last record that the file's end cuts off."""
        csv.field_size_limit(CELL_BYTES)
        file, number = self._files[split], 0
        with file.open(newline="", encoding=self._encodings[split]) as stream:
            reader = csv.reader(stream, strict=True)
            try:
                for row in reader:
                    number += 1
                    if row:
                        yield row
            except (csv.Error, UnicodeError) as error:
                if str(error) == "unexpected end of data" and number:
                    yield [CUT]
                    return
                raise InputError(
                    f"is no CSV file ({error}); the quotes of this record or of the one before it are not balanced",
                    source=file,
                    record=number,
                    remedy="correct the record, or write the file again with a CSV library",
                ) from error


CUT = "\0cut"


def _dictionary(text: str) -> Any:
    """A dictionary written as JSON or as Python prints it (then with `nan`, `inf` and `array` of numpy left out)."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    # Python prints numbers that its literals do not know; JSON knows them.
    plain = re.sub(r"(?<=[\s\[(,:])(-?)(nan|inf)(?=[\s\]),}])", r"\1'\2'", text)
    plain = re.sub(r"\b(?:np\.)?(?:float|int)(?:16|32|64)\(([^()]*)\)", r"\1", plain)
    plain = re.sub(r"\barray\((\[[^()]*\])(?:,\s*dtype=\w+)?\)", r"\1", plain)
    try:
        return ast.literal_eval(plain)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise Unusable("malformed-record", f"is no pymatgen structure ({error})", text[:80]) from error
