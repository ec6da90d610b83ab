"""log p(crystal | space group): a probability, finite where it should be and nowhere else."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalforge.crystal import wyckoff
from crystalforge.crystal.tokens import Tokens
from crystalforge.model.batch import TokenBatch
from crystalforge.model.config import ModelConfig
from crystalforge.model.distributions import coord_log_density
from crystalforge.model.likelihood import impossible, log_prob
from crystalforge.model.network import CrystalFormer
from crystalforge.model.published.parity import fixture_tokens, load_fixture

TINY = ModelConfig(
    layers=1, heads=2, head_size=4, width=8, embedding=4, first_wyckoff_hidden=8, max_sites=4, atom_types=3
)
FIXTURE = Path(__file__).parents[2] / "parity" / "model_tiny.npz"
RIGHT = np.pi / 2


def network(config: ModelConfig, dtype: torch.dtype = torch.float64) -> CrystalFormer:
    torch.manual_seed(1)
    model = CrystalFormer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.to(dtype).eval()


def fixture_crystals() -> Tokens:
    fixture = load_fixture(FIXTURE)
    return fixture_tokens(fixture)[fixture["kind"] < 2]


def sequences(group: int, slots: int) -> list[tuple[int, ...]]:
    """All letter sequences of at most `slots` - 1 sites by the rules, written out without the library's masks."""
    fixed, letters = wyckoff.is_fixed()[group - 1], range(1, int(wyckoff.n_letters()[group - 1]) + 1)
    found: list[tuple[int, ...]] = []
    for length in range(1, slots):
        for candidate in itertools.combinations_with_replacement(letters, length):
            if all(a < b or not fixed[a] for a, b in itertools.pairwise(candidate)):
                found.append(candidate)
    return found


@pytest.mark.parametrize("group", [1, 2, 47, 227])
def test_letters_and_elements_of_all_crystals_sum_to_one(group: int) -> None:
    """Guaranteed stop: the whole mass lies on sequences that end. Coordinates are a fixed function of the rest."""
    slots = 3 if group == 47 else TINY.max_sites  # group 47 has 27 letters
    config = TINY.model_copy(update={"max_sites": slots})
    rows = [
        (letters, elements)
        for letters in sequences(group, slots)
        for elements in itertools.product((1, 2), repeat=len(letters))
    ]
    size = len(rows)
    w, a = np.zeros((size, slots), np.int32), np.zeros((size, slots), np.int32)
    for row, (letters, elements) in enumerate(rows):
        w[row, : len(letters)], a[row, : len(elements)] = letters, elements
    coords = np.where((w > 0)[..., None], (0.1 * w + 0.07 * a)[..., None] % 1.0, 0.0) * np.ones(3)
    lattice = np.tile([2.0, 2.1, 2.2, RIGHT, RIGHT, RIGHT], (size, 1))
    tokens = Tokens(np.full(size, group, np.int32), w, a, coords, lattice)
    with torch.no_grad():
        scores = log_prob(network(config), TokenBatch.from_tokens(tokens, dtype=torch.float64))
    assert float((scores.wyckoff + scores.element).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_determined_coordinates_cost_nothing_in_the_exact_law_only() -> None:
    """Group 166, letter h is (x, -x, z): moving y with x leaves x and z to be scored."""
    group, letter = 166, 8
    assert wyckoff.is_free()[group - 1, letter].tolist() == [True, False, True]
    w, a = np.zeros((1, 21), np.int32), np.zeros((1, 21), np.int32)
    w[0, 0], a[0, 0] = letter, 14
    coords = np.zeros((1, 21, 3))
    coords[0, 0] = [0.2, 0.8, 0.3]
    tokens = Tokens(np.array([group], np.int32), w, a, coords, np.array([[2.0, 2.0, 3.0, RIGHT, RIGHT, 2 * np.pi / 3]]))
    model = network(ModelConfig(layers=1, heads=2, head_size=4, width=8, embedding=4, first_wyckoff_hidden=8))
    batch = TokenBatch.from_tokens(tokens, dtype=torch.float64)
    heads = model.requires_grad_(False)(batch)
    each = coord_log_density(heads.coords, batch.coords)[0, 0]
    assert float(log_prob(model, batch).coords) == pytest.approx(float(each[0] + each[2]), abs=1e-12)
    assert float(log_prob(model, batch, law="reference").coords) == pytest.approx(float(each.sum()), abs=1e-12)


def test_a_full_crystal_must_stop() -> None:
    """With all but the last slot filled the stop is certain; the reference law gives it a price."""
    tokens = fixture_crystals()
    longest = tokens[int(np.argmax(tokens.n_sites))]
    assert longest.n_sites[0] == 20
    model = network(ModelConfig(layers=1, heads=2, head_size=4, width=8, embedding=4, first_wyckoff_hidden=8))
    batch = TokenBatch.from_tokens(longest, dtype=torch.float64)
    exact, reference = log_prob(model, batch), log_prob(model, batch, law="reference")
    assert float(exact.wyckoff) > float(reference.wyckoff)
    roomy = network(
        ModelConfig(layers=1, heads=2, head_size=4, width=8, embedding=4, first_wyckoff_hidden=8, max_sites=30)
    )
    roomy.load_state_dict(model.state_dict())
    assert float(log_prob(roomy, batch).wyckoff) == pytest.approx(float(reference.wyckoff), abs=1e-12)


@pytest.mark.parametrize("law", ["exact", "reference"])
def test_impossible_says_what_log_prob_does(law: str) -> None:
    fixture = load_fixture(FIXTURE)
    tokens = fixture_tokens(fixture)
    small_cell = replace(tokens[4:5], lattice=np.array([[0.1, 2.0, 2.0, 1.5, 1.5, 1.5]]))
    tokens = Tokens.concatenate([tokens, small_cell])
    model = network(ModelConfig(layers=1, heads=2, head_size=4, width=8, embedding=4, first_wyckoff_hidden=8))
    reasons = impossible(tokens, max_sites=21, law=law)
    with torch.no_grad():
        total = log_prob(model, TokenBatch.from_tokens(tokens, dtype=torch.float64), law=law).total
    for row, reason in enumerate(reasons):
        if tokens.n_sites[row] == 21:
            assert reason is not None  # no pad is left at which the lattice could be read
            assert "21 sites" in reason
        else:
            assert (reason is None) == bool(total[row].isfinite()), (row, reason)
    assert "letters" in str(reasons[1])
    assert "element" in str(reasons[2])
    assert (reasons[-1] is None) == (law == "reference")


def test_numbers_that_are_none_are_named() -> None:
    tokens = fixture_crystals()
    coords = tokens.coords.copy()
    coords[0, 0, 0] = np.nan
    lattice = tokens.lattice.copy()
    lattice[1, 2] = np.inf
    reasons = impossible(replace(tokens, coords=coords, lattice=lattice), max_sites=21)
    assert "coordinate" in str(reasons[0])
    assert "cell" in str(reasons[1])
    assert reasons[2:] == [None] * (len(tokens) - 2)


def test_gradient_is_finite_in_float32_under_weights_gone_wild() -> None:
    model = network(ModelConfig(layers=2, heads=2, head_size=8, width=16, embedding=8, first_wyckoff_hidden=8))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=10.0)
    model.float()
    scores = log_prob(model, TokenBatch.from_tokens(fixture_crystals()).truncated())
    scores.total.sum().backward()
    assert scores.total.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
