"""The sampler draws from the law that the likelihood scores, and a crystal depends on (seed, index) alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.crystal import convert, wyckoff
from crystalforge.model.batch import TokenBatch
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.likelihood import log_prob
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.sampler import FACTORS, Samples, draw_spacegroups, sample, stream

ALL_GROUPS = np.arange(1, 231)
FLOAT64_ERROR, FLOAT32_ERROR = 1e-8, 1e-3  # nats per crystal, sampler against teacher forcing
BFLOAT16_ERROR = 0.35  # nats, the 95th percentile: 8 bits of mantissa through two blocks of spread weights
SAME_DRAWS = 0.97  # share of crystals whose tokens survive a change of float32 arithmetic

MODES: dict[str, dict[str, Any]] = {
    "exact": {},
    "reference": {"law": "reference"},
    "sharpened": {"temperature": 0.7, "top_p": 0.8, "first_element_temperature": 2.0},
    "hot": {"temperature": 1.5},
    "constrained": {"constraints": Constraints(elements="Na Cl O Ti Ca", max_sites=6)},
    "constrained and sharpened": {
        "constraints": Constraints(chemical_system="Na-Cl", exclude=["toxic"]),
        "temperature": 0.8,
        "top_p": 0.9,
    },
}


def worst(samples: Samples, model: CrystalFormer, dtype: torch.dtype, law: str = "exact") -> float:
    """Largest difference to the teacher-forced log-probability, over crystals and factors."""
    with torch.no_grad():
        batch = TokenBatch.from_tokens(samples.tokens, dtype=dtype).truncated()
        scored = log_prob(model.to(dtype), batch, law=law).factors()
    return max(float(np.abs(scored[name].double().numpy() - samples.log_prob[name]).max()) for name in FACTORS)


def same(a: Samples, b: Samples) -> np.ndarray:
    """Which crystals have the same letters and elements."""
    return ((a.tokens.wyckoff == b.tokens.wyckoff) & (a.tokens.element == b.tokens.element)).all(axis=1)


LAYOUTS = ("tokens", "sites")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_log_prob_is_the_likelihoods_in_every_group(
    mode: str, layout: str, spread_model: Callable[..., CrystalFormer]
) -> None:
    options = MODES[mode]
    law = options.get("law", "exact")
    for precision, dtype, error in (
        ("float64", torch.float64, FLOAT64_ERROR),
        ("float32", torch.float32, FLOAT32_ERROR),
    ):
        samples = sample(spread_model(layout=layout), ALL_GROUPS, seed=3, precision=precision, **options)
        assert worst(samples, spread_model(layout=layout), dtype, law) < error
        assert (samples.tokens.spacegroup == ALL_GROUPS).all()


def test_drawn_law_is_the_models_where_nothing_changes_it(spread_model: Callable[..., CrystalFormer]) -> None:
    samples = sample(spread_model(), ALL_GROUPS, seed=1)
    for name in FACTORS:
        np.testing.assert_allclose(samples.log_prob[name], samples.log_prob_drawn[name], atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_batches_shards_and_resumption_change_nothing(
    layout: str, spread_model: Callable[..., CrystalFormer]
) -> None:
    model, groups = spread_model(layout=layout), np.resize(np.array([1, 12, 62, 139, 194, 221, 225]), 60)
    whole = sample(model, groups, seed=5, precision="float64")
    parts = [
        sample(model, groups[first:last], seed=5, first_index=first, precision="float64", batch_size=size)
        for first, last, size in ((40, 60, 3), (0, 1, 1), (1, 40, 64))
    ]
    again = Samples.concatenate(parts)
    assert (again.index == np.arange(60)).all()
    assert same(whole, again).all()
    np.testing.assert_allclose(whole.tokens.coords, again.tokens.coords, atol=1e-9)
    np.testing.assert_allclose(whole.tokens.lattice, again.tokens.lattice, atol=1e-9)
    np.testing.assert_allclose(whole.total_log_prob, again.total_log_prob, atol=FLOAT64_ERROR)


def test_float32_draws_are_nearly_always_those_of_float64(spread_model: Callable[..., CrystalFormer]) -> None:
    model, groups = spread_model(), np.resize(ALL_GROUPS[::2], 200)
    exact = sample(model, groups, seed=5, precision="float64")
    for size in (200, 50):
        fast = sample(model, groups, seed=5, batch_size=size)
        assert same(exact, fast).mean() > SAME_DRAWS


def test_bfloat16_stays_near_float32(spread_model: Callable[..., CrystalFormer]) -> None:
    model, groups = spread_model(), ALL_GROUPS
    samples = sample(model, groups, seed=5, precision="bfloat16")
    with torch.no_grad():
        scored = log_prob(model, TokenBatch.from_tokens(samples.tokens).truncated()).total.numpy()
    error = np.abs(scored - samples.total_log_prob)
    assert np.quantile(error, 0.95) < BFLOAT16_ERROR
    # As a proposal for the float32 law its weights average to 1: the two laws are close, not only the numbers.
    weights = np.exp(scored - samples.total_log_prob)
    assert abs(weights.mean() - 1) < 6 * weights.std() / np.sqrt(len(weights))
    assert same(samples, sample(model, groups, seed=5)).mean() > 0.7


def test_every_crystal_of_the_exact_law_can_be_built(spread_model: Callable[..., CrystalFormer]) -> None:
    samples = sample(spread_model(), np.resize(ALL_GROUPS, 460), seed=2)
    crystals = convert.to_crystals(samples.tokens)
    assert all(crystal is not None and np.linalg.det(crystal.lattice) > 0 for crystal in crystals)
    assert not samples.resampled.any()
    tokens = samples.tokens
    assert (tokens.n_sites >= 1).all()
    assert (tokens.coords[tokens.is_site] >= 0).all()
    assert (tokens.coords < 1).all()
    assert not tokens.coords[~tokens.is_site].any()


def test_the_reference_law_counts_what_it_draws_again(spread_model: Callable[..., CrystalFormer]) -> None:
    samples = sample(spread_model(), ALL_GROUPS, seed=2, law="reference")
    assert samples.resampled.sum() > 0  # random weights put much mass on negative lengths
    assert (samples.tokens.lattice[:, :3] > 0).all()


def test_tied_coordinates_are_those_of_the_representative(spread_model: Callable[..., CrystalFormer]) -> None:
    tokens = sample(spread_model(), np.resize(ALL_GROUPS, 460), seed=4, precision="float64").tokens
    rows, slots = np.nonzero(tokens.is_site)
    maps = wyckoff.representatives()[tokens.spacegroup[rows] - 1, tokens.wyckoff[rows, slots]]
    x = tokens.coords[rows, slots]
    moved = np.einsum("nij,nj->ni", maps[:, :, :3], x) + maps[:, :, 3] - x
    np.testing.assert_allclose(moved - np.round(moved), 0, atol=1e-12)


def test_a_crystal_that_fills_all_slots_stops(spread_model: Callable[..., CrystalFormer]) -> None:
    model = spread_model()
    with torch.no_grad():
        model.head.bias[0] = -50.0  # column 0 is the pad's letter, and an element that no site can have
    samples = sample(model, np.array([1, 1, 2]), seed=0)
    assert samples.tokens.n_sites.tolist() == [20, 20, 20]
    assert worst(samples, model, torch.float32) < FLOAT32_ERROR


def test_streaming_gives_the_same_crystals(spread_model: Callable[..., CrystalFormer]) -> None:
    model, groups = spread_model(), np.arange(1, 60)
    parts = list(stream(model, groups, seed=9, batch_size=16))
    assert len(parts) > 4
    together, whole = Samples.concatenate(parts), sample(model, groups, seed=9, batch_size=16)
    assert (together.index == np.arange(59)).all()
    assert (together.tokens.coords == whole.tokens.coords).all()
    assert (groups == np.arange(1, 60)).all()  # the caller's array is left alone
    assert len(sample(model, groups[:0], seed=1)) == 0


def test_space_groups_follow_their_weights() -> None:
    weights = np.zeros(230)
    weights[[0, 61, 224]] = 1, 2, 5
    drawn = draw_spacegroups(weights, 4000, seed=1)
    assert set(drawn.tolist()) == {1, 62, 225}
    assert abs((drawn == 225).mean() - 5 / 8) < 5 * np.sqrt(15 / 64 / 4000)
    assert (draw_spacegroups(weights, 10, seed=1, first_index=100) == drawn[100:110]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacegroups": np.array([0])}, "no space group 0"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"first_element_temperature": -1.0}, "first_element_temperature -1.0"),
        ({"top_p": 1.2}, "top_p 1.2"),
        ({"seed": -1}, "seed -1"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], message: str, spread_model: Callable[..., CrystalFormer]
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        sample(spread_model(), **{"spacegroups": np.array([225]), "seed": 1, **options})


def test_weights_that_are_no_distribution_are_refused() -> None:
    with pytest.raises(InputError, match="weights"):
        draw_spacegroups(np.zeros(230), 1, seed=0)
