"""Every potential that can run here passes the conformance kit, and the kit catches what it is meant to catch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalforge import testing
from crystalforge.crystal import Crystal
from crystalforge.potentials import CHGNetConfig, DIEPConfig, MatGLConfig, OrbConfig, Prediction, SevenNetConfig, load
from crystalforge.potentials.base import predict_isolated

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("CRYSTALFORGE_SHARED", ROOT.parent / "shared"))
MODELS = SHARED / "data" / "models" / "matgl"


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def chgnet():
    return load(CHGNetConfig())


@pytest.mark.parametrize("check", testing.CHECKS)
def test_chgnet_conforms(chgnet, check):
    testing.CHECKS[check](chgnet, testing.example_crystals(), testing.Tolerances())


def test_chgnet_in_double_precision_is_exact():
    exact = load(CHGNetConfig(dtype="float64"))
    tight = testing.Tolerances(energy=1e-9, force=1e-8, stress=1e-9, difference=1e-5, difference_floor=1e-6, step=1e-4)
    testing.check_potential(exact, testing.example_crystals()[:2], tolerances=tight)


@pytest.mark.parametrize("model", ["M3GNet-MP-2021.2.8-PES", "TensorNet-MatPES-PBE-v2025.1-PES"])
def test_matgl_potentials_conform(model):
    pytest.importorskip("matgl")
    if not (MODELS / model).is_dir():
        pytest.skip(f"no reference data: {MODELS / model} is not here")
    testing.check_potential(load(MatGLConfig(path=MODELS / model)), testing.example_crystals()[:2])


@pytest.mark.parametrize(
    "config", [SevenNetConfig(), SevenNetConfig(model="7net-mf-0", functional="r2scan")], ids=lambda c: c.model
)
def test_sevennet_conforms(config):
    pytest.importorskip("sevenn")
    testing.check_potential(load(config), testing.example_crystals()[:2])


def test_diep_conforms_as_far_as_it_promises():
    """Its energy steps where two edges of a triplet are equally long: a finite difference may cross a step, and copies
    in a supercell may be ordered otherwise."""
    pytest.importorskip("diep")
    potential = load(DIEPConfig())
    testing.check_potential(
        potential,
        testing.example_crystals()[:2],
        skip=("forces", "stress"),
        tolerances=testing.Tolerances(energy=1e-4, force=2e-3, stress=2e-4),
    )
    testing.check_potential(potential, testing.example_crystals()[:1], tolerances=testing.Tolerances(force=2e-3))


@pytest.fixture(scope="module")
def orb_weights(tmp_path_factory):
    """A checkpoint of Orb v2's architecture with random weights: the loading is real, the physics is not."""
    pytest.importorskip("orb_models")
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.atomic_system import SystemConfig

    torch.manual_seed(0)
    model = pretrained.orb_v2_architecture(device="cpu", system_config=SystemConfig(radius=6.0, max_num_neighbors=20))
    path = tmp_path_factory.mktemp("orb") / "orb-v2.ckpt"
    torch.save(model.state_dict(), path)
    return path


def test_orb_conforms_as_far_as_it_promises(orb_weights):
    potential = load(OrbConfig(model="orb_v2", path=orb_weights))
    assert not potential.invariant
    assert not potential.conservative
    # Edges are the nearest 20 neighbours: ties at equal distance are broken by the order of the atoms, so that even
    # the supercell is exact only where no tie is cut; the rattled crystals have none.
    testing.check_potential(
        potential,
        testing.example_crystals()[:2],
        skip=("rotation", "forces", "stress"),
        tolerances=testing.Tolerances(energy=1e-4, force=5e-4),
    )


def test_orb_of_a_wrong_checkpoint_is_refused(tmp_path, orb_weights):
    broken = tmp_path / "broken.ckpt"
    state = torch.load(orb_weights, weights_only=True)
    torch.save({key: value for key, value in state.items() if not key.startswith("heads.energy.")}, broken)
    with pytest.raises(ValueError, match="could not be loaded"):
        load(OrbConfig(model="orb_v2", path=broken))
    with pytest.raises(ValueError, match="no Orb model"):
        load(OrbConfig(model="orb_v9", path=orb_weights))
    with pytest.raises(ValueError, match="no such file"):
        load(OrbConfig(model="orb_v2", path=tmp_path / "absent"))


@dataclass
class Springs:
    """A harmonic pair potential, in plain numpy, with one defect at a time."""

    defect: str = ""
    name: str = "springs"
    digest: str = "0"
    scale: str = "pbe"
    elements: frozenset[int] = field(default_factory=lambda: frozenset(range(1, 95)))
    cutoff: float = 4.5

    def predict(self, crystals, *, forces=False, stress=False) -> Prediction:
        if self.defect == "nan spoils batch" and any(not np.isfinite(c.frac).all() for c in crystals):
            return Prediction(
                np.full(len(crystals), np.nan),
                [np.full((len(c), 3), np.nan) for c in crystals],
                np.full((len(crystals), 3, 3), np.nan),
                ("NaN",) * len(crystals),
            )
        return predict_isolated(
            crystals,
            lambda chunk: self._evaluate(chunk),
            elements=self.elements,
            max_atoms=100,
            forces=forces,
            stress=stress,
        )

    def _evaluate(self, crystals) -> Prediction:
        from crystalforge.potentials.neighbors import neighbor_list

        rows = [self._one(crystal, neighbor_list([crystal], self.cutoff)) for crystal in crystals]
        energy = np.array([row[0] for row in rows])
        if self.defect == "batch":
            energy = energy + 1e-2 * (len(crystals) - 1)
        return Prediction(energy, [row[1] for row in rows], np.stack([row[2] for row in rows]))

    def _one(self, crystal: Crystal, edges):
        cart = crystal.frac @ crystal.lattice
        vectors = cart[edges.neighbor] + edges.image @ crystal.lattice - cart[edges.center]
        strength = np.sqrt(crystal.numbers[edges.center] * crystal.numbers[edges.neighbor]) * 0.01
        inside = self.cutoff**2 - edges.distance**2
        energy = -0.5 * (strength * inside**2).sum() / 1e2
        slope = strength * inside * 4 / 1e2 / 2  # dE/d(vector) = slope * vector for each directed edge
        pull = slope[:, None] * vectors
        force = np.zeros_like(cart)
        np.add.at(force, edges.center, pull)
        np.add.at(force, edges.neighbor, -pull)
        tensor = pull.T @ vectors / crystal.volume
        if self.defect == "per atom":
            energy /= len(crystal)
        if self.defect == "hartree":
            energy *= 27.2114
        if self.defect == "permutation":
            energy += 1e-3 * crystal.numbers[0]
        if self.defect == "translation":
            energy += 1e-2 * crystal.frac[0, 0] * len(crystal)
        if self.defect == "rotation":
            energy += 1e-3 * vectors[:, 0].clip(0).sum()
        if self.defect == "force sign":
            force = -force
        if self.defect == "stress sign":
            tensor = -tensor
        if self.defect == "stress in GPa":
            tensor = tensor * 160.2
        return energy, force, tensor


TIGHT = testing.Tolerances(energy=1e-9, force=1e-9, stress=1e-9, difference=1e-3, difference_floor=1e-4, step=1e-3)


def test_the_kit_accepts_an_exact_potential():
    testing.check_potential(Springs(), tolerances=TIGHT)


@pytest.mark.parametrize(
    ("defect", "check"),
    [
        ("per atom", "units"),
        ("permutation", "permutation"),
        ("translation", "translation"),
        ("rotation", "rotation"),
        ("per atom", "supercell"),
        ("batch", "batch"),
        ("nan spoils batch", "batch"),
        ("force sign", "forces"),
        ("hartree", "forces"),
        ("stress sign", "stress"),
        ("stress in GPa", "stress"),
    ],
)
def test_the_kit_catches(defect, check):
    with pytest.raises(AssertionError):
        testing.CHECKS[check](Springs(defect=defect), testing.example_crystals(), TIGHT)
