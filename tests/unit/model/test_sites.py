"""Two tokens a site: nothing looks ahead, orbits are known whichever point names them, every weight has a use."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from crystalforge.crystal.descriptions import redescribed
from crystalforge.model.batch import TokenBatch
from crystalforge.model.build import build_model
from crystalforge.model.checkpoint import load_model, save_model, weights_hash
from crystalforge.model.config import ModelConfig
from crystalforge.model.likelihood import log_prob
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.sampler import sample
from crystalforge.model.sites import N_FACTORS, structure_factors

MakeModel = Callable[..., CrystalFormer]


@pytest.fixture(scope="module")
def crystals(spread_model: MakeModel) -> TokenBatch:
    """Crystals of many groups and lengths, in double precision."""
    groups = np.array([1, 2, 5, 14, 62, 63, 139, 166, 194, 216, 221, 225])
    tokens = sample(spread_model(layout="sites"), groups, seed=2).tokens
    return TokenBatch.from_tokens(tokens, dtype=torch.float64).truncated()


def test_nothing_looks_ahead(spread_model: MakeModel, crystals: TokenBatch) -> None:
    """Each law of slot 2 may change with what comes before it, and must not with the rest."""
    model = spread_model(layout="sites").double()
    with torch.no_grad():
        base = model(crystals)
        for axis in range(3):
            coords = crystals.coords.clone()
            coords[:, 2, axis:] = 0.123  # what is drawn from mixture `axis`, and all later ones
            coords[:, 3:] = 0.321
            element = crystals.element.clone()
            element[:, 3:] = 7
            other = model(replace(crystals, coords=coords, element=element))
            for name in ("wyckoff", "element"):
                torch.testing.assert_close(getattr(other, name)[:, :3], getattr(base, name)[:, :3])
            torch.testing.assert_close(other.lattice.loc[:, :3], base.lattice.loc[:, :3])
            torch.testing.assert_close(other.coords.loc[:, :3, : axis + 1][:, :2], base.coords.loc[:, :2, : axis + 1])
            torch.testing.assert_close(other.coords.loc[:, 2, : axis + 1], base.coords.loc[:, 2, : axis + 1])
        element = crystals.element.clone()
        element[:, 2] = torch.where(element[:, 2] > 0, element[:, 2] % 80 + 1, 0)
        other = model(replace(crystals, element=element))
        torch.testing.assert_close(other.element[:, :3], base.element[:, :3])
        assert (other.coords.loc[:, 2] - base.coords.loc[:, 2]).abs().max() > 1e-3
        assert (other.wyckoff[:, 3] - base.wyckoff[:, 3]).abs().max() > 1e-4


def test_a_longer_batch_changes_nothing(spread_model: MakeModel, crystals: TokenBatch) -> None:
    model = spread_model(layout="sites").double()
    with torch.no_grad():
        together = log_prob(model, crystals).total
        for row in range(len(crystals)):
            alone = log_prob(model, crystals[row].truncated()).total
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-9)


def test_structure_factors_do_not_depend_on_the_point_that_names_an_orbit(crystals: TokenBatch) -> None:
    tokens = crystals.to_tokens()
    one_site = tokens.wyckoff.copy()
    one_site[:, 1:] = 0  # sites keep their places
    tokens = replace(tokens, wyckoff=one_site)
    other = redescribed(tokens, np.random.default_rng(1))
    assert (np.abs(other.coords[:, 0] - tokens.coords[:, 0]) > 1e-3).any(axis=1).sum() > 1

    def factors(coords: np.ndarray) -> torch.Tensor:
        return structure_factors(crystals.spacegroup, crystals.wyckoff[:, 0], torch.from_numpy(coords[:, 0]))

    torch.testing.assert_close(factors(other.coords), factors(tokens.coords), rtol=0, atol=1e-4)


def test_a_structure_factor_by_hand() -> None:
    """The two points ±r of a general site of P-1: the cosine of 2π h·r, and no sine."""
    r = torch.tensor([[0.1, 0.23, 0.37]], dtype=torch.float64)
    found = structure_factors(torch.tensor([2]), torch.tensor([9]), r)[0]
    h = np.array(list(np.ndindex(5, 5, 5))) - 2
    expected = torch.cos(2 * math.pi * torch.from_numpy(h[63:].astype(float)) @ r[0])
    torch.testing.assert_close(found[:N_FACTORS], expected)
    torch.testing.assert_close(found[N_FACTORS:], torch.zeros(N_FACTORS, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (structure_factors(torch.tensor([2]), torch.tensor([0]), r) == 0).all(), "a pad has no points"


def test_every_weight_has_a_use(spread_model: MakeModel, crystals: TokenBatch) -> None:
    model = spread_model(layout="sites").double().train()
    log_prob(model, crystals).total.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_it_is_saved_and_read(tmp_path: object, spread_model: MakeModel) -> None:
    model = spread_model(layout="sites")
    save_model(tmp_path / "model", model, info={})  # type: ignore[operator]
    loaded = load_model(tmp_path / "model").model  # type: ignore[operator]
    assert weights_hash(loaded) == weights_hash(model)
    assert type(loaded) is type(model)


@pytest.mark.parametrize("layout", ["tokens", "sites"])
def test_anchored_components_start_apart_and_sharp_ones_are_in_reach(layout: str, crystals: TokenBatch) -> None:
    torch.manual_seed(0)
    settings = {"layers": 1, "heads": 2, "head_size": 8, "width": 16, "embedding": 8, "coord_components": 12}
    model = build_model(ModelConfig.model_validate(settings | {"layout": layout, "coord_head": "anchored"}))
    with torch.no_grad():
        found = model(crystals.to("cpu", torch.float32)).coords
    step = 2 * math.pi / 12
    assert ((found.loc[..., 1:] - found.loc[..., :-1]).mean(dim=(0, 1, 2)) - step).abs().max() < 0.3
    width = 1 / found.kappa.sqrt()
    assert 0.5 * step < float(width.mean()) < 1.5 * step
