"""M3GNet bond by bond is M3GNet: MatGL's own forward pass is the reference, in double precision."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalforge.crystal import Crystal
from crystalforge.potentials import MatGLConfig, load
from crystalforge.potentials.m3gnet import BondwiseM3GNet, harmonics, supported
from crystalforge.testing import example_crystals

ROOT = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("CRYSTALFORGE_SHARED", ROOT.parent / "shared"))
MODELS, MP20 = SHARED / "data" / "models" / "matgl", SHARED / "data" / "mp20" / "mp20.parquet"
ELEMENTS = ("O", "Na", "Mg", "Cl", "Ti", "Sr")
PER_ATOM = 1e-5  # eV/atom in single precision: sums in another order; ten times what is seen


def small(**options):
    matgl = pytest.importorskip("matgl.models")
    torch.manual_seed(0)
    options = {"is_intensive": False, "units": 16, "nblocks": 2, "cutoff": 5.0, "threebody_cutoff": 4.0} | options
    return matgl.M3GNet(element_types=ELEMENTS, **options).double().eval().requires_grad_(False)


def graph(network, crystals, **wanted):
    from crystalforge.potentials.matgl import graph_of

    types = {8: 0, 11: 1, 12: 2, 17: 3, 22: 4, 38: 5}
    return graph_of(crystals, network, types, torch.device("cpu"), **({"forces": False, "stress": False} | wanted))


VARIANTS = {
    "as published": {},
    "all bonds are short": {"threebody_cutoff": 5.0},
    "smooth": {"use_smooth": True},
    "f functions": {"max_l": 4, "max_n": 2},
    "s functions": {"max_l": 1},
    "set2set": {"is_intensive": True, "readout_type": "set2set"},
    "mean of atoms": {"is_intensive": True, "readout_type": "reduce_atom"},
    "six targets": {"is_intensive": True, "readout_type": "reduce_atom", "ntargets": 6},
}


@pytest.mark.parametrize("into", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_answers_what_matgl_answers(variant, into):
    from crystalforge.potentials.matgl import aggregate_into_destination

    network = small(**VARIANTS[variant])
    assert supported(network)
    if into:
        aggregate_into_destination(network)
    crystals = example_crystals()
    batch = graph(network, crystals)
    expected = network(g=batch)
    np.testing.assert_allclose(BondwiseM3GNet(network, into)(batch), expected, rtol=1e-9, atol=1e-11)
    with torch.inference_mode():  # where it works in place
        np.testing.assert_allclose(BondwiseM3GNet(network, into)(batch), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variant", ["as published", "smooth"])
def test_its_gradients_are_matgls(variant):
    network = small(**VARIANTS[variant])
    crystals = example_crystals()  # rattled: matgl's cosines are clamped where three atoms are in line
    forces = []
    for forward in (network, BondwiseM3GNet(network, 0)):
        batch = graph(network, crystals, forces=True)
        forces.append(torch.autograd.grad(forward(g=batch).sum(), batch.pos)[0])
    assert forces[0].abs().max() > 1e-4
    np.testing.assert_allclose(*forces, rtol=1e-6, atol=1e-10)


def test_harmonics_add_up_to_legendre_polynomials():
    rng = np.random.default_rng(0)
    u, v = (torch.nn.functional.normalize(torch.tensor(rng.normal(size=(50, 3))), dim=1) for _ in range(2))
    cosine = (u * v).sum(1).numpy()
    for degree, (left, right) in enumerate(zip(harmonics(u, 4), harmonics(v, 4), strict=True)):
        legendre = np.polynomial.legendre.Legendre.basis(degree)(cosine)
        np.testing.assert_allclose((left * right).sum(1), legendre, atol=1e-14)


@pytest.mark.parametrize(
    "options", [{"use_phi": True}, {"max_l": 5}, {"include_state": True, "dim_state_embedding": 4, "ntypes_state": 2}]
)
def test_other_networks_are_left_to_matgl(options):
    assert not supported(small(**options))


@pytest.mark.parametrize("model", ["M3GNet-MP-2018.6.1-Eform", "M3GNet-MP-2021.2.8-PES"])
def test_real_checkpoints_keep_their_energies(model):
    import pyarrow.parquet as pq

    from crystalforge.potentials.matgl import MatGLPotential

    if not (MODELS / model).is_dir() or not MP20.is_file():
        pytest.skip(f"no reference data: {MODELS / model} or {MP20} is not here")
    fast = load(MatGLConfig(path=MODELS / model))
    assert isinstance(fast, MatGLPotential)
    table = pq.read_table(MP20, columns=["lattice", "atomic_numbers", "frac_coords"])
    rows = np.random.default_rng(0).choice(table.num_rows, 60, replace=False)
    crystals = [Crystal.of(*(table[name][int(row)].as_py() for name in table.column_names)) for row in rows]
    answer = fast.predict(crystals).energy
    plain = load(MatGLConfig(path=MODELS / model))
    assert isinstance(plain, MatGLPotential)
    assert isinstance(plain._network.forward, BondwiseM3GNet)
    del plain._network.forward  # what is left is matgl's own
    plain.primitive = False
    expected = plain.predict(crystals).energy
    assert np.isfinite(expected).mean() > 0.9
    np.testing.assert_array_equal(np.isfinite(answer), np.isfinite(expected))
    assert np.nanmax(np.abs(answer - expected) / [len(crystal) for crystal in crystals]) < PER_ATOM
