"""Causal attention with rotary positions, written for training on CPUs.

PyTorch's fused CPU kernel knows no dropout, and its backward pass is slow for short sequences of many heads. Here
forward and backward are written out: the rotation is one complex product that also lays the heads out, scores are
scaled by that product for free, and nothing but what the backward pass needs is kept. In bfloat16 only the matrix
products are; rotation and softmax stay in float32.

Shapes: B sequences, T tokens, H heads, d channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

_LEVELS = 1 << 16  # dropout decides by 16 random bits, four decisions from one 64-bit number


def keep_mask(like: Float[Tensor, "*shape"], rate: float) -> Float[Tensor, "*shape"]:
    """1/(1 - rate) with probability 1 - rate, else 0. The rate is rounded to 1/65536."""
    dropped = round(rate * _LEVELS)
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    words.random_(torch.iinfo(torch.int64).min, None)
    bits = words.view(torch.int16)[: like.numel()].view(like.shape)
    return (bits >= dropped - _LEVELS // 2).to(like.dtype).mul_(_LEVELS / (_LEVELS - dropped))


def dropout(x: Float[Tensor, "*shape"], rate: float, training: bool) -> Float[Tensor, "*shape"]:
    """`F.dropout` with cheaper random numbers on the CPU."""
    if not training or rate == 0:
        return x
    if x.device.type != "cpu":
        return torch.nn.functional.dropout(x, rate)
    return x * keep_mask(x, rate)


def interleaved(weight: Float[Tensor, "N ..."], heads: int) -> Float[Tensor, "N ..."]:
    """Rows of query, key and value maps with those of queries and keys reordered from halves to pairs.

    Channel m turns with m + d/2; side by side the two are one complex number. Scores do not depend on the order.
    """
    parts = weight.unflatten(0, (3, heads, 2, -1))
    turned = parts[:2].transpose(2, 3).flatten(0, 3)
    return torch.cat([turned, parts[2].flatten(0, 2)])


def attend(
    joined: Float[Tensor, "B T three_inner"],
    cos: Float[Tensor, "T half"],
    sin: Float[Tensor, "T half"],
    heads: int,
    rate: float,
) -> Float[Tensor, "B T inner"]:
    """Heads' outputs from query | key | value maps whose rows are `interleaved`; `rate` drops attention weights."""
    kind = torch.float64 if joined.dtype == torch.float64 else torch.float32
    turn = torch.complex(cos.to(kind), sin.to(kind))
    result = _Attention.apply(joined, turn, heads, rate)
    assert isinstance(result, Tensor)
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joined: Tensor, turn: Complex[Tensor, "T half"], heads: int, rate: float) -> Tensor:
        size, length, _ = joined.shape
        parts = joined.unflatten(-1, (3, heads, -1))
        scale = 1 / math.sqrt(parts.shape[-1])
        query = _rotate_to_heads(parts[:, :, 0], turn * scale)
        key = _rotate_to_heads(parts[:, :, 1], turn)
        value = parts[:, :, 2].transpose(1, 2).flatten(0, 1)
        scores = torch.bmm(query, key.transpose(1, 2)).to(turn.real.dtype)
        later = torch.ones(length, length, dtype=torch.bool, device=joined.device).triu(1)
        weights = scores.masked_fill_(later, -math.inf).softmax(dim=-1)
        kept = keep_mask(weights, rate) if rate else None
        dropped = (weights if kept is None else weights * kept).to(joined.dtype)
        ctx.save_for_backward(query, key, value, weights, kept, dropped, turn)
        ctx.heads, ctx.scale = heads, scale
        return torch.bmm(dropped, value).unflatten(0, (size, heads)).transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept, dropped, turn = ctx.saved_tensors
        gradient = gradients[0].unflatten(-1, (ctx.heads, -1)).transpose(1, 2).flatten(0, 1)
        size = gradient.shape[0] // ctx.heads
        joined = gradient.new_empty(size, gradient.shape[1], 3, ctx.heads, gradient.shape[2])
        by_weight = torch.bmm(gradient, value.transpose(1, 2)).to(weights.dtype)
        if kept is not None:
            by_weight *= kept
        by_score = torch.ops.aten._softmax_backward_data(by_weight, weights, -1, weights.dtype).to(gradient.dtype)
        by_value = torch.bmm(dropped.transpose(1, 2), gradient)
        joined[:, :, 2] = by_value.unflatten(0, (size, ctx.heads)).transpose(1, 2)
        back = turn.conj().resolve_conj()
        _rotate_from_heads(torch.bmm(by_score, key), back * ctx.scale, joined[:, :, 0])
        _rotate_from_heads(torch.bmm(by_score.transpose(1, 2), query), back, joined[:, :, 1])
        return joined.flatten(2), None, None, None


def _pairs(x: Tensor, kind: torch.dtype) -> Tensor:
    return torch.view_as_complex(x.to(kind).unflatten(-1, (-1, 2)))


def _rotate_to_heads(x: Float[Tensor, "B T H d"], turn: Complex[Tensor, "T half"]) -> Float[Tensor, "BH T d"]:
    size, length, heads, channels = x.shape
    turned = torch.empty(size, heads, length, channels // 2, dtype=turn.dtype, device=x.device)
    torch.mul(_pairs(x, turn.real.dtype).transpose(1, 2), turn, out=turned)
    return torch.view_as_real(turned).flatten(-2).flatten(0, 1).to(x.dtype)


def _rotate_from_heads(
    x: Float[Tensor, "BH T d"], turn: Complex[Tensor, "T half"], out: Float[Tensor, "B T H d"]
) -> None:
    heads = out.shape[2]
    turned = _pairs(x, turn.real.dtype).unflatten(0, (-1, heads)).transpose(1, 2) * turn[:, None]
    out.copy_(torch.view_as_real(turned).flatten(-2))
