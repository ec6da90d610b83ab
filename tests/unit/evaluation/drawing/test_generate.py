"""Samples drawn from a model: the same whatever the chunks; KL of a model to itself is zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystalforge.crystal.geometry import Geometry
from crystalforge.evaluation.drawing.generate import ModelSource, log_prob_under
from crystalforge.evaluation.validity import structure_valid
from crystalforge.model.checkpoint import load_model, save_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.config import SamplingConfig

TINY = ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8)
ROUNDING = 1e-3  # nats; float32 sums in another order


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "tuned")):
        torch.manual_seed(seed)
        model = CrystalFormer(TINY)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
        save_model(folder / name, model, info={})
    return folder


def source(directories, name, **settings):
    return ModelSource(name, directories / name, np.ones(230), samples=24, seed=3, **settings)


def test_chunks_do_not_change_the_samples(directories):
    tuned = source(directories, "tuned", base=directories / "base")
    whole, part = tuned.draw(0, 24), tuned.draw(10, 5)
    assert part.index.tolist() == list(range(10, 15))
    for k, crystal in enumerate(part.crystals):
        other = whole.crystals[10 + k]
        assert (crystal is None) == (other is None)
        if crystal is not None and other is not None:
            assert np.array_equal(crystal.numbers, other.numbers)
            assert np.allclose(crystal.lattice, other.lattice, rtol=1e-5)
    assert np.allclose(part.log_prob_base, whole.log_prob_base[10:15], atol=ROUNDING)


def test_divergence_from_the_base(directories):
    base = source(directories, "base").draw(0, 24)
    assert np.allclose(base.log_prob, base.log_prob_base, atol=ROUNDING)
    tuned = source(directories, "tuned", base=directories / "base").draw(0, 24)
    finite = np.isfinite(tuned.log_prob_base)
    assert finite.any()
    assert (tuned.log_prob - tuned.log_prob_base)[finite].mean() > 0
    model = load_model(directories / "tuned").model
    assert np.allclose(log_prob_under(model, tuned.tokens), tuned.log_prob, atol=ROUNDING)


def test_identity_follows_weights_and_law(directories):
    plain = source(directories, "tuned").identity()
    assert plain == source(directories, "tuned").identity()
    assert plain != source(directories, "base").identity()
    assert plain != source(directories, "tuned", law=SamplingConfig(temperature=0.8)).identity()
    assert plain != source(directories, "tuned", law=SamplingConfig(valid=True)).identity()


LOOSE = SamplingConfig(
    constraints=Constraints(max_sites=2),
    valid=Geometry(min_distance=0.1, min_bond=0.05, volume_per_atom=(0.1, 1e4), min_height=0.2),
)


def test_crystals_that_had_to_be_valid_say_what_it_took_and_their_law_knows_it(directories):
    drawn = source(directories, "tuned", law=LOOSE).draw(0, 24)
    assert drawn.draws is not None
    assert 1 < drawn.draws.max() < 1000
    assert drawn.draw(3, 2).draws.tolist() == drawn.draws[3:5].tolist()
    same = drawn.draws == 1
    constrained = source(directories, "tuned", law=LOOSE.model_copy(update={"valid": None})).draw(0, 24)
    assert constrained.draws is None
    assert np.allclose(drawn.log_prob[same], constrained.log_prob[same], atol=ROUNDING)
    # of a crystal that took K draws the restricted law is thought to be 1 + 1/2 + ... + 1/(K - 1) nats likelier
    model = load_model(directories / "tuned").model
    unconstrained = log_prob_under(model, drawn.tokens)
    assert np.allclose(drawn.log_prob_base, unconstrained, atol=ROUNDING)
    assert (drawn.log_prob - drawn.log_prob_base)[~same].min() > 1 - ROUNDING
    assert all(structure_valid(crystal)[1] >= 0.1 for crystal in drawn.crystals)


def test_a_model_that_asks_for_other_groups_pays_for_it_in_its_law(directories):
    """The same weights as the base: all of the divergence is that of the groups."""
    weights, asked = np.zeros(230), np.zeros(230)
    weights[[220, 224]], asked[[220, 224]] = [0.5, 0.5], [0.2, 0.8]
    settings = {"samples": 2000, "seed": 3}
    tilted = ModelSource("tuned", directories / "base", weights, asked=asked, **settings)
    drawn = tilted.draw(0, 24)
    groups = np.asarray(drawn.tokens.spacegroup)
    expected = np.where(groups == 225, np.log(0.8 / 0.5), np.log(0.2 / 0.5))
    assert np.allclose(drawn.log_prob - drawn.log_prob_base, expected, atol=1e-9)
    assert set(groups.tolist()) == {221, 225}
    plain = ModelSource("tuned", directories / "base", weights, **settings)
    assert plain.identity() != tilted.identity()
    assert (plain.draw(0, 24).log_prob == plain.draw(0, 24).log_prob_base).all()
