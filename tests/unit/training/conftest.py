"""A small token store of possible crystals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crystalforge.crystal.tokens import Tokens
from crystalforge.data.store import Rows, TokenStore
from crystalforge.model.published.parity import fixture_tokens, load_fixture

FIXTURE = Path(__file__).parents[2] / "parity" / "model_tiny.npz"


def crystals(count: int, seed: int = 0) -> Tokens:
    """The fixture's six possible crystals again and again, with other elements and slightly other lengths."""
    random = np.random.default_rng(seed)
    fixture = load_fixture(FIXTURE)
    tokens = fixture_tokens(fixture)[fixture["kind"] < 2]
    picked = tokens[random.integers(len(tokens), size=count)]
    lattice = picked.lattice.copy()
    lattice[:, :3] *= random.normal(1, 0.02, size=(count, 1))
    element = np.where(picked.is_site, random.integers(1, 20, size=picked.element.shape), 0).astype(np.int32)
    return Tokens(picked.spacegroup, picked.wyckoff, element, picked.coords, lattice)


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., TokenStore]:
    """Writes a store with so many crystals for training and validation."""

    def make(train: int, val: int = 0, *, tokens: Tokens | None = None, name: str = "store") -> TokenStore:
        tokens = crystals(train + val) if tokens is None else tokens
        split = np.repeat(np.array([0, 1], np.int8), [train, val])
        rows = Rows.of(tokens, [f"c{number}" for number in range(train + val)], split=split)
        sizes = {"rows": len(rows), "sites": rows.wyckoff.size, "id_bytes": sum(map(len, rows.ids))}
        TokenStore.write(tmp_path / name, [rows], **sizes)
        return TokenStore.open(tmp_path / name)

    return make
