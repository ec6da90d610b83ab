"""The token store: crystals as columns in memory-mapped files.

A directory of .npy files and a manifest. Sites of all crystals lie end to end (`offsets` says whose is whose), so
the store holds no padding: about 130 bytes per crystal, 0.2 GB for 1.3 million. Opening it reads the manifest
only; a batch touches the pages of its own rows; many processes share one page cache.

Letters and elements are uint8. Coordinates and lattices are float32: half the size, 6e-8 relative error, far below
the tokeniser's symmetry tolerance; the likelihood is evaluated in float32 anyway. `tokens()` gives them as float64.
Shapes: B crystals of the store, N sites in total, b rows asked for, S site slots.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int8, Int64, Shaped, UInt8

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_directory, recover_directory, write_json
from crystalforge.crystal import MAX_SITES, Tokens
from crystalforge.data.config import SPLITS

FORMAT = 1
PROPERTIES = ("energy_per_atom", "formation_energy_per_atom", "e_above_hull")  # eV/atom, NaN where unknown
SITE_COLUMNS = {"wyckoff": (np.uint8, ()), "element": (np.uint8, ()), "coords": (np.float32, (3,))}
ROW_COLUMNS = {
    "spacegroup": (np.uint8, ()),
    "n_sites": (np.uint8, ()),
    "lattice": (np.float32, (6,)),
    "split": (np.int8, ()),  # index into SPLITS; -1: reference rows that belong to no split
    "fingerprint": (np.uint8, (16,)),
    **dict.fromkeys(PROPERTIES, (np.float32, ())),
}
ID_BYTES = "ids"
OFFSETS = "offsets"
ID_OFFSETS = "id_offsets"


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch of rows on its way into the store (or out of a shard), in the store's own layout.

    ids: names of the crystals; split: index into SPLITS, -1 for none; fingerprint: see `fingerprint.py`.
    Site columns lie end to end; energies in eV/atom, NaN where unknown.
    """

    ids: list[str]
    spacegroup: UInt8[np.ndarray, " B"]
    n_sites: UInt8[np.ndarray, " B"]
    lattice: Float32[np.ndarray, "B 6"]
    split: Int8[np.ndarray, " B"]
    fingerprint: UInt8[np.ndarray, "B 16"]
    energy_per_atom: Float32[np.ndarray, " B"]
    formation_energy_per_atom: Float32[np.ndarray, " B"]
    e_above_hull: Float32[np.ndarray, " B"]
    wyckoff: UInt8[np.ndarray, " N"]
    element: UInt8[np.ndarray, " N"]
    coords: Float32[np.ndarray, "N 3"]

    @classmethod
    def of(
        cls,
        tokens: Tokens,
        ids: Sequence[str],
        *,
        split: Int8[np.ndarray, " B"],
        fingerprint: UInt8[np.ndarray, "B 16"] | None = None,
        properties: dict[str, np.ndarray] | None = None,
    ) -> Rows:
        """Tokens and what is known of each crystal, as rows. Properties not given are NaN."""
        size, sites = len(tokens), tokens.is_site
        known = properties or {}
        missing = np.full(size, np.nan)
        return cls(
            ids=list(ids),
            spacegroup=tokens.spacegroup.astype(np.uint8),
            n_sites=tokens.n_sites.astype(np.uint8),
            lattice=tokens.lattice.astype(np.float32),
            split=split,
            fingerprint=np.zeros((size, 16), np.uint8) if fingerprint is None else fingerprint,
            wyckoff=tokens.wyckoff[sites].astype(np.uint8),
            element=tokens.element[sites].astype(np.uint8),
            coords=tokens.coords[sites].astype(np.float32),
            **{name: np.asarray(known.get(name, missing), dtype=np.float32) for name in PROPERTIES},
        )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, keep: Bool[np.ndarray, " B"]) -> Rows:
        """The rows where `keep` is true."""
        sites = np.repeat(keep, self.n_sites)
        values: dict[str, Any] = {
            field.name: getattr(self, field.name)[sites if field.name in SITE_COLUMNS else keep]
            for field in fields(self)
            if field.name != "ids"
        }
        return Rows(ids=[name for name, kept in zip(self.ids, keep, strict=True) if kept], **values)

    def tokens(self) -> Tokens:
        """The rows as tokens in `MAX_SITES` slots."""
        offsets = np.concatenate([[0], np.cumsum(self.n_sites, dtype=np.int64)])
        return _gather(
            self.spacegroup,
            self.lattice,
            self.wyckoff,
            self.element,
            self.coords,
            offsets[:-1],
            self.n_sites.astype(np.int64),
            MAX_SITES,
        )


class TokenStore:
    """Read access to a token store.

    >>> store = TokenStore.open("runs/latest/data/store")            # doctest: +SKIP
    >>> batch = store.tokens(store.split("train")[:100])             # doctest: +SKIP
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self._columns: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """Open the store in directory `path`; InputError when it is absent, damaged or of another format."""
        path = Path(path)
        recover_directory(path)
        file = path / "manifest.json"
        try:
            manifest = json.loads(file.read_text())
        except FileNotFoundError as error:
            raise InputError(
                "there is no token store here", source=path, remedy="run `crystalforge ingest` first"
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(
                f"the manifest is damaged ({error})", source=file, remedy="run `crystalforge ingest` again"
            ) from error
        if manifest.get("format") != FORMAT:
            raise InputError(
                f"the store has format {manifest.get('format')!r}, this version reads {FORMAT}",
                source=file,
                remedy="run `crystalforge ingest` again",
            )
        store = cls(path, manifest)
        store._check()
        return store

    def _check(self) -> None:
        """Every column is there with the length that the manifest states (opening a memory map reads no data)."""
        rows, sites = self.manifest["rows"], self.manifest["sites"]
        wanted = dict.fromkeys(ROW_COLUMNS, rows) | dict.fromkeys(SITE_COLUMNS, sites)
        wanted |= {OFFSETS: rows + 1, ID_OFFSETS: rows + 1}
        for name, length in wanted.items():
            have = len(self.column(name))
            if have != length:
                raise InputError(
                    f"column {name} has {have} entries, the manifest says {length}",
                    source=self.path,
                    remedy="run `crystalforge ingest` again",
                )

    def column(self, name: str) -> np.ndarray:
        """A whole column, memory-mapped and read-only; see ROW_COLUMNS and SITE_COLUMNS for names and types."""
        if name not in self._columns:
            file = self.path / f"{name}.npy"
            try:
                self._columns[name] = np.load(file, mmap_mode="r", allow_pickle=False)
            except FileNotFoundError as error:
                known = ", ".join([*ROW_COLUMNS, *SITE_COLUMNS])
                raise InputError(
                    f"there is no column {name!r}", source=self.path, remedy=f"columns are {known}"
                ) from error
            except ValueError as error:
                raise InputError(
                    f"the file is damaged ({error})", source=file, remedy="run `crystalforge ingest` again"
                ) from error
        return self._columns[name]

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    def tokens(self, rows: Any, *, slots: int = MAX_SITES) -> Tokens:
        """Tokens of some rows (integer, slice, mask or index array), padded to `slots` site slots."""
        index = self._index(rows)
        offsets = self.column(OFFSETS)
        first = np.asarray(offsets[index])
        return _gather(
            self.column("spacegroup")[index],
            self.column("lattice")[index],
            self.column("wyckoff"),
            self.column("element"),
            self.column("coords"),
            first,
            np.asarray(offsets[index + 1]) - first,
            slots,
        )

    def ids(self, rows: Any = slice(None)) -> list[str]:
        """Names of some rows."""
        bounds, text = self.column(ID_OFFSETS), self.column(ID_BYTES)
        return [bytes(text[bounds[row] : bounds[row + 1]]).decode() for row in self._index(rows)]

    def rows(self, rows: Any, *, split: Int8[np.ndarray, " b"]) -> Rows:
        """Some rows in the store's own layout, with another split: the way from one store to the next."""
        index = self._index(rows)
        values = {name: np.asarray(self.column(name)[index]) for name in ROW_COLUMNS if name != "split"}
        first, count = np.asarray(self.column(OFFSETS)[index]), values["n_sites"].astype(np.int64)
        start = np.cumsum(count) - count
        position = np.arange(count.sum()) + np.repeat(first - start, count)
        sites = {name: np.asarray(self.column(name)[position]) for name in SITE_COLUMNS}
        return Rows(ids=self.ids(index), split=split, **values, **sites)

    def split(self, name: str) -> Int64[np.ndarray, " n"]:
        """Row numbers of a split ('train', 'val', 'test', or 'all' of the three), ascending."""
        return self._splits[_split_key(name)]

    @cached_property
    def _splits(self) -> dict[str, Int64[np.ndarray, " n"]]:
        code = np.asarray(self.column("split"))
        found = {name: np.flatnonzero(code == number).astype(np.int64) for number, name in enumerate(SPLITS)}
        return found | {"all": np.flatnonzero(code >= 0).astype(np.int64)}

    def reference(self) -> Int64[np.ndarray, " n"]:
        """Row numbers of the reference entries, which belong to no split (elements, say)."""
        return np.flatnonzero(np.asarray(self.column("split")) < 0).astype(np.int64)

    def spacegroup_weights(self, split: str = "train") -> Float64[np.ndarray, " 230"]:
        """Share of each space group 1..230 in a split (sums to 1)."""
        rows = self.split(split)
        if not rows.size:
            raise InputError(
                f"split {split!r} is empty", source=self.path, remedy="ingest more data or change the shares"
            )
        counts = np.bincount(self.column("spacegroup")[rows], minlength=231)[1:231]
        return counts / counts.sum()

    def _index(self, rows: Any) -> Int64[np.ndarray, " b"]:
        if isinstance(rows, (int, np.integer)):
            rows = [int(rows)]
        if isinstance(rows, slice):
            return np.arange(*rows.indices(len(self)), dtype=np.int64)
        index = np.asarray(rows)
        if index.dtype == np.bool_:
            if index.shape != (len(self),):
                raise IndexError(f"a mask of {index.shape} for a store of {len(self)} rows")
            return np.flatnonzero(index).astype(np.int64)
        index = index.astype(np.int64).reshape(-1)
        if index.size and (index.min() < -len(self) or index.max() >= len(self)):
            raise IndexError(f"rows {index.min()}..{index.max()} asked of a store of {len(self)} rows")
        return np.where(index < 0, index + len(self), index)

    @staticmethod
    def write(
        path: Path,
        parts: Sequence[Rows] | Iterator[Rows],
        *,
        rows: int,
        sites: int,
        id_bytes: int,
        info: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write a store of `rows` crystals atomically from parts that come one after the other; give its manifest.

        Sizes are stated beforehand so that files are written through memory maps: memory stays at one part's size.
        `info` is added to the manifest. The manifest's `data_hash` covers the content of every column and the ids.
        """
        with atomic_directory(path) as temporary:
            columns = {
                name: _create(temporary / f"{name}.npy", dtype, (rows, *shape))
                for name, (dtype, shape) in ROW_COLUMNS.items()
            } | {
                name: _create(temporary / f"{name}.npy", dtype, (sites, *shape))
                for name, (dtype, shape) in SITE_COLUMNS.items()
            }
            offsets = _create(temporary / f"{OFFSETS}.npy", np.int64, (rows + 1,))
            id_offsets = _create(temporary / f"{ID_OFFSETS}.npy", np.int64, (rows + 1,))
            text = _create(temporary / f"{ID_BYTES}.npy", np.uint8, (id_bytes,))
            row = site = char = 0
            digest = _ContentHash()
            counts = dict.fromkeys((*SPLITS, "reference"), 0)
            for part in parts:
                names = [name.encode() for name in part.ids]
                lengths = np.cumsum([len(name) for name in names], dtype=np.int64)
                for name in ROW_COLUMNS:
                    columns[name][row : row + len(part)] = getattr(part, name)
                for name in SITE_COLUMNS:
                    columns[name][site : site + part.wyckoff.size] = getattr(part, name)
                offsets[row + 1 : row + len(part) + 1] = site + np.cumsum(part.n_sites, dtype=np.int64)
                id_offsets[row + 1 : row + len(part) + 1] = char + lengths
                joined = b"".join(names)
                text[char : char + len(joined)] = np.frombuffer(joined, np.uint8)
                for number, name in enumerate(SPLITS):
                    counts[name] += int((part.split == number).sum())
                counts["reference"] += int((part.split < 0).sum())
                digest.update(part, names)
                row, site, char = row + len(part), site + part.wyckoff.size, char + len(joined)
            assert (row, site, char) == (rows, sites, id_bytes), "the parts do not add up to the sizes stated"
            for column in (*columns.values(), offsets, id_offsets, text):
                if isinstance(column, np.memmap):
                    column.flush()
            manifest = {
                "format": FORMAT,
                "rows": rows,
                "sites": sites,
                "data_hash": digest.hexdigest(),
                "counts": counts,
                **(info or {}),
            }
            write_json(temporary / "manifest.json", manifest)
        return manifest


class _ContentHash:
    """SHA-256 of the content, column by column, so that it does not depend on how the rows were cut into parts."""

    def __init__(self) -> None:
        self._columns = {name: hashlib.sha256() for name in (*ROW_COLUMNS, *SITE_COLUMNS, ID_BYTES, ID_OFFSETS)}

    def update(self, part: Rows, names: list[bytes]) -> None:
        for name in (*ROW_COLUMNS, *SITE_COLUMNS):
            self._columns[name].update(np.ascontiguousarray(getattr(part, name)).tobytes())
        self._columns[ID_BYTES].update(b"".join(names))
        self._columns[ID_OFFSETS].update(np.array([len(name) for name in names], dtype="<i8").tobytes())

    def hexdigest(self) -> str:
        return hashlib.sha256("".join(column.hexdigest() for column in self._columns.values()).encode()).hexdigest()


def _create(file: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:  # an empty file cannot be mapped
        empty = np.zeros(shape, dtype)
        np.save(file, empty)
        return empty
    return np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)


def _split_key(name: str) -> str:
    if name not in (*SPLITS, "all"):
        raise InputError(f"there is no split {name!r}", remedy=f"splits are {', '.join(SPLITS)}, or 'all'")
    return name


def _gather(
    spacegroup: Shaped[np.ndarray, " b"],
    lattice: Float32[np.ndarray, "b 6"],
    wyckoff: UInt8[np.ndarray, " N"],
    element: UInt8[np.ndarray, " N"],
    coords: Float32[np.ndarray, "N 3"],
    first: Int64[np.ndarray, " b"],
    count: Int64[np.ndarray, " b"],
    slots: int,
) -> Tokens:
    """Lay ragged sites out in `slots` slots; pads are exactly 0."""
    longest = int(count.max(initial=0))
    if longest > slots:
        raise ValueError(f"a crystal has {longest} sites, more than the {slots} slots asked for")
    slot = np.arange(slots)
    is_site = slot < count[:, None]
    position = (first[:, None] + slot)[is_site]

    def lay(values: np.ndarray, dtype: Any) -> np.ndarray:
        out = np.zeros((len(first), slots, *values.shape[1:]), dtype)
        out[is_site] = values[position]
        return out

    return Tokens(
        np.asarray(spacegroup, np.int32),
        lay(wyckoff, np.int32),
        lay(element, np.int32),
        lay(coords, np.float64),
        np.asarray(lattice, np.float64),
    )
