"""The wire: nothing is lost on it, nothing malformed passes, and work is cut by size alone."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from crystalforge.crystal import Crystal
from crystalforge.integrations.triton.wire import (
    About,
    WireError,
    bytes_to_text,
    canary,
    chunks,
    component_table,
    decode,
    encode,
    text_to_bytes,
)
from crystalforge.rewards.protocol import Scores

ABOUT = About("ehull", "ab" * 32, ("e_above_hull", "energy_per_atom"), -0.25, 2, 64, 4096, 50_000, {"NaCl": -0.25})

# Any bits at all: what a crystal means is for the reward to judge, the wire only carries it.
numbers = st.floats(width=64, allow_nan=True, allow_infinity=True)


@st.composite
def crystals(draw: st.DrawFn) -> Crystal | None:
    n = draw(st.integers(0, 5))
    if n == 0:
        return None
    return Crystal(
        draw(arrays.arrays(np.float64, (3, 3), elements=numbers)),
        draw(arrays.arrays(np.int32, n, elements=st.integers(-(2**31), 2**31 - 1))),
        draw(arrays.arrays(np.float64, (n, 3), elements=numbers)),
    )


@given(st.lists(crystals(), min_size=1, max_size=6))
def test_crystals_cross_the_wire_bit_for_bit(batch: list[Crystal | None]) -> None:
    back = decode(encode(batch))
    assert len(back) == len(batch)
    for sent, received in zip(batch, back, strict=True):
        assert (sent is None) == (received is None)
        if sent is not None and received is not None:
            for name in ("lattice", "numbers", "frac"):
                one, other = getattr(sent, name), getattr(received, name)
                assert one.tobytes() == other.tobytes()
                assert one.shape == other.shape


def test_no_tensor_is_ever_empty() -> None:
    assert all(tensor.size > 0 for tensor in encode([None]).values())


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("lattice", np.zeros((2, 3)), "expected lattice"),
        ("lattice", np.zeros((3, 3, 3)), "3 lattices for 2 crystals"),
        ("n_atoms", np.array([-2, 6], np.int32), "negative"),
        ("n_atoms", np.array([2, 3], np.int32), "asks for 6 rows"),
        ("n_atoms", np.array([2**31 - 1, 2**31 - 1], np.int32), "asks for 4294967295 rows"),
        ("n_atoms", np.zeros((2, 1), np.int32), "expected lattice"),
        ("numbers", np.zeros(4, np.int32), "numbers has 4"),
        ("frac", np.zeros((5, 2)), r"frac has shape \[5, 2\]"),
        ("frac", np.zeros((4, 3)), "frac 4"),
    ],
)
def test_tensors_that_disagree_are_refused_by_name(name: str, value: np.ndarray, says: str) -> None:
    tensors = encode([canary(), canary()])
    decode(tensors)
    with pytest.raises(WireError, match=says):
        decode({**tensors, name: value})


def test_a_request_without_crystals_is_refused() -> None:
    with pytest.raises(WireError, match="0 lattices"):
        decode(encode([]))


@given(
    st.lists(st.integers(0, 50), max_size=60),
    st.integers(1, 10),
    st.integers(1, 100),
)
def test_chunks_cover_everything_in_order_within_the_limits(sizes: list[int], structures: int, atoms: int) -> None:
    counts = np.array(sizes, np.int32)
    pieces = chunks(counts, structures, atoms)
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(len(sizes)))
    for piece in pieces:
        length, total = piece.stop - piece.start, int(counts[piece].sum())
        assert 1 <= length <= structures
        assert total <= atoms or length == 1
    # Greedy: no piece could have taken the first crystal of the next.
    for piece, following in itertools.pairwise(pieces):
        longer = slice(piece.start, following.start + 1)
        assert longer.stop - longer.start > structures or counts[longer].sum() > atoms


def test_a_server_describes_itself_in_bytes() -> None:
    assert About.from_bytes(ABOUT.to_bytes()) == ABOUT
    assert ABOUT.version.digest == "ab" * 32
    assert bytes_to_text(text_to_bytes("Å")) == "Å"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "cannot be read"),
        ("not json", "cannot be read"),
        (json.dumps({**dataclasses.asdict(ABOUT), "wire": 99}), "wire version 99"),
        (json.dumps({**dataclasses.asdict(ABOUT), "surprise": 1}), "cannot be read"),
    ],
)
def test_another_description_is_refused(text: str, says: str) -> None:
    with pytest.raises(WireError, match=says):
        About.from_bytes(text_to_bytes(text))


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(WireError, match="UTF-8"):
        bytes_to_text(np.array([0xFF, 0xFE], np.uint8))


def test_components_become_columns_in_the_announced_order() -> None:
    scores = Scores(np.zeros(2), np.zeros(2, np.int32), {"b": np.array([1.0, 2.0]), "a": np.array([3.0, 4.0])})
    assert component_table(scores, ["a", "b"]).tolist() == [[3.0, 1.0], [4.0, 2.0]]
    assert component_table(Scores(np.zeros(2), np.zeros(2, np.int32), {}), []).shape == (2, 0)
