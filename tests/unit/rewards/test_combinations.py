"""Properties, composites, ensembles, novelty and one's own function: formulas by hand, floors that spread."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import Values
from crystalforge.rewards import Status, build, parse
from crystalforge.rewards.base import GuardedReward
from crystalforge.rewards.config import CompositeReward, DielectricReward, Guards
from crystalforge.rewards.golden import golden_crystals
from crystalforge.rewards.novelty import fingerprint
from crystalforge.rewards.properties import DielectricJudge, mean_eigenvalue
from crystalforge.testing import example_crystals, supercell

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = golden_crystals()
CRYSTALS = list(GOLDEN.values())
ATOMS = {"kind": "descriptor", "quantity": "n_atoms"}


def count_atoms(goal: dict, **options) -> dict:
    """A reward on the number of atoms: 2, 2, 2 and 5 for the golden crystals."""
    return {"kind": "property", "source": ATOMS, "goal": goal, "floor": -10.0} | options


def values(settings: dict, crystals=CRYSTALS) -> list[float]:
    scores = build(parse(settings)).score(crystals)
    assert scores.counts() == {"ok": len(crystals)}
    return scores.values.tolist()


@pytest.mark.parametrize(
    ("goal", "wanted"),
    [
        ({"kind": "maximise"}, [2, 2, 2, 5]),
        ({"kind": "maximise", "scale": -0.5}, [-1, -1, -1, -2.5]),
        ({"kind": "target", "value": 4, "width": 2}, [-1, -1, -1, -0.5]),
        ({"kind": "range", "low": 3, "high": 4, "width": 0.5}, [-2, -2, -2, -2]),
        ({"kind": "range", "low": 2, "high": 4}, [0, 0, 0, -1]),
    ],
)
def test_goals(goal, wanted):
    assert values(count_atoms(goal)) == pytest.approx(wanted)


def test_descriptors_against_handbook_values():
    density = {"kind": "property", "source": {"kind": "descriptor", "quantity": "density"}}
    # NaCl 2.16, MgO 3.58, Si 2.33, SrTiO3 5.12 g/cm^3; the golden cells are PBE's, up to 4 % too large in volume.
    assert values(density) == pytest.approx([2.16, 3.58, 2.33, 5.12], rel=0.05)
    volume = {"kind": "property", "source": {"kind": "descriptor", "quantity": "volume_per_atom"}}
    assert values(volume)[3] == pytest.approx(3.945**3 / 5)
    kinds = {"kind": "property", "source": {"kind": "descriptor", "quantity": "n_elements"}}
    assert values(kinds) == [2, 2, 1, 3]


def test_bounds_of_a_property():
    reward = build(parse(count_atoms({"kind": "maximise"}, bounds=[0, 4])))
    assert reward.score(CRYSTALS).counts() == {"ok": 3, "out_of_bounds": 1}


def term(goal: dict, weight: float = 1.0, **options) -> dict:
    return {"reward": count_atoms(goal), "weight": weight} | options


MAXIMISE, TARGET = {"kind": "maximise"}, {"kind": "target", "value": 4}
"""Two wishes: values [2, 2, 2, 5] and [-2, -2, -2, -1]."""


@pytest.mark.parametrize(
    ("how", "terms", "wanted"),
    [
        ("sum", [term(MAXIMISE, 2.0), term(TARGET, 0.5)], [3, 3, 3, 9.5]),
        ("product", [term(MAXIMISE, 2.0), term(MAXIMISE, 1.0)], [8, 8, 8, 125]),
        ("product", [term(MAXIMISE), term(TARGET)], [0, 0, 0, 0]),
        # short of the ideals: [3, 0] and [2, 1], weighted 1 and 2; -(max) - 0.05 (sum)
        (
            "chebyshev",
            [term(MAXIMISE, 1.0, ideal=5), term(TARGET, 2.0, ideal=0)],
            [-4 - 0.05 * 7] * 3 + [-2 - 0.05 * 2],
        ),
        # the first wish is fulfilled at 4: below that the second counts as its floor, -10
        ("lexicographic", [term(MAXIMISE, satisfied=4), term(TARGET)], [-8, -8, -8, 3]),
    ],
)
def test_composites(how, terms, wanted):
    settings = {"kind": "composite", "how": how, "terms": terms, "floor": -100.0}
    assert values(settings) == pytest.approx(wanted)


def test_lexicographic_order_never_punishes_fulfilment():
    config = parse({"kind": "composite", "how": "lexicographic", "terms": [term(MAXIMISE, satisfied=4), term(TARGET)]})
    assert isinstance(config, CompositeReward)
    from crystalforge.rewards.combine import scalarise

    first = np.array([3.99, 4.0, 4.0, 9.0])
    second = np.array([0.0, -10.0, -1.0, -1.0])
    result = scalarise(config, np.stack([first, second], axis=1))
    assert result[0] < result[1] < result[2] == result[3]


def test_one_floored_part_floors_the_whole():
    bounded = count_atoms(MAXIMISE, bounds=[0, 4])
    settings = {"kind": "composite", "terms": [{"reward": bounded}, term(TARGET)], "floor": -7.0}
    scores = build(parse(settings)).score([*CRYSTALS, None])
    assert scores.status.tolist() == [0, 0, 0, Status.OUT_OF_BOUNDS, Status.NOT_BUILT]
    assert scores.values.tolist() == [0, 0, 0, -7, -7]
    assert set(scores.components) == {"property1", "property2", "property1.property", "property2.property"}


def test_ensembles_pay_for_disagreement():
    members = [count_atoms(MAXIMISE), count_atoms({"kind": "maximise", "scale": 3.0})]
    settings = {"kind": "ensemble", "members": members, "k": 0.5}
    # 2 and 6: mean 4, population standard deviation 2
    assert values(settings) == pytest.approx([3, 3, 3, 7.5])


def test_shared_models_are_loaded_once():
    from crystalforge.rewards.factory import _Builder

    builder = _Builder()
    part = {"kind": "ehull"}
    builder.build(parse({"kind": "ensemble", "members": [part, part | {"floor": -1.0}]}))
    assert len(builder._loaded) == 2  # one potential, one hull


class Tensors:
    name, digest, elements = "tensors", "t", frozenset(range(1, 95))

    def __init__(self, rows, problems=None) -> None:
        self.rows, self.problems = rows, problems or (None,) * len(rows)

    def predict_values(self, crystals) -> Values:
        assert len(crystals) == len(self.rows)
        return Values(np.array(self.rows, dtype=np.float64), self.problems)


def test_dielectric_figure_of_merit():
    source = {"kind": "descriptor", "quantity": "n_atoms"}
    config = parse({"kind": "dielectric", "tensor": source, "gap": source})
    assert isinstance(config, DielectricReward)
    tensor = Tensors([[9, 6, 3, 5, 5, 5], [9, 6, 3, 0, 0, 0], [300, 300, 300, 0, 0, 0], [np.nan] * 6])
    gap = Tensors([[2.0], [-0.5], [2.0], [2.0]])
    judge = DielectricJudge(config, [tensor], gap)
    reward = GuardedReward(judge, name="d", settings={}, guards=Guards(), floor=config.floor, cap=None)
    scores = reward.score(CRYSTALS)
    assert scores.values.tolist() == [12.0, 0.0, 0.0, 0.0]
    assert scores.status.tolist() == [Status.OK, Status.OK, Status.OUT_OF_BOUNDS, Status.NOT_FINITE]


def test_a_committee_is_believed_as_far_as_it_agrees():
    """Two models: equal, 10 and 20 (mean 15, deviation 5), one of them unphysical, one of them silent."""
    source = {"kind": "descriptor", "quantity": "n_atoms"}
    config = parse({"kind": "dielectric", "tensor": source, "others": [source], "gap": source, "k": 2.0})
    assert isinstance(config, DielectricReward)
    tensor = Tensors([[6, 6, 6, 0, 0, 0], [10, 10, 10, 0, 0, 0], [15, 15, 15, 0, 0, 0], [6, 6, 6, 0, 0, 0]])
    constant = Tensors([[6.0], [20.0], [0.5], [np.nan]])
    judge = DielectricJudge(config, [tensor, constant], Tensors([[2.0]] * 4))
    reward = GuardedReward(judge, name="d", settings={}, guards=Guards(), floor=config.floor, cap=None)
    scores = reward.score(CRYSTALS)
    assert scores.values.tolist() == [12.0, 10.0, 0.0, 0.0]
    assert scores.status.tolist() == [Status.OK, Status.OK, Status.OUT_OF_BOUNDS, Status.NOT_FINITE]
    assert scores.components["disagreement"][:2].tolist() == [0.0, 5.0]
    assert scores.components["dielectric_constant"][:2].tolist() == [6.0, 5.0]


def test_a_cell_with_an_odd_electron_is_no_insulator():
    """Strontium fluoride as rock salt has 38 + 9 electrons: a model without that count may give it a gap."""
    source = {"kind": "descriptor", "quantity": "n_atoms"}
    salt = GOLDEN["NaCl"]
    crystals = [salt, Crystal.of(salt.lattice, [38, 9], salt.frac)]
    wish = {"kind": "dielectric", "tensor": source, "gap": source, "even_electrons": True}
    assert build(parse(wish)).score(crystals).status.tolist() == [Status.OK, Status.EXCLUDED]
    assert build(parse(wish | {"even_electrons": False})).score(crystals).values.tolist() == [4.0, 4.0]


def test_the_mean_eigenvalue_does_not_depend_on_the_frame():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3, 3))
    matrix = matrix + matrix.T
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = ("xx", "yy", "zz", "yz", "xz", "xy")
    rows = [[m[0, 0], m[1, 1], m[2, 2], m[1, 2], m[0, 2], m[0, 1]] for m in (matrix, rotation @ matrix @ rotation.T)]
    ours = mean_eigenvalue(np.array(rows), order)
    np.testing.assert_allclose(ours, np.linalg.eigvalsh(matrix).mean())


def test_fingerprints_do_not_depend_on_the_description():
    rng = np.random.default_rng(4)
    for crystal in example_crystals():
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        order = rng.permutation(len(crystal))
        other = Crystal.of(crystal.lattice @ rotation, crystal.numbers[order], crystal.frac[order] + rng.normal(size=3))
        features = fingerprint([crystal, other, supercell(crystal, (1, 2, 1))])
        np.testing.assert_allclose(features[1:], features[:1].repeat(2, axis=0), atol=1e-9)


def test_fingerprints_tell_elements_and_structures_apart():
    salt = GOLDEN["NaCl"]
    stretched = Crystal.of(salt.lattice * 1.03, salt.numbers, salt.frac)
    potash = Crystal.of(salt.lattice, [19, 17], salt.frac)
    features = fingerprint([salt, stretched, potash])
    near, far = np.linalg.norm(features[1:] - features[0], axis=1)
    assert 0.001 < near < 0.1 < far


def test_novelty_against_known_crystals(tmp_path):
    np.save(tmp_path / "known.npy", fingerprint(CRYSTALS[:2]))
    settings = {"kind": "novelty", "reference": str(tmp_path / "known.npy"), "scale": 0.5}
    novelty = values(settings)
    assert novelty[:2] == pytest.approx([0, 0], abs=1e-9)
    assert novelty[2] == 1.0
    np.save(tmp_path / "wrong.npy", np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"shape \(2, 3\)"):
        build(parse({"kind": "novelty", "reference": str(tmp_path / "wrong.npy")}))


def test_embedded_prototypes_are_the_default_reference():
    scores = build(parse({"kind": "novelty"})).score(CRYSTALS)
    assert scores.components["distance"].max() < 0.2  # textbook crystals are known


def test_diversity_looks_at_the_batch():
    reward = build(parse({"kind": "diversity"}))
    twice = reward.score([CRYSTALS[0], CRYSTALS[0], CRYSTALS[3]])
    assert twice.values[:2].tolist() == pytest.approx([0, 0], abs=1e-9)
    assert reward.score([CRYSTALS[0]]).values.tolist() == [1.0]
    distance = np.linalg.norm(np.diff(fingerprint([CRYSTALS[0], CRYSTALS[3]]), axis=0))
    scores = reward.score([CRYSTALS[0], None, CRYSTALS[3]])
    assert scores.values.tolist() == pytest.approx([distance, -2.0, distance])


def picky(crystals, offset=0.0):
    """Module-level, so that it can be named: raises for silicon, cannot judge SrTiO3."""
    if any(crystal.formula.startswith("Si") for crystal in crystals):
        raise RuntimeError("no semiconductors")
    return [float("nan") if len(crystal) == 5 else offset + len(crystal) for crystal in crystals]


def of_wrong_shape(crystals):
    return [[1.0, 2.0]] * len(crystals)


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "wishes", sys.modules[__name__])


@pytest.mark.usefixtures("importable")
def test_a_custom_function_fails_for_its_crystal_alone():
    reward = build(parse({"kind": "custom", "function": "wishes:picky", "options": {"offset": 0.5}}))
    scores = reward.score(CRYSTALS)
    assert scores.status.tolist() == [Status.OK, Status.OK, Status.FAILED, Status.NOT_FINITE]
    assert scores.values.tolist() == [2.5, 2.5, -2.0, -2.0]
    wrong = build(parse({"kind": "custom", "function": "wishes:of_wrong_shape"}))
    assert wrong.score(CRYSTALS).counts() == {"failed": 4}


@pytest.mark.parametrize(
    ("function", "message"),
    [("nowhere_at_all:f", "cannot be imported"), ("math:nothing", "no function"), ("unknown", "no entry point")],
)
def test_missing_functions_are_named(function, message):
    with pytest.raises(InputError, match=message):
        build(parse({"kind": "custom", "function": function}))


def test_editing_a_function_makes_another_version(tmp_path, monkeypatch):
    digests = []
    monkeypatch.syspath_prepend(tmp_path)
    for number in (1.0, 2.0):
        (tmp_path / "wish_file.py").write_text(f"def f(crystals):\n    return [{number}] * len(crystals)\n")
        sys.modules.pop("wish_file", None)
        digests.append(build(parse({"kind": "custom", "function": "wish_file:f"})).version.digest)
    assert digests[0] != digests[1]


def test_the_documented_example_runs_as_written(tmp_path):
    text = (ROOT / "docs" / "how-to" / "custom-reward.md").read_text()
    module, script = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[:2]
    assert len(module.splitlines()) + len(script.splitlines()) < 30
    (tmp_path / "my_rewards.py").write_text(module)
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "run.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{tmp_path}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert "{'ok': 1, 'not_built': 1}" in done.stdout
    import yaml

    composite = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)[0])["reward"]
    parse(composite)
