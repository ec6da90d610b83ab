"""The network: size, causality, truncation, cache, dropout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crystalforge.crystal.tokens import Tokens
from crystalforge.model.batch import TokenBatch
from crystalforge.model.config import ModelConfig
from crystalforge.model.likelihood import log_prob
from crystalforge.model.network import TOKENS_PER_SITE, CrystalFormer
from crystalforge.model.published.parity import fixture_tokens, load_fixture

SMALL = ModelConfig(layers=2, heads=3, head_size=8, width=16, embedding=8, first_wyckoff_hidden=16)
FIXTURE = Path(__file__).parents[2] / "parity" / "model_tiny.npz"
ROUNDING = 1e-12  # float64: sums in another order
FLOAT32 = 2e-5  # nats: float32 sums in another order over two layers
BFLOAT16 = 0.05  # relative: 8 bits of mantissa through two layers


def crystals() -> Tokens:
    """Six possible crystals of 2 to 20 sites (the fixture's other rows are edge cases)."""
    fixture = load_fixture(FIXTURE)
    return fixture_tokens(fixture)[fixture["kind"] < 2]


def network(dtype: torch.dtype = torch.float64, config: ModelConfig = SMALL) -> CrystalFormer:
    """A network with weights large enough to matter."""
    torch.manual_seed(0)
    model = CrystalFormer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def batch(dtype: torch.dtype = torch.float64) -> TokenBatch:
    return TokenBatch.from_tokens(crystals(), dtype=dtype)


def test_the_published_size_has_the_published_number_of_parameters() -> None:
    assert sum(p.numel() for p in CrystalFormer(ModelConfig()).parameters()) == 4_833_575


def test_initial_weights_are_cut_at_two_standard_deviations() -> None:
    model = CrystalFormer(SMALL)
    assert max(float(p.detach().abs().max()) for n, p in model.named_parameters() if "norm" not in n) <= 0.02
    assert float(model.blocks[0].up.weight.detach().std()) == pytest.approx(0.0088, rel=0.1)


@pytest.mark.parametrize("law", ["exact", "reference"])
def test_what_follows_the_first_pad_does_not_matter(law: str) -> None:
    """Truncated == padded, one at a time == together: to rounding."""
    model, full = network(), batch()
    whole = log_prob(model, full, law=law)
    short = log_prob(model, full.truncated(), law=law)
    for name, value in whole.factors().items():
        torch.testing.assert_close(short.factors()[name], value, rtol=0, atol=ROUNDING)
    for row in range(len(full)):
        alone = log_prob(model, full[row].truncated(), law=law)
        torch.testing.assert_close(alone.total, whole.total[row : row + 1], rtol=0, atol=ROUNDING)


def test_truncation_keeps_the_longest_crystal_and_its_pad() -> None:
    full = batch()
    assert full[[5]].truncated().slots == int(full.n_sites[5]) + 1
    assert full.truncated().with_slots(full.slots).to_tokens().wyckoff.tolist() == full.to_tokens().wyckoff.tolist()
    with pytest.raises(AssertionError, match="would be lost"):
        full.with_slots(2)


def test_tokens_survive_the_way_to_tensors_and_back() -> None:
    tokens = crystals()
    back = TokenBatch.from_tokens(tokens, dtype=torch.float64).to_tokens()
    for name in ("spacegroup", "wyckoff", "element", "coords", "lattice"):
        assert (getattr(back, name) == getattr(tokens, name)).all()


def test_no_token_sees_a_later_one() -> None:
    model, data = network(), batch()[:1]
    x = model.embed(data)
    changed = x.clone()
    position = 12
    changed[:, position:] += torch.randn_like(changed[:, position:])
    before, after = model.backbone(x), model.backbone(changed)
    torch.testing.assert_close(before[:, :position], after[:, :position], rtol=0, atol=ROUNDING)
    assert (before[:, position:] - after[:, position:]).abs().amax(-1).min() > 1e-3


def test_one_token_at_a_time_with_a_cache_equals_all_at_once() -> None:
    model, data = network(), batch()
    x = model.embed(data)[:, :30]
    expected = model.backbone(x)
    shape = (len(data), SMALL.heads, 30, SMALL.head_size)
    caches = [(torch.zeros(shape, dtype=x.dtype), torch.zeros(shape, dtype=x.dtype)) for _ in model.blocks]
    for position in range(30):
        token = x[:, position : position + 1]
        here = slice(position, position + 1)
        for block, (keys, values) in zip(model.blocks, caches, strict=True):
            token = block.step(token, model.cos[here], model.sin[here], keys, values, position)
        torch.testing.assert_close(model.norm(token), expected[:, here], rtol=0, atol=ROUNDING)


def test_tokens_embedded_one_by_one_are_the_batch_embedding() -> None:
    model, data = network(), batch()
    together = model.embed(data).unflatten(1, (data.slots, TOKENS_PER_SITE))
    group = data.spacegroup
    for slot in (0, 3):
        parts = [
            model.embed_wyckoff(group, data.wyckoff[:, slot]),
            model.embed_element(group, data.element[:, slot]),
            *(model.embed_coord(axis, group, data.coords[:, slot, axis]) for axis in range(3)),
        ]
        torch.testing.assert_close(torch.stack(parts, 1), together[:, slot], rtol=0, atol=ROUNDING)


def test_dropout_differs_between_samples_and_is_off_in_evaluation() -> None:
    """The published code drops the same channels in all samples of a batch."""
    model = network()
    same = batch()[[2, 2, 2]].truncated()
    model.train()
    scores = log_prob(model, same).total.detach()
    assert float((scores[0] - scores[1]).abs()) > 1e-3
    model.eval()
    scores = log_prob(model, same).total.detach()
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=ROUNDING)


def test_float32_and_bfloat16_stay_close_to_float64() -> None:
    exact = log_prob(network(), batch().truncated()).total.detach()
    model, data = network(torch.float32), batch(torch.float32).truncated()
    single = log_prob(model, data).total.detach()
    torch.testing.assert_close(single.double(), exact, rtol=FLOAT32, atol=FLOAT32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = log_prob(model, data).total.detach()
    assert half.dtype == torch.float32
    assert float((half - single).abs().max()) > 1e-6  # it really ran in another precision
    torch.testing.assert_close(half.double(), exact, rtol=BFLOAT16, atol=BFLOAT16)


def test_a_table_can_give_the_first_letter() -> None:
    model = network(config=SMALL.model_copy(update={"first_wyckoff_hidden": 0}))
    assert log_prob(model, batch().truncated()).total.isfinite().all()
    assert model.first_wyckoff.weight.shape == (230, 28)
