"""Draws follow their laws, and the drawn law's log-probability is that of a sampler written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import special, stats

from crystalforge.crystal import wyckoff
from crystalforge.model.batch import TokenBatch
from crystalforge.model.distributions import BOUNDS
from crystalforge.model.network import CrystalFormer, LatticeMixture
from crystalforge.model.sampling.draws import Sharpening, draw_cell, draw_choice, draw_von_mises, wrapped
from crystalforge.model.sampling.random import Streams
from crystalforge.model.sampling.sampler import sample

N = 20_000
FALSE_ALARM = 1e-4  # of one statistical test, were its seed not fixed; some 30 of them run here
INDEX = torch.arange(N)


def doubles(*values: float) -> list[torch.Tensor]:
    return [torch.full((N,), value, dtype=torch.float64) for value in values]


def test_choices_follow_their_probabilities() -> None:
    law = torch.tensor([[0.1, 0.0, 0.25, 0.6, 0.05]], dtype=torch.float64).log().expand(N, 5)
    drawn = draw_choice(law, Streams(1).uniforms(INDEX, 0)[:, 0])
    counts = np.bincount(drawn.numpy(), minlength=5)
    assert counts[1] == 0
    expected = N * law[0].exp().numpy()
    assert stats.chisquare(counts[[0, 2, 3, 4]], expected[[0, 2, 3, 4]]).pvalue > FALSE_ALARM


def test_choices_at_the_ends_are_possible_ones() -> None:
    law = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]], dtype=torch.float64).log().expand(2, 5)
    assert draw_choice(law, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)).tolist() == [1, 3]


@pytest.mark.parametrize("kappa", [0.0, 1e-9, 1e-3, 0.5, 1.0, 4.0, 50.0, 1e4, 1e8])
def test_von_mises(kappa: float) -> None:
    loc = 2.5  # near the seam at π
    angle = draw_von_mises(*doubles(loc, kappa), Streams(2), INDEX, 7).numpy()
    assert angle.min() >= -math.pi
    assert angle.max() < math.pi
    centred = (angle - loc + math.pi) % (2 * math.pi) - math.pi
    if kappa > 1e6:  # SciPy's distribution function gives up; the law is then normal to 1/kappa
        assert stats.kstest(centred * math.sqrt(kappa), "norm").pvalue > FALSE_ALARM
    else:
        law = stats.vonmises(kappa) if kappa > 1e-6 else stats.uniform(-math.pi, 2 * math.pi)
        assert stats.kstest(centred, law.cdf).pvalue > FALSE_ALARM


def test_von_mises_draws_do_not_depend_on_their_company() -> None:
    loc, kappa = doubles(0.3, 3.0)
    together = draw_von_mises(loc, kappa, Streams(2), INDEX, 7)
    few = torch.tensor([17, 5, 19_999])
    assert torch.equal(draw_von_mises(loc[few], kappa[few], Streams(2), few, 7), together[few])


def test_lattices_follow_their_truncated_mixture() -> None:
    """Monoclinic: lengths and beta inside `BOUNDS`, with much of the mass cut off."""
    weights, loc = [0.3, 0.7], torch.tensor([[0.2, 1.0, 2.0, 0.0, 0.1, 0.0], [0.9, 0.4, -0.3, 0.0, 3.0, 0.0]])
    scale = torch.tensor([[0.4, 0.2, 0.3, 1.0, 0.2, 1.0], [0.1, 0.5, 0.2, 1.0, 0.3, 1.0]])
    mixture = LatticeMixture(
        torch.tensor([weights], dtype=torch.float64).log().expand(N, 2),
        loc.double().expand(N, 2, 6),
        scale.double().expand(N, 2, 6),
    )
    group = torch.full((N,), 14)
    lattice, retries = draw_cell(mixture, group, Streams(3), INDEX, "exact")
    assert not retries.any()
    for axis in (0, 1, 2, 4):
        low, high = (BOUNDS.length, np.inf) if axis < 3 else (BOUNDS.angle, math.pi - BOUNDS.angle)
        parts = [
            stats.truncnorm((low - m) / s, (high - m) / s, m, s)
            for m, s in zip(loc[:, axis].double().numpy(), scale[:, axis].double().numpy(), strict=True)
        ]
        mixed = lambda x, parts=parts: sum(w * part.cdf(x) for w, part in zip(weights, parts, strict=True))  # noqa: E731
        assert stats.kstest(lattice[:, axis].numpy(), mixed).pvalue > FALSE_ALARM
    # One component serves all parameters: a large beta goes with the second component's a.
    second = lattice[:, 4] > 1.5
    part = stats.truncnorm((BOUNDS.length - 0.9) / 0.1, np.inf, 0.9, 0.1)
    assert stats.kstest(lattice[second, 0].numpy(), part.cdf).pvalue > FALSE_ALARM
    assert abs(float(second.double().mean()) - 0.7) < 5 * math.sqrt(0.21 / N)


def test_reference_lattices_are_unbounded_gaussians_drawn_again_when_they_are_no_cell() -> None:
    mixture = LatticeMixture(
        torch.zeros(N, 1, dtype=torch.float64),
        torch.full((N, 1, 6), 0.3, dtype=torch.float64),
        torch.full((N, 1, 6), 0.3, dtype=torch.float64),
    )
    lattice, retries = draw_cell(mixture, torch.full((N,), 225), Streams(3), INDEX, "reference")
    valid = stats.norm.cdf(1.0)  # a > 0
    assert stats.kstest(lattice[:, 0].numpy(), stats.truncnorm(-1, np.inf, 0.3, 0.3).cdf).pvalue > FALSE_ALARM
    expected = 1 / valid - 1
    assert abs(float(retries.double().mean()) - expected) < 5 * math.sqrt((1 - valid) / valid**2 / N)


def test_wrapped_stays_below_one() -> None:
    x = wrapped(torch.tensor([-1e-18, 1.0, -0.25, 2.5], dtype=torch.float64))
    assert x.tolist() == [0.0, 0.0, 0.75, 0.5]


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    law = Sharpening(top_p=0.6)(torch.tensor([[0.05, 0.5, 0.3, 0.15]], dtype=torch.float64).log())
    np.testing.assert_allclose(law.exp()[0], [0, 0.625, 0.375, 0])
    assert Sharpening(top_p=1e-6)(torch.zeros(1, 3, dtype=torch.float64)).exp()[0].tolist() == [1, 0, 0]


# ---- the drawn law, by hand ------------------------------------------------------------------------------------


def sharpened(probabilities: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Probabilities after top-p and temperature, one choice at a time."""
    kept, mass = np.zeros(len(probabilities), bool), 0.0
    for choice in np.argsort(-probabilities, kind="stable"):
        if mass > top_p:
            break
        kept[choice], mass = True, mass + probabilities[choice]
    power = np.where(kept, probabilities, 0) ** (1 / temperature)
    return power / power.sum()


def test_the_drawn_law_by_hand(spread_model: Callable[..., CrystalFormer]) -> None:
    temperature, top_p, first_temperature = 0.7, 0.85, 1.6
    model = spread_model().double()
    groups = np.array([1, 2, 14, 62, 139, 166, 194, 225, 227])
    samples = sample(
        model, groups, seed=6, precision="float64", temperature=temperature, top_p=top_p,
        first_element_temperature=first_temperature,
    )  # fmt: skip
    batch = TokenBatch.from_tokens(samples.tokens, dtype=torch.float64)
    with torch.no_grad():
        heads = model(batch)
    free, fixed, letters = wyckoff.is_free(), wyckoff.is_fixed(), wyckoff.n_letters()
    for row, g in enumerate(groups - 1):
        w, a = samples.tokens.wyckoff[row], samples.tokens.element[row]
        n = int((w > 0).sum())
        total = dict.fromkeys(samples.log_prob, 0.0)
        for slot in range(n + 1):
            before = w[slot - 1] if slot else None
            choices = [c for c in range(28) if 1 <= c <= letters[g]] if before is None else [0] + [
                c for c in range(1, 28) if c <= letters[g] and (c > before if fixed[g, before] else c >= before)
            ]  # fmt: skip
            p = np.zeros(28)
            p[choices] = special.softmax(heads.wyckoff[row, slot].numpy()[choices])
            total["wyckoff"] += np.log(sharpened(p, temperature, top_p)[w[slot]])
            if slot == n:
                break
            p = np.append(0, special.softmax(heads.element[row, slot].numpy()[1:]))
            t = first_temperature if slot == 0 else temperature
            total["element"] += np.log(sharpened(p, t, top_p)[a[slot]])
            for axis in np.flatnonzero(free[g, w[slot]]):
                mix = heads.coords
                weight = sharpened(special.softmax(mix.logits[row, slot, axis].numpy()), temperature, top_p)
                angle = 2 * np.pi * (samples.tokens.coords[row, slot, axis] - 0.5)
                density = stats.vonmises(mix.kappa[row, slot, axis].numpy() / temperature).pdf(
                    angle - mix.loc[row, slot, axis].numpy()
                )
                total["coords"] += np.log((weight * density).sum())
        weight = sharpened(special.softmax(heads.lattice.logits[row, n].numpy()), temperature, top_p)
        density, cell = weight.copy(), samples.tokens.lattice[row]
        loc, scale = heads.lattice.loc[row, n].numpy(), heads.lattice.scale[row, n].numpy() * temperature**0.5
        for c in np.flatnonzero(wyckoff.lattice_free()[g]):
            low, high = (BOUNDS.length, np.inf) if c < 3 else (BOUNDS.angle, np.pi - BOUNDS.angle)
            if g < 2 and c == 5:  # triclinic gamma: what alpha and beta leave open
                alpha, beta = cell[3:5]
                low = abs(alpha - beta) + BOUNDS.triclinic
                high = min(alpha + beta, 2 * np.pi - alpha - beta) - BOUNDS.triclinic
            law = stats.truncnorm(
                (low - loc[:, c]) / scale[:, c], (high - loc[:, c]) / scale[:, c], loc[:, c], scale[:, c]
            )
            density = density * law.pdf(cell[c])
        total["lattice"] = np.log(density.sum())
        for name, value in total.items():
            np.testing.assert_allclose(samples.log_prob_drawn[name][row], value, rtol=1e-7, atol=1e-7)
