"""Whatever somebody points at: crystal files, directories of them, parquet files; and the text of a CIF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from crystalforge.common.errors import InputError
from crystalforge.crystal.reading.cif import split_blocks
from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.crystal.reading.text import printable
from crystalforge.data.sources.base import Record
from crystalforge.data.sources.files import ANY_PATTERN, StructureFiles, names_of, read_file
from crystalforge.data.sources.tables import ParquetRecords


def records(sources: Sequence[Path]) -> Iterator[Record]:
    """Every crystal of the sources; names tell apart what comes from different ones. Raises InputError for a path that
    does not exist."""
    several = sum(path.is_dir() or path.suffix.lower() == ".parquet" for path in sources) > 1
    for path, name in zip(sources, names_of(sources), strict=True):
        if path.is_file() and path.suffix.lower() != ".parquet":
            yield from read_file(path, printable(path), name)
        elif path.exists():
            found = StructureFiles(path, ANY_PATTERN) if path.is_dir() else ParquetRecords(path, splits=False)
            for record in found.records():
                yield replace(record, id=f"{name}/{record.id}") if several else record
        else:
            raise InputError("there is no such file or directory", source=printable(path), remedy="correct the path")


def cif_records(text: str, file: str, name: str) -> Iterator[Record]:
    """One record for each data block of a CIF; where there is none, one that says so."""
    blocks = [content for _, content in split_blocks(text)]
    nothing = Unusable("malformed-cif", "the text has no data block", text[:80])
    for number, payload in enumerate(blocks or [nothing], start=1):
        yield Record(file, number, name if len(blocks) < 2 else f"{name}#{number}", payload)
