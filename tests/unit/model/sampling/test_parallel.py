"""Two processes draw what one draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.parallel import SamplerPool
from crystalforge.model.sampling.sampler import sample


def test_two_processes_draw_what_one_draws(spread_model: Callable[..., CrystalFormer]) -> None:
    model, groups = spread_model(), np.arange(1, 61)
    alone = sample(model, groups, seed=4, first_index=7, precision="float64")
    with SamplerPool(model, workers=2) as pool:
        together = pool.sample(groups, seed=4, first_index=7, precision="float64", batch_size=25)
        assert len(pool.sample(groups[:0], seed=4)) == 0
        with pytest.raises(InputError, match="temperature"):
            pool.sample(groups, seed=4, temperature=-1.0)
    assert (together.index == alone.index).all()
    assert (together.tokens.element == alone.tokens.element).all()
    np.testing.assert_allclose(together.tokens.coords, alone.tokens.coords, atol=1e-9)
    np.testing.assert_allclose(together.total_log_prob, alone.total_log_prob, atol=1e-8)
