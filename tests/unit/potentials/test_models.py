"""Adapters against their packages: CHGNet's own path, MatGL's golden values, refusals, relaxation."""

from __future__ import annotations

import builtins
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.potentials import CHGNetConfig, DIEPConfig, MACEConfig, MatGLConfig, SevenNetConfig, load
from crystalforge.potentials.bridge import full_to_voigt, voigt_to_full
from crystalforge.potentials.relax import relax
from crystalforge.testing import check_potential, example_crystals

ROOT = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("CRYSTALFORGE_SHARED", ROOT.parent / "shared"))
MODELS = SHARED / "data" / "models" / "matgl"

FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
SALT = Crystal.of(5.69 * FCC, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
PEROVSKITE = Crystal.of(
    3.945 * np.eye(3), [38, 22, 8, 8, 8],
    [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def chgnet():
    return load(CHGNetConfig())


def test_chgnet_equals_the_package_on_its_own_path(chgnet):
    from chgnet.model.model import CHGNet

    crystals = [*example_crystals(), Crystal.of(12 * np.eye(3), [8, 8], [[0, 0, 0], [0.1, 0, 0]])]
    ours = chgnet.predict(crystals, forces=True, stress=True)
    package = CHGNet.load(use_device="cpu", verbose=False)
    theirs = package.predict_structure([crystal.to_structure() for crystal in crystals], task="efs")
    assert ours.forces is not None
    assert ours.stress is not None
    for row, wanted in enumerate(theirs):
        assert ours.energy[row] / len(crystals[row]) == pytest.approx(float(wanted["e"]), abs=5e-6)
        np.testing.assert_allclose(ours.forces[row], wanted["f"], atol=5e-5)
        np.testing.assert_allclose(ours.stress[row] * 160.21766208, wanted["s"], atol=5e-4)  # theirs: GPa


@pytest.mark.parametrize(("model", "functional"), [("7net-0", "pbe"), ("7net-mf-0", "r2scan")])
def test_sevennet_equals_the_package_on_its_own_path(model, functional):
    pytest.importorskip("sevenn")
    from sevenn.calculator import SevenNetCalculator

    from crystalforge.potentials.bridge import to_atoms

    crystals = example_crystals()
    ours = load(SevenNetConfig(model=model, functional=functional)).predict(crystals, forces=True, stress=True)
    assert ours.forces is not None
    assert ours.stress is not None
    modal = {"modal": "R2SCAN"} if functional == "r2scan" else {}
    package = SevenNetCalculator(model, device="cpu", **modal)
    for row, crystal in enumerate(crystals):
        atoms = to_atoms(crystal)
        atoms.calc = package
        assert ours.energy[row] == pytest.approx(atoms.get_potential_energy(), abs=2e-5 * len(crystal))
        np.testing.assert_allclose(ours.forces[row], atoms.get_forces(), atol=1e-4)
        np.testing.assert_allclose(full_to_voigt(ours.stress)[row], atoms.get_stress(), atol=1e-5)


def test_diep_equals_the_package_on_its_own_path():
    pytest.importorskip("diep")
    from diep.pretrained import make_calculator

    from crystalforge.potentials.bridge import to_atoms

    crystals = example_crystals()[:2]
    ours = load(DIEPConfig(dtype="float32")).predict(crystals, forces=True, stress=True)
    assert ours.forces is not None
    assert ours.stress is not None
    package = make_calculator()
    for row, crystal in enumerate(crystals):
        atoms = to_atoms(crystal)
        atoms.calc = package
        assert ours.energy[row] == pytest.approx(atoms.get_potential_energy(), abs=2e-5 * len(crystal))
        np.testing.assert_allclose(ours.forces[row], atoms.get_forces(), atol=2e-3)
        np.testing.assert_allclose(full_to_voigt(ours.stress)[row], atoms.get_stress(), atol=2e-4)


def test_judges_know_what_they_can_and_cannot():
    pytest.importorskip("sevenn")
    with pytest.raises(InputError, match="functional pbe only"):
        load(SevenNetConfig(functional="r2scan"))
    judge = load(SevenNetConfig())
    lonely = Crystal.of(20 * np.eye(3), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    answer = judge.predict([SALT, lonely, Crystal.of(SALT.lattice, [84, 17], SALT.frac), SALT])
    assert "no neighbour within 5 Å" in str(answer.problems[1])
    assert "Z = 84" in str(answer.problems[2])
    assert answer.energy[0] == pytest.approx(answer.energy[3], abs=1e-5)
    assert (judge.scale, len(judge.elements)) == ("pbe", 89)


def test_chgnet_reports_what_it_cannot_judge(chgnet):
    lonely = Crystal.of(20 * np.eye(3), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    heavy = Crystal.of(SALT.lattice, [95, 17], SALT.frac)
    answer = chgnet.predict([SALT, lonely, heavy, SALT])
    assert answer.problems[1] == "an atom has no neighbour within 6 Å"
    assert "Z = 95" in str(answer.problems[2])
    assert np.isnan(answer.energy[[1, 2]]).all()
    assert answer.energy[0] == pytest.approx(answer.energy[3], abs=1e-5)
    assert len(chgnet.predict([])) == 0


def test_batch_size_changes_no_value(chgnet):
    crystals = example_crystals() * 4
    small = load(CHGNetConfig(batch_atoms=6)).predict(crystals).energy
    np.testing.assert_allclose(small, chgnet.predict(crystals).energy, atol=5e-5)


def test_digests_tell_weights_and_precision_apart(chgnet):
    digests = {
        load(CHGNetConfig(**options)).digest
        for options in ({}, {"model": "0.2.0"}, {"dtype": "float64"}, {"batch_atoms": 7})
    }
    assert len(digests) == 3
    assert chgnet.digest in digests


def test_relaxation_finds_the_lattice_constant(chgnet):
    stretched = Crystal.of(SALT.lattice * 1.05, SALT.numbers, SALT.frac)
    broken = Crystal.of(SALT.lattice, [95, 17], SALT.frac)
    done = relax(chgnet, [stretched, broken], fmax=0.02, steps=80)
    assert done.converged.tolist() == [True, False]
    assert (4 * done.crystals[0].volume) ** (1 / 3) == pytest.approx(5.69, rel=0.01)
    assert done.energy[0] < chgnet.predict([stretched]).energy[0]
    assert done.energy[0] == pytest.approx(chgnet.predict([done.crystals[0]]).energy[0], abs=1e-4)
    assert "Z = 95" in str(done.problems[1])
    assert done.crystals[1] is broken
    assert np.isnan(done.energy[1])


def test_relaxing_together_is_relaxing_alone_in_fewer_calls(chgnet, monkeypatch):
    crystals = [*example_crystals(), Crystal.of(SALT.lattice, [95, 17], SALT.frac)]
    batches: list[int] = []
    predict = chgnet.predict
    monkeypatch.setattr(
        chgnet, "predict", lambda crystals, **wanted: batches.append(len(crystals)) or predict(crystals, **wanted)
    )
    together = relax(chgnet, crystals, fmax=0.05, steps=8)
    assert batches[0] == 4
    assert len(batches) <= 10  # steps, the first forces and the last energies; not one call per crystal and step
    for row, crystal in enumerate(crystals):
        alone = relax(chgnet, [crystal], fmax=0.05, steps=8)
        assert together.steps[row] == alone.steps[0]
        assert together.converged[row] == alone.converged[0]
        np.testing.assert_allclose(together.energy[row], alone.energy[0], atol=1e-4)
        np.testing.assert_allclose(together.crystals[row].lattice, alone.crystals[0].lattice, atol=1e-3)
    again = relax(chgnet, crystals, fmax=0.05, steps=8)
    assert again.energy.tobytes() == together.energy.tobytes()  # timing decides nothing


def test_a_potential_that_cannot_relax_says_so_and_nothing_hangs(chgnet, monkeypatch):
    def refuse(crystals, **wanted):
        raise InputError("has neither forces nor stress")

    monkeypatch.setattr(chgnet, "predict", refuse)
    threads = threading.active_count()
    with pytest.raises(InputError, match="neither forces nor stress"):
        relax(chgnet, example_crystals())
    assert threading.active_count() == threads


def test_relaxation_can_keep_the_symmetry(chgnet):
    import spglib

    # A perovskite pulled along one axis: tetragonal, and to stay so.
    pulled = Crystal.of(PEROVSKITE.lattice @ np.diag([1, 1, 1.03]), PEROVSKITE.numbers, PEROVSKITE.frac)
    done = relax(chgnet, [pulled], fmax=0.05, steps=30, fix_symmetry=True).crystals[0]
    assert spglib.get_spacegroup((pulled.lattice, pulled.frac, pulled.numbers), 0.01) == "P4/mmm (123)"
    assert spglib.get_spacegroup((done.lattice, done.frac, done.numbers), 1e-4) in ("P4/mmm (123)", "Pm-3m (221)")
    fixed = relax(chgnet, [pulled], fmax=0.05, steps=5, fix_cell=True).crystals[0]
    np.testing.assert_allclose(fixed.lattice, pulled.lattice)


def test_voigt_round_trip():
    tensor = np.arange(18.0).reshape(2, 3, 3)
    tensor = tensor + tensor.transpose(0, 2, 1)
    np.testing.assert_array_equal(voigt_to_full(full_to_voigt(tensor)), tensor)
    assert full_to_voigt(tensor)[0].tolist() == [
        tensor[0, 0, 0], tensor[0, 1, 1], tensor[0, 2, 2], tensor[0, 1, 2], tensor[0, 0, 2], tensor[0, 0, 1],
    ]  # fmt: skip


CS2NAYCL6 = Crystal.of(
    10.86 * FCC,
    [11, 39, 55, 55] + [17] * 6,
    [[0.5, 0.5, 0.5], [0, 0, 0], [0.25, 0.25, 0.25], [0.75, 0.75, 0.75]]
    + [(sign * 0.245 * np.eye(3)[axis] @ np.linalg.inv(FCC)).tolist() for axis in range(3) for sign in (1, -1)],
)
KNOWN = {
    "NaCl": SALT,
    "SrTiO3": PEROVSKITE,
    "Si": Crystal.of(5.469 * FCC, [14, 14], [[0, 0, 0], [0.25, 0.25, 0.25]]),
    "MgO": Crystal.of(4.26 * FCC, [12, 8], SALT.frac),
    "Cs2NaYCl6": CS2NAYCL6,
}
GOLDEN = {
    # Band gap at fidelity 0 (PBE), eV.
    "MEGNet-MP-2019.4.1-BandGap-mfi": {"NaCl": 5.03, "SrTiO3": 1.67, "Si": -0.01, "MgO": 0.30, "Cs2NaYCl6": 4.81},
    # Formation energies, eV/atom. Two networks trained on the same data differ by some hundredths: each its own.
    "MEGNet-MP-2018.6.1-Eform": {"NaCl": -2.11, "SrTiO3": -3.56, "Si": 0.03, "MgO": -3.08, "Cs2NaYCl6": -2.49},
    "M3GNet-MP-2018.6.1-Eform": {"NaCl": -2.10, "SrTiO3": -3.49, "Si": 0.01, "MgO": -3.04, "Cs2NaYCl6": -2.49},
    # Total energies, eV/atom.
    "M3GNet-MP-2021.2.8-PES": {"NaCl": -3.37, "SrTiO3": -8.03, "Si": -5.42, "MgO": -5.96, "Cs2NaYCl6": -4.20},
    # Seen here, held against change; their own release was not at hand. The first is 0.5 eV off its siblings for Si.
    "M3GNet-MatPES-PBE-v2025.1-PES": {"NaCl": -3.37, "SrTiO3": -7.99, "Si": -4.88, "MgO": -5.91, "Cs2NaYCl6": -4.17},
    "TensorNet-MatPES-PBE-v2025.1-PES": {
        "NaCl": -3.36, "SrTiO3": -7.96, "Si": -5.24, "MgO": -5.87, "Cs2NaYCl6": -4.20,
    },
}  # fmt: skip
"""What each published checkpoint answers for `KNOWN`, to the digits that its release of MatGL prints."""
DIGITS = 0.0051


def model_folder(name: str) -> Path:
    if not (MODELS / name).is_dir():
        pytest.skip(f"no reference data: {MODELS / name} is not here")
    return MODELS / name


@pytest.mark.parametrize("model", [name for name in GOLDEN if not name.endswith("PES")])
def test_property_checkpoints_give_their_golden_values(model):
    from crystalforge.potentials.matgl import MatGLProperty

    answer = MatGLProperty(model_folder(model)).predict_values(list(KNOWN.values())).values[:, 0]
    assert dict(zip(KNOWN, answer, strict=True)) == pytest.approx(GOLDEN[model], abs=DIGITS)
    # And the reason for all this: summed into the source node, as the installed matgl does, they are far off.
    naive = MatGLProperty(model_folder(model), aggregate="source").predict_values([PEROVSKITE]).values[0, 0]
    assert abs(naive - GOLDEN[model]["SrTiO3"]) > 0.5


@pytest.mark.parametrize("model", [name for name in GOLDEN if name.endswith("PES")])
def test_potential_checkpoints_give_their_golden_values(model):
    answer = load(MatGLConfig(path=model_folder(model))).predict(list(KNOWN.values()))
    per_atom = answer.energy / [len(crystal) for crystal in KNOWN.values()]
    assert dict(zip(KNOWN, per_atom, strict=True)) == pytest.approx(GOLDEN[model], abs=DIGITS)


def test_a_formation_energy_model_is_a_potential_without_forces():
    model = load(MatGLConfig(path=model_folder("M3GNet-MP-2018.6.1-Eform")))
    assert model.scale == "formation"
    assert model.predict([SALT]).energy[0] / 2 == pytest.approx(-2.10, abs=0.01)
    with pytest.raises(InputError, match="neither forces nor stress"):
        model.predict([SALT], forces=True)


def test_a_real_potential_reproduces_its_training_labels():
    path = SHARED / "data/mp_le20/mp_le20.parquet"
    if not path.is_file():
        pytest.skip(f"no reference data: {path} is not here")
    import pyarrow.parquet as pq

    model = load(MatGLConfig(path=model_folder("M3GNet-MP-2021.2.8-PES")))
    columns = ["lattice", "atomic_numbers", "frac_coords", "mpf2021_energy_per_atom_last"]
    rows = pq.read_table(path, columns=columns).slice(0, 40_000).to_pylist()
    chosen = [row for row in rows if row[columns[3]] is not None][::150]
    crystals = [Crystal.of(*(row[name] for name in columns[:3])) for row in chosen]
    energy = model.predict(crystals).energy / [len(crystal) for crystal in crystals]
    error = np.abs(energy - [row[columns[3]] for row in chosen])
    assert len(crystals) > 20
    assert np.nanmedian(error) < 0.03


@pytest.fixture(scope="module")
def fresh_matgl(tmp_path_factory):
    """A small M3GNet with random weights, saved by the installed matgl."""
    matgl_models = pytest.importorskip("matgl.models")
    from matgl.apps.pes import Potential

    torch.manual_seed(0)
    network = matgl_models.M3GNet(element_types=("O", "Na", "Cl", "Ti", "Sr"), is_intensive=False, units=16, nblocks=1)
    path = tmp_path_factory.mktemp("matgl") / "fresh"
    Potential(network, element_refs=np.arange(5.0)).save(path)
    return path


def test_checkpoints_of_the_installed_matgl_keep_its_own_aggregation(fresh_matgl):
    from matgl.ext.ase import PESCalculator

    from crystalforge.potentials.bridge import to_atoms
    from crystalforge.potentials.matgl import load_matgl

    model, aggregate = load_matgl(fresh_matgl)
    assert aggregate == "source"
    potential = load(MatGLConfig(path=fresh_matgl))
    assert potential.elements == {8, 11, 17, 22, 38}
    crystals = example_crystals()[:2]
    check_potential(potential, crystals)
    answer = potential.predict(crystals, forces=True, stress=True)
    assert answer.forces is not None
    assert answer.stress is not None
    for row, crystal in enumerate(crystals):
        atoms = to_atoms(crystal)
        atoms.calc = PESCalculator(potential=model, stress_unit="eV/A3")
        assert answer.energy[row] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(answer.forces[row], atoms.get_forces(), atol=1e-4)
        np.testing.assert_allclose(full_to_voigt(answer.stress)[row], atoms.get_stress(), atol=1e-5)


def test_turning_the_aggregation_round_matters_and_is_in_the_digest(fresh_matgl):
    turned = load(MatGLConfig(path=fresh_matgl, aggregate="destination"))
    plain = load(MatGLConfig(path=fresh_matgl))
    assert turned.digest != plain.digest
    assert abs(turned.predict([SALT]).energy[0] - plain.predict([SALT]).energy[0]) > 1e-6


def test_bad_matgl_folders_are_refused(fresh_matgl, tmp_path):
    import json
    import shutil

    from crystalforge.potentials.matgl import load_matgl

    with pytest.raises(InputError, match=r"model\.json is missing"):
        load_matgl(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(fresh_matgl, copy)
    state = torch.load(copy / "state.pt", weights_only=True)
    torch.save({key: value for key, value in state.items() if "bond_expansion" in key}, copy / "state.pt")
    with pytest.raises(InputError, match="parameters are not in the checkpoint"):
        load_matgl(copy)
    (copy / "state.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match="not a readable MatGL model"):
        load_matgl(copy)
    shutil.copy(fresh_matgl / "state.pt", copy / "state.pt")
    description = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(description | {"@class": "system"}))
    with pytest.raises(InputError, match="names the class 'system'"):
        load_matgl(copy)


@pytest.mark.parametrize(
    ("package", "config", "command"),
    [
        ("chgnet", CHGNetConfig(), r"crystalforge\[potentials\]"),
        ("matgl", MatGLConfig(path=Path("x")), r"crystalforge\[potentials\]"),
        ("mace", MACEConfig(), "pip install mace-torch"),
    ],
)
def test_missing_packages_name_the_command(monkeypatch, package, config, command):
    real = builtins.__import__

    def refuse(name, *rest, **named):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {package!r}")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=command):
        load(config)
