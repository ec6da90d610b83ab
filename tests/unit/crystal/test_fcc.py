"""The short cut for face-centred cubic crystals gives what the long way gives, and is taken where it should be."""

from __future__ import annotations

import numpy as np
import pytest

from crystalforge.crystal import MAX_SITES, Crystal, Tokens, fcc, symmetry, wyckoff
from crystalforge.crystal.convert import to_crystals, tokenize

SYMPREC = 0.01


def draw(g: int, letters: list[int], rng: np.random.Generator) -> Crystal:
    """A primitive cell with these orbits, its origin, axes and atoms shuffled as real files have them."""
    tokens = Tokens(
        np.array([g], np.int32),
        np.zeros((1, MAX_SITES), np.int32),
        np.zeros((1, MAX_SITES), np.int32),
        np.zeros((1, MAX_SITES, 3)),
        np.array([[2.9, 2.9, 2.9, np.pi / 2, np.pi / 2, np.pi / 2]]),
    )
    for slot, w in enumerate(letters):
        representative = wyckoff.representatives()[g - 1, w]
        tokens.wyckoff[0, slot], tokens.element[0, slot] = w, rng.integers(1, 90)
        tokens.coords[0, slot] = representative[:, :3] @ rng.uniform(0.1, 0.4, 3) + representative[:, 3]
    crystal = to_crystals(tokens, primitive=True)[0]
    assert crystal is not None
    order = rng.permutation(len(crystal))
    axes = np.array([[1, 0, 0], [-1, 1, 0], [0, 0, 1]])[rng.permutation(3)] if rng.random() < 0.5 else np.eye(3)
    origin = rng.choice([0.0, 0.25, 0.5, rng.random()])
    frac = crystal.frac[order] @ np.linalg.inv(axes) + origin + 1e-7 * rng.normal(size=(len(crystal), 3))
    return Crystal(axes @ crystal.lattice, crystal.numbers[order], frac % 1.0)


def assert_same_as_the_long_way(crystal: Crystal, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = tokenize(crystal)
    with monkeypatch.context() as patch:
        patch.setattr(symmetry, "_short_cut", lambda *_: None)
        slow = tokenize(crystal)
    for name in ("spacegroup", "wyckoff", "element"):
        np.testing.assert_array_equal(getattr(quick, name), getattr(slow, name))
    np.testing.assert_allclose(quick.coords, slow.coords, rtol=0, atol=1e-6)
    np.testing.assert_allclose(quick.lattice, slow.lattice, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("g", "letters"),
    [
        (225, [1]), (225, [1, 2]), (225, [1, 3]), (225, [1, 2, 3]), (225, [1, 2, 3, 5]), (225, [2, 6]),
        (225, [1, 4, 5]), (216, [1, 3]), (216, [1, 2, 3]), (216, [1, 2, 3, 4]), (216, [1, 5]), (216, [2, 6]),
        (227, [1]), (227, [1, 4]), (227, [2, 3, 5]), (227, [1, 4, 5]),
    ],
)  # fmt: skip
def test_short_cut_equals_the_long_way(g: int, letters: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng([g, *letters])
    for _ in range(3):
        crystal = draw(g, letters, rng)
        assert symmetry._short_cut(crystal, SYMPREC) is not None
        assert_same_as_the_long_way(crystal, monkeypatch)


@pytest.mark.parametrize(("g", "last"), list(fcc.LAST_LETTER.items()))
def test_coordinates_do_not_depend_on_the_image_one_starts_from(g: int, last: int) -> None:
    """Up to that letter any atom of the orbit plus any centring vector leads to the same coordinates."""
    rng = np.random.default_rng(g)
    for w in range(1, last + 1):
        representative = wyckoff.representatives()[g - 1, w]
        point = representative[:, :3] @ rng.uniform(0.05, 0.45, 3) + representative[:, 3]
        for operation in wyckoff.operations(g, w):
            starts = operation[:, :3] @ point + operation[:, 3] + wyckoff.centring(g)
            found = [symmetry._on_representative(g, w, images) for images in symmetry.general_images(g, starts)]
            assert found[0] is not None
            for other in found[1:]:
                assert other is not None
                difference = other - found[0]
                assert np.abs(difference - np.rint(difference)).max() < 1e-9


def test_everything_in_doubt_goes_the_long_way() -> None:
    rng = np.random.default_rng(3)
    salt = draw(225, [1, 2], rng)
    near = salt.frac + np.array([[0, 0, 0], [0.002, 0, 0]])  # 0.008 Å: neither obeyed nor broken for certain
    stretched = salt.lattice @ np.diag([1, 1, 1.002])
    cube = Crystal.of(4 * np.eye(3), [55, 17], [[0, 0, 0], [0.5] * 3])
    for crystal in (
        Crystal(salt.lattice, salt.numbers, near),
        Crystal(stretched, salt.numbers, salt.frac),
        cube,
        draw(225, [1, 8], rng),  # 48h: its coordinates depend on the order of images
        draw(202, [1, 8], rng),
        draw(196, [1, 8], rng),
    ):
        assert symmetry._short_cut(crystal, SYMPREC) is None
        tokenize(crystal)


def test_the_cube_has_48_operations_the_identity_first() -> None:
    cube = fcc._cube()
    assert len({operation.tobytes() for operation in cube + 0.0}) == 48
    np.testing.assert_array_equal(cube[0], np.eye(3))
    np.testing.assert_array_equal(cube @ cube.transpose(0, 2, 1), np.broadcast_to(np.eye(3), cube.shape))
