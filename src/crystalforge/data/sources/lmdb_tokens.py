"""CrystalFormer's LMDB layout: ready tokens as five pickled arrays, read without running the pickles.

Its converter writes, per split, the keys "0" to "4" with space groups [B], lattices [B, 6], coordinates [B, n, 3],
elements [B, n] and letters [B, n]. Their layout is that of `Tokens`. The file holds no structures, names or energies,
so records are named after their file and row, and are checked as tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crystalforge.common.errors import InputError, missing_extra
from crystalforge.crystal import ATOM_TYPES, Tokens, wyckoff
from crystalforge.crystal.lattice import is_cell, symmetrize
from crystalforge.crystal.orbits import representative_error, to_representative
from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.data.config import SPLITS
from crystalforge.data.sources.base import Record
from crystalforge.model.published.restricted_pickle import read_pickled_array

CELL_TOLERANCE = 0.01  # relative, of an edge that the group makes equal to another; of an angle in radians
SITE_TOLERANCE = 0.01  # fractional, of a site from its Wyckoff position
FIELDS = ("spacegroup", "lattice", "coords", "element", "wyckoff")
TAILS: dict[str, tuple[int | None, ...]] = {
    "spacegroup": (),
    "lattice": (6,),
    "coords": (None, 3),
    "element": (None,),
    "wyckoff": (None,),
}


class LmdbTokens:
    """{train,val,test}.lmdb as written by CrystalFormer's `dataset` command. The file's name is the split."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)

    def count(self) -> int:
        """Rows of all files."""
        return sum(len(_read(file)["spacegroup"]) for file in self._files.values())

    def records(self) -> Iterator[Record]:
        """One record per row; one split's arrays are in memory at a time (0.4 kB per row)."""
        for split in SPLITS:
            if split in self._files:
                file = self._files[split]
                arrays = _read(file)
                for row in range(len(arrays["spacegroup"])):
                    values = {name: np.asarray(array[row]) for name, array in arrays.items()}
                    payload = _checked(values)
                    yield Record(file.name, row + 1, f"{file.stem}-{row + 1}", payload, {}, split)


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        import lmdb
    except ImportError as error:
        raise missing_extra("lmdb", "sources", error) from error
    arrays: dict[str, np.ndarray] = {}
    try:
        environment: Any = lmdb.open(str(file), subdir=False, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise InputError(f"is no LMDB file ({error})", source=file) from error
    with environment, environment.begin() as transaction:
        for number, name in enumerate(FIELDS):
            content = transaction.get(str(number).encode())
            if content is None:
                raise InputError(
                    f"key {number!r} ({name}) is missing",
                    source=file,
                    remedy="give an LMDB file as CrystalFormer's `dataset` command writes it, or the CSV files",
                )
            arrays[name] = read_pickled_array(bytes(content), source=f"{file}, key {number}")
    size = len(arrays["spacegroup"]) if arrays["spacegroup"].ndim else 0
    for name, tail in TAILS.items():
        shape = arrays[name].shape
        fits = len(shape) == 1 + len(tail) and all(
            want in (None, have) for want, have in zip(tail, shape[1:], strict=True)
        )
        if not fits or shape[0] != size:
            raise InputError(f"{name} has shape {shape}", source=file, remedy="give a file of tokens")
    return arrays


def _checked(values: Mapping[str, np.ndarray]) -> Tokens | Unusable:
    """One row as tokens, or what is wrong with it."""
    group = int(values["spacegroup"])
    letters, elements = values["wyckoff"].astype(np.int32), values["element"].astype(np.int32)
    coords, lattice = values["coords"].astype(np.float64), values["lattice"].astype(np.float64)
    if not 1 <= group <= 230:
        return Unusable("malformed-record", "space groups go from 1 to 230", group)
    sites = int((letters > 0).sum())
    if (
        not sites
        or (letters[:sites] == 0).any()
        or (letters < 0).any()
        or letters.max() > wyckoff.n_letters()[group - 1]
    ):
        return Unusable("malformed-record", f"letters are not those of space group {group}", letters.tolist())
    if (elements[:sites] < 1).any() or (elements >= ATOM_TYPES).any() or (elements[sites:] != 0).any():
        return Unusable("unknown-element", "an atomic number is outside 1..118", elements.tolist())
    if not (np.isfinite(coords[:sites]).all() and np.isfinite(lattice).all()) or (lattice <= 0).any():
        return Unusable("malformed-record", "lattice or coordinates are no possible numbers", lattice.tolist())
    if not is_cell(lattice[None])[0]:
        message = "edges and angles enclose no cell; angles are wanted in radians, between 0 and pi"
        return Unusable("degenerate-cell", message, lattice.tolist())
    coords[sites:] = 0.0
    coords = coords - np.floor(coords)
    tokens = Tokens(np.array([group], np.int32), letters[None], elements[None], coords[None], lattice[None])
    return _inconsistency(tokens) or tokens


def _inconsistency(tokens: Tokens) -> Unusable | None:
    """What of a row contradicts its space group: the cell, or a site that is not on its Wyckoff position."""
    group = int(tokens.spacegroup[0])
    wanted = symmetrize(tokens.spacegroup, tokens.lattice)
    if (np.abs(wanted - tokens.lattice) > CELL_TOLERANCE * np.array([*tokens.lattice[0, :3], 1, 1, 1])).any():
        message = f"the cell does not have the symmetry of space group {group}"
        return Unusable("contradiction", message, tokens.lattice[0].tolist())
    sites = int(tokens.n_sites[0])
    letters, groups = tokens.wyckoff[0, :sites].astype(np.int64), np.full(sites, group, np.int64)
    points = to_representative(groups, letters, tokens.coords[0, :sites])
    away = np.sqrt(representative_error(groups, letters, points))
    if away.max() > SITE_TOLERANCE:
        k = int(away.argmax())
        name = wyckoff.letter_name(int(letters[k]))
        message = f"site {k + 1} is not on Wyckoff position {name} of space group {group}"
        return Unusable("contradiction", message, tokens.coords[0, k].tolist())
    return None
