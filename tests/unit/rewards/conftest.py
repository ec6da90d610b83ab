"""One CHGNet for all tests of rewards, on one thread, and crystals that mean harm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystalforge.crystal import Crystal
from crystalforge.rewards import build, parse


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ehull():
    return build(parse({"kind": "ehull"}))


@pytest.fixture(scope="session")
def hostile() -> list[Crystal | None]:
    """200 structures: overlapping atoms, absurd cells, unknown elements, NaN, nothing at all, far too much."""
    rng = np.random.default_rng(11)
    crystals: list[Crystal | None] = []
    for number in range(200):
        atoms = int(rng.integers(1, 9))
        lattice = rng.normal(size=(3, 3)) * 5
        numbers = rng.integers(1, 95, atoms)
        frac = rng.uniform(-3, 3, (atoms, 3))
        match number % 10:
            case 0:
                frac[:] = frac[0]
            case 1:
                lattice *= 10.0 ** rng.integers(-9, 9)
            case 2:
                numbers[0] = rng.choice([0, -1, 95, 118, 119, 2**30])
            case 3:
                frac[0, 0] = rng.choice([np.nan, np.inf, 1e300])
            case 4:
                lattice[2] = lattice[1]
            case 5:
                lattice[rng.integers(3), rng.integers(3)] = np.nan
            case 6:
                crystals.append(None)
                continue
            case 7:
                lattice[0] += lattice[1] * 10.0 ** rng.integers(3, 12)
            case 8:
                numbers, frac = rng.integers(1, 95, 3000), rng.uniform(0, 1, (3000, 3))
            case _:
                lattice = np.diag(rng.uniform(3, 9, 3))
        crystals.append(Crystal.of(lattice, numbers, frac))
    return crystals
