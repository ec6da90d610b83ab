"""The fast matcher gives the answers of pymatgen's StructureMatcher, pair by pair and group by group."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.evaluation.matching.matcher import Matcher
from crystalforge.evaluation.protocols import PROTOCOLS, MatcherSettings

FAMILIES = 10  # structure types, each with three distorted copies
PAIRS = 150  # of different types, compared with brute force


def perturbed(crystal: Crystal, rng: np.random.Generator, displacement: float, strain: float) -> Crystal:
    """Atoms moved by about `displacement` Å, a random strain, a random shift of the origin and order of atoms."""
    moves = rng.normal(0, displacement, crystal.frac.shape) @ np.linalg.inv(crystal.lattice)
    lattice = crystal.lattice @ (np.eye(3) + rng.normal(0, strain, (3, 3)))
    order = rng.permutation(len(crystal))
    return Crystal.of(lattice, crystal.numbers[order], (crystal.frac + moves + rng.random(3))[order])


def renamed(crystal: Crystal) -> Crystal:
    """The same arrangement made of sodium and chlorine: many different structures of one composition."""
    kinds = np.unique(crystal.numbers)
    return Crystal.of(crystal.lattice, np.where(crystal.numbers == kinds[0], 11, 17), crystal.frac)


@pytest.fixture(scope="module")
def same_composition(prototypes) -> list[Crystal]:
    """Polymorphs of NaCl from all AB prototypes, with distorted copies near and beyond the tolerances."""
    rng = np.random.default_rng(0)
    binary = [c for c in prototypes if len(np.unique(c.numbers)) == 2]
    even = [renamed(c) for c in binary if (np.unique(c.numbers, return_counts=True)[1] == len(c) / 2).all()]
    assert len(even) >= 8
    even = even[:FAMILIES]
    copies = [perturbed(c, rng, d, s) for c in even for d, s in ((0.02, 0.01), (0.3, 0.03), (0.6, 0.08))]
    supercell = Crystal.from_structure(even[0].to_structure() * (2, 1, 1))
    return [*even, *copies, supercell]


@pytest.mark.parametrize("settings", [MatcherSettings(), PROTOCOLS["cdvae"].matcher, MatcherSettings(scale=False)])
def test_every_pair_gets_structure_matchers_answer(same_composition, settings):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    brute, fast = StructureMatcher(**settings.model_dump()), Matcher(settings)
    structures = [c.to_structure() for c in same_composition]
    reduced = [fast.reduce(c) for c in same_composition]
    comparable = [k for k, r in enumerate(reduced) if r is not None]
    families = [k if k < FAMILIES else (k - FAMILIES) // 3 for k in range(len(structures) - 1)] + [0]
    pairs = list(itertools.product(comparable, comparable))
    related = [(i, j) for i, j in pairs if families[i] == families[j]]
    others = np.random.default_rng(1).permutation([(i, j) for i, j in pairs if families[i] != families[j]])
    answers = []
    for i, j in [*related, *others[:PAIRS]]:
        first, second = reduced[i], reduced[j]
        assert first is not None
        assert second is not None
        expected = bool(brute.fit(structures[i], structures[j]))
        assert fast.fit(first, second) is expected, (i, j)
        answers.append(expected)
    assert 10 < sum(answers) < len(answers) - 10


def test_rejections_save_work_and_are_never_wrong(same_composition):
    """On all pairs of the default tolerances: what `may_fit` turns away, StructureMatcher turns away too."""
    matcher = Matcher(MatcherSettings())
    reduced = [r for c in same_composition if (r := matcher.reduce(c)) is not None]
    turned_away = [(a, b) for a, b in itertools.product(reduced, reduced) if not matcher.may_fit(a, b)]
    assert len(turned_away) > 0.3 * len(reduced) ** 2
    for a, b in turned_away[::4]:
        assert not matcher._matcher.fit(a.structure, b.structure, skip_structure_reduction=True)
    assert any(len(a.structure) == len(b.structure) for a, b in turned_away), "the lattice criterion never acted"


def test_groups_equal_a_plain_greedy_pass(same_composition):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    brute, matcher = StructureMatcher(), Matcher(MatcherSettings())
    heads: list[int] = []
    expected = []
    structures = [c.to_structure() for c in same_composition]
    for k, structure in enumerate(structures):
        found = next((g for g, head in enumerate(heads) if brute.fit(structures[head], structure)), len(heads))
        if found == len(heads):
            heads.append(k)
        expected.append(found)
    assert matcher.greedy([matcher.reduce(c) for c in same_composition]) == expected
    assert 1 < len(heads) < len(structures)


def test_symmetry_is_no_criterion():
    """A slightly distorted perovskite has another space group, yet it is the same crystal to the matcher."""
    perovskite = Crystal.of(
        3.9 * np.eye(3), [38, 22, 8, 8, 8],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    )  # fmt: skip
    polar = Crystal.of(
        np.diag([3.9, 3.9, 4.0]), perovskite.numbers, perovskite.frac + [[0, 0, 0.02 * k] for k in range(5)]
    )
    matcher = Matcher(MatcherSettings())
    first, second = matcher.reduce(perovskite), matcher.reduce(polar)
    assert first is not None
    assert second is not None
    assert matcher.fit(first, second)
    assert 0 < matcher.rms(first, second) < 0.1


def test_answers_are_remembered(same_composition):
    matcher = Matcher(MatcherSettings())
    crystals = [matcher.reduce(c) for c in same_composition[:6]] * 20
    matcher.greedy(crystals)
    assert matcher.fits <= 6 * 6


def test_broken_crystals_cannot_be_compared():
    matcher = Matcher(MatcherSettings())
    overlapping = Crystal.of(4 * np.eye(3), [6, 6], [[0, 0, 0], [0.01, 0, 0]])
    flat = Crystal.of(np.diag([4.0, 4.0, 0.0]), [6], [[0, 0, 0]])
    assert matcher.reduce(None) is None
    assert matcher.reduce(overlapping) is None
    assert matcher.reduce(flat) is None
    assert matcher.greedy([None, None]) == [-1, -1]
