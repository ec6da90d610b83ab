"""The known crystal that each is most like."""

from __future__ import annotations

from crystalforge.evaluation.matching.reference import Reference
from crystalforge.screening.known import nearest
from tests.unit.screening.conftest import crystal_number


def test_many_at_once_have_the_answers_of_one_at_a_time():
    reference = Reference.from_crystals([crystal_number(k) for k in range(0, 80, 7)], [f"known-{k}" for k in range(12)])
    asked = [crystal_number(k) for k in (3, 0, 14, 60)]  # the second and third have a known formula
    together = nearest(reference, asked)
    assert together == [nearest(reference, [crystal])[0] for crystal in asked]
    assert [relative.kind if relative else None for relative in together] == [
        "similar",
        "polymorph",
        "polymorph",
        "similar",
    ]
    assert nearest(reference, []) == []
    assert nearest(Reference.from_crystals([], []), asked) == [None] * 4
