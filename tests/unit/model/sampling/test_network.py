"""Decoding token by token is the transformer, rearranged; rows that leave take nothing of the others with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.network import PAGE, CloseRanks, Decoder

ERROR = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 0.25}  # of hidden states of size 1


@pytest.mark.parametrize("layout", ["tokens", "sites"])
@pytest.mark.parametrize("precision", ERROR)
def test_decoding_is_the_backbone(precision: str, layout: str, spread_model: Callable[..., CrystalFormer]) -> None:
    model = spread_model(layout=layout).double()
    decoder = Decoder(model, precision)
    tokens = torch.randn(5, 2 * PAGE + 3, model.config.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.backbone(tokens.double())
    memory, rows = decoder.start(5), torch.arange(5)
    for position in range(tokens.shape[1]):
        if position == PAGE + 2:  # two rows leave in the middle of a page
            move = CloseRanks(torch.tensor([True, False, True, False, True]))
            rows = move(rows)
            for block in memory:
                block.close_ranks(move)
        hidden = decoder.step(tokens[rows, position].to(decoder.stream), memory, position)
        assert (hidden.double() - expected[rows, position]).abs().max() < ERROR[precision]
    assert sorted(rows.tolist()) == [0, 2, 4]


@pytest.mark.parametrize("kept", [[1, 1, 1], [0, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1, 0, 1]])
def test_closing_ranks_keeps_what_is_kept(kept: list[int]) -> None:
    flags = torch.tensor(kept).bool()
    front = CloseRanks(flags)(torch.arange(len(kept)))
    assert sorted(front.tolist()) == flags.nonzero().squeeze(1).tolist()


def test_the_model_is_left_alone(spread_model: Callable[..., CrystalFormer]) -> None:
    model = spread_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Decoder(model, "float64")
    assert all(value.dtype == torch.float32 and torch.equal(value, before[name]) for name, value in
               model.state_dict().items())  # fmt: skip
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_unknown_precision_is_refused(spread_model: Callable[..., CrystalFormer]) -> None:
    with pytest.raises(InputError, match="float16"):
        Decoder(spread_model(), "float16")
