"""Files of crystals: CIF, VASP's POSCAR, pymatgen's JSON, and what ASE reads, told apart by their names.

| Name, capitals or not | Read by |
|---|---|
| *.cif, *.mcif | `data.cif`; each data block is a record |
| POSCAR*, CONTCAR*, *.vasp, *.poscar | pymatgen; symbols must be in the file (not so in VASP 4) |
| *.json | pymatgen: a structure as it writes it, or a list of such |
| *.xyz, *.extxyz, *.xsf, *.res, *.gen | ASE; each frame is a record, and must be periodic |

A file that cannot be read is one reject. Nothing in a file is executed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from crystalforge.common.errors import InputError, missing_extra
from crystalforge.crystal import Crystal
from crystalforge.crystal.reading.cif import split_blocks
from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.crystal.reading.structures import read_poscar, structure_of
from crystalforge.crystal.reading.text import decode, printable
from crystalforge.data.sources.base import Record

CIF_PATTERN, ANY_PATTERN = "**/*.cif", "**/*"
ASE_FORMATS = {
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".xsf": "xsf",
    ".res": "res",
    ".gen": "gen",
}
POSCAR = re.compile(r"(poscar|contcar)([._-].*)?|.*\.(vasp|poscar)", re.IGNORECASE)
Payload = str | Crystal | Unusable
Reader = Callable[[Path], Iterator[tuple[str, Payload]]]


class StructureFiles:
    """Every crystal of every file; files in the order of their names. No splits, no energies."""

    def __init__(self, root: Path, pattern: str) -> None:
        if not root.is_dir():
            raise InputError("there is no such directory", source=printable(root), remedy="correct data.source.path")
        # By name, not by content: a folder holds pictures and notes too.
        found = [path for path in root.glob(_any_case(pattern)) if path.is_file()]
        files = [path for path in found if pattern != ANY_PATTERN or reader_of(path.name) is not None]
        if not files:
            raise InputError(
                f"no file matches {pattern!r}", source=printable(root), remedy="correct data.source.pattern"
            )
        self._named = _named(sorted(files), root)

    def count(self) -> int:
        """Files; most hold one crystal."""
        return len(self._named)

    def records(self) -> Iterator[Record]:
        """One record per crystal, named after its file (and its block or frame where there are several)."""
        for file, shown, name in self._named:
            yield from read_file(file, shown, name)


def read_file(file: Path, shown: str, name: str) -> Iterator[Record]:
    """The records of one file. shown: its name in messages; name: of its only crystal. Raises nothing."""
    try:
        found = list((reader_of(file.name) or _cif)(file))
    except Unusable as error:
        found = [("1", error)]
    except InputError:
        raise
    except OSError as error:
        found = [("1", Unusable("unreadable-file", f"cannot be read ({error.strerror or error})"))]
    except Exception as error:  # the readers raise whatever their libraries raise on a malformed file
        said = str(error).partition("\n")[0] or type(error).__name__
        found = [("1", Unusable("malformed-record", f"no structure can be read from this file ({said[:160]})"))]
    seen: Counter[str] = Counter()
    for number, (part, payload) in enumerate(found, start=1):
        seen[part] += 1
        suffix = part if seen[part] == 1 else f"{part}-{seen[part]}"
        yield Record(shown, number, name if len(found) == 1 else f"{name}#{suffix}", payload)


def reader_of(name: str) -> Reader | None:
    """How a file of this name is read; None for an unknown kind."""
    suffix = Path(name).suffix.lower()
    if suffix in (".cif", ".mcif"):
        return _cif
    if POSCAR.fullmatch(name):
        return _poscar
    if suffix == ".json":
        return _json
    return _ase if suffix in ASE_FORMATS else None


def _any_case(pattern: str) -> str:
    """A glob pattern that does not mind capitals."""
    if "[" in pattern:
        return pattern
    return re.sub(r"[A-Za-z]", lambda letter: f"[{letter.group().lower()}{letter.group().upper()}]", pattern)


def _named(files: Sequence[Path], root: Path) -> list[tuple[Path, str, str]]:
    """(file, its name in messages, name of its crystal): without the ending where that leaves names different."""
    relative = [file.relative_to(root) for file in files]
    stems = [printable(_stem(path)) for path in relative]
    counts = Counter(stems)
    return [
        (file, printable(path), stem if counts[stem] == 1 else printable(path))
        for file, path, stem in zip(files, relative, stems, strict=True)
    ]


def _stem(path: Path) -> Path:
    return path.with_suffix("") if not re.match(r"(poscar|contcar)", path.name, re.IGNORECASE) else path


def names_of(files: Sequence[Path]) -> list[str]:
    """Names of the crystals of files given one by one: as short as tells them apart."""
    names = [printable(_stem(Path(path.name))) for path in files]
    for depth in range(2, 2 + max((len(path.parts) for path in files), default=0)):
        counts = Counter(names)
        if max(counts.values(), default=1) == 1:
            return names
        names = [
            name if counts[name] == 1 else printable(Path(*path.parts[-depth:]))
            for name, path in zip(names, files, strict=True)
        ]
    seen: Counter[str] = Counter()
    for row, name in enumerate(names):  # one file given twice
        seen[name] += 1
        names[row] = name if seen[name] == 1 else f"{name}-{seen[name]}"
    return names


def _cif(file: Path) -> Iterator[tuple[str, Payload]]:
    text = decode(file.read_bytes())
    blocks = list(split_blocks(text))
    # A text without a block goes on to the reader, which says what it looks like.
    yield from blocks or [("1", text)]


def _poscar(file: Path) -> Iterator[tuple[str, Payload]]:
    yield "1", read_poscar(decode(file.read_bytes()))


def _json(file: Path) -> Iterator[tuple[str, Payload]]:
    try:
        content = json.loads(decode(file.read_bytes()))
    except ValueError as error:
        raise Unusable("malformed-record", f"is no JSON ({error})") from error
    for number, item in enumerate(content if isinstance(content, list) else [content], start=1):
        try:
            yield str(number), structure_of(item)
        except Unusable as error:
            yield str(number), error


def _ase(file: Path) -> Iterator[tuple[str, Payload]]:
    try:
        from ase.io import read
    except ImportError as error:
        raise missing_extra("ase", "potentials", error) from error
    form = ASE_FORMATS[file.suffix.lower()]
    frames: Any = read(StringIO(decode(file.read_bytes())), index=":", format=form)
    if not frames:
        raise Unusable("malformed-record", "the file holds no structure")
    for number, atoms in enumerate(frames, start=1):
        try:
            yield str(number), _from_atoms(atoms)
        except Unusable as error:
            yield str(number), error


def _from_atoms(atoms: Any) -> Crystal:
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise Unusable("malformed-record", "is no crystal: the frame is not periodic in three directions")
    unknown = [number for number in atoms.numbers.tolist() if not 1 <= number <= 118]
    if unknown:
        raise Unusable("unknown-element", f"Z = {unknown[0]} is no element", unknown[0])
    occupancy = atoms.info.get("occupancy")
    if occupancy and any(abs(sum(shares.values()) - 1) > 1e-3 or len(shares) > 1 for shares in occupancy.values()):
        raise Unusable("partial-occupancy", "a site is partially occupied")
    return Crystal.of(atoms.cell.array, atoms.numbers, np.linalg.solve(atoms.cell.array.T, atoms.positions.T).T)
