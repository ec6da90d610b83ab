"""The random streams: the generator's published answers, and addresses that nothing but the address decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from crystalforge.common.errors import InputError
from crystalforge.model.sampling.random import LATTICE_EVENT, Streams, philox4x32

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
FALSE_ALARM = 1e-6  # chance that a right generator fails a statistical test here, were the seed not fixed


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_published_answers(counter: str, key: str, answer: str) -> None:
    k0, k1 = _words(key)
    assert philox4x32(torch.tensor(_words(counter)), (k0, k1)).tolist() == _words(answer)


@given(
    seed=st.integers(0, 2**64 - 1),
    index=st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=6),
    event=st.integers(0, LATTICE_EVENT),
    attempt=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_numbers_depend_on_the_address_alone(seed: int, index: list[int], event: int, attempt: int) -> None:
    streams, batch = Streams(seed), torch.tensor(index)
    together = streams.uniforms(batch, event, attempt)
    alone = torch.cat([Streams(seed).uniforms(batch[i : i + 1], event, attempt) for i in range(len(index))])
    assert torch.equal(together, alone)
    assert torch.equal(together, streams.attempts(batch, event, 0, attempt + 1)[:, attempt])


def test_each_part_of_the_address_matters() -> None:
    def first(seed: int, index: int, event: int, attempt: int) -> float:
        return float(Streams(seed).uniforms(torch.tensor([index]), event, attempt)[0, 0])

    addresses = [(1, 2, 3, 4), (2, 2, 3, 4), (1 + 2**32, 2, 3, 4), (1, 3, 3, 4), (1, 2 + 2**32, 3, 4), (1, 2, 4, 4),
                 (1, 2, 3, 5)]  # fmt: skip
    assert len({first(*address) for address in addresses}) == len(addresses)


def test_uniform_and_uncorrelated() -> None:
    numbers = Streams(11).attempts(torch.arange(5000), 17, 0, 8).numpy()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > FALSE_ALARM
    flat = numbers.reshape(5000, 16)
    correlation = np.corrcoef(flat.T) - np.eye(16)
    assert np.abs(correlation).max() < 6 / np.sqrt(5000)  # six standard deviations of 120 coefficients


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match=r"seed .* out of range"):
        Streams(seed)
