"""From a configuration to a source."""

from __future__ import annotations

from pathlib import Path

from crystalforge.common.errors import InputError
from crystalforge.data.config import (
    SPLITS,
    Alex20Source,
    CifDirSource,
    DataConfig,
    FilesSource,
    MP20Source,
    ParquetSource,
    PrototypesSource,
)
from crystalforge.data.sources.base import Source
from crystalforge.data.sources.fetch import NotThere, fetch, fetch_all, is_url
from crystalforge.data.sources.files import StructureFiles
from crystalforge.data.sources.lmdb_tokens import LmdbTokens
from crystalforge.data.sources.tables import CsvRecords, ParquetRecords, embedded


def open_source(config: DataConfig, downloads: Path) -> Source:
    """The source that `config.source` describes; URLs are downloaded into `downloads` first.

    Raises InputError for a missing file, directory or column, and for a checksum that differs.
    """
    source = config.source
    given = config.split.mode != "formula"
    match source:
        case PrototypesSource():
            return embedded()
        case ParquetSource():
            return ParquetRecords(fetch(source.path, downloads, source.checksums), source.split_column, splits=given)
        case CifDirSource() | FilesSource():
            if is_url(source.path):
                raise InputError(
                    "a directory cannot be listed over a URL", source=source.path, remedy="download it first"
                )
            return StructureFiles(Path(source.path).expanduser(), source.pattern)
        case MP20Source():
            files = _splits(source.path, ".csv", downloads, source.checksums)
            return CsvRecords(files, needed=("material_id", "cif"))
        case Alex20Source():
            try:
                return CsvRecords(_splits(source.path, ".csv", downloads, source.checksums))
            except NoSplits as error:
                try:
                    return LmdbTokens(_splits(source.path, ".lmdb", downloads, source.checksums))
                except NoSplits:
                    raise InputError(
                        "there is neither train.csv (val.csv, test.csv) nor train.lmdb",
                        source=source.path,
                        remedy="correct data.source.path",
                    ) from error


def local_files(config: DataConfig) -> list[Path]:
    """The files of this machine that the source reads, in order; none for the embedded source, for a URL, and for a
    path that is not there."""
    source = config.source
    if isinstance(source, PrototypesSource) or is_url(source.path):
        return []
    path = Path(source.path).expanduser()
    if path.is_file():
        return [path]
    if isinstance(source, CifDirSource):
        return sorted(file for file in path.glob(source.pattern) if file.is_file())
    return [file for split in SPLITS for end in (".csv", ".lmdb") if (file := path / f"{split}{end}").is_file()]


class NoSplits(InputError):
    """None of the files of the layout is there."""


def _splits(path: str, suffix: str, downloads: Path, checksums: dict[str, str]) -> dict[str, Path]:
    """{split: file} of a directory (or URL) with train, val, test; a single file counts as 'train' or as its name."""
    if path.endswith((".csv", ".lmdb")):
        if not path.endswith(suffix):
            raise NoSplits(f"is no {suffix} file", source=path)
        stem = Path(path).stem
        return {stem if stem in SPLITS else "train": fetch(path, downloads, checksums)}
    names = [f"{split}{suffix}" for split in SPLITS]
    try:
        found = fetch_all(path, names, downloads, checksums)
    except NotThere:
        raise
    except InputError as error:
        raise NoSplits(error.problem, source=path, remedy=error.remedy) from error
    return {Path(name).stem: file for name, file in found.items()}
