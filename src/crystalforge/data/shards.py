"""The unit of work of ingestion: some thousand records -> rows and rejects, kept in a file named after their content.

The name is a hash of the records themselves and of the settings that decide what becomes of them. A shard whose file
exists is not done again: not after an interruption, not when other parts of the source changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np

from crystalforge.common.files import atomic_file, sha256_json
from crystalforge.crystal import ATOM_TYPES, Crystal, Tokens
from crystalforge.crystal.convert import TokenizeError, to_crystals, tokenize, tokenize_many
from crystalforge.crystal.reading.consistency import check, surely_apart
from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.data.config import SPLITS, DataConfig
from crystalforge.data.fingerprint import fingerprints
from crystalforge.data.sources.base import Record
from crystalforge.data.sources.tables import REFERENCE
from crystalforge.data.store import PROPERTIES, Rows

VERSION = 2  # raise it when the same records come out differently
NO_SPLIT = -2  # the source gives this row no split; one is assigned later


@dataclass(frozen=True)
class Reject:
    """A record that is not used: where it stands, what was seen, why, and what can be done."""

    file: str
    record: int | None
    id: str
    reason: str
    value: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Limits:
    """The settings that a shard's outcome depends on."""

    symprec: float
    max_sites: int
    max_atoms: int | None
    max_atomic_number: int
    max_e_above_hull: float | None

    @classmethod
    def of(cls, config: DataConfig) -> Limits:
        """Those of a configuration."""
        return cls(
            config.symprec, config.max_sites, config.max_atoms, config.max_atomic_number, config.max_e_above_hull
        )


def chunks(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    """Consecutive records in lists of `size`."""
    while chunk := list(islice(records, size)):
        yield chunk


def shard_key(records: Sequence[Record], limits: Limits) -> str:
    """The name of a shard: SHA-256 over the records and the settings."""
    digest = hashlib.sha256(sha256_json({"version": VERSION, **asdict(limits)}).encode())
    for record in records:
        record.update_hash(digest)
    return digest.hexdigest()[:40]


def make_shard(records: Sequence[Record], limits: Limits, file: Path, *, isolated: bool = False) -> None:
    """Tokenise records and write `file`. With `isolated` crystals that crash the process become rejects."""
    usable: list[tuple[Record, Tokens]] = []
    rejects: list[Reject] = []
    for record, tokens in _tokenized(records, limits, isolated=isolated):
        if isinstance(tokens, Unusable):
            rejects.append(_reject(record, tokens))
        else:
            usable.append((record, tokens))
    tokens = Tokens.concatenate([Tokens.empty(), *(tokens.with_slots(21) for _, tokens in usable)])
    rows = Rows.of(
        tokens,
        [record.id for record, _ in usable],
        split=np.array([_split_code(record.split) for record, _ in usable], np.int8).reshape(len(usable)),
        fingerprint=fingerprints(tokens),
        properties={
            name: np.array([record.properties.get(name, np.nan) for record, _ in usable]) for name in PROPERTIES
        },
    )
    write_shard(file, rows, rejects)


def _tokenized(
    records: Sequence[Record], limits: Limits, *, isolated: bool
) -> Iterator[tuple[Record, Tokens | Unusable]]:
    known = _in_isolation(records, limits) if isolated else {}
    apart = _apart(records)
    for place, record in enumerate(records):
        try:
            found = known.get(place)
            if isinstance(found, Unusable):
                raise found
            yield record, _tokens_of(record, limits, found, apart=place in apart)
        except Unusable as error:
            yield record, error


def _in_isolation(records: Sequence[Record], limits: Limits) -> dict[int, Tokens | Unusable]:
    """Tokens or rejection by place, from worker processes: one that dies is replaced, and its crystal is named."""
    crystals: dict[int, Crystal] = {}
    for place, record in enumerate(records):
        if not isinstance(record.payload, Tokens):
            with contextlib.suppress(Unusable):  # said again when its turn comes
                crystals[place] = record.crystal()
    places = list(crystals)
    result = tokenize_many(crystals.values(), processes=2, symprec=limits.symprec, max_sites=limits.max_sites)
    found: dict[int, Tokens | Unusable] = {
        places[int(index)]: result.tokens[row] for row, index in enumerate(result.index)
    }
    for reject in result.rejects:
        place = places[reject.index]
        found[place] = Unusable(reject.reason.replace("_", "-"), reject.message, _shown(crystals[place]))
    return found


def _shown(crystal: Crystal) -> str:
    """What the rejects file shows of a crystal."""
    return crystal.formula if (crystal.numbers > 0).all() and (crystal.numbers < ATOM_TYPES).all() else ""


def _apart(records: Sequence[Record]) -> set[int]:
    """Places of records whose atoms are surely not too close: what most of a table is, found at once."""
    crystals = {place: record.payload for place, record in enumerate(records) if isinstance(record.payload, Crystal)}
    return set(np.array([*crystals], dtype=np.int64)[surely_apart([*crystals.values()])].tolist())


def _tokens_of(record: Record, limits: Limits, known: Tokens | None, *, apart: bool) -> Tokens:
    """The tokens of one record, whose atoms are known to be `apart` or are looked at; raises Unusable."""
    above = record.properties.get("e_above_hull")
    if limits.max_e_above_hull is not None and above is not None and above > limits.max_e_above_hull:
        raise Unusable("above-hull", f"its energy above the hull is {above:g} eV/atom", above)
    if isinstance(record.payload, Tokens):
        tokens = record.payload
        if int(tokens.n_sites[0]) > limits.max_sites:
            raise Unusable("too-many-sites", f"{tokens.n_sites[0]} sites, at most {limits.max_sites} are allowed")
        crystal = to_crystals(tokens, primitive=True)[0]
        if crystal is None:
            raise Unusable("degenerate-cell", "the tokens make no cell")
        check(crystal)
        heaviest = int(tokens.element.max())
    else:
        crystal = record.crystal(apart=apart)
        heaviest = int(crystal.numbers.max(initial=0))
        try:
            tokens = known or tokenize(crystal, symprec=limits.symprec, max_sites=limits.max_sites)
        except TokenizeError as error:
            raise Unusable(error.reason.replace("_", "-"), error.problem, _shown(crystal)) from error
    if heaviest > limits.max_atomic_number:
        raise Unusable("heavy-element", f"Z = {heaviest}, at most {limits.max_atomic_number} is allowed", heaviest)
    if limits.max_atoms is not None:
        atoms = primitive_atoms(tokens)
        if atoms > limits.max_atoms:
            raise Unusable("too-many-atoms", f"{atoms} atoms, at most {limits.max_atoms} are allowed", atoms)
    return tokens


def primitive_atoms(tokens: Tokens) -> int:
    """Atoms in the primitive cell of one tokenised crystal."""
    from crystalforge.crystal import wyckoff

    group = int(tokens.spacegroup[0])
    table = wyckoff.multiplicity()[group - 1]
    conventional = int(table[tokens.wyckoff[0]].sum())
    return conventional // len(wyckoff.centring(group))  # lattice points of the conventional cell


def _split_code(name: str | None) -> int:
    if name is None:
        return NO_SPLIT
    return -1 if name == REFERENCE else SPLITS.index(name)


def _reject(record: Record, error: Unusable) -> Reject:
    return Reject(record.file, record.number, record.id, error.reason, error.value, str(error), error.remedy)


def write_shard(file: Path, rows: Rows, rejects: Sequence[Reject]) -> None:
    """One uncompressed .npz, atomically; text as bytes, nothing pickled."""
    text = json.dumps([asdict(reject) for reject in rejects]).encode()
    arrays = {field.name: getattr(rows, field.name) for field in fields(rows) if field.name != "ids"}
    names = json.dumps(rows.ids).encode()
    with atomic_file(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, ids=np.frombuffer(names, np.uint8), rejects=np.frombuffer(text, np.uint8), **arrays)


def read_shard(file: Path) -> tuple[Rows, list[Reject]]:
    """What `write_shard` wrote; OSError, ValueError or BadZipFile when the file is damaged."""
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    names = json.loads(arrays.pop("ids").tobytes())
    rejects = [Reject(**values) for values in json.loads(arrays.pop("rejects").tobytes())]
    return Rows(ids=names, **arrays), rejects


def is_whole(file: Path) -> bool:
    """Whether a shard's file is there and every member's checksum is right."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
