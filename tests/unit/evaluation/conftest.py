"""Real crystals for the evaluation's tests, and a reward that costs nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.rewards.protocol import RewardVersion, Scores, Status


@pytest.fixture(scope="session")
def prototypes() -> list[Crystal]:
    """One crystal of at most 12 atoms for each structure type in the embedded data."""
    import pyarrow.parquet as pq

    file = files("crystalforge.data") / "prototypes.parquet"
    table = pq.read_table(str(file), columns=["prototype", "lattice", "atomic_numbers", "frac_coords"])
    first: dict[str, Crystal] = {}
    for row in table.to_pylist():
        if len(row["atomic_numbers"]) <= 12 and row["prototype"] not in first:
            first[row["prototype"]] = Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"])
    return list(first.values())


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout, or the one that CRYSTALFORGE_SHARED names."""
    place = Path(os.environ.get("CRYSTALFORGE_SHARED", Path(__file__).parents[4] / "shared"))
    if not place.is_dir():
        pytest.skip(f"no reference data at {place}; set CRYSTALFORGE_SHARED")
    return place


class RuleReward:
    """Energy above hull as a plain function of the atomic numbers; counts how many crystals it was asked about."""

    def __init__(self, name: str = "rule", fail_at: int | None = None) -> None:
        self.name, self.fail_at = name, fail_at
        self.scored = 0

    @property
    def version(self) -> RewardVersion:
        return RewardVersion(self.name, f"{self.name}-digest")

    def score(self, crystals: Sequence[Crystal | None]) -> Scores:
        if self.fail_at is not None and self.scored + len(crystals) > self.fail_at:
            from crystalforge.rewards.protocol import RewardUnavailable

            raise RewardUnavailable("the server went away")
        self.scored += len(crystals)
        energy = np.array([np.nan if c is None else int(c.numbers.sum()) % 20 / 100 for c in crystals])
        status = np.array([Status.NOT_BUILT if c is None else Status.OK for c in crystals], dtype=np.int32)
        values = np.where(np.isnan(energy), -5.0, -np.nan_to_num(energy))
        return Scores(values, status, {"e_above_hull": energy})


@pytest.fixture
def make_reward():
    return RuleReward
