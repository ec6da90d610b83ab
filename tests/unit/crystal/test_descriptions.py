"""Another description is the same crystal, written as the tokeniser would, and each is as likely as the next."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalforge.crystal import Tokens, wyckoff
from crystalforge.crystal.descriptions import moves, redescribed
from crystalforge.crystal.orbits import expand, representative_error

ROUNDING = 1e-9  # fractional


def one_site(g: int, w: int, point: np.ndarray) -> Tokens:
    """A crystal of one site; `point` is moved onto the representative."""
    representative = wyckoff.representatives()[g - 1, w]
    coords = (representative[:, :3] @ point + representative[:, 3]) % 1.0
    lattice = np.array([[3.0, 3.0, 3.0, 1.5, 1.5, 1.5]])
    return Tokens(np.int32([g]), np.int32([[w, 0]]), np.int32([[8, 0]]), np.stack([[coords, np.zeros(3)]]), lattice)


def points(tokens: Tokens) -> np.ndarray:
    """The first site's orbit, as sorted rows."""
    g, w = tokens.spacegroup.astype(np.int64), tokens.wyckoff[:, 0].astype(np.int64)
    count = wyckoff.multiplicity()[g - 1, w].astype(np.int64)
    orbit = np.round(expand(g, w, tokens.coords[:, 0], count), 6) % 1.0
    return orbit[np.lexsort(orbit.T)]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 230), st.data(), st.integers(0, 1000))
def test_the_orbit_stays_and_its_point_lies_on_the_representative(g: int, data: st.DataObject, seed: int) -> None:
    w = data.draw(st.integers(1, int(wyckoff.n_letters()[g - 1])))
    random = np.random.default_rng(seed)
    before = one_site(g, w, random.uniform(0.02, 0.98, 3))
    after = redescribed(before, random)
    np.testing.assert_allclose(points(after), points(before), atol=2e-6)
    assert representative_error(np.array([g]), np.array([w]), after.coords[0, :1])[0] < ROUNDING
    assert (after.coords >= 0).all()
    assert (after.coords.astype(np.float32) < 1).all()
    assert (after.coords[0, 1] == 0).all(), "pads stay zero"


def test_every_point_of_a_general_orbit_is_as_likely() -> None:
    tokens = one_site(2, 9, np.array([0.1, 0.2, 0.3]))
    found = Counter(
        float(redescribed(tokens, np.random.default_rng(seed)).coords[0, 0, 0].round(6)) for seed in range(400)
    )
    assert set(found) == {0.1, 0.9}
    assert min(found.values()) > 150


def test_operations_that_agree_on_a_position_count_once() -> None:
    """In group 225 the position e (x, 0, 0) has 192 operations, and two points on its line: x and -x, by centring
    no others."""
    table = moves()
    e = wyckoff.letter_index("e")
    assert table.count[224, e] == 2
    assert table.count[224, 1] == 1, "a position without freedom has one description"
    assert table.count[224, wyckoff.letter_index("l")] == 192


def test_sites_are_put_in_the_tokenisers_order() -> None:
    g, slots = 1, 4
    tokens = Tokens(
        np.int32([g, 225]),
        np.int32([[1, 1, 1, 0], [1, 2, 0, 0]]),
        np.int32([[3, 8, 9, 0], [11, 17, 0, 0]]),
        np.array(
            [[[0.5, 0, 0], [0.25, 0, 0], [0.75, 0, 0], [0, 0, 0]], [[0, 0, 0], [0.5, 0.5, 0.5], [0] * 3, [0] * 3]]
        ),
        np.tile([[3.0, 3.0, 3.0, 1.5, 1.5, 1.5]], (2, 1)),
    )
    found = redescribed(tokens, np.random.default_rng(0))
    assert found.element[0].tolist() == [8, 3, 9, 0]
    assert found.coords[0, :3, 0].tolist() == [0.25, 0.5, 0.75]
    assert found.wyckoff.shape == (2, slots)
    assert (found.coords[1] == tokens.coords[1]).all()
    assert (found.element[1] == tokens.element[1]).all()
