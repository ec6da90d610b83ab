"""Crystals and stores that the tests of data share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from crystalforge.crystal import Crystal, Tokens
from crystalforge.data.store import Rows, TokenStore

CIFS = Path(__file__).parents[2] / "data" / "cif"


def random_tokens(size: int, seed: int = 0) -> Tokens:
    """Tokens of the right shapes and ranges; they describe no sensible crystals."""
    random = np.random.default_rng(seed)
    count = random.integers(1, 21, size)
    sites = np.arange(21) < count[:, None]
    return Tokens(
        random.integers(1, 231, size).astype(np.int32),
        (random.integers(1, 28, (size, 21)) * sites).astype(np.int32),
        (random.integers(1, 119, (size, 21)) * sites).astype(np.int32),
        random.random((size, 21, 3)) * sites[..., None],
        random.random((size, 6)) + 1,
    )


def random_rows(size: int, seed: int = 0) -> Rows:
    """Rows with names of several bytes per character, all splits, and some energies."""
    random = np.random.default_rng(seed + 1)
    return Rows.of(
        random_tokens(size, seed),
        [f"é-{seed}-{number}" for number in range(size)],
        split=random.integers(-1, 3, size).astype(np.int8),
        fingerprint=random.integers(0, 256, (size, 16)).astype(np.uint8),
        properties={"e_above_hull": np.where(random.random(size) < 0.5, np.nan, random.random(size))},
    )


def write_rows(path: Path, parts: list[Rows]) -> TokenStore:
    """A store of these parts."""
    TokenStore.write(
        path,
        parts,
        rows=sum(map(len, parts)),
        sites=sum(part.wyckoff.size for part in parts),
        id_bytes=sum(len(name.encode()) for part in parts for name in part.ids),
    )
    return TokenStore.open(path)


def rock_salt(cation: int = 11, anion: int = 17, a: float = 5.64) -> Crystal:
    """The primitive cell."""
    half = a / 2
    lattice = [[0, half, half], [half, 0, half], [half, half, 0]]
    return Crystal.of(lattice, [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    """A thousand rows."""
    return write_rows(tmp_path / "store", [random_rows(1000)])


@pytest.fixture
def make() -> SimpleNamespace:
    """The functions above, for tests to call."""
    return SimpleNamespace(
        random_tokens=random_tokens, random_rows=random_rows, write_rows=write_rows, rock_salt=rock_salt, cifs=CIFS
    )
