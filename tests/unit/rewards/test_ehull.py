"""The E_hull reward with the real CHGNet and the embedded hull: values, floors, versions, refusals."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import Prediction
from crystalforge.rewards import Reward, Status, build, parse
from crystalforge.rewards.base import GuardedReward
from crystalforge.rewards.config import EHullReward
from crystalforge.rewards.ehull import EHullJudge
from crystalforge.rewards.golden import golden_crystals, verify, verify_potential
from crystalforge.thermo import Entries, HullStore

GOLDEN = {"NaCl": 0.0, "MgO": 0.0006, "Si": 0.0005, "SrTiO3": 0.0014}
"""-E_hull of the golden crystals against the embedded hull, eV/atom; textbook cells lie a little below its prototypes.
"""

SALT = golden_crystals()["NaCl"]

SOURCE = {"kind": "descriptor", "quantity": "n_atoms"}


def test_it_is_a_reward_and_reproduces_its_golden_values(ehull):
    assert isinstance(ehull, Reward)
    assert ehull.version.golden == pytest.approx(GOLDEN, abs=3e-4)
    scores = ehull.score(list(golden_crystals().values()))
    assert scores.counts() == {"ok": 4}
    np.testing.assert_allclose(scores.values, -scores.components["e_above_hull"])


def test_embedded_hull_agrees_with_the_labels_that_ship_beside_it():
    from importlib import resources

    path = resources.files("crystalforge") / "data" / "prototypes.parquet"
    with resources.as_file(path) as file:
        rows = pq.read_table(file, columns=["atomic_numbers", "energy_per_atom", "e_above_hull"]).to_pydict()
    answer = HullStore.open("embedded").e_above_hull_many(rows["atomic_numbers"], np.array(rows["energy_per_atom"]))
    assert not answer.missing.any()
    np.testing.assert_allclose(answer.e_above_hull, rows["e_above_hull"], atol=1e-5)


def test_hostile_structures_never_crash(ehull, hostile):
    scores = ehull.score(hostile)
    assert len(scores) == 200
    counts = scores.counts()
    assert set(counts) >= {"not_built", "bad_cell", "too_close", "too_large", "unknown_element"}
    # Cells with an atom on its own are sound, but CHGNet has no energy for them.
    problems = ehull.judge.potential.predict([hostile[row] for row in np.flatnonzero(scores.status == 9)]).problems
    assert set(problems) <= {"an atom has no neighbour within 6 Å"}
    floored = scores.status != Status.OK
    assert (scores.values[floored] == -2.0).all()
    assert (scores.values >= -2.0).all()
    assert scores.status[6::10].tolist() == [Status.NOT_BUILT] * 20


def test_a_bad_neighbour_changes_nothing(ehull, hostile):
    alone = ehull.score([SALT])
    among = ehull.score([*hostile[:30], SALT, *hostile[30:60]])
    assert among.values[30] == pytest.approx(alone.values[0], abs=1e-5)
    assert among.status[30] == Status.OK


class Scripted:
    """A potential that answers what the test says, by the number of atoms."""

    name, digest, scale, elements = "scripted", "0" * 64, "mp2020", frozenset(range(1, 95))

    def __init__(self, energies: dict[int, float]) -> None:
        self.energies = energies

    def predict(self, crystals, *, forces=False, stress=False) -> Prediction:
        energy = np.array([self.energies[len(crystal)] * len(crystal) for crystal in crystals])
        problems = tuple(None if np.isfinite(value) else "the model's answer is not finite" for value in energy)
        return Prediction(energy, None, None, problems)


def scripted(energies: dict[int, float], **options) -> GuardedReward:
    hull = HullStore.from_entries(Entries.of([{11: 1}, {17: 1}, {11: 1, 17: 1}], [-1.3, -1.8, -3.4]))
    config = EHullReward(**options)
    judge = EHullJudge(config, Scripted(energies), hull)
    return GuardedReward(judge, name="x", settings={}, guards=config.guards, floor=config.floor, cap=config.cap)


def salts(sizes: list[int], numbers=(11, 17)) -> list[Crystal]:
    """Sound cells with 2, 4, ... atoms of rock salt side by side."""
    return [
        Crystal.of(np.diag([2.85 * size, 5.7, 5.7]), np.resize(numbers, size), [[i / size, 0, 0] for i in range(size)])
        for size in sizes
    ]


def test_every_floor_has_its_status():
    reward = scripted({2: -3.3, 4: np.nan, 6: -25.0, 8: -4.5, 10: 4.9, 12: 6.0})
    scores = reward.score([*salts([2, 4, 6, 8, 10, 12]), *salts([2], (11, 26))])
    assert scores.status.tolist() == [
        Status.OK, Status.NOT_FINITE, Status.OUT_OF_BOUNDS, Status.OUT_OF_BOUNDS, Status.OK, Status.OUT_OF_BOUNDS,
        Status.SPARSE_HULL,
    ]  # fmt: skip
    np.testing.assert_allclose(scores.values, [-0.1, -2, -2, -2, -2, -2, -2], atol=1e-12)
    # A bad but judged crystal is clipped to the floor and keeps its true distance as a component.
    assert scores.components["e_above_hull"][4] == pytest.approx(8.3)


def test_collapse_below_the_hull_is_no_prize():
    """The published reward pays most for spurious energies far below the hull; here they get the floor."""
    reward = scripted({2: -4.3, 4: -4.5})
    scores = reward.score(salts([2, 4]))
    assert scores.values.tolist() == pytest.approx([0.9, -2.0])
    assert scripted({2: -4.3}, cap=0.5).score(salts([2])).values.tolist() == [0.5]


def test_sparse_hulls_can_be_shut_out():
    assert scripted({2: -3.3}, min_compounds=1).score(salts([2])).counts() == {"ok": 1}
    assert scripted({2: -3.3}, min_compounds=2).score(salts([2])).counts() == {"sparse_hull": 1}


def test_relaxing_lowers_the_energy(ehull):
    stretched = Crystal.of(SALT.lattice * 1.06, SALT.numbers, SALT.frac)
    relaxing = build(parse({"kind": "ehull", "relax": {"steps": 15, "fmax": 0.05}}))
    before, after = ehull.score([stretched]), relaxing.score([stretched])
    assert after.values[0] > before.values[0] + 0.01
    assert after.values[0] == pytest.approx(0, abs=0.01)


def test_versions_pin_what_decides_values_and_nothing_else(ehull, tmp_path):
    def digest(**options) -> str:
        return build(parse({"kind": "ehull"} | options)).version.digest

    assert digest(potential={"kind": "chgnet", "batch_atoms": 50}, name="mine") == ehull.version.digest
    assert digest(floor=-3.0) != ehull.version.digest
    assert digest(potential={"kind": "chgnet", "model": "0.2.0"}) != ehull.version.digest
    HullStore.open("embedded").save(tmp_path / "elsewhere")
    assert digest(hull=str(tmp_path / "elsewhere")) == ehull.version.digest
    elements = [{"atomic_numbers": [z], "energy_per_atom": -1.0} for z in (11, 17, 12, 8, 14, 38, 22)]
    pq.write_table(pa.Table.from_pylist(elements), tmp_path / "other.parquet")
    assert digest(hull=str(tmp_path / "other.parquet")) != ehull.version.digest


def test_wrong_golden_values_are_refused():
    with pytest.raises(InputError, match=r"NaCl: -?0\.000\d+ instead of -0\.5.*not judged"):
        build(parse({"kind": "ehull", "golden": {"NaCl": -0.5, "Unobtainium": 1.0}}))
    build(parse({"kind": "ehull", "golden": {"NaCl": 0.0}}))


def test_changed_weights_that_claim_a_pinned_digest_are_refused():
    from crystalforge.potentials import CHGNetConfig, load

    potential = load(CHGNetConfig())
    verify_potential(potential)
    potential._reference = potential._reference + 0.01
    with pytest.raises(InputError, match="golden values"):
        verify_potential(potential)


def test_nan_never_passes_for_golden():
    with pytest.raises(InputError):
        verify("x", {"NaCl": float("nan")}, {"NaCl": 0.0}, 1.0)


def test_scales_that_do_not_fit_are_refused(tmp_path):
    pq.write_table(pa.table({"formula": ["Na", "Cl"], "formation_energy_per_atom": [0.0, 0.0]}), tmp_path / "f.parquet")
    with pytest.raises(InputError, match="scale 'mp2020', the hull holds 'formation'"):
        build(parse({"kind": "ehull", "hull": str(tmp_path / "f.parquet")}))


def test_raw_pbe_against_a_corrected_hull_is_corrected():
    class Raw(Scripted):
        scale = "pbe"

    hull = HullStore.from_entries(Entries.of([{11: 1}, {17: 1}, {11: 1, 17: 1}], [-1.3, -1.8, -3.4]))
    judge = EHullJudge(EHullReward(), Raw({2: -3.0}), hull)
    # MP2020 gives -0.614 eV per chlorine.
    assert judge.judge(salts([2])).components["energy_per_atom"][0] == pytest.approx(-3.0 - 0.614 / 2)
    plain = EHullJudge(EHullReward(corrections="none"), Scripted({2: -3.0}), hull)
    assert plain.judge(salts([2])).components["energy_per_atom"][0] == pytest.approx(-3.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "ehul"}, "ehul"),
        ({"kind": "ehull", "flor": 1}, "flor"),
        ({"kind": "ehull", "potential": {"kind": "chgnet", "model": "9"}}, "model"),
        ({"kind": "dielectric", "order": ["xx"] * 6, "tensor": SOURCE, "gap": SOURCE}, "once each"),
        ({"kind": "property", "source": SOURCE, "goal": {"kind": "range", "low": 2, "high": 1}}, "above high"),
    ],
)
def test_configurations_name_the_wrong_key(settings, message):
    with pytest.raises(InputError, match=message):
        parse(settings)


def test_a_missing_hull_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        build(parse({"kind": "ehull", "hull": str(tmp_path / "nowhere.parquet")}))


def test_a_hull_of_its_own_is_at_hand_for_the_judges_that_ship():
    """Known compounds lie near it, on any functional's scale; r2SCAN's totals are no escape."""
    from crystalforge.potentials import CHGNetConfig
    from crystalforge.rewards.own_hull import shipped_names

    assert {"7net-0", "chgnet-r2scan"} <= set(shipped_names())
    judge = build(EHullReward(potential=CHGNetConfig(model="r2scan"), hull="own"))
    scores = judge.score(list(golden_crystals().values()))
    assert scores.counts() == {"ok": 4}
    assert np.abs(scores.components["e_above_hull"]).max() < 0.03
    heavy = Crystal.of(SALT.lattice * 1.1, [82, 16], SALT.frac)
    assert judge.score([heavy]).components["energy_per_atom"][0] < -20
    assert judge.score([heavy]).counts() == {"ok": 1}


def test_a_hull_of_its_own_from_given_phases(tmp_path):
    from crystalforge.potentials import load
    from crystalforge.rewards.own_hull import build as build_hull

    pair = golden_crystals()["NaCl"]
    phases = [
        Crystal.of(4.2 * np.eye(3), [11, 11], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Crystal.of(4.4 * np.eye(3), [17, 17], [[0, 0, 0], [0.45, 0, 0]]),
        pair,
    ]
    columns = {
        "material_id": ["na", "cl", "salt"],
        "lattice": [crystal.lattice.ravel().tolist() for crystal in phases],
        "atomic_numbers": [crystal.numbers.tolist() for crystal in phases],
        "frac_coords": [crystal.frac.ravel().tolist() for crystal in phases],
    }
    pq.write_table(pa.table(columns), tmp_path / "phases.parquet")
    potential = load(EHullReward().potential)
    made = build_hull(potential, tmp_path / "phases.parquet", tmp_path / "hull.parquet", quiet=True)
    assert (made["phases"], made["elements lacking"], made["scale"]) == (3, [], "mp2020")
    hull = HullStore.open(tmp_path / "hull.parquet")
    energy = potential.predict([pair]).energy[0] / 2
    assert hull.e_above_hull(pair.numbers, energy) == pytest.approx(0, abs=1e-5)
    assert hull.around(pair.numbers).n_same_elements == 1
    with pytest.raises(InputError, match="no such file"):
        build_hull(potential, tmp_path / "absent.parquet", tmp_path / "x.parquet", quiet=True)
