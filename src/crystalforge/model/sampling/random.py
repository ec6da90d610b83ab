"""Random numbers that depend on (seed, crystal, event) and on nothing else.

Each number that the sampler uses has an address: the seed of the run, the index of the crystal, the event (which
token of which site, the lattice, ...) and the attempt. A counter-based generator turns an address into bits without
any state, so that batch size, sharding, order and resumption cannot change what a crystal sees.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC 2011)
with key = seed and counter = (index low, index high, event, attempt). It passes BigCrush; a test holds it to the
authors' known answers. It runs in int64 arithmetic on any torch device, with the same bits everywhere.

Shapes: B crystals, N attempts.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from crystalforge.common.errors import InputError

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

TOKEN_EVENTS = 1 << 16  # events below this number are tokens: 5 x slot + kind
LATTICE_EVENT = TOKEN_EVENTS
SPACEGROUP_EVENT = TOKEN_EVENTS + 1


def philox4x32(counter: Int64[Tensor, "*b 4"], key: tuple[int, int]) -> Int64[Tensor, "*b 4"]:
    """Four 32-bit words (held in int64) from four counter words and two key words, each in 0..2^32 - 1."""
    c0, c1, c2, c3 = counter.unbind(dim=-1)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The 64-bit products may wrap into the sign bit: the arithmetic shift is masked, so the bits are right.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, low0 = (product0 >> 32) & _LOW, product0 & _LOW
        high1, low1 = (product1 >> 32) & _LOW, product1 & _LOW
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack([c0, c1, c2, c3], dim=-1)


class Streams:
    """The random numbers of one run.

    >>> numbers = Streams(seed=7).uniforms(torch.tensor([3, 9]), event=0)
    >>> numbers.shape, bool((numbers == Streams(7).uniforms(torch.tensor([9, 3]), 0).flip(0)).all())
    (torch.Size([2, 2]), True)
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 1 << 64:
            raise InputError(f"seed {seed} is out of range", remedy="use an integer from 0 to 2^64 - 1")
        self.seed = seed
        self._key = (seed & _LOW, seed >> 32)

    def uniforms(self, index: Int64[Tensor, " B"], event: int, attempt: int = 0) -> Float64[Tensor, "B 2"]:
        """Two uniforms in [0, 1), of 53 bits each, per crystal, for one event and attempt."""
        return self.attempts(index, event, attempt, 1)[:, 0]

    def attempts(self, index: Int64[Tensor, " B"], event: int, first: int, count: int) -> Float64[Tensor, "B N 2"]:
        """Two uniforms per crystal for each of attempts first .. first + count - 1 of an event."""
        attempt = torch.arange(first, first + count, device=index.device)
        shape = (len(index), count)
        words = [index & _LOW, (index >> 32) & _LOW, torch.full_like(index, event)]
        counter = torch.stack([*(word[:, None].expand(shape) for word in words), attempt.expand(shape)], dim=-1)
        bits = philox4x32(counter, self._key)
        pair = bits.unflatten(-1, (2, 2))
        mantissa = ((pair[..., 0] >> 5) << 26) | (pair[..., 1] >> 6)
        return mantissa.to(torch.float64) * 2.0**-53
