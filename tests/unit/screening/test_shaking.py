"""What is at rest on a saddle: it falls when it is shaken, by numbers that its own index decides, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.potentials.base import Prediction
from crystalforge.screening.candidates import Candidate
from crystalforge.screening.jobs import Workbench, crystal_of, plain
from crystalforge.screening.shaking import shaken
from crystalforge.screening.shortlist import conventional, shortlist
from tests.unit.screening.conftest import Rules, config_of, crystal_number

BODY_CENTRED = Crystal.of(np.eye(3) * 4, [55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
HEIGHT = 0.025  # eV/atom of the saddle of `Well` above its minima
SETTINGS = {"shake": 0.03, "fmax": 0.01, "steps": 200}


class Well:
    """The second atom has energy a d^2 + b d^4 (eV, Å) at d from the middle of a cubic cell, which stays as it is."""

    name, digest, elements, scale = "well", "well", frozenset(range(1, 95)), "own"

    def __init__(self, a: float) -> None:
        self.a, self.b = a, 5.0

    def predict(self, crystals, *, forces: bool = False, stress: bool = False) -> Prediction:
        energy, force = [], []
        for crystal in crystals:
            d = (crystal.frac[1] - crystal.frac[0] - 0.5) @ crystal.lattice
            energy.append(self.a * d @ d + self.b * (d @ d) ** 2)
            pull = -(2 * self.a + 4 * self.b * (d @ d)) * d
            force.append(np.stack([-pull, pull]))
        return Prediction(np.array(energy), force, np.zeros((len(energy), 3, 3)))


def bench(a: float, seed: int = 0) -> Workbench:
    made = Workbench(Path("mp20"), config_of(), seed)
    made._loaded["relaxer"] = Well(a)
    return made


def shake(a: float, *indices: int, seed: int = 0) -> dict[str, Any]:
    crystals = [plain(BODY_CENTRED)] * len(indices)
    return bench(a, seed).do("shake", {"crystals": crystals, "indices": list(indices), **SETTINGS})


@pytest.mark.parametrize("keep_symmetry", [False, True])
def test_a_relaxation_ends_on_a_saddle_and_a_shaken_one_does_not(keep_symmetry):
    payload = {"crystals": [plain(BODY_CENTRED)], "fmax": 0.01, "steps": 200, "keep_symmetry": keep_symmetry}
    at_rest = bench(-1.0).do("relax", payload)
    assert (at_rest["converged"], at_rest["steps"], at_rest["energy"]) == ([True], [0], [0.0])
    found = shake(-1.0, 3)
    assert found["converged"] == [True]
    assert found["energy"][0] == pytest.approx(-HEIGHT, rel=1e-2)
    crystal = crystal_of(found["crystals"][0])
    away = (crystal.frac[1] - crystal.frac[0] - 0.5) @ crystal.lattice
    assert np.linalg.norm(away) == pytest.approx(0.1**0.5, rel=0.05)


def test_no_symmetry_holds_what_was_shaken_by_less_than_symmetry_is_looked_for():
    payload = {"crystals": [plain(BODY_CENTRED)], "indices": [3], "shake": 0.002, "fmax": 1e-3, "steps": 200}
    assert bench(-1.0).do("shake", payload)["energy"][0] == pytest.approx(-HEIGHT, rel=1e-2)


def test_from_a_minimum_it_comes_back():
    found = shake(1.0, 3)
    assert found["energy"][0] == pytest.approx(0, abs=1e-4)
    assert found["steps"][0] > 0, "it had been moved"


def test_seed_and_index_decide_and_company_does_not():
    together, apart = shake(-1.0, 3, 4), [shake(-1.0, 3), shake(-1.0, 4)]
    assert together["crystals"] == [one["crystals"][0] for one in apart]
    assert together["crystals"][0] != together["crystals"][1]
    assert shake(-1.0, 3)["crystals"] == apart[0]["crystals"]
    assert shake(-1.0, 3, seed=1)["crystals"] != apart[0]["crystals"]


def test_atoms_and_cell_move_by_the_amplitude():
    many = [shaken(BODY_CENTRED, 0.03, seed=0, index=index) for index in range(400)]
    moves = np.concatenate([(one.frac - BODY_CENTRED.frac) @ one.lattice for one in many])
    assert moves.std() == pytest.approx(0.03, rel=0.05)
    strains = np.stack([one.lattice / 4 - np.eye(3) for one in many])
    assert np.allclose(strains, strains.transpose(0, 2, 1)), "no rotation"
    assert strains[:, [0, 1, 2], [0, 1, 2]].std() * 32 ** (1 / 3) == pytest.approx(0.03, rel=0.05)


# ---- in the funnel


def screened(make_funnel, **settings):
    config = config_of(top=500, budget={"crystals": 240}, **settings)
    rules = Rules()
    funnel, _ = make_funnel(config, rules=rules)
    funnel.run()
    return funnel, config, rules


def test_the_lower_end_is_kept_judged_and_told(make_funnel):
    funnel, config, rules = screened(make_funnel)
    fallen = [one for one in funnel.candidates if one.fall]
    back = [one for one in funnel.candidates if one.fall == 0]
    restless = [one for one in funnel.candidates if one.fall is None]
    assert fallen
    assert back
    assert restless
    assert {one.index % 5 for one in fallen} == {1}
    assert not any(one.index % 5 == 1 for one in back)
    assert not any(one.converged for one in restless), "only what is at rest is shaken"
    for one in fallen:
        assert one.fall == pytest.approx(0.02)
        assert one.relaxed.frac[1, 0] == 0.25
        assert (one.energy, one.steps) == (-4.02, 5)
        whole = rules.score("one", [plain(one.relaxed)]), rules.score("two", [plain(one.relaxed)])
        assert [one.after[name]["e_above_hull"] for name in ("one", "two")] == [
            said["e_above_hull"][0] for said in whole
        ], "both judges saw where it ended"
        assert "it fell by 0.020 eV/atom" in next(flag.text for flag in one.flags if flag.name == "saddle")
        assert np.isinf(one.rmsd), "it has become another structure"
    for one in [*back, *restless]:
        assert one.relaxed.frac[1, 0] == 0.5
        assert one.steps == 3
        assert "saddle" not in [flag.name for flag in one.flags]
    assert funnel.counts["saddles"] == len(fallen) + fallen_out(funnel)
    assert funnel.calls["shake"] == len(fallen) + len(back) + fallen_out(funnel)
    table = shortlist(fallen[:1] + back[:1] + restless[:1], config, Reference.from_crystals([], []), {"seed": 0})
    assert table.column("fall").to_pylist() == [pytest.approx(0.02), 0.0, None]


def test_the_symmetry_of_what_fell_is_looked_for_within_what_forces_leave():
    """Zincblende, as a relaxation from random places leaves it."""
    group, cell, text = conventional(candidate(fall=0.05))
    assert (group, len(cell)) == (216, 8)
    assert "_symmetry_Int_Tables_number 216" in text
    assert conventional(candidate(fall=0.0))[0] == 1
    assert conventional(candidate(fall=0.05, held=True))[0] == 1


def candidate(**settings) -> Candidate:
    exact = crystal_number(0)
    rough = shaken(Crystal(exact.lattice, exact.numbers, exact.frac / 2), 0.01, seed=0, index=0)
    return Candidate(0, 225, 0.0, exact, rough, **settings)


def fallen_out(funnel) -> int:
    return sum(number for name, number in funnel.counts.items() if name.startswith("fell: shaken"))


def test_what_symmetry_shall_keep_stays_and_is_warned_of(make_funnel):
    funnel, _, rules = screened(make_funnel, keep_symmetry=True)
    fallen = [one for one in funnel.candidates if one.fall]
    assert fallen
    for one in fallen:
        assert one.relaxed.frac[1, 0] == 0.5
        assert one.energy == -4.0
        flag = next(flag for flag in one.flags if flag.name == "saddle")
        assert (flag.level.name, "Its symmetry holds it" in flag.text) == ("WARNING", True)
    assert not any(name.startswith("again") for name in rules.asked)


def test_without_an_amplitude_nobody_is_shaken(make_funnel):
    funnel, _, rules = screened(make_funnel, shake=0.0)
    assert not any(name.startswith(("shake", "again")) for name in rules.asked)
    assert all(one.fall is None for one in funnel.candidates)
    assert "shake" not in funnel.calls


def test_what_falls_to_something_known_or_seen_is_out(make_funnel, monkeypatch):
    """All that fall become zincblende of one of two compounds, the first of which is known."""
    whole = Rules.shake

    def alike(rules: Rules, crystals: list, indices: list, **settings) -> dict:
        said = whole(rules, crystals, indices, **settings)
        for row, index in enumerate(indices):
            if index % 5 == 1:
                salt = crystal_number(0 if index % 2 else 30)
                said["crystals"][row] = plain(Crystal(salt.lattice, salt.numbers, salt.frac / 2))
        return said

    monkeypatch.setattr(Rules, "shake", alike)
    monkeypatch.setattr(Rules, "score", lambda rules, judge, crystals: {
        name: [0.0] * len(crystals) for name in ("e_above_hull", "energy_per_atom", "reward", "status")
    })  # fmt: skip
    config = config_of(top=500, budget={"crystals": 48})
    known = crystal_number(0)
    funnel, _ = make_funnel(config)
    for seen in (funnel._generated, funnel._relaxed, funnel._shaken):
        seen.reference = Reference.from_crystals([Crystal(known.lattice, known.numbers, known.frac / 2)], ["blende"])
    funnel.run()
    fallen = [one for one in funnel.candidates if one.fall]
    assert [one.relaxed.formula for one in fallen] == [crystal_number(30).formula]
    assert funnel.counts["fell: shaken, known"] > 0
    assert funnel.counts["fell: shaken, duplicate"] > 0
