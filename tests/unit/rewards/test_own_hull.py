"""A potential's own reference phases, those that it cannot see among them."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pyarrow.parquet as pq
import pytest

from crystalforge.potentials import load
from crystalforge.potentials.config import DIEPConfig, SevenNetConfig
from crystalforge.rewards.own_hull import SHIPPED, embedded_phases, energies, own_hull

pytest.importorskip("sevenn")


def test_a_judge_that_sees_no_neighbour_in_an_element_has_a_hull_of_its_compounds_all_the_same():
    """SevenNet sees 5 Å; in caesium the atoms stand 5.5 Å apart, and no compound of it once had an answer."""
    potential = load(SevenNetConfig())
    hull = own_hull(potential)
    caesium = dict(embedded_phases())["element-Cs"]
    assert not np.isfinite(potential.predict([caesium]).energy[0])
    assert hull.e_above_hull([55], -0.8) == pytest.approx(0.03, abs=0.03)
    for numbers in ([55, 17], [37, 20, 17, 17, 17]):
        assert not hull.around(numbers).missing


def test_what_is_computed_anew_is_what_ships(tmp_path):
    rows = pq.read_table(str(files("crystalforge.data") / SHIPPED)).to_pylist()
    shipped = {row["id"]: row["7net-0"] for row in rows}
    phases = dict(embedded_phases())
    names = ["element-Cs", "element-Na", "competing-AB3_cP4_221_a_c:Cs-Rb"]
    caesium, sodium, alloy = energies(load(SevenNetConfig()), [phases[name] for name in names], tmp_path, quiet=True)
    assert (caesium, sodium) == pytest.approx((shipped[names[0]], shipped[names[1]]), abs=1e-4)
    assert np.isnan(alloy), "an alloy is not pressed together"
    assert shipped[names[2]] is None


def test_diep_has_its_own_hull_too():
    """Shipped energies were computed in single precision, which moves no energy by more than 0.1 meV/atom."""
    pytest.importorskip("diep")
    potential = load(DIEPConfig())
    phases = dict(embedded_phases())
    names = ["element-Na", "element-Si", "element-Cl"]
    energy = potential.predict([phases[name] for name in names]).energy / [len(phases[name]) for name in names]
    distance = own_hull(potential).e_above_hull_many([phases[name].numbers for name in names], energy).e_above_hull
    assert np.abs(distance).max() < 0.02
    rows = pq.read_table(str(files("crystalforge.data") / SHIPPED)).to_pylist()
    shipped = {row["id"]: row[potential.name] for row in rows}
    assert energy == pytest.approx([shipped[name] for name in names], abs=3e-4)
