"""Drawing until valid: the restricted law, its normaliser, and crystals that depend on (seed, index) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.crystal.geometry import Geometry, possible
from crystalforge.crystal.tokens import Tokens
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.parallel import SamplerPool
from crystalforge.model.sampling.random import Streams
from crystalforge.model.sampling.sampler import sample, stream
from crystalforge.model.sampling.samples import FACTORS, Samples
from crystalforge.model.sampling.valid import ATTEMPT_BITS, until_valid

GROUPS = np.resize(np.array([2, 12, 139, 194, 221, 225]), 36)
# A model with random weights writes cells and bonds of any size: under these limits about half pass.
LOOSE = Geometry(min_distance=0.1, min_bond=0.05, volume_per_atom=(0.1, 1e4), min_height=0.2)
SMALL = {"precision": "float64", "constraints": Constraints(max_sites=2)}


def test_every_crystal_passes_and_first_draws_are_the_plain_ones(spread_model: Callable[..., CrystalFormer]) -> None:
    model = spread_model()
    plain = sample(model, GROUPS, seed=5, **SMALL)
    valid = sample(model, GROUPS, seed=5, valid=LOOSE, **SMALL)
    assert possible(valid.tokens, LOOSE).all()
    assert (valid.index == np.arange(36)).all()
    assert (valid.tokens.spacegroup == GROUPS).all(), "a crystal that is refused is drawn again in its own group"
    first = valid.draws == 1
    assert (first == possible(plain.tokens, LOOSE)).all()
    assert 6 < first.sum() < 32
    assert (valid.tokens.coords[first] == plain.tokens.coords[first]).all()
    assert (valid.total_log_prob_drawn[first] == plain.total_log_prob_drawn[first]).all()
    assert (plain.draws == 1).all()
    assert not plain.log_share.any()


def test_batches_shards_resumption_and_processes_change_nothing(spread_model: Callable[..., CrystalFormer]) -> None:
    model = spread_model()
    whole = sample(model, GROUPS, seed=5, valid=LOOSE, **SMALL)
    parts = [
        sample(model, GROUPS[a:b], seed=5, first_index=a, batch_size=size, valid=LOOSE, **SMALL)
        for a, b, size in ((26, 36, 4), (0, 1, 1), (1, 26, 200))
    ]
    with SamplerPool(model, workers=1) as pool:
        parts_by_process = [pool.sample(GROUPS, seed=5, valid=LOOSE, **SMALL)]
    for again in (Samples.concatenate(parts), Samples.concatenate(parts_by_process)):
        assert (again.draws == whole.draws).all()
        assert (again.tokens.element == whole.tokens.element).all()
        np.testing.assert_allclose(again.tokens.coords, whole.tokens.coords, atol=1e-9)
    streamed = list(stream(model, GROUPS, seed=5, batch_size=16, valid=LOOSE, **SMALL))
    assert len(streamed) > 2
    assert (Samples.concatenate(streamed).draws == whole.draws).all()


class Coin:
    """Instead of a network: crystals of one atom, whose cell is possible with a chance of its group's own."""

    def __init__(self, chances: dict[int, float]) -> None:
        self.chances, self.drawn = chances, 0

    def __call__(self, spacegroups: np.ndarray, index: np.ndarray) -> Iterator[Samples]:
        self.drawn += len(index)
        n = len(index)
        chance = np.array([self.chances[int(g)] for g in spacegroups])
        good = Streams(0).uniforms(torch.from_numpy(index), event=0)[:, 0].numpy() < chance
        one = np.zeros((n, 2), np.int32)
        one[:, 0] = 1
        lattice = np.where(good[:, None], [3.0] * 3 + [np.pi / 2] * 3, [0.1] * 3 + [np.pi / 2] * 3)
        tokens = Tokens(spacegroups.astype(np.int32), one, 29 * one, np.zeros((n, 2, 3)), lattice)
        zero = dict.fromkeys(FACTORS, np.zeros(n))
        ones = np.ones(n, np.int32)
        yield Samples(index, tokens, zero, zero, 0 * ones, ones)[np.random.default_rng(0).permutation(n)]


@pytest.mark.parametrize("batch_size", [500, 5000])
def test_the_normaliser_is_estimated_without_bias(batch_size: int) -> None:
    chances = {221: 0.5, 225: 0.05}
    groups = np.resize([221, 225], 4000).astype(np.int64)
    parts = until_valid(Coin(chances), groups, 100, Geometry(), batch_size=batch_size, max_draws=1000)
    found = Samples.concatenate(list(parts))
    assert (found.index == np.arange(100, 4100)).all()
    for group, chance in chances.items():
        mine = found[groups == group]
        error = np.pi / np.sqrt(6 * len(mine))  # the variance is below pi^2/6
        assert mine.log_share.mean() == pytest.approx(np.log(chance), abs=3 * error)
        assert mine.draws.mean() == pytest.approx(1 / chance, abs=4 / chance / np.sqrt(len(mine)))
        share = (mine.draws == 1).mean()
        assert share == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / len(mine)))


def test_a_wave_that_has_room_looks_ahead_and_stays_in_bounds() -> None:
    waves: list[int] = []

    class Counted(Coin):
        def __call__(self, spacegroups: np.ndarray, index: np.ndarray) -> Iterator[Samples]:
            waves.append(len(index))
            return super().__call__(spacegroups, index)

    coin = Counted({225: 0.02})
    groups = np.full(8, 225, dtype=np.int64)
    found = Samples.concatenate(list(until_valid(coin, groups, 0, Geometry(), batch_size=64, max_draws=1000)))
    assert max(waves) <= 64
    assert found.draws.max() > 2 * len(waves), "one attempt a wave would have taken as many waves as draws"
    assert coin.drawn < 3 * found.draws.sum()


def test_hopeless_crystals_end_with_what_was_found() -> None:
    found: list[Samples] = []
    with pytest.raises(InputError, match=r"crystal 3 \(space group 2\): none of 50 draws .* of all 53 draws 3 did"):
        found.extend(
            until_valid(Coin({221: 1.0, 2: 0.0}), np.array([221, 221, 221, 2]), 0, Geometry(), batch_size=3,
                        max_draws=50)
        )  # fmt: skip
    with pytest.raises(InputError, match="out of range"):
        list(until_valid(Coin({}), np.array([1]), 1 << ATTEMPT_BITS, Geometry(), batch_size=3, max_draws=50))


def test_nothing_asked_is_nothing_drawn(spread_model: Callable[..., CrystalFormer]) -> None:
    assert len(sample(spread_model(), GROUPS[:0], seed=1, valid=Geometry())) == 0
