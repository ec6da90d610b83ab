"""Coverage and property distances: worked examples, and the fingerprint's known values on textbook crystals."""

from __future__ import annotations

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.evaluation.metrics.coverage import (
    COMPOSITION_CUTOFF,
    STRUCTURE_CUTOFF,
    Fingerprints,
    _parameters,
    composition_fingerprint,
    coverage,
    density,
    distance,
    fingerprints,
    property_distances,
    structure_fingerprint,
)

SALT = Crystal.of(2.82 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
DIAMOND = Crystal.of(1.785 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]), [6, 6], [[0, 0, 0], [0.25, 0.25, 0.25]])
CHLORIDE = Crystal.of(4.12 * np.eye(3), [55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_there_are_the_61_features_of_the_ops_preset() -> None:
    assert len(_parameters()) == 61
    numbers = [coordination for coordination, parameter in _parameters() if parameter is None]
    assert numbers == list(range(1, 25))


@pytest.mark.parametrize(("crystal", "coordination"), [(SALT, 6), (DIAMOND, 4), (CHLORIDE, 8)])
def test_textbook_crystals_have_their_coordination_and_motif(crystal: Crystal, coordination: int) -> None:
    found = structure_fingerprint(crystal)
    weights = {c: v for (c, parameter), v in zip(_parameters(), found, strict=True) if parameter is None}
    motifs = [v for (c, parameter), v in zip(_parameters(), found, strict=True) if parameter and c == coordination]
    assert weights[coordination] == pytest.approx(1, abs=0.07), "CrystalNN sees the second shell of CsCl faintly"
    assert max(motifs) == pytest.approx(1, abs=0.07), "tetrahedron, octahedron, cube"
    assert sum(weights.values()) == pytest.approx(1, abs=1e-6)


def test_a_cell_twice_as_large_is_the_same_crystal() -> None:
    cell = Crystal.from_structure(SALT.to_structure() * (2, 1, 1))
    assert structure_fingerprint(cell) == pytest.approx(structure_fingerprint(SALT), abs=1e-6)


def test_composition_statistics_by_hand() -> None:
    found = composition_fingerprint(np.array([8, 8, 22])).reshape(6, -1)[:, 0]  # of the atomic number in TiO2
    mean = (8 + 8 + 22) / 3
    assert found.tolist() == pytest.approx([8, 22, 14, mean, (2 * (mean - 8) + 22 - mean) / 3, 8])


def test_coverage_of_a_worked_example() -> None:
    """Three real crystals on a line, 1 apart in structure; generated: one on top of the first, one too far from all,
    one near the second in structure but of another composition, one that could not be built."""
    real = Fingerprints(np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [1.0], [2.0]]))
    far = 2.0 + 2 * COMPOSITION_CUTOFF
    generated = Fingerprints(
        np.array([[0.5 * STRUCTURE_CUTOFF], [5.0], [1.0], [np.nan]]), np.array([[0.0], [0.0], [far], [np.nan]])
    )
    found = coverage(generated, real)
    assert found["cov_recall"].value == pytest.approx(1 / 3)
    assert found["cov_precision"].value == pytest.approx(1 / 4)
    assert found["cov_precision"].n == 4, "what could not be built counts"


def test_a_set_covers_itself_and_not_another(prototypes) -> None:
    few = [c for c in prototypes if len(c) <= 4][:12]
    prints = fingerprints([*few, None])
    own = coverage(prints, prints)
    valid = np.isfinite(prints.structure).all(axis=1)
    assert own["cov_recall"].value == 1
    assert own["cov_precision"].value == valid.sum() / 13
    nothing = coverage(fingerprints([None]), prints)
    assert nothing["cov_recall"].value == nothing["cov_precision"].value == 0


def test_distances_by_hand() -> None:
    assert distance(np.array([0.0, 1.0]), np.array([2.0, 3.0])).value == 2.0
    found = property_distances(
        {"density": np.array([1.0, 2.0]), "n_elements": np.array([2.0, 2.0])},
        {"density": np.array([1.0, 2.0]), "n_elements": np.array([3.0, 2.0]), "energy_per_atom": np.array([0.0])},
    )
    assert {name: e.value for name, e in found.items()} == {"wdist_density": 0.0, "wdist_n_elements": 0.5}
    assert density(SALT) == pytest.approx(2.16, abs=0.01), "rock salt"
    assert density(DIAMOND) == pytest.approx(3.51, abs=0.01)
