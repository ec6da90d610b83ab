"""Laws of single tokens: masks against the rules, densities against SciPy, integrals against 1."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from crystalforge.crystal import wyckoff
from crystalforge.model.distributions import (
    BOUNDS,
    allowed_element,
    allowed_wyckoff,
    coord_log_density,
    draw_lattice,
    lattice_in_bounds,
    lattice_log_density,
    log_ndtr_difference,
    masked_log_softmax,
    next_wyckoff_log_probs,
    scored_coords,
    truncated_normal,
)
from crystalforge.model.network import CoordMixture, LatticeMixture

GROUP_OF_SYSTEM = {
    "triclinic": 2,
    "monoclinic": 14,
    "orthorhombic": 62,
    "tetragonal": 99,
    "hexagonal": 194,
    "cubic": 225,
}


def lattice_mixture(seed: int, rows: int, components: int = 3, *, wild: bool = False) -> LatticeMixture:
    """Mixtures around ordinary cells; `wild` ones put much of their mass outside the bounds."""
    random = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, components, 6, generator=random, dtype=torch.float64)
    middle = torch.tensor([2.5, 2.5, 2.5, 1.6, 1.6, 1.6], dtype=torch.float64)
    loc = middle + normal * (2.0 if wild else 0.3)
    scale = torch.rand(rows, components, 6, generator=random, dtype=torch.float64) * (1.0 if wild else 0.3) + 0.1
    return LatticeMixture(torch.randn(rows, components, generator=random, dtype=torch.float64), loc, scale)


def draw(mixture: LatticeMixture, spacegroup: torch.Tensor, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    component = torch.multinomial(mixture.logits.softmax(-1), 1, generator=random)[:, 0]
    row = torch.arange(len(spacegroup))
    uniform = torch.rand(len(spacegroup), 6, generator=random, dtype=torch.float64)
    return draw_lattice(mixture.loc[row, component], mixture.scale[row, component], uniform, spacegroup)


# ---- discrete ------------------------------------------------------------------------------------------------


def test_letters_follow_the_rules_in_every_group() -> None:
    groups = torch.arange(1, 231)
    fixed, count = wyckoff.is_fixed(), wyckoff.n_letters()
    first = allowed_wyckoff(groups, None)
    for g in range(230):
        assert first[g].nonzero()[:, 0].tolist() == list(range(1, count[g] + 1))
    for previous in range(28):
        exists = groups[torch.tensor(count >= previous)]
        allowed = allowed_wyckoff(exists, torch.full_like(exists, previous))
        for g, row in zip(exists.tolist(), allowed, strict=True):
            start = previous + 1 if fixed[g - 1, previous] else previous
            expected = [0, *range(start, count[g - 1] + 1)] if previous else [0]
            assert row.nonzero()[:, 0].tolist() == expected, (g, previous)
    assert allowed_wyckoff(groups, torch.ones_like(groups), last_slot=True).nonzero()[:, 1].unique().tolist() == [0]


def test_a_slot_may_be_the_last_for_some_rows_only() -> None:
    groups = torch.tensor([225, 225])
    allowed = allowed_wyckoff(groups, torch.tensor([3, 3]), torch.tensor([True, False]))
    assert allowed[0].sum() == 1
    assert allowed[1].sum() > 1


def test_masked_probabilities_sum_to_one_for_any_logits() -> None:
    logits = torch.tensor([[0.0, 1e4, -1e4, 30.0], [1e30, 0.0, 0.0, 0.0]])
    allowed = torch.tensor([[True, False, True, True], [False, True, True, False]])
    logits.requires_grad_()
    log_probs = masked_log_softmax(logits, allowed)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2))
    assert (log_probs.isinf() == ~allowed).all()
    log_probs[allowed].sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[~allowed] == 0).all()


def test_after_a_pad_the_pad_is_certain() -> None:
    log_probs = next_wyckoff_log_probs(torch.randn(5, 28), torch.tensor([1, 47, 62, 200, 230]), torch.zeros(5).long())
    assert (log_probs[:, 0] == 0).all()


def test_elements_sit_on_sites_and_pads_on_pads() -> None:
    allowed = allowed_element(torch.tensor([0, 4]), 119)
    assert allowed[0].nonzero()[:, 0].tolist() == [0]
    assert allowed[1].nonzero()[:, 0].tolist() == list(range(1, 119))


# ---- coordinates ---------------------------------------------------------------------------------------------


def test_exactly_the_independent_coordinates_are_scored() -> None:
    groups, letters = torch.meshgrid(torch.arange(1, 231), torch.arange(28), indexing="ij")
    exact, reference = scored_coords(groups, letters), scored_coords(groups, letters, "reference")
    np.testing.assert_array_equal(exact.numpy(), wyckoff.is_free())
    assert int((reference & ~exact).sum()) == 219  # coordinates that the published code scores as free
    assert int((reference & ~exact).any(-1).sum()) == 183
    assert not (exact & ~reference).any()


@pytest.mark.parametrize("kappa", [0.0, 1e-6, 0.1, 1.0, 50.0, 1e4, 1e7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coordinate_density_is_the_von_mises_density(kappa: float, dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 0.25, 0.4999, 0.5, 0.75, 0.999], dtype=dtype)
    loc = 0.1
    mixture = CoordMixture(
        torch.zeros(6, 1, dtype=dtype), torch.full((6, 1), loc, dtype=dtype), torch.full((6, 1), kappa, dtype=dtype)
    )
    theta = 2 * np.pi * (x.double().numpy() - 0.5) - loc
    expected = -np.log(2 * np.pi * scipy.special.i0e(kappa)) + kappa * (np.cos(theta) - 1)
    np.testing.assert_allclose(
        coord_log_density(mixture, x).numpy(), expected, rtol=2e-6 if dtype == torch.float32 else 1e-9, atol=1e-6
    )


def test_coordinate_density_integrates_to_one_per_radian() -> None:
    x = torch.arange(20_000, dtype=torch.float64) / 20_000
    mixture = CoordMixture(
        torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64).expand(20_000, 3),
        torch.tensor([7.0, -2.0, 0.5], dtype=torch.float64).expand(20_000, 3),
        torch.tensor([3.0, 0.0, 400.0], dtype=torch.float64).expand(20_000, 3),
    )
    assert float(coord_log_density(mixture, x).exp().mean() * 2 * math.pi) == pytest.approx(1, abs=1e-9)


def test_coordinate_gradient_is_finite_at_the_extremes() -> None:
    kappa = torch.tensor([0.0, 1e-30, 1e-6, 1.0, 1e6, 1e12]).requires_grad_()
    loc = torch.tensor([0.0, 1e3, -1e3, 0.5, 0.1, 3.0]).requires_grad_()
    mixture = CoordMixture(torch.zeros(6, 1), loc[:, None], kappa[:, None])
    value = coord_log_density(mixture, torch.full((6,), 0.3))
    value.sum().backward()
    assert value.isfinite().all()
    for leaf in (kappa, loc):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


# ---- lattice -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 2.0), (-9.0, -8.0), (8.0, 9.0), (-40.0, -39.0), (39.0, 40.0), (-50.0, 50.0)]
)
def test_mass_of_an_interval_far_out_in_the_tails(low: float, high: float) -> None:
    a, b = (-high, -low) if low > 0 else (low, high)
    expected = scipy.special.log_ndtr(b) + np.log1p(-np.exp(scipy.special.log_ndtr(a) - scipy.special.log_ndtr(b)))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        bounds = torch.tensor([low, high], dtype=dtype, requires_grad=True)
        value = log_ndtr_difference(bounds[0], bounds[1])
        value.backward()
        assert value.item() == pytest.approx(expected, rel=tolerance, abs=1e-6 if dtype == torch.float32 else 1e-12)
        assert bounds.grad is not None
        assert bounds.grad.isfinite().all()


@pytest.mark.parametrize(
    ("mean", "width"), [(2.0, 0.5), (0.5, 1.0), (-3.0, 0.5), (9.0, 1.0), (60.0, 1.0), (-60.0, 1.0)]
)
def test_truncated_draws_have_the_truncated_law(mean: float, width: float) -> None:
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    full = torch.full_like(u, mean), torch.full_like(u, width), torch.full_like(u, 0.5), torch.full_like(u, 3.0)
    x = truncated_normal(u, *full).numpy()
    a, b = (0.5 - mean) / width, (3.0 - mean) / width
    law = scipy.stats.truncnorm(a, b, loc=mean, scale=width)
    # The quantile of each draw is the uniform that made it; SciPy's own tail is the limit beyond 30 deviations.
    np.testing.assert_allclose(law.cdf(x), u.numpy(), atol=1e-6 if abs(mean) > 30 else 1e-9)
    assert ((x >= 0.5) & (x <= 3.0)).all()


@pytest.mark.parametrize(("system", "group"), GROUP_OF_SYSTEM.items())
def test_drawn_cells_are_valid_and_have_a_density(system: str, group: int) -> None:
    rows = 4000
    groups = torch.full((rows,), group)
    mixture = lattice_mixture(3, rows, wild=True)
    lattice = draw(mixture, groups, 4)
    assert lattice_in_bounds(lattice, groups).all()
    assert lattice_in_bounds(lattice.float(), groups).all()  # rounding does not push a cell out
    assert lattice_log_density(mixture, lattice, groups).isfinite().all()
    cos = lattice[:, 3:].cos()
    volume_squared = 1 - cos.square().sum(1) + 2 * cos.prod(1)
    assert (lattice[:, :3] >= BOUNDS.length).all()
    assert (volume_squared > 0).all()


@pytest.mark.parametrize("group", GROUP_OF_SYSTEM.values())
def test_lattice_density_is_that_of_its_draws(group: int) -> None:
    """E_p[q/p] = 1 for any law q on the same cells, if p is both the density and the law of the draws."""
    rows = 40_000
    groups = torch.full((rows,), group)
    one, other = lattice_mixture(5, 1), lattice_mixture(6, 1, components=2)

    def many(mixture: LatticeMixture) -> LatticeMixture:
        return LatticeMixture(
            mixture.logits.expand(rows, -1), mixture.loc.expand(rows, -1, -1), mixture.scale.expand(rows, -1, -1)
        )

    # Drawing from the broader half-and-half mixture keeps q/p <= 2, so that the mean has a small error.
    wide = LatticeMixture(
        torch.cat([one.logits.log_softmax(-1), other.logits.log_softmax(-1)], -1),
        torch.cat([one.loc, other.loc], 1),
        torch.cat([one.scale, other.scale], 1),
    )
    lattice = draw(many(wide), groups, 7)
    log_p = lattice_log_density(many(wide), lattice, groups)
    for q in (one, other):
        ratio = (lattice_log_density(many(q), lattice, groups) - log_p).exp()
        error = float(ratio.std() / math.sqrt(rows))
        assert float(ratio.mean()) == pytest.approx(1, abs=5 * error)
        assert error < 0.01


def test_triclinic_angles_integrate_to_one() -> None:
    """Three angles by the midpoint rule, lengths divided out: the bounds of gamma depend on alpha and beta."""
    n = 60
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n * math.pi
    alpha, beta, gamma = (axis.reshape(-1) for axis in torch.meshgrid(grid, grid, grid, indexing="ij"))
    lengths = torch.full((n**3, 3), 2.5, dtype=torch.float64)
    lattice = torch.cat([lengths, torch.stack([alpha, beta, gamma], 1)], 1)
    loc = torch.tensor([2.5, 2.5, 2.5, 1.3, 1.9, 0.8], dtype=torch.float64).expand(n**3, 1, 6)
    scale = torch.tensor([0.5, 0.5, 0.5, 0.4, 0.6, 0.7], dtype=torch.float64).expand(n**3, 1, 6)
    mixture = LatticeMixture(torch.zeros(n**3, 1, dtype=torch.float64), loc, scale)
    density = lattice_log_density(mixture, lattice, torch.ones(n**3, dtype=torch.int64)).exp()
    length_density = scipy.stats.truncnorm((BOUNDS.length - 2.5) / 0.5, np.inf, 2.5, 0.5).pdf(2.5) ** 3
    total = float(density.sum()) * (math.pi / n) ** 3 / length_density
    assert total == pytest.approx(1, abs=0.02)  # the midpoint rule's error at the region's edges


def test_one_mixture_over_all_parameters_not_a_product_of_marginals() -> None:
    """Two components far apart: a cell that mixes them is likely under the product, impossible under the joint."""
    mixture = LatticeMixture(
        torch.zeros(2, 2, dtype=torch.float64),
        torch.tensor([[2.0] * 6, [4.0] * 6], dtype=torch.float64).expand(2, 2, 6),
        torch.full((2, 2, 6), 0.01, dtype=torch.float64),
    )
    groups = torch.tensor([99, 99])
    lattice = torch.tensor([[2.0, 2.0, 4.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    lattice = torch.cat([lattice, torch.full((2, 3), math.pi / 2, dtype=torch.float64)], dim=1)
    joint, product = (
        lattice_log_density(mixture, lattice, groups),
        lattice_log_density(mixture, lattice, groups, "reference"),
    )
    assert joint[0] < -1000 < product[0]
    assert float(joint[1] - product[1]) == pytest.approx(math.log(2), abs=1e-6)


def test_cells_out_of_bounds_are_impossible() -> None:
    groups = torch.tensor([225, 225, 2, 2, 14])
    right = math.pi / 2
    lattice = torch.tensor(
        [
            [BOUNDS.length - 0.01, 2, 2, right, right, right],
            [-3.0, 2, 2, right, right, right],
            [2, 2, 2, 0.5, 0.6, 1.3],  # gamma > alpha + beta
            [2, 2, 2, 0.05, 1.0, 1.0],
            [2, 2, 2, right, math.pi - 0.01, right],
        ]
    )
    assert not lattice_in_bounds(lattice, groups).any()
    mixture = lattice_mixture(1, 5)
    mixture = LatticeMixture(mixture.logits.float(), mixture.loc.float(), mixture.scale.float())
    assert (lattice_log_density(mixture, lattice, groups) == -math.inf).all()


def test_lattice_gradient_in_float32_is_right_however_wild_the_mixture() -> None:
    rows = 2000
    mixture = lattice_mixture(11, rows, wild=True)
    groups = torch.arange(rows) % 230 + 1
    lattice = draw(lattice_mixture(12, rows), groups, 13).float()
    parts = [(mixture.logits * 30).float(), (mixture.loc * 20).float(), (mixture.scale**8 + 1e-3).float()]
    gradients = {}
    for dtype in (torch.float32, torch.float64):
        leaves = [part.detach().to(dtype).clone().requires_grad_() for part in parts]
        value = lattice_log_density(LatticeMixture(*leaves), lattice.to(dtype), groups)
        value.sum().backward()
        assert value.isfinite().all()
        gradients[dtype] = [leaf.grad for leaf in leaves]
    for single, double in zip(gradients[torch.float32], gradients[torch.float64], strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
