"""The definitions word for word, as slow as they are: what the fast code is held against, in the tests and by
`benchmarks/matching.py --verify`.

Every function takes plain crystals and asks pymatgen and SMACT pair by pair, assignment by assignment; nothing here
shares code with `matching`, `judging` or `validity`.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

from crystalforge.crystal import Crystal
from crystalforge.evaluation.protocols import MatcherSettings

MOST_ASSIGNMENTS = 300_000  # of oxidation states that are walked through for one composition


def brute_groups(crystals: Sequence[Crystal], settings: MatcherSettings | None = None) -> list[int]:
    """Row of the first crystal that each one equals, by StructureMatcher.fit on every pair in order; -1 for crystals
    with two sites nearer than 0.5 Å or no volume, which no definition compares."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(**(settings or MatcherSettings()).model_dump())
    structures = [crystal.to_structure() for crystal in crystals]
    heads: list[int] = []
    found = []
    for row, structure in enumerate(structures):
        if not structure_is_valid(crystals[row]):
            found.append(-1)
            continue
        head = next((h for h in heads if matcher.fit(structures[h], structure)), row)
        if head == row:
            heads.append(row)
        found.append(head)
    return found


def brute_novel(
    crystals: Sequence[Crystal], references: Sequence[Crystal], settings: MatcherSettings | None = None
) -> list[bool]:
    """Whether StructureMatcher.fit finds no equal among all references; False for crystals that are not compared."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(**(settings or MatcherSettings()).model_dump())
    known = [crystal.to_structure() for crystal in references if structure_is_valid(crystal)]
    return [
        structure_is_valid(crystal) and not any(matcher.fit(other, structure) for other in known)
        for crystal, structure in ((crystal, crystal.to_structure()) for crystal in crystals)
    ]


def structure_is_valid(crystal: Crystal) -> bool:
    """CDVAE's rule from pymatgen's distance matrix: all pairs at least 0.5 Å apart, at least 0.1 Å^3."""
    structure = crystal.to_structure()
    distances = structure.distance_matrix + np.diag(np.full(len(structure), math.inf))
    return bool(distances.min() >= 0.5 and structure.volume >= 0.1)


def composition_is_valid(crystal: Crystal) -> bool | None:
    """CDVAE's rule with SMACT's own tests: some assignment of oxidation states is neutral and passes Pauling's test.

    None when there are more than MOST_ASSIGNMENTS of them.
    """
    import smact
    from pymatgen.core.periodic_table import Element
    from smact.screening import pauling_test

    counts = Counter(Element.from_Z(int(z)).symbol for z in crystal.numbers)
    divisor = math.gcd(*counts.values())
    numbers = [count // divisor for count in counts.values()]
    if len(counts) == 1 or all(symbol in smact.metals for symbol in counts):
        return True
    try:
        elements = [smact.Element(symbol) for symbol in counts]
    except (KeyError, NameError):  # SMACT does not have the element, so no state of it is known
        return False
    states = [element.oxidation_states_smact14 or [] for element in elements]
    if math.prod(map(len, states)) > MOST_ASSIGNMENTS:
        return None
    strengths = [element.pauling_eneg for element in elements]
    for assignment in itertools.product(*states):
        neutral = smact.neutral_ratios(assignment, stoichs=[(n,) for n in numbers], threshold=max(numbers))
        if not neutral:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if None in strengths or pauling_test(assignment, strengths):
                    return True
        except TypeError:  # an unknown electronegativity cannot be compared: the definition lets it pass
            return True
    return False
