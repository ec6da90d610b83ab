"""The written-out attention of CPU training against PyTorch's own, and its dropout against its law."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from crystalforge.model.attention import attend, dropout, interleaved, keep_mask
from crystalforge.model.network import rotary_angles, rotate

HEADS, CHANNELS, WIDTH, TOKENS = 3, 8, 16, 13
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64: sums in another order


def plain(joined: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    query, key, value = joined.unflatten(-1, (3, HEADS, CHANNELS)).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(rotate(query, cos, sin), rotate(key, cos, sin), value, is_causal=True)
    return attended.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_output_and_gradients_equal_the_plain_path(tokens: int) -> None:
    torch.manual_seed(0)
    cos, sin = rotary_angles(tokens, CHANNELS, torch.float64)
    results = []
    for fast in (False, True):
        torch.manual_seed(1)
        x = torch.randn(4, tokens, WIDTH, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(3 * HEADS * CHANNELS, WIDTH, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(3 * HEADS * CHANNELS, dtype=torch.float64, requires_grad=True)
        if fast:
            joined = F.linear(x, interleaved(weight, HEADS), interleaved(bias, HEADS))
            out = attend(joined, cos, sin, HEADS, 0.0)
        else:
            out = plain(F.linear(x, weight, bias), cos, sin)
        (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)).sum().backward()
        results.append([out.detach(), x.grad, weight.grad, bias.grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_gradient_is_that_of_the_function_with_dropout_too() -> None:
    """Finite differences, the random mask held fixed by the seed."""
    cos, sin = rotary_angles(5, 4, torch.float64)
    torch.manual_seed(2)
    joined = torch.randn(2, 5, 3 * 2 * 4, dtype=torch.float64, requires_grad=True)

    def function(value: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return attend(value, cos, sin, 2, 0.4)

    assert torch.autograd.gradcheck(function, (joined,))


def test_bfloat16_stays_close() -> None:
    torch.manual_seed(0)
    cos, sin = rotary_angles(TOKENS, CHANNELS)
    joined = torch.randn(4, TOKENS, 3 * HEADS * CHANNELS)
    single = attend(joined, cos, sin, HEADS, 0.0)
    half = attend(joined.bfloat16(), cos, sin, HEADS, 0.0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, rtol=0.03, atol=0.03)  # 8 bits of mantissa


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_right_share_and_the_mean(rate: float) -> None:
    torch.manual_seed(4)
    mask = keep_mask(torch.empty(1001, 999), rate)
    share = float((mask == 0).double().mean())
    assert share == pytest.approx(rate, abs=5 * (rate * (1 - rate) / mask.numel()) ** 0.5 + 1 / 65536)
    assert mask.unique().numel() == 2
    assert float(mask.double().mean()) == pytest.approx(1, abs=0.02)
    for lane in range(4):  # each quarter of the 64-bit numbers is as random as the others
        assert float((mask.reshape(-1)[lane::4] == 0).double().mean()) == pytest.approx(rate, abs=0.005)


def test_dropout_is_off_outside_training() -> None:
    x = torch.randn(5, 5)
    assert dropout(x, 0.5, False) is x
    assert dropout(x, 0.0, True) is x
    assert (dropout(x, 0.5, True) == 0).any()
