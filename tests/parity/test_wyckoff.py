"""The symmetry tables and the orbits equal those of the reference implementation, and the list they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crystalforge.crystal import build_tables, orbits, wyckoff

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(HERE / "wyckoff_tables.npz") as archive:
        return dict(archive)


def test_tables_equal_the_references(reference: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(wyckoff.multiplicity(), reference["mult_table"])
    np.testing.assert_array_equal(wyckoff.n_letters(), reference["wmax_table"])
    np.testing.assert_array_equal(wyckoff.is_fixed(), reference["dof0_table"])
    np.testing.assert_array_equal(wyckoff.varies(), reference["fc_mask_table"])
    np.testing.assert_array_equal(wyckoff.lattice_free(), reference["lattice_mask"])


def test_every_orbit_operation_equals_the_references_in_its_order(reference: dict[str, np.ndarray]) -> None:
    positions = 0
    for g in range(1, 231):
        for w in range(1, int(wyckoff.n_letters()[g - 1]) + 1):
            start = int(reference["ops_offset"][g - 1, w])
            expected = reference["ops_flat"][start : start + int(reference["mult_table"][g - 1, w])]
            np.testing.assert_array_equal(wyckoff.operations(g, w), expected)
            positions += 1
    assert positions == 1731


def test_the_packed_table_is_what_the_builder_writes_today() -> None:
    built = build_tables.build()
    with np.load(wyckoff.TABLE_PATH) as packed:
        assert sorted(packed.files) == sorted(built)
        for name in packed.files:
            np.testing.assert_array_equal(packed[name], built[name])
            assert packed[name].dtype == built[name].dtype


def test_orbits_equal_the_references_point_by_point() -> None:
    with np.load(HERE / "orbits.npz") as archive:
        reference = dict(archive)
    g, w, lengths = (reference[name].astype(np.int64) for name in ("G", "W", "orbit_len"))
    np.testing.assert_array_equal(wyckoff.multiplicity()[g - 1, w], lengths)
    difference = orbits.expand(g, w, reference["X"], lengths) - reference["orbit_flat"]
    assert np.abs(difference - np.rint(difference)).max() < 1e-12
