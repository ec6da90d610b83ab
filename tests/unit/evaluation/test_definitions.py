"""Every metric against its definition, worked through word for word by pymatgen and SMACT (`evaluation.testing`).

`python benchmarks/matching.py --verify` does the same with 500 crystals, generated ones among them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.evaluation.judging.judge import match_all
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.protocols import PROTOCOLS, MatcherSettings
from crystalforge.evaluation.testing import brute_groups, brute_novel, composition_is_valid, structure_is_valid
from crystalforge.evaluation.validity import composition_valid, structure_valid

REAL, MADE = 60, 60


def changed(crystals: list[Crystal], rng: np.random.Generator) -> list[Crystal]:
    """As generated crystals are: distorted copies, some with another element, some with atoms too close."""
    made = []
    for crystal in crystals:
        numbers, frac = crystal.numbers.copy(), crystal.frac + rng.normal(0, 0.01, crystal.frac.shape)
        kind = rng.random()
        if kind < 0.3:
            numbers[numbers == numbers[0]] = rng.integers(3, 84)
        elif kind < 0.4 and len(crystal) > 1:
            frac[0] = frac[1] + 0.01
        made.append(Crystal.of(crystal.lattice * (1 + rng.normal(0, 0.02)), numbers, frac))
    return made


@pytest.fixture(scope="module", params=["embedded", "mp20"])
def crystals(request: pytest.FixtureRequest, prototypes: list[Crystal]) -> list[Crystal]:
    """Real crystals and changed ones of the same, in random order."""
    rng = np.random.default_rng(1)
    if request.param == "embedded":
        real = prototypes[:REAL]
    else:
        import pyarrow.parquet as pq

        file: Path = request.getfixturevalue("shared") / "data" / "mp20" / "mp20.parquet"
        table = pq.read_table(file, columns=["lattice", "atomic_numbers", "frac_coords"])
        rows = table.take(rng.permutation(len(table))[:REAL]).to_pylist()
        real = [Crystal.of(*row.values()) for row in rows]
    both = [*real, *changed([real[k] for k in rng.integers(len(real), size=MADE)], rng)]
    return [both[k] for k in rng.permutation(len(both))]


@pytest.mark.parametrize("settings", [MatcherSettings(), PROTOCOLS["cdvae"].matcher], ids=["default", "cdvae"])
def test_uniqueness_and_novelty_equal_brute_force(crystals: list[Crystal], settings: MatcherSettings) -> None:
    samples, known = crystals[: len(crystals) // 2], crystals[len(crystals) // 2 :]
    reference = Reference.from_crystals(known, [str(k) for k in range(len(known))])
    found = match_all(samples, reference, settings)
    heads = brute_groups(samples, settings)
    novel = brute_novel(samples, known, settings)
    assert found.heads.tolist() == heads
    assert ((found.match < 0) & (found.heads >= 0)).tolist() == novel
    assert len(set(heads)) < len(heads), "nothing was repeated: the test would show nothing"
    assert 0 < sum(novel) < len(novel)


def test_validity_equals_the_definitions(crystals: list[Crystal]) -> None:
    structure = [structure_is_valid(crystal) for crystal in crystals]
    assert [structure_valid(crystal)[0] for crystal in crystals] == structure
    composition = [composition_is_valid(crystal) for crystal in crystals]
    assert None not in composition
    assert [composition_valid(crystal) for crystal in crystals] == composition
    for answers in (structure, composition):
        assert set(answers) == {True, False}
